//! The load: `wrk` with 64 kept-alive connections on the load's core.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use crate::machine::{Core, output, pinned};

/// At the same time.
pub const CONNECTIONS: u32 = 64;

/// What every request bears on every way: a header that Weft's route matches, and a trace that it passes on.
pub const HEADERS: [(&str, &str); 2] =
    [("x-tier", "gold"), ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];

/// What a run brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Answered with success.
    pub requests: u64,
    /// A second.
    pub per_second: f64,
}

/// Loads `to` for some seconds. A single failure makes the run void.
pub fn run(to: SocketAddr, host: &str, seconds: u32) -> anyhow::Result<Load> {
    let mut wrk = pinned(Core::Load, "wrk");
    wrk.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    // Spelt otherwise, wrk would send a `Host` of its own beside it.
    wrk.arg("-H").arg(format!("Host: {host}"));
    for (name, value) in HEADERS {
        wrk.arg("-H").arg(format!("{name}: {value}"));
    }
    parse(&output(wrk.arg(format!("http://{to}/item")))?)
}

fn parse(text: &str) -> anyhow::Result<Load> {
    let bad = ["Socket errors:", "Non-2xx or 3xx responses:"];
    let bad = text.lines().find(|line| bad.iter().any(|bad| line.trim().starts_with(bad)));
    ensure!(bad.is_none(), "requests failed under load: {}", bad.unwrap_or_default().trim());
    let requests =
        text.lines().find_map(|line| line.split_once(" requests in ")).context("wrk said nothing")?;
    let rate =
        text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("wrk said no rate")?;
    Ok(Load { requests: requests.0.trim().parse()?, per_second: rate.trim().parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_failures_is_void() {
        let good = "Running 1s test\n  9000 requests in 1.00s, 10MB read\nRequests/sec:   9000.50\n";
        assert_eq!(parse(good).unwrap(), Load { requests: 9000, per_second: 9000.5 });
        let failed = format!("{good}  Non-2xx or 3xx responses: 7\n");
        assert!(parse(&failed).unwrap_err().to_string().ends_with("Non-2xx or 3xx responses: 7"));
        assert!(parse("").is_err());
    }
}
