//! The stream as hyper reads it: untouched while the framing is right, ended in a way that makes it answer 400.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::Framing;
use crate::tcp::Cut;

/// What no parser takes, wherever in a head or in a chunk's size it stands, and what ends a head, since hyper looks at
/// one that came in pieces only when its end is there: it answers 400 and closes.
const POISON: &[u8] = b"\0\r\n\r\n";

/// Checks what is read; what is written passes.
#[derive(Debug)]
pub struct Guard<S> {
    stream: S,
    framing: Framing,
    /// What is left to read, once the framing is broken; then comes the end.
    poison: Option<&'static [u8]>,
}

impl<S> Guard<S> {
    /// Guards a stream from its first byte on.
    pub fn new(stream: S) -> Self {
        Guard { stream, framing: Framing::default(), poison: None }
    }
}

impl<S: Cut> Cut for Guard<S> {
    fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(poison) = &mut this.poison {
            let (now, later) = poison.split_at(poison.len().min(buffer.remaining()));
            buffer.put_slice(now);
            *poison = later;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if let Err(broken) = this.framing.follow(&buffer.filled()[before..]) {
            tracing::debug!(rule = broken.rule, "a request is refused for its framing");
            buffer.set_filled(before + broken.at);
            let (now, later) = POISON.split_at(POISON.len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.poison = Some(later);
        }
        Poll::Ready(Ok(()))
    }
}

process::writes_pass!(Guard<S>);
