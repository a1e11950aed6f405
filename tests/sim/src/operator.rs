//! What operators and fate do to a mesh, drawn from the seed.

use std::{net::IpAddr, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use api::identity::Bundle;

use crate::{
    chance::Chance,
    machine::short,
    mesh::{CLUSTERS, Mesh},
    network::End,
    repository::Change,
    sabotage::{self, Sabotage},
    servers::Servers,
};

/// Steps of one simulation.
const STEPS: u64 = 30;
/// Who ends by its own word, or with its disk, does so within this time.
const ENDING: Duration = Duration::from_secs(2);
/// Clocks are wrong by so much at most: certificates allow for a minute between two.
const SKEW_MS: u64 = 25_000;

/// Drives `mesh` through its steps, or to the first of them after which something is wrong. Nobody ends any more when
/// it is through.
pub async fn drive(mesh: &Rc<Mesh>, chance: &mut Chance, broken: Option<Sabotage>) {
    let steps = chance.between(STEPS / 2, STEPS);
    for _ in 0..steps {
        let pause = if chance.one_in(3) { chance.between(2_000, 8_000) } else { chance.between(5, 1_500) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if mesh.has_failed() {
            return;
        }
        step(mesh, chance);
        sabotage::strike(broken, mesh, chance);
    }
    tokio::time::sleep(ENDING).await;
}

fn step(mesh: &Rc<Mesh>, chance: &mut Chance) {
    if let Some(servers) = mesh.servers.clone()
        && chance.one_in(8)
    {
        return disturb(mesh, &servers, chance);
    }
    match chance.between(0, 31) {
        0..=6 => commit(mesh, chance),
        7..=9 => crash_plane(mesh, chance),
        10..=12 => crash_sidecar(mesh, chance),
        13..=17 => part(mesh, chance),
        18..=19 => slow(mesh, chance),
        20 => cut(mesh, chance),
        21..=22 => skew(mesh, chance),
        23 => fill(mesh, chance),
        24 => stop(mesh, chance),
        25 => application(mesh, chance),
        26 => deregister(mesh, chance),
        27 => foreign_root(mesh),
        28 => remove(mesh, chance),
        29 => fill_sidecar(mesh, chance),
        _ => commit(mesh, chance),
    }
}

/// Commits, and mostly waits for it.
fn commit(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let change = chance.pick(&[Change::Permission, Change::Permission, Change::Marks, Change::Nothing]);
    publish(mesh, change);
    if !chance.one_in(4) {
        let commit = mesh.repository.borrow().last().clone();
        let mesh = mesh.clone();
        tokio::task::spawn_local(async move { mesh.wait(commit).await });
    }
}

fn publish(mesh: &Mesh, change: Change<'_>) {
    let commit = mesh.repository.borrow_mut().commit(change);
    mesh.trace.line(format_args!(
        "commit {}: {change:?}, mark {}, {}",
        short(commit.id.as_str()),
        commit.mark,
        if commit.denies { "denies" } else { "allows" }
    ));
}

fn any<'a, T>(of: &'a [T], chance: &mut Chance) -> &'a T {
    &of[chance.between(0, of.len() as u64) as usize]
}

fn end(chance: &mut Chance) -> End {
    chance.pick(&[End::Killed, End::Unplugged])
}

/// How long something stays away: often less, sometimes more than it takes to notice.
fn absence(chance: &mut Chance) -> Duration {
    let (low, high) = chance.pick(&[(10, 300), (300, 4_000), (4_000, 20_000)]);
    Duration::from_millis(chance.between(low, high))
}

fn crash_plane(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let plane = any(mesh.planes(), chance).clone();
    if !plane.is_on() {
        return;
    }
    let (end, away) = (end(chance), absence(chance));
    let torn = chance.one_in(2).then(|| chance.between(0, 12));
    if let Some(writes) = torn {
        plane.disk.fail_after(writes);
    }
    let warning = if torn.is_some() { ENDING.mul_f64(chance.unit()) } else { Duration::ZERO };
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(warning).await;
        mesh.trace.line(format_args!("control plane {} is {end:?} for {away:?}, torn {torn:?}", plane.name));
        plane.kill(&mesh, end);
        tokio::time::sleep(away).await;
        if !plane.is_on() {
            mesh.trace.line(format_args!("control plane {} starts", plane.name));
            plane.start(&mesh);
        }
    });
}

fn crash_sidecar(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let sidecar = any(mesh.sidecars(), chance).clone();
    if !sidecar.is_on() {
        return;
    }
    let (end, away) = (end(chance), absence(chance));
    mesh.trace.line(format_args!("proxy {} is {end:?} for {away:?}", sidecar.workload));
    sidecar.kill(mesh, end);
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(away).await;
        if !sidecar.is_on() {
            sidecar.start(&mesh);
            let instance = sidecar.instance().unwrap_or_default();
            mesh.trace.line(format_args!("proxy {} starts as {instance}", sidecar.workload));
        }
    });
}

/// Two machines that talk with each other.
fn pair(mesh: &Mesh, chance: &mut Chance) -> (IpAddr, IpAddr) {
    let host = |cluster: &str, chance: &mut Chance| {
        let hosts: Vec<_> = mesh.hosts(cluster).map(|host| host.ip).collect();
        *any(&hosts, chance)
    };
    let [primary, remotes @ ..] = CLUSTERS;
    match &mesh.servers {
        Some(servers) if chance.one_in(3) => {
            let theirs = mesh.planes().iter().filter(|host| host.servers.is_some());
            let theirs: Vec<_> = theirs.map(|host| host.ip).collect();
            return (servers.ip, *any(&theirs, chance));
        }
        _ if chance.one_in(2) => {
            let remote = chance.pick(&remotes);
            return (host(primary, chance), host(remote, chance));
        }
        _ => {}
    }
    let sidecar = any(mesh.sidecars(), chance);
    (host(&sidecar.cluster, chance), sidecar.ip)
}

fn part(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let (one, other) = pair(mesh, chance);
    let ways = chance.pick(&[[true, true], [true, true], [true, false], [false, true]]);
    let lasts = absence(chance);
    mesh.trace.line(format_args!("{one} and {other} are parted for {lasts:?}: {ways:?}"));
    let block = move |mesh: &Mesh, blocked| {
        if ways[0] {
            mesh.network.block(one, other, blocked);
        }
        if ways[1] {
            mesh.network.block(other, one, blocked);
        }
    };
    block(mesh, true);
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(lasts).await;
        block(&mesh, false);
        mesh.trace.line(format_args!("{one} and {other} see each other"));
    });
}

fn slow(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let (one, other) = pair(mesh, chance);
    let (more, lasts) = (Duration::from_millis(chance.between(20, 3_000)), absence(chance));
    mesh.trace.line(format_args!("{one} and {other} are {more:?} apart for {lasts:?}"));
    let both = move |mesh: &Mesh, more| {
        mesh.network.slow(one, other, more);
        mesh.network.slow(other, one, more);
    };
    both(mesh, more);
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(lasts).await;
        both(&mesh, Duration::ZERO);
    });
}

fn cut(mesh: &Mesh, chance: &mut Chance) {
    let (one, other) = pair(mesh, chance);
    mesh.trace.line(format_args!("what connects {one} and {other} is reset"));
    mesh.network.cut(one, other);
}

/// Sets a clock, of whoever is on or off.
fn skew(mesh: &Mesh, chance: &mut Chance) {
    let skew_ms = chance.between(0, 2 * SKEW_MS) as i64 - SKEW_MS as i64;
    let ip = if chance.one_in(2) { any(mesh.planes(), chance).ip } else { any(mesh.sidecars(), chance).ip };
    mesh.trace.line(format_args!("the clock of {ip} is now {skew_ms} ms wrong"));
    mesh.network.skew(ip, skew_ms);
}

fn fill(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let (plane, lasts) = (any(mesh.planes(), chance), absence(chance));
    let (what, full) = match &plane.servers {
        Some(servers) if chance.one_in(2) => ("the etcd", servers.full.clone()),
        _ => ("the disk", plane.disk.full.clone()),
    };
    mesh.trace.line(format_args!("{what} of {} is full for {lasts:?}", plane.name));
    full.store(true, Relaxed);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(lasts).await;
        full.store(false, Relaxed);
    });
}

fn fill_sidecar(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let (sidecar, lasts) = (any(mesh.sidecars(), chance).clone(), absence(chance));
    mesh.trace.line(format_args!("the disk of {} is full for {lasts:?}", sidecar.workload));
    sidecar.fill(mesh, lasts);
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(lasts).await;
        if !sidecar.is_full(&mesh) {
            sidecar.empty(&mesh);
        }
    });
}

/// Ends the servers that a cluster's control planes share, or takes their past away.
fn disturb(mesh: &Rc<Mesh>, servers: &Rc<Servers>, chance: &mut Chance) {
    if chance.one_in(3) {
        mesh.trace.line("the servers are compacted");
        return servers.compact();
    }
    if !servers.is_on() {
        return;
    }
    let (end, away) = (end(chance), absence(chance));
    mesh.trace.line(format_args!("the servers are {end:?} for {away:?}"));
    servers.kill(mesh, end);
    let (mesh, servers) = (mesh.clone(), servers.clone());
    tokio::task::spawn_local(async move {
        tokio::time::sleep(away).await;
        if !servers.is_on() {
            mesh.trace.line("the servers start");
            servers.start(&mesh);
        }
    });
}

fn stop(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let sidecar = any(mesh.sidecars(), chance).clone();
    let away = absence(chance);
    mesh.trace.line(format_args!("proxy {} says farewell for {away:?}", sidecar.workload));
    let mesh = mesh.clone();
    tokio::task::spawn_local(async move {
        sidecar.stop(&mesh).await;
        tokio::time::sleep(away).await;
        if !sidecar.is_on() {
            sidecar.start(&mesh);
        }
    });
}

fn application(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let sidecar = any(mesh.sidecars(), chance).clone();
    let away = absence(chance);
    mesh.trace.line(format_args!("the application of {} is away for {away:?}", sidecar.workload));
    sidecar.app_up.set(false);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(away).await;
        sidecar.app_up.set(true);
    });
}

fn deregister(mesh: &Rc<Mesh>, chance: &mut Chance) {
    let sidecar = any(mesh.sidecars(), chance).clone();
    let Some(plane) = mesh.serving(&sidecar.cluster) else { return };
    let instances = plane.registry.instances_of(&sidecar.workload.parse().expect("a workload"));
    mesh.trace.line(format_args!("{} is deregistered: {instances:?}", sidecar.workload));
    instances.iter().for_each(|instance| mesh.oracle.borrow_mut().dismiss(instance.as_str()));
    tokio::task::spawn_local(async move {
        // An operator would be told of a failure, and try again.
        let _ = plane.registry.forget(instances).await;
    });
}

/// Adds the root of another mesh to what is trusted, or takes it away again.
fn foreign_root(mesh: &Rc<Mesh>) {
    let Some(plane) = mesh.primary() else { return };
    let held: Bundle = (*plane.authority.identity().bundle()).clone();
    let foreign = &mesh.foreign.0;
    let mut roots = held.roots.clone();
    let before = roots.len();
    roots.retain(|root| root.hash() != foreign.hash());
    if roots.len() == before {
        roots.insert(0, foreign.clone());
    }
    mesh.trace.line(format_args!("{} roots are trusted", roots.len()));
    let next = Bundle { sequence: held.sequence + 1, roots, ..held };
    let shared = mesh.hosts(CLUSTERS[0]).any(|host| host.servers.is_some());
    tokio::task::spawn_local(async move {
        // As it is published: told once whoever may take over knows it.
        let kept =
            plane.authority.trust(next).is_ok() && plane.vault.keep().await.is_ok_and(|kept| kept == shared);
        if kept {
            plane.tell_bundle();
        }
    });
}

/// Takes a remote out of the mesh, for good; in one of three simulations at most.
fn remove(mesh: &Rc<Mesh>, chance: &mut Chance) {
    if chance.one_in(3) {
        let [_, remotes @ ..] = CLUSTERS;
        let name = chance.pick(&remotes);
        publish(mesh, Change::Removal(name));
    } else {
        commit(mesh, chance);
    }
}
