//! `weft-bench`: what a request, a commit and a large mesh cost, beside nginx where nginx does the same.
//!
//! The way of each number is in the module that takes it. Ratios of one interleaved run are what counts: absolute
//! figures drift with the machine. The proxies have core 0, the load and the backend core 1. Nothing else heavy may
//! run meanwhile; a busy machine is told of, since its numbers say little.

#[path = "../bench/commit.rs"]
mod commit;
#[path = "../bench/compare.rs"]
mod compare;
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
#[path = "../bench/nginx.rs"]
mod nginx;
#[path = "../bench/report.rs"]
mod report;
#[path = "../bench/ways.rs"]
mod ways;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};

use crate::{machine::Programs, report::Report};

/// Measures Weft beside nginx: CPU per request, commit → effective, memory
///
/// Needs Debian's nginx, wrk, git and openssl, two cores, and release builds of both binaries.
#[derive(Parser)]
#[command(name = "weft-bench")]
struct Arguments {
    /// Interleaved rounds of the plain hop and the pair
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of load on each way in each round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Commits whose way to every proxy is timed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    commits: u32,
    /// Only this, which may be said more than once
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Write all results there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where `weft` and `weft-proxy` lie; beside this program unless told
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One plaintext hop.
    Plain,
    /// Two proxies with mutual TLS between.
    Mtls,
    /// From `git commit` until every proxy obeys.
    Commit,
    /// Memory of a sidecar in a mesh of 1,000 services.
    Rss,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let programs = programs(arguments.programs.as_deref())?;
    machine::need_tools()?;
    let busy = machine::load_average()?;
    if busy > machine::QUIET {
        eprintln!("weft-bench: the load average is {busy}; numbers of a busy machine say little");
    }

    let scratch = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
    let mut report = Report::new(&programs, busy)?;
    if wanted(Part::Plain) || wanted(Part::Mtls) {
        let compared = (wanted(Part::Plain), wanted(Part::Mtls));
        let effort = compare::Effort { rounds: arguments.rounds, seconds: arguments.seconds };
        report.compared = Some(ways::measure(&programs, &scratch.path().join("ways"), compared, effort)?);
    }
    if wanted(Part::Rss) {
        report.memory = Some(memory::measure(&programs, &scratch.path().join("memory"))?);
    }
    if wanted(Part::Commit) {
        report.commit = Some(commit::measure(&programs, &scratch.path().join("commit"), arguments.commits)?);
    }
    print!("{}", report.text());
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
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
