//! What came out, as a table for people and JSON for machines.

use std::{fmt::Write, process::Command};

use serde::Serialize;

use crate::{
    commit::Commits,
    compare::Series,
    load::CONNECTIONS,
    machine::{self, Programs, output},
    memory::Memory,
    nginx::BODY,
    ways::{NGINX_PAIR, NGINX_PLAIN, WEFT_PAIR, WEFT_PLAIN},
};

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    command: String,
    processor: String,
    load_average: f64,
    nginx: String,
    weft: String,
    /// CPU for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Vec<Series>>,
    /// A sidecar's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Commit → effective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commits>,
}

impl Report {
    /// Of this run, with nothing measured yet.
    pub fn new(programs: &Programs, load_average: f64) -> anyhow::Result<Self> {
        Ok(Report {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            processor: machine::processor(),
            load_average,
            nginx: output(Command::new("nginx").arg("-v"))?.trim().to_owned(),
            weft: output(Command::new(&programs.weft).arg("--version"))?.trim().to_owned(),
            compared: None,
            memory: None,
            commit: None,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let Report { command, processor, load_average, nginx, weft, .. } = self;
        let mut text = format!("{command}\n{processor}, load {load_average} at the start; {nginx}; {weft}\n");
        if let Some(series) = &self.compared {
            text.push_str(&compared(series));
        }
        if let Some(Memory { services, used, idle_kib, rss_kib, anonymous_kib, peak_kib }) = &self.memory {
            let _ = writeln!(
                text,
                "\nsidecar in a mesh of {services} services, {used} used: {} MB idle, {} MB after its calls ({} MB of it its own, the rest the program's text), {} MB at most",
                mb(*idle_kib),
                mb(*rss_kib),
                mb(*anonymous_kib),
                mb(*peak_kib)
            );
        }
        if let Some(Commits { proxies, up_millis, millis }) = &self.commit {
            let _ = writeln!(
                text,
                "\ncommit → effective on {proxies} proxies of two clusters, {} commits: p50 {:.0} ms, p99 {:.0} ms, least {:.0} ms; weft up was ready in {up_millis:.0} ms",
                millis.len(),
                quantile(millis, 0.5),
                quantile(millis, 0.99),
                quantile(millis, 0.0),
            );
        }
        text
    }
}

fn compared(series: &[Series]) -> String {
    let mut text = format!(
        "\nCPU (user + system) of the proxies for each request; HTTP/1.1 kept alive, {CONNECTIONS} connections, {BODY} bytes\n\
         {:<24} {:>9} {:>9} {:>10} {:>9}\n",
        "", "median µs", "least µs", "requests/s", "RSS MB"
    );
    for Series { way, cpu_micros, per_second, rss_kib } in series {
        let _ = writeln!(
            text,
            "{way:<24} {:>9.2} {:>9.2} {:>10.0} {:>9}",
            quantile(cpu_micros, 0.5),
            quantile(cpu_micros, 0.0),
            quantile(per_second, 0.5),
            mb(*rss_kib)
        );
    }
    for (name, ours, theirs) in [("plain hop", WEFT_PLAIN, NGINX_PLAIN), ("mTLS pair", WEFT_PAIR, NGINX_PAIR)]
    {
        let ratios = ratios(series, ours, theirs);
        if !ratios.is_empty() {
            let each: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            let median = quantile(&ratios, 0.5);
            let _ = writeln!(text, "{name}: {median:.2} × nginx (median); by round {}", each.join(" "));
        }
    }
    text
}

/// How many times theirs ours is, round by round.
fn ratios(series: &[Series], ours: &str, theirs: &str) -> Vec<f64> {
    let of = |name: &str| series.iter().find(|series| series.way == name);
    let (Some(ours), Some(theirs)) = (of(ours), of(theirs)) else { return Vec::new() };
    ours.cpu_micros.iter().zip(&theirs.cpu_micros).map(|(ours, theirs)| ours / theirs).collect()
}

fn mb(kib: u64) -> String {
    format!("{:.1}", kib as f64 * 1024.0 / 1e6)
}

/// The value below which this share of all lies; the nearest one that was seen.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let series =
            |way, cpu: [f64; 2]| Series { way, cpu_micros: cpu.into(), per_second: vec![], rss_kib: 0 };
        let both = [series(NGINX_PLAIN, [10.0, 20.0]), series(WEFT_PLAIN, [12.0, 20.0])];
        assert_eq!(ratios(&both, WEFT_PLAIN, NGINX_PLAIN), [1.2, 1.0]);
        assert!(ratios(&both, WEFT_PAIR, NGINX_PAIR).is_empty());
        assert!(compared(&both).contains("plain hop: 1.00 × nginx (median); by round 1.20 1.00"));
    }
}
