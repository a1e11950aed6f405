//! The passthrough by server name: bulk, short connections, idle ones. Weft's is an east-west gateway in front of one
//! exported workload, which a swarm of one has enrolled; the floor is [`crate::splice`], which reads no ClientHello.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;

use crate::{
    Bench, Part,
    bytes::{self, Client},
    compare::{Comparison, Load, Unit, Way, rounds},
    machine::{Core, Running, pinned},
    mesh::{EAST_WEST, Member, Mesh, Role},
    peers::{Site, Task},
    swarm::{Stand, Swarm},
};

/// `127.BLOCK.*` is ours.
const BLOCK: u8 = 131;
/// As the mesh calls the exported service's port.
const NAME: &str = "8080.bytes.bench.svc.weft.internal";
const FLOOR: &str = "bare splice";
/// Wanted, if the limit of open files allows them.
const IDLE: usize = 10_000;
const START: Duration = Duration::from_secs(20);

/// What connections cost that only stand.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// How many.
    pub connections: usize,
    /// By whose passthrough: resident memory before them and with them, in KiB.
    pub rss_kib: Vec<(&'static str, u64, u64)>,
}

/// Measures those parts that are wanted.
pub fn measure(bench: &Bench, dir: &Path) -> anyhow::Result<(Vec<Comparison>, Option<Idle>)> {
    fs::create_dir_all(dir)?;
    // The peers inherit it, and not all of them raise it themselves.
    let files = process::limits::raise_open_files() as usize;
    let site = Site { dir, block: BLOCK, name: NAME };
    let at = |host, port| SocketAddr::new(Ipv4Addr::new(127, BLOCK, 0, host).into(), port);
    let to = at(20, 9000);
    let client = Client::of(to, NAME)?;
    let texts = [
        ("mesh.yaml", include_str!("../../bench/weft/mesh.yaml")),
        ("passthrough.yaml", include_str!("../../bench/weft/passthrough.yaml")),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let mesh = Mesh::start(&bench.programs, dir, BLOCK, Core::Load, &texts)?;
    let stand = Stand { id: "bytes-1".into(), account: "bytes".into(), address: to };
    let _workload = Swarm::start(&mesh, &dir.join("swarm"), vec![stand])?;
    let mut entries = vec![(FLOOR, splice(dir, at(30, 8080), to)?, at(30, 8080))];
    for peer in bench.peers.all() {
        let (process, listens) = bench.peers.start(&site, peer, Task::Passthrough, to)?;
        entries.push((peer.name(), process, listens));
    }
    let gateway = mesh.proxy(&Member::gateway("eastwest-1", "eastwest", 2, Role::EastWest))?;
    mesh.effective()?;
    entries.push(("weft", gateway, at(2, EAST_WEST)));
    for (name, _, listens) in &entries {
        client.check(*listens).with_context(|| format!("{name} does not lead to the server"))?;
    }

    let ways = |load: fn(&Client, SocketAddr, u32) -> anyhow::Result<Load>| -> Vec<Way<'_>> {
        let client = &client;
        entries
            .iter()
            .map(|(name, process, listens)| {
                let load = move |seconds| load(client, *listens, seconds);
                Way { name, processes: vec![process], load: Box::new(load) }
            })
            .collect()
    };
    let mut all = Vec::new();
    if bench.wants(Part::Bulk) {
        let note = format!("{} connections that bring as much as they can", bytes::BULK_CONNECTIONS);
        all.push(rounds(("passthrough, bulk", Unit::Gigabyte, note), &ways(Client::bulk), bench.effort)?);
    }
    if bench.wants(Part::Short) {
        let note = format!(
            "one connection for each {} bytes, {} at a time",
            bytes::SHORT_BYTES,
            bytes::SHORT_CONNECTIONS
        );
        all.push(rounds(("passthrough, short", Unit::Connection, note), &ways(Client::short), bench.effort)?);
    }
    let idle = bench.wants(Part::Idle).then(|| idle(&client, &entries, files)).transpose()?;
    Ok((all, idle))
}

fn splice(dir: &Path, listen: SocketAddr, to: SocketAddr) -> anyhow::Result<Running> {
    let mut command = pinned(Core::Proxies, std::env::current_exe()?);
    command.arg("splice").arg(listen.to_string()).arg(to.to_string());
    let mut running = Running::start("bare splice", command, &dir.join("splice.log"))?;
    running.wait(START, || TcpStream::connect(listen).is_ok())?;
    Ok(running)
}

fn idle(
    client: &Client,
    entries: &[(&'static str, Running, SocketAddr)],
    files: usize,
) -> anyhow::Result<Idle> {
    // Two for each connection in the proxy, and two for each in this process; the proxies need some for themselves.
    let connections = IDLE.min(files.saturating_sub(1000) / 2);
    let one = |(name, process, listens): &(&'static str, Running, SocketAddr)| {
        let before = process.rss_kib()?;
        let held = client.idle(*listens, BLOCK, connections).with_context(|| format!("{name}, idle"))?;
        let after = process.rss_kib()?;
        drop(held);
        Ok((*name, before, after))
    };
    // The bare one has pipes for each connection, whose descriptors would not suffice.
    let proxies = entries.iter().filter(|entry| entry.0 != FLOOR);
    Ok(Idle { connections, rss_kib: proxies.map(one).collect::<anyhow::Result<_>>()? })
}
