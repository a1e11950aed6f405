//! Requests at a fixed rate, whatever becomes of the answers. Each has its time, and its latency counts from then on,
//! so that a proxy that halts is charged with all who would have come meanwhile. (A load that waits for an answer before
//! it sends the next leaves those out: coordinated omission.)
//!
//! One thread for each connection, since a sleeping thread is woken to a few microseconds, a runtime's timer to one
//! millisecond.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{
    compare::{Latency, Load},
    load::HEADERS,
    report::quantile,
};

/// Requests a second: moderate, about a twelfth of what Weft's pair carries on one core.
pub const RATE: u64 = 2000;
/// More than are ever needed at once, unless the proxy halts.
pub const CONNECTIONS: usize = 32;

const ANSWER: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 * 1024;

/// Sends at [`RATE`] for some seconds. A single failure makes it void.
pub fn run(to: SocketAddr, host: &str, seconds: u32) -> anyhow::Result<Load> {
    let mut request = format!("GET /item HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in HEADERS {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut streams = (0..CONNECTIONS).map(|_| connect(to)).collect::<anyhow::Result<Vec<_>>>()?;
    for stream in &mut streams {
        exchange(stream, request.as_bytes())?;
    }
    let (count, next, start) = (RATE * u64::from(seconds), AtomicU64::new(0), Instant::now());
    let one = |stream: &mut TcpStream| -> anyhow::Result<Vec<f64>> {
        // The kernel would round each sleep up by 50 µs.
        let _ = nix::sys::prctl::set_timerslack(1);
        let mut all = Vec::new();
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= count {
                return Ok(all);
            }
            let due = start + Duration::from_secs(1) * number as u32 / RATE as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            exchange(stream, request.as_bytes())?;
            all.push(due.elapsed().as_secs_f64() * 1e3);
        }
    };
    let all = thread::scope(|scope| {
        let threads: Vec<_> = streams.iter_mut().map(|stream| scope.spawn(|| one(stream))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(latencies) => latencies,
            Err(_) => bail!("a connection's thread panicked"),
        };
        threads.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
    })?
    .concat();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&all, share));
    Ok(Load { latency: Some(Latency { p50, p99, p999 }), ..Load::of(all.len() as f64, start.elapsed()) })
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// One request and its whole answer.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request)?;
    let (mut buffer, mut filled) = ([0; HEAD_BYTES], 0);
    loop {
        let count = stream.read(&mut buffer[filled..]).context("no answer in time")?;
        ensure!(count > 0, "the connection was closed, or the answer is too large");
        filled += count;
        match whole(&buffer[..filled])? {
            Some(length) if filled == length => return Ok(()),
            Some(length) => ensure!(filled < length, "more came than the answer"),
            None => {}
        }
    }
}

/// How long the answer is, once its head is here.
fn whole(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "it answered {}", head.lines().next().unwrap_or_default());
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    };
    let length = head.lines().find_map(field).context("the answer says no length")?;
    Ok(Some(end + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_it_says() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(whole(&head[..10]).unwrap(), None);
        assert_eq!(whole(head).unwrap(), Some(head.len() + 3));
        assert!(whole(b"HTTP/1.1 503 No\r\n\r\n").is_err() && whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn a_halt_is_charged_to_all_who_would_have_come() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let halt = Instant::now() + Duration::from_millis(400);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    while let Ok(1..) = stream.read(&mut [0; 1024]) {
                        if (halt..halt + Duration::from_millis(500)).contains(&Instant::now()) {
                            thread::sleep(Duration::from_millis(500));
                        }
                        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let load = run(address, "halting", 1).unwrap();
        let latency = load.latency.unwrap();
        assert_eq!(load.units, RATE as f64);
        // Half a second of a second: a load that waits would have seen 32 slow answers of 2,000, 1.6 %.
        assert!(latency.p99 > 200.0, "{latency:?}");
    }
}
