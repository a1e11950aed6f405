//! Bytes from one socket to another, both ways.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use process::metrics::{Counter, Gauge};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until},
};

/// What is read at once, for each direction. A reader waits while what it read is not yet written on: that is
/// all the back-pressure there is, and all the memory that a flow takes.
const BUFFER_BYTES: usize = 16 * 1024;

/// Raises a gauge until it is dropped.
pub(super) struct Raised<'a>(&'a Gauge);

impl<'a> Raised<'a> {
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Raised(gauge)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Forwards `first` and then all bytes, and each side's end, until both sides have ended, one breaks, or both
/// are silent for `idle`. A broken side resets the other, so that it cannot take this for a proper end.
pub(super) async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    first: &[u8],
    (to_server, to_client): (&Counter, &Counter),
    idle: Duration,
) -> io::Result<()> {
    let quiet = Quiet::new();
    let ended = async {
        let (from_client, into_client) = client.split();
        let (from_server, mut into_server) = server.split();
        into_server.write_all(first).await?;
        to_server.inc_by(first.len() as u64);
        tokio::try_join!(
            pump(from_client, into_server, &quiet, to_server),
            pump(from_server, into_client, &quiet, to_client),
        )
        .map(|_| ())
    };
    let ended = tokio::select! {
        ended = ended => ended,
        () = quiet.lasts(idle) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said for too long")),
    };
    if ended.is_err() {
        for stream in [&client, &server] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
    ended
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    quiet: &Quiet,
    bytes: &Counter,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        bytes.inc_by(count as u64);
        quiet.broken();
    }
}

/// How long both directions have been quiet.
struct Quiet {
    start: Instant,
    /// Milliseconds from the start to the last byte.
    last: AtomicU64,
}

impl Quiet {
    fn new() -> Self {
        Quiet { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn broken(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// Ends once it has been quiet for `idle`.
    async fn lasts(&self, idle: Duration) {
        while Instant::now() < self.until(idle) {
            sleep_until(self.until(idle)).await;
        }
    }

    fn until(&self, idle: Duration) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed)) + idle
    }
}
