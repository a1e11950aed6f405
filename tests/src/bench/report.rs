//! What came out: tables for people, in the terminal as in `docs/benchmarks.md`, and JSON for machines.

use std::{fmt::Write, path::Path, process::Command};

use anyhow::Context;
use serde::Serialize;
use weft_tests::harness::{
    document,
    machine::{self, QUIET},
};

use crate::{
    Bench,
    commit::Commits,
    compare::{ALONE, Comparison, Latency, Series},
    machine::output,
    memory::Memory,
    pass::Idle,
    picture,
};

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    command: String,
    machine: String,
    load_average: f64,
    weft: String,
    peers: Vec<String>,
    /// Peers that are not installed, so that nothing is known beside them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    rounds: u32,
    seconds: u32,
    /// CPU for each unit.
    pub compared: Vec<Comparison>,
    /// Connections that only stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// A sidecar's memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// Commit → effective.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<Commits>,
}

impl Report {
    /// Of this run, with nothing measured yet.
    pub fn new(bench: &Bench, load_average: f64) -> anyhow::Result<Self> {
        Ok(Report {
            command: document::words().join(" "),
            machine: machine::described()?,
            load_average,
            weft: output(Command::new(&bench.programs.weft).arg("--version"))?.trim().to_owned(),
            peers: bench.peers.versions()?,
            missing: bench.peers.missing(),
            rounds: bench.effort.rounds,
            seconds: bench.effort.seconds,
            compared: Vec::new(),
            idle: None,
            memory: Vec::new(),
            commits: Vec::new(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let Report { command, machine, load_average, weft, peers, missing, rounds, seconds, .. } = self;
        let mut text = format!(
            "`weft-bench {command}` on {machine}, load average {load_average} at the start; {weft}; {}. \
             {rounds} rounds of {seconds} s.{}\n",
            peers.join("; "),
            if *load_average > QUIET { " **The machine was not quiet.**" } else { "" },
        );
        if !missing.is_empty() {
            let _ = writeln!(text, "\n**Not all peers take part**: {}.", missing.join("; "));
        }
        self.compared.iter().for_each(|one| text.push_str(&compared(one)));
        self.idle.iter().for_each(|idle| text.push_str(&self::idle(idle)));
        if !self.memory.is_empty() {
            text.push_str(&memory(&self.memory));
        }
        if !self.commits.is_empty() {
            text.push_str(&commits(&self.commits));
        }
        text
    }

    /// Puts the tables between the marks of `document`, and the picture beside it.
    pub fn write_into(&self, document: &Path) -> anyhow::Result<()> {
        let picture = document.with_extension("svg");
        let name = picture.file_name().context("the document has no name")?.to_string_lossy().into_owned();
        let generated =
            format!("\n![CPU for each unit of work, beside the peers]({name})\n\n{}\n", self.text());
        document::write_between_marks(document, &generated)?;
        std::fs::write(&picture, picture::draw(&self.compared))?;
        Ok(())
    }
}

fn compared(comparison: &Comparison) -> String {
    let Comparison { title, note, unit, series } = comparison;
    let mut text = format!("\n### {title}\n\nCPU (user + system) of the proxies; {note}.\n\n");
    let latency = series.iter().any(|one| !one.latency.is_empty());
    let (more, dashes) =
        if latency { (" p50 ms | p99 ms | p99.9 ms |", "---:|---:|---:|") } else { ("", "") };
    let _ = writeln!(
        text,
        "| | median, {} | least | {} | RSS MB |{more} weft / it, by round |\n|---|---:|---:|---:|---:|{dashes}---|",
        unit.cost(),
        unit.rate(),
    );
    for one in series {
        let Series { way, cost, per_second, latency, rss_kib } = one;
        let _ = write!(
            text,
            "| {way} | {} | {} | {} | {} |",
            number(quantile(cost, 0.5)),
            number(quantile(cost, 0.0)),
            number(quantile(per_second, 0.5)),
            mb(*rss_kib)
        );
        if !latency.is_empty() {
            let of = |part: fn(&Latency) -> f64| quantile(&latency.iter().map(part).collect::<Vec<_>>(), 0.5);
            let [p50, p99, p999] = [of(|one| one.p50), of(|one| one.p99), of(|one| one.p999)];
            let _ = write!(text, " {p50:.2} | {p99:.2} | {p999:.2} |");
        }
        let _ = writeln!(text, " {} |", ratio(series, one));
    }
    text
}

/// How many times this one's cost Weft's is: the median in bold, and round by round.
fn ratio(series: &[Series], theirs: &Series) -> String {
    let ours = series.iter().find(|one| one.way == "weft");
    let compared = ours.filter(|ours| ours.way != theirs.way && theirs.way != ALONE);
    let Some(ours) = compared else { return String::new() };
    let ratios: Vec<f64> = ours.cost.iter().zip(&theirs.cost).map(|(ours, theirs)| ours / theirs).collect();
    let each: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    format!("**{:.2}** ({})", quantile(&ratios, 0.5), each.join(" "))
}

fn idle(Idle { connections, rss_kib }: &Idle) -> String {
    let mut text = format!(
        "\n### idle connections\n\nResident memory of a passthrough, before and with {connections} connections that have \
         been used once; not the kernel's part, which is the same for all.\n\n\
         | | before, MB | with, MB | KiB a connection |\n|---|---:|---:|---:|\n"
    );
    for (way, before, after) in rss_kib {
        let each = after.saturating_sub(*before) as f64 / *connections as f64;
        let _ = writeln!(text, "| {way} | {} | {} | {each:.2} |", mb(*before), mb(*after));
    }
    text
}

fn memory(all: &[Memory]) -> String {
    let mut text = "\n### sidecar memory\n\nResident, in a mesh of so many services of which its application calls 10. \
                    The larger part is the program's text.\n\n\
                    | services | idle, MB | after its calls, MB | of it its own, MB | at most, MB |\n|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for Memory { services, idle_kib, rss_kib, anonymous_kib, peak_kib, .. } in all {
        let [idle, rss, own, peak] = [idle_kib, rss_kib, anonymous_kib, peak_kib].map(|kib| mb(*kib));
        let _ = writeln!(text, "| {services} | {idle} | {rss} | {own} | {peak} |");
    }
    text
}

fn commits(all: &[Commits]) -> String {
    let mut text = "\n### commit → effective\n\nFrom the return of `git commit` until every proxy obeys it.\n\n\
                    | proxies | clusters | commits | p50 ms | max ms | least ms | all up in ms | control plane, MB |\n\
                    |---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for Commits { proxies, clusters, start_millis, control_plane_kib, millis } in all {
        let memory = control_plane_kib.map_or("two".to_owned(), mb);
        let [half, most, least] = [0.5, 1.0, 0.0].map(|share| quantile(millis, share));
        let _ = writeln!(
            text,
            "| {proxies} | {clusters} | {} | {half:.0} | {most:.0} | {least:.0} | {start_millis:.0} | {memory} |",
            millis.len()
        );
    }
    text
}

fn mb(kib: u64) -> String {
    format!("{:.1}", kib as f64 * 1024.0 / 1e6)
}

/// With about three digits.
pub fn number(value: f64) -> String {
    let digits = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    format!("{value:.digits$}")
}

/// The value below which this share of all lies; the nearest one that was seen.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::Unit;

    pub fn comparison() -> Comparison {
        let series = |way, cost: [f64; 2]| Series {
            way,
            cost: cost.into(),
            per_second: vec![],
            latency: vec![],
            rss_kib: 0,
        };
        let series = vec![series("nginx", [10.0, 20.0]), series("weft", [12.0, 20.0])];
        Comparison { title: "plain hop", note: String::new(), unit: Unit::Request, series }
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!([1234.5, 12.345, 1.2345].map(number), ["1234", "12.3", "1.23"]);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let both = comparison().series;
        assert_eq!(ratio(&both, &both[0]), "**1.00** (1.20 1.00)");
        assert_eq!(ratio(&both, &both[1]), "");
        assert!(compared(&comparison()).contains("| nginx | 10.0 |"));
    }
}
