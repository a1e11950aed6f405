//! Finds connections whose other end is gone without a word.
//!
//! A connection is given up when data is unacknowledged and no ACK has come for 2 s (TCP_INFO). A closed window is
//! back-pressure, not death, and is acknowledged all the time; TCP_USER_TIMEOUT would take it for death. The kernel has
//! sent the data again at least twice by then; with a third second, what was sent into a silent loss could not be
//! answered by somebody else within the 3 s that such a loss may cost.
//!
//! A gateway between here and the peer acknowledges for itself: a connection that dies on the way to it tells of the
//! gateway, so that neither new connections nor others that idle are tried through it one after the other. That gateway
//! watches both sockets of its flows likewise: whose endpoint is gone is reset, which tells the caller as soon as if
//! nothing were between.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use process::{around::poll_write_slices, shutdown::Shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};

use crate::{
    balance::{Gateway, Moment},
    tcp::Cut,
};

/// How long data may stay unacknowledged.
const SILENCE: Duration = Duration::from_secs(2);

/// How often that is looked at.
const SWEEP: Duration = Duration::from_millis(250);

/// Connections that one worker looks after.
#[derive(Debug, Default)]
pub struct Liveness(Mutex<HashMap<RawFd, Connection>>);

/// One that is watched.
#[derive(Debug)]
struct Connection {
    seen: Seen,
    /// Who is at the other end of TCP, when that is not the peer.
    gateway: Option<Arc<Gateway>>,
    sign: Arc<Sign>,
}

/// What who owns a stream and who sweeps tell each other.
#[derive(Debug, Default)]
struct Sign {
    /// It was written to since it was last looked at: what idles need not be asked about, of which there may be many.
    spoke: AtomicBool,
    /// That it has ended is no proper end.
    dead: AtomicBool,
}

/// Since when nothing of what was sent has been acknowledged, and how much had been then.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    stuck: Option<(Moment, u64)>,
}

/// What the kernel says of a connection.
#[derive(Debug, Clone, Copy)]
struct Acks {
    unacked: u32,
    bytes_acked: u64,
    last_ack: Duration,
}

/// A stream that is watched until it is dropped.
#[derive(Debug)]
pub struct Watched {
    stream: TcpStream,
    watch: Arc<Liveness>,
    sign: Arc<Sign>,
}

/// By what a stream is found again that somebody else reads and writes.
#[derive(Debug)]
pub struct Handle {
    descriptor: RawFd,
    sign: Arc<Sign>,
}

/// Half of a flow that is watched until this is dropped.
#[derive(Debug)]
pub struct Half<'a> {
    stream: &'a TcpStream,
    watch: &'a Liveness,
    sign: Arc<Sign>,
}

impl Liveness {
    /// Watches a stream, to this gateway if it goes through one.
    pub fn watch(self: &Arc<Self>, stream: TcpStream, gateway: Option<Arc<Gateway>>) -> Watched {
        let sign = self.insert(&stream, gateway);
        Watched { stream, watch: self.clone(), sign }
    }

    /// Watches half of a flow.
    pub fn half<'a>(&'a self, stream: &'a TcpStream) -> Half<'a> {
        Half { stream, watch: self, sign: self.insert(stream, None) }
    }

    /// Ends a stream, if it is still there, as one that broke.
    pub fn end(&self, handle: &Handle) {
        let connections = self.lock();
        let found = connections.get(&handle.descriptor);
        if found.is_some_and(|connection| Arc::ptr_eq(&connection.sign, &handle.sign)) {
            handle.sign.dead.store(true, Relaxed);
            let _ = nix::sys::socket::shutdown(handle.descriptor, nix::sys::socket::Shutdown::Both);
        }
    }

    fn insert(&self, stream: &TcpStream, gateway: Option<Arc<Gateway>>) -> Arc<Sign> {
        let sign = Arc::<Sign>::default();
        let connection = Connection { seen: Seen::default(), gateway, sign: sign.clone() };
        self.lock().insert(stream.as_raw_fd(), connection);
        sign
    }

    /// Sweeps a few times a second until `shutdown`, and does what else there is to do as often.
    pub async fn tend(&self, shutdown: &Shutdown, now: impl Fn() -> Moment, mut also: impl FnMut()) {
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let dead = self.sweep(now());
            if dead > 0 {
                tracing::warn!(connections = dead, "nothing was acknowledged for 2 s: given up");
            }
            also();
        }
    }

    /// Looks at all connections; shuts down the dead ones, whose owners then see them closed. How many there were.
    fn sweep(&self, now: Moment) -> usize {
        let mut dead = 0;
        // Under the lock no stream is dropped, so every descriptor in the map is still the one that was put there.
        for (descriptor, connection) in self.lock().iter_mut() {
            if connection.idles() {
                continue;
            }
            let Ok(acks) = acks(*descriptor) else { continue };
            if connection.seen.judge(acks, now) {
                dead += 1;
                connection.dead(now);
                let _ = nix::sys::socket::shutdown(*descriptor, nix::sys::socket::Shutdown::Both);
            }
        }
        dead
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RawFd, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Whether all that was said had been acknowledged when this was last asked, and nothing was said since.
    fn idles(&self) -> bool {
        !self.sign.spoke.swap(false, Relaxed) && self.seen.stuck.is_none()
    }

    fn dead(&self, now: Moment) {
        if let Some(gateway) = &self.gateway {
            gateway.lost(now);
        }
        self.sign.dead.store(true, Relaxed);
    }
}

impl Watched {
    /// By what it is found again.
    pub fn handle(&self) -> Handle {
        Handle { descriptor: self.stream.as_raw_fd(), sign: self.sign.clone() }
    }
}

impl Sign {
    fn spoke(&self) {
        if !self.spoke.load(Relaxed) {
            self.spoke.store(true, Relaxed);
        }
    }
}

impl Half<'_> {
    /// Something was written.
    pub fn spoke(&self) {
        self.sign.spoke();
    }

    /// Whether it was shut down because its other end is gone.
    pub fn is_dead(&self) -> bool {
        self.sign.dead.load(Relaxed)
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        self.watch.lock().remove(&self.stream.as_raw_fd());
    }
}

impl Seen {
    /// Whether the connection is dead.
    fn judge(&mut self, acks: Acks, now: Moment) -> bool {
        let stuck = match self.stuck {
            _ if acks.unacked == 0 => None,
            Some((since, before)) if before == acks.bytes_acked => Some((since, before)),
            Some(_) | None => Some((now, acks.bytes_acked)),
        };
        self.stuck = stuck;
        stuck.is_some_and(|(since, _)| now.after(since) >= SILENCE && acks.last_ack >= SILENCE)
    }
}

fn acks(descriptor: RawFd) -> io::Result<Acks> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that large; all zeroes is a valid value
    // of a structure of integers, so what an older kernel leaves out is read as zero.
    let info = unsafe {
        let pointer = info.as_mut_ptr().cast();
        if libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, pointer, &mut length) != 0 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    Ok(Acks {
        unacked: info.tcpi_unacked,
        bytes_acked: info.tcpi_bytes_acked,
        last_ack: Duration::from_millis(u64::from(info.tcpi_last_ack_recv)),
    })
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Before the field is dropped and its descriptor may become another's.
        self.watch.lock().remove(&self.stream.as_raw_fd());
    }
}

impl Cut for Watched {
    fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() == before && buffer.remaining() > 0 && self.sign.dead.load(Relaxed) {
            let why = "nothing was acknowledged any more, or its peer is trusted no more";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sign.spoke();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.sign.spoke();
        poll_write_slices(Pin::new(&mut self.stream), context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn dead_is_who_acknowledges_nothing_for_two_seconds() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let acks = |unacked, bytes_acked, last_ack| Acks {
            unacked,
            bytes_acked,
            last_ack: Duration::from_millis(last_ack),
        };
        let mut seen = Seen::default();
        assert!(!seen.judge(acks(0, 10, 60_000), at(0)), "idle for a minute is no death");
        assert!(!seen.judge(acks(1, 10, 60_500), at(500)), "just sent after a long pause");
        assert!(!seen.judge(acks(1, 10, 62_400), at(2400)));
        assert!(seen.judge(acks(1, 10, 62_500), at(2500)));
        assert!(!seen.judge(acks(1, 11, 10), at(3600)), "it moves");
        assert!(!seen.judge(acks(1, 11, 200), at(9000)), "a closed window is acknowledged");
    }

    #[tokio::test]
    async fn a_dropped_stream_is_watched_no_more() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liveness = Arc::new(Liveness::default());
        let watched = liveness.watch(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap(), None);
        assert_eq!((liveness.sweep(Moment::from_nanos(0)), liveness.lock().len()), (0, 1));
        drop(watched);
        assert_eq!(liveness.lock().len(), 0);
    }

    #[tokio::test]
    async fn the_end_of_a_dead_stream_is_no_proper_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liveness = Arc::new(Liveness::default());
        let read = async |dead: bool| {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut watched = liveness.watch(stream, None);
            watched.sign.dead.store(dead, Relaxed);
            nix::sys::socket::shutdown(watched.stream.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
            watched.read(&mut [0]).await.map_err(|error| error.kind())
        };
        assert_eq!((read(false).await, read(true).await), (Ok(0), Err(io::ErrorKind::TimedOut)));
    }
}
