//! Loads of requests, each from the load's core. A single failure makes a run void.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};

use crate::{
    compare::Load,
    machine::{Core, output, pinned},
    peers::BODY,
};

/// At the same time, by [`h1`].
pub const CONNECTIONS: u32 = 64;
/// Connections, and streams on each, by [`h2`].
pub const STREAMS: (u32, u32) = (8, 32);

/// What every request bears on every way: a header that Weft's route matches, and a trace that it passes on.
pub const HEADERS: [(&str, &str); 2] =
    [("x-tier", "gold"), ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];

/// `wrk` with kept-alive connections.
pub fn h1(to: SocketAddr, host: &str, seconds: u32) -> anyhow::Result<Load> {
    let mut wrk = pinned(Core::Load, "wrk");
    wrk.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    // Spelt otherwise, wrk would send a `Host` of its own beside it.
    wrk.arg("-H").arg(format!("Host: {host}"));
    for (name, value) in HEADERS {
        wrk.arg("-H").arg(format!("{name}: {value}"));
    }
    wrk_said(&output(wrk.arg(format!("http://{to}/item")))?)
}

fn wrk_said(text: &str) -> anyhow::Result<Load> {
    let bad = ["Socket errors:", "Non-2xx or 3xx responses:"];
    let bad = text.lines().find(|line| bad.iter().any(|bad| line.trim().starts_with(bad)));
    ensure!(bad.is_none(), "requests failed under load: {}", bad.unwrap_or_default().trim());
    let requests =
        text.lines().find_map(|line| line.split_once(" requests in ")).context("wrk said nothing")?;
    let rate =
        text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("wrk said no rate")?;
    Ok(Load { units: requests.0.trim().parse()?, per_second: rate.trim().parse()?, latency: None })
}

/// `h2load` with full connections of HTTP/2 without TLS.
pub fn h2(to: SocketAddr, host: &str, seconds: u32) -> anyhow::Result<Load> {
    let mut h2load = pinned(Core::Load, "h2load");
    let (connections, streams) = STREAMS;
    h2load.args(["-t1", &format!("-c{connections}"), &format!("-m{streams}"), &format!("-D{seconds}")]);
    h2load.args(["-H", &format!(":authority: {host}")]);
    for (name, value) in HEADERS {
        h2load.arg("-H").arg(format!("{name}: {value}"));
    }
    h2load_said(&output(h2load.arg(format!("http://{to}/item")))?, seconds)
}

fn h2load_said(text: &str, seconds: u32) -> anyhow::Result<Load> {
    let counts =
        text.lines().find_map(|line| line.strip_prefix("requests: ")).context("h2load said nothing")?;
    let count = |what: &str| {
        let part = counts.split(", ").find_map(|part| part.strip_suffix(what));
        part.and_then(|number| number.trim().parse::<u64>().ok()).context("h2load said no such count")
    };
    let codes = text.lines().find_map(|line| line.strip_prefix("status codes: ")).unwrap_or_default();
    let done = count(" succeeded")?;
    // Those under way at the end are neither; an answer of 4xx is a success to h2load.
    ensure!(count(" failed")? == 0 && count(" errored")? == 0 && count(" timeout")? == 0, "{counts}");
    ensure!(codes.contains(" 0 3xx, 0 4xx, 0 5xx"), "requests failed under load: {codes}");
    let traffic = text.lines().find_map(|line| line.strip_prefix("traffic: ")).unwrap_or_default();
    let data = traffic.strip_suffix(") data").and_then(|sums| sums.rsplit_once('(')?.1.parse::<u64>().ok());
    let data = data.context("h2load said no count of data")?;
    // Those under way at the end may have brought a part.
    let [least, most] = [done, count(" started")?].map(|answers| answers * BODY as u64);
    ensure!((least..=most).contains(&data), "{done} answers brought {data} bytes");
    Ok(Load::of(done as f64, Duration::from_secs(seconds.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_failures_is_void() {
        let good = "Running 1s test\n  9000 requests in 1.00s, 10MB read\nRequests/sec:   9000.50\n";
        assert_eq!(wrk_said(good).unwrap(), Load { units: 9000.0, per_second: 9000.5, latency: None });
        let failed = format!("{good}  Non-2xx or 3xx responses: 7\n");
        assert!(wrk_said(&failed).unwrap_err().to_string().ends_with("Non-2xx or 3xx responses: 7"));
        assert!(wrk_said("").is_err());

        let said = |failed: u32, bad: u32, data: u32| {
            format!(
                "finished in 2.00s, 150.00 req/s, 1MB/s\nrequests: 300 total, 556 started, 300 done, 300 succeeded, \
                 {failed} failed, 0 errored, 0 timeout\nstatus codes: 300 2xx, 0 3xx, {bad} 4xx, 0 5xx\n\
                 traffic: 1MB (320000) total, 9KB (9632) headers (space savings 95.20%), 300KB ({data}) data\n"
            )
        };
        assert_eq!(h2load_said(&said(0, 0, 307_200), 2).unwrap().per_second, 150.0);
        for void in [said(1, 0, 307_200), said(0, 1, 307_200), said(0, 0, 307_199), said(0, 0, 569_345)] {
            assert!(h2load_said(&void, 2).is_err(), "{void}");
        }
    }
}
