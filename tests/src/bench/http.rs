//! As much of an HTTP client as asking an admin port takes: one request a connection, whole bodies.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, ensure};

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(70);
/// More is no answer of ours.
const BODY_MAX: u64 = 64 << 20;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Sends one request; `target` is what stands in the request line.
pub fn call(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<Answer> {
    let mut stream =
        TcpStream::connect_timeout(&to, CONNECT).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(BODY_MAX).read_to_end(&mut bytes).with_context(|| format!("no answer from {to}"))?;
    parse(&String::from_utf8_lossy(&bytes))
}

fn parse(text: &str) -> anyhow::Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    ensure!(
        !head.to_ascii_lowercase().contains("\r\ntransfer-encoding:"),
        "the answer comes in chunks, which this client does not read"
    );
    Ok(Answer { status: status.context("the answer has no status")?, body: body.to_owned() })
}

/// Whether a readiness address answers 200.
pub fn is_ready(at: SocketAddr) -> bool {
    call(at, "GET", "/ready", &[("host", "ready")], "").is_ok_and(|answer| answer.status == 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let answer = parse("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!(answer, Answer { status: 403, body: "{}".into() });
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
        assert!(parse("nothing").is_err());
    }
}
