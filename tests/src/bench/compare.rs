//! CPU time for each request, several ways in turn, round by round.
//!
//! The figure is the user and system time of the proxies' processes during a run, divided by the requests that the
//! run answered. Each round takes every way once, each round beginning with another one.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::{http, load, machine::Running, nginx::BODY};

/// Seconds on each way before the first round.
const WARM_UP_SECONDS: u32 = 1;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds.
    pub rounds: u32,
    /// Seconds of load on each way in each of them.
    pub seconds: u32,
}

/// One way to the backend.
pub struct Way<'a> {
    /// As people call it.
    pub name: &'static str,
    /// Where the load goes.
    pub to: SocketAddr,
    /// The `Host` that it names.
    pub host: &'static str,
    /// Whose CPU time it is.
    pub processes: Vec<&'a Running>,
}

/// What one way cost.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// As people call it.
    pub way: &'static str,
    /// Microseconds of CPU for each request, round by round.
    pub cpu_micros: Vec<f64>,
    /// Requests a second, round by round. The load's core bounds it, so it is no measure of the proxy.
    pub per_second: Vec<f64>,
    /// Resident memory of its processes under load, after the last round.
    pub rss_kib: u64,
}

/// Takes every way in every round.
pub fn rounds(ways: &[Way<'_>], effort: Effort) -> anyhow::Result<Vec<Series>> {
    for way in ways {
        answers(way)?;
        one(way, WARM_UP_SECONDS)?;
    }
    let empty =
        |way: &Way<'_>| Series { way: way.name, cpu_micros: Vec::new(), per_second: Vec::new(), rss_kib: 0 };
    let mut all: Vec<Series> = ways.iter().map(empty).collect();
    for round in 0..effort.rounds as usize {
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            let (cpu, rate) = one(&ways[index], effort.seconds)?;
            eprintln!("round {}: {:<24} {cpu:>7.2} µs  {rate:>8.0}/s", round + 1, ways[index].name);
            all[index].cpu_micros.push(cpu);
            all[index].per_second.push(rate);
        }
    }
    for (way, series) in ways.iter().zip(&mut all) {
        series.rss_kib =
            way.processes.iter().try_fold(0, |sum, process| anyhow::Ok(sum + process.rss_kib()?))?;
    }
    Ok(all)
}

fn one(way: &Way<'_>, seconds: u32) -> anyhow::Result<(f64, f64)> {
    let cpu = || way.processes.iter().try_fold(Duration::ZERO, |sum, one| anyhow::Ok(sum + one.cpu()?));
    let before = cpu()?;
    let load = load::run(way.to, way.host, seconds).with_context(|| way.name)?;
    let spent = cpu()?.saturating_sub(before);
    ensure!(load.requests > 0, "{} answered nothing", way.name);
    Ok((spent.as_secs_f64() * 1e6 / load.requests as f64, load.per_second))
}

/// What is measured must be the real thing.
fn answers(way: &Way<'_>) -> anyhow::Result<()> {
    let headers: Vec<_> = [("host", way.host)].into_iter().chain(load::HEADERS).collect();
    let answer = http::call(way.to, "GET", "/item", &headers, "")?;
    let len = answer.body.len();
    ensure!(answer.status == 200 && len == BODY, "{} answers {} with {len} bytes", way.name, answer.status);
    Ok(())
}
