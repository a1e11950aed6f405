//! A flow: bytes from one socket to another, both ways, and what ends it.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use process::metrics::Gauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Passthrough,
    pipes::Pipes,
    pump::{Pump, Tally, broken},
    table::Open,
};

/// A flow that lasts for so long is kept alive from then on; the many that do not are spared the system calls.
const LASTING: Duration = Duration::from_secs(15);

/// A peer that is gone without a word is noticed by this, as nothing here knows whether silence is meant.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

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

/// A client and the endpoint that it asked for.
pub(super) struct Flow {
    pub client: TcpStream,
    pub server: TcpStream,
    /// What the client has said already.
    pub first: Vec<u8>,
    pub open: Open,
}

impl Flow {
    /// Forwards all bytes, and each side's end, until both sides have ended, one breaks, or it may go on no longer.
    /// A broken side resets the other, so that it cannot take this for a proper end.
    pub async fn run(self, gateway: &Passthrough, pipes: &Pipes) -> io::Result<()> {
        let Flow { client, server, first, open } = self;
        let quiet = Quiet::new();
        let [near, far] = [&client, &server].map(|stream| gateway.liveness.half(stream));
        let (settings, metrics) = (&gateway.settings, &gateway.metrics);
        let ended = tokio::select! {
            biased;
            ended = exchange(&client, &server, first, pipes, [
                Tally { bytes: &metrics.to_endpoint, spliced: &metrics.spliced, quiet: &quiet, halves: [&near, &far] },
                Tally { bytes: &metrics.to_client, spliced: &metrics.spliced, quiet: &quiet, halves: [&far, &near] },
            ]) => ended,
            never = keep_alive_if_lasting(&client, &server) => match never {},
            () = quiet.lasts(settings.idle, settings.total) => Err(over("it was silent, or went on, for too long")),
            () = open.withdrawn(settings.withdrawn) => Err(over("its endpoint is not offered any more")),
        };
        if ended.is_err() {
            for stream in [&client, &server] {
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
        ended
    }
}

fn over(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

async fn keep_alive_if_lasting(client: &TcpStream, server: &TcpStream) -> Infallible {
    sleep(LASTING).await;
    for stream in [client, server] {
        // A socket that refuses it is worse, not unusable.
        let _ = SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE);
    }
    pending().await
}

/// Both directions, until both have ended or one socket breaks.
async fn exchange(
    client: &TcpStream,
    server: &TcpStream,
    first: Vec<u8>,
    pipes: &Pipes,
    [up, down]: [Tally<'_>; 2],
) -> io::Result<()> {
    let (mut up, mut down) = (Pump::new(first, pipes, up), Pump::new(Vec::new(), pipes, down));
    let both = poll_fn(|context| {
        let up = up.poll(context, client, server)?;
        let down = down.poll(context, server, client)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        ended = both => ended,
        error = broken(client) => Err(error),
        error = broken(server) => Err(error),
    }
}

/// How long both directions have been quiet.
pub(super) struct Quiet {
    start: Instant,
    /// Milliseconds from the start to the last byte.
    last: AtomicU64,
}

impl Quiet {
    fn new() -> Self {
        Quiet { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// A byte has passed.
    pub fn broken(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// Ends once it has been quiet for `idle`, or `total` is over.
    async fn lasts(&self, idle: Duration, total: Duration) {
        let end = || total.min(Duration::from_millis(self.last.load(Relaxed)).saturating_add(idle));
        while self.start.elapsed() < end() {
            sleep_until(self.start + end()).await;
        }
    }
}
