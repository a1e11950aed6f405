//! What is spoken on a connection of which nobody has said it, told from its first bytes.
//!
//! Bounded in bytes and in time: where the server speaks first, the client says nothing, and that is told from its
//! silence. A port whose protocol is declared never comes here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::tcp::Cut;

/// How long a client may be silent before the server is taken to speak first.
pub const SILENCE: Duration = Duration::from_millis(500);

/// HTTP/2 with prior knowledge begins so (RFC 9113, 3.4); as much of it as no request line is.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// The longest method in use has 17 bytes (`UPDATEREDIRECTREF`, RFC 4437).
const METHOD_BYTES: usize = 20;

/// Enough to tell.
const BYTES: usize = METHOD_BYTES + 2;

/// Between looks at a beginning that may become anything, doubled from one to the next.
const PAUSE: Duration = Duration::from_millis(1);

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1, in origin form: a request to a proxy is for the proxy that was called.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS.
    Tls,
    /// Anything else, and what keeps silent.
    Bytes,
}

/// What begins so; none when more has to be seen.
fn tell(begun: &[u8]) -> Option<Spoken> {
    if begun.first() == Some(&22) {
        return Some(Spoken::Tls);
    }
    if PREFACE.starts_with(begun) {
        return (begun == PREFACE).then_some(Spoken::Http2);
    }
    if begun.starts_with(PREFACE) {
        return Some(Spoken::Http2);
    }
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    let length = begun.iter().take_while(|byte| is_method(byte)).count();
    match &begun[length..] {
        [] if length < METHOD_BYTES => None,
        [b' '] if length > 0 => None,
        [b' ', b'/' | b'*', ..] if length > 0 => Some(Spoken::Http1),
        _ => Some(Spoken::Bytes),
    }
}

/// Looks at what comes within `wait`, without taking it.
pub async fn peek(stream: &TcpStream, wait: Duration) -> io::Result<Spoken> {
    let look = async {
        let mut bytes = [0; BYTES];
        let mut pause = PAUSE;
        loop {
            match stream.peek(&mut bytes).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                seen => match tell(&bytes[..seen]) {
                    Some(spoken) => return Ok(spoken),
                    // What was seen is not taken, so that nothing tells when more is there.
                    None => tokio::time::sleep(pause).await,
                },
            }
            pause *= 2;
        }
    };
    timeout(wait, look).await.unwrap_or(Ok(Spoken::Bytes))
}

/// Takes what comes within `wait`; the stream that is given back begins with it.
pub async fn read<S: AsyncRead + Unpin>(mut stream: S, wait: Duration) -> io::Result<(Spoken, Replay<S>)> {
    let mut begun = Vec::with_capacity(BYTES);
    let look = async {
        loop {
            if let Some(spoken) = tell(&begun) {
                return Ok::<_, io::Error>(spoken);
            }
            if (&mut stream).take((BYTES - begun.len()) as u64).read_buf(&mut begun).await? == 0 {
                return if begun.is_empty() {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(Spoken::Bytes)
                };
            }
        }
    };
    let spoken = timeout(wait, look).await.unwrap_or(Ok(Spoken::Bytes))?;
    Ok((spoken, Replay { begun, given: 0, stream }))
}

/// A stream of which the first bytes were taken already.
pub struct Replay<S> {
    begun: Vec<u8>,
    given: usize,
    stream: S,
}

impl<S: Cut> Cut for Replay<S> {
    fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.begun[self.given..];
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let now = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..now]);
        self.given += now;
        Poll::Ready(Ok(()))
    }
}

process::writes_pass!(Replay<S>);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn what_is_spoken_is_told_from_its_beginning() {
        for (begun, spoken) in [
            ("GET / HTTP/1.1", Some(Spoken::Http1)),
            ("OPTIONS * HTTP/1.1", Some(Spoken::Http1)),
            ("PRI * HTTP/2.0\r\n", Some(Spoken::Http2)),
            ("PRI * HT", None),
            ("PRINT /", Some(Spoken::Http1)),
            ("M-SEARCH *", Some(Spoken::Http1)),
            ("GET", None),
            ("GET ", None),
            ("", None),
            ("GET http://elsewhere/ HTTP/1.1", Some(Spoken::Bytes)),
            ("CONNECT elsewhere:443 HTTP/1.1", Some(Spoken::Bytes)),
            ("SSH-2.0-OpenSSH_9.2\r\n", Some(Spoken::Bytes)),
            ("NICK someone\r\n", Some(Spoken::Bytes)),
            ("PING\r\n", Some(Spoken::Bytes)),
            (" /", Some(Spoken::Bytes)),
            ("ABCDEFGHIJKLMNOPQRST", Some(Spoken::Bytes)),
            ("\u{16}\u{3}\u{1}", Some(Spoken::Tls)),
            ("\0\0\0\u{8}", Some(Spoken::Bytes)),
        ] {
            assert_eq!(tell(begun.as_bytes()), spoken, "{begun:?}");
        }
    }

    #[tokio::test]
    async fn silence_is_told_and_what_was_taken_is_given_back() {
        let (mut client, server) = tokio::io::duplex(64);
        let (spoken, mut stream) = read(server, Duration::from_millis(5)).await.unwrap();
        assert_eq!(spoken, Spoken::Bytes);
        client.write_all(b"late").await.unwrap();
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"late");

        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET /path HTTP/1.1\r\n\r\nmore than is looked at").await.unwrap();
        drop(client);
        let (spoken, mut stream) = read(server, SILENCE).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(
            (spoken, said.as_str()),
            (Spoken::Http1, "GET /path HTTP/1.1\r\n\r\nmore than is looked at")
        );
    }
}
