//! What one unit of work costs, several ways in turn, round by round.
//!
//! The cost is the user and system time of the proxies' processes during a run, divided by what the run got done. Each
//! round takes every way once, each round beginning with another one.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::machine::Running;

/// Seconds on each way before the first round.
const WARM_UP_SECONDS: u32 = 1;

/// The way that has no proxy: what is spent anyway.
pub const ALONE: &str = "the backend alone";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds.
    pub rounds: u32,
    /// Seconds of load on each way in each of them.
    pub seconds: u32,
}

/// One way, and what loads it.
pub struct Way<'a> {
    /// Whose it is.
    pub name: &'static str,
    /// Whose CPU time it is.
    pub processes: Vec<&'a Running>,
    /// A run of so many seconds.
    pub load: Box<dyn Fn(u32) -> anyhow::Result<Load> + 'a>,
}

/// What a run got done.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Requests, connections, gigabytes.
    pub units: f64,
    /// Of them, each second.
    pub per_second: f64,
    /// How long each took, where that was asked for.
    pub latency: Option<Latency>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50: f64,
    /// All but one of a hundred.
    pub p99: f64,
    /// All but one of a thousand.
    pub p999: f64,
}

/// What is compared.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// In a few words, which name it.
    pub title: &'static str,
    /// How it was loaded, and what to know of the ways.
    pub note: String,
    /// What a unit is.
    pub unit: Unit,
    /// All ways.
    pub series: Vec<Series>,
}

/// Of cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// CPU microseconds for each request.
    Request,
    /// CPU microseconds for each connection.
    Connection,
    /// CPU milliseconds for each gigabyte.
    Gigabyte,
}

/// What one way cost.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// Whose it is.
    pub way: &'static str,
    /// CPU, round by round.
    pub cost: Vec<f64>,
    /// Units a second, round by round. Mostly the load's core bounds it, so it is no measure of the proxy.
    pub per_second: Vec<f64>,
    /// Round by round, where it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<Latency>,
    /// Resident memory of its processes after the last round, whose load has ended by then.
    pub rss_kib: u64,
}

impl Load {
    /// So much in such a time.
    pub fn of(units: f64, took: Duration) -> Self {
        Load { units, per_second: units / took.as_secs_f64(), latency: None }
    }
}

impl Unit {
    /// What a cost of one is called.
    pub fn cost(self) -> &'static str {
        match self {
            Unit::Request => "µs a request",
            Unit::Connection => "µs a connection",
            Unit::Gigabyte => "ms a GB",
        }
    }

    /// What is done so many times a second.
    pub fn rate(self) -> &'static str {
        match self {
            Unit::Request => "requests/s",
            Unit::Connection => "connections/s",
            Unit::Gigabyte => "GB/s",
        }
    }

    fn of(self, cpu: Duration) -> f64 {
        match self {
            Unit::Request | Unit::Connection => cpu.as_secs_f64() * 1e6,
            Unit::Gigabyte => cpu.as_secs_f64() * 1e3,
        }
    }
}

/// Takes every way in every round.
pub fn rounds(
    (title, unit, note): (&'static str, Unit, String),
    ways: &[Way<'_>],
    effort: Effort,
) -> anyhow::Result<Comparison> {
    for way in ways {
        one(way, unit, WARM_UP_SECONDS)?;
    }
    let empty = |way: &Way<'_>| Series {
        way: way.name,
        cost: Vec::new(),
        per_second: Vec::new(),
        latency: Vec::new(),
        rss_kib: 0,
    };
    let mut series: Vec<Series> = ways.iter().map(empty).collect();
    for round in 0..effort.rounds as usize {
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            let (cost, load) = one(&ways[index], unit, effort.seconds)?;
            eprintln!("{title}, round {}: {:<16} {cost:>8.2} {}", round + 1, ways[index].name, unit.cost());
            series[index].cost.push(cost);
            series[index].per_second.push(load.per_second);
            series[index].latency.extend(load.latency);
        }
    }
    for (way, series) in ways.iter().zip(&mut series) {
        series.rss_kib =
            way.processes.iter().try_fold(0, |sum, process| anyhow::Ok(sum + process.rss_kib()?))?;
    }
    Ok(Comparison { title, note, unit, series })
}

fn one(way: &Way<'_>, unit: Unit, seconds: u32) -> anyhow::Result<(f64, Load)> {
    let cpu = || way.processes.iter().try_fold(Duration::ZERO, |sum, one| anyhow::Ok(sum + one.cpu()?));
    let before = cpu()?;
    let load = (way.load)(seconds).with_context(|| format!("{} under load", way.name))?;
    let spent = cpu()?.saturating_sub(before);
    ensure!(load.units > 0.0, "{} got nothing done", way.name);
    Ok((unit.of(spent) / load.units, load))
}
