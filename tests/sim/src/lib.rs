//! Weft on a simulated network, in virtual time.
//!
//! The control planes and the proxies' control streams of three clusters run as they are shipped: gate, publisher,
//! store, registry, snapshots, push sessions, the federation link, `wait`, trust, `kept` views, gRPC over mutual TLS.
//! Only the time of day, chance and connections ([`process::world::World`]), and the disk below the store, are
//! simulated. A seed decides what operators and fate do; [`oracle`] judges every step.
//!
//! Not simulated: Git, the admin API, and the requests of applications.
//!
//! **Why not turmoil** (0.7): it runs every host in a runtime of its own and moves time in ticks, so that a minute of
//! ten hosts costs the same whether much happens or nothing, which at 1,000 seeds is minutes of processor time; here
//! one runtime jumps from event to event. Its sockets are types that the product would have to be compiled with, so
//! that what is tested is not what is shipped; here the product takes a [`process::world::World`] as an argument. And
//! it has neither clocks that are wrong nor disks that lose what was not synced.

#![cfg(feature = "virtual-time")]
#![allow(missing_docs)]

pub mod chance;
pub mod disk;
pub mod machine;
pub mod mesh;
pub mod network;
pub mod operator;
pub mod oracle;
pub mod repository;
pub mod sabotage;
pub mod servers;
pub mod trace;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chance::Chance;
use mesh::Mesh;
use sabotage::Sabotage;

/// A mesh without trouble is up after this time.
const BEGIN: Duration = Duration::from_secs(30);
/// After everything is healed all is well again within this time: a dead connection is noticed after 10 s, tried anew
/// after at most 2 s, twice where two ends notice one after the other.
const SETTLED: Duration = Duration::from_secs(40);
/// How often it is looked whether all is well.
const LOOK: Duration = Duration::from_millis(250);

/// How a simulation is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What is broken on purpose.
    pub sabotage: Option<Sabotage>,
}

/// What became of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was wrong, if something was.
    pub failure: Option<String>,
    /// What happened.
    pub trace: Vec<String>,
    /// How often each invariant was judged.
    pub judged: BTreeMap<&'static str, u64>,
    /// How long it took in virtual time.
    pub simulated: Duration,
}

/// Runs one seed from beginning to end, on this thread.
pub fn run(seed: u64, options: Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(simulate(seed, options))
}

async fn simulate(seed: u64, options: Options) -> Outcome {
    let mut chance = Chance::new(seed);
    let dir = tempfile::Builder::new().prefix("weft-sim-").tempdir_in(memory()).expect("a directory");
    let mesh = Mesh::new(&mut chance, dir.path(), &options);
    mesh.start();
    settle(&mesh, BEGIN, "begin").await;
    operator::drive(&mesh, &mut chance, options.sabotage).await;
    mesh.trace.line("all is healed");
    mesh.heal();
    settle(&mesh, SETTLED, "liveness").await;
    if !mesh.has_failed() {
        let last = mesh.repository.borrow().last().clone();
        if let Err(why) = mesh.wait(last).await {
            mesh.oracle.borrow_mut().fail("liveness", format!("`wait` does not see that all is well: {why}"));
        }
    }
    let oracle = mesh.oracle.borrow();
    Outcome {
        seed,
        failure: oracle.failure().map(ToOwned::to_owned),
        trace: mesh.trace.lines(),
        judged: oracle.judged.clone(),
        simulated: mesh.network.elapsed(),
    }
}

/// Until all is well; at most for `bound`.
async fn settle(mesh: &std::rc::Rc<Mesh>, bound: Duration, what: &str) {
    let end = tokio::time::Instant::now() + bound;
    loop {
        let unsettled = mesh.unsettled();
        if unsettled.is_empty() || mesh.has_failed() {
            return;
        }
        if tokio::time::Instant::now() > end {
            return mesh.oracle.borrow_mut().fail(what, unsettled.join("; "));
        }
        // What was on its way to an end when all was healed is started here.
        if what == "liveness" {
            mesh.heal();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where files cost no disk: state is synced thousands of times in a simulation.
fn memory() -> std::path::PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}

/// Runs `seeds`, each in a process of its own (`command`), since what one leaves behind would be chance for the next;
/// so many at a time as `processes`. Gives what each invariant was judged on, in sum, and calls `seen` with each.
pub fn many(
    command: &Path,
    seeds: Range<u64>,
    processes: usize,
    options: Options,
    seen: impl Fn(u64, Option<&str>) + Sync,
) -> BTreeMap<String, u64> {
    let next = AtomicU64::new(seeds.start);
    let judged = Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..processes {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (failure, counts) = apart(command, seed, options);
                    let mut all = judged.lock().unwrap_or_else(PoisonError::into_inner);
                    counts.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count);
                    drop(all);
                    seen(seed, failure.as_deref());
                }
            });
        }
    });
    judged.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One seed in a process of its own, which says what failed, and how often each invariant was judged.
fn apart(command: &Path, seed: u64, options: Options) -> (Option<String>, BTreeMap<String, u64>) {
    let mut child = Command::new(command);
    child.args(["--brief", "--seed", &seed.to_string()]);
    if let Some(sabotage) = options.sabotage {
        child.args(["--sabotage", &sabotage.name()]);
    }
    let output = match child.output() {
        Ok(output) => output,
        Err(error) => return (Some(format!("it did not start: {error}")), BTreeMap::new()),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let mut counts = BTreeMap::new();
    let mut failure = (!output.status.success())
        .then(|| format!("it ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    for line in said.lines() {
        match line.split_once(' ') {
            Some(("fails", what)) => failure = Some(what.to_owned()),
            Some((name, count)) => drop(counts.insert(name.to_owned(), count.parse().unwrap_or_default())),
            None => {}
        }
    }
    (failure, counts)
}
