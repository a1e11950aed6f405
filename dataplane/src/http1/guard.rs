//! The stream as hyper reads it: untouched while the framing is right, ended in a way that makes it answer 400.
//!
//! A connection that is closed with bytes unread is reset, and its peer may lose the answer that it was about to read. So
//! when an answer came before all of its request had, the rest is read and forgotten for a while.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::Framing;
use crate::tcp::Cut;

/// What no parser takes, wherever in a head or in a chunk's size it stands, and what ends a head, since hyper looks at
/// one that came in pieces only when its end is there: it answers 400 and closes.
const POISON: &[u8] = b"\0\r\n\r\n";

/// How long an answered request may go on being sent.
const LINGER: Duration = Duration::from_secs(5);

/// What of it is read at a time.
const CHUNK: usize = 16 << 10;

/// Checks what is read; what is written passes.
#[derive(Debug)]
pub struct Guard<S> {
    stream: S,
    framing: Framing,
    /// What is left to read, once the framing is broken; then comes the end.
    poison: Option<&'static [u8]>,
    /// Runs once nothing more is written, and something is still to be read.
    lingers: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    /// Guards a stream from its first byte on.
    pub fn new(stream: S) -> Self {
        Guard { stream, framing: Framing::default(), poison: None, lingers: None }
    }

    /// Whether the peer may still be sending what it was answered to.
    fn is_owed(&self) -> bool {
        self.poison.is_some() || self.framing.is_within()
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    process::writes_pass!(but shutdown);

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            if !self.is_owed() {
                return Poll::Ready(Ok(()));
            }
        }
        let this = self.get_mut();
        let timer = this.lingers.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        while timer.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::uninit(&mut chunk);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
