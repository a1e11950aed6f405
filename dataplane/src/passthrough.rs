//! The east-west gateway: reads the server name of a ClientHello and forwards bytes to the endpoint it names.
//!
//! It never terminates TLS, holds no workload key and cannot read traffic. What it cannot forward it refuses
//! at once with a plaintext TLS alert, so that the calling sidecar knows that this is a failed connect:
//! `unrecognized_name` when the endpoint is gone or not exported, `internal_error` when it is unreachable.
//! A changed table ends no flow: what is open stays until it ends, only new connections see the new table.

mod flow;
mod hello;
mod table;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{endpoint::ServerName, wire};
use arc_swap::ArcSwap;
use process::{
    metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Registry},
    shutdown::Shutdown,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use hello::{NotHello, Reading};
pub use table::BadTarget;
use table::{Open, Table};

/// What a ClientHello may take, with its record headers. Those with post-quantum keys take under 2 KiB.
const HELLO_BYTES: usize = 16 * 1024;

/// How long the end of a refused connection may take, and what is still read from it: closing with unread
/// bytes would reset the connection and lose the alert.
const FAREWELL: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// How long to wait after a failed accept, mostly one for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A peer that is gone without a word is noticed by keep-alive, as nothing here knows whether silence is meant.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// The limits of a gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The local address of connections to endpoints.
    pub source: Option<IpAddr>,
    /// How long a ClientHello may take.
    pub hello: Duration,
    /// How long a connect may take.
    pub connect: Duration,
    /// After which silence in both directions a flow is closed.
    pub idle: Duration,
    /// How long flows may go on after the shutdown began.
    pub drain: Duration,
    /// Connections at once; beyond it they wait in the kernel's queue.
    pub max_flows: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            source: None,
            hello: Duration::from_secs(5),
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(3600),
            drain: Duration::from_secs(5),
            max_flows: 16 * 1024,
        }
    }
}

/// What the listeners of an east-west gateway share.
#[derive(Debug)]
pub struct Passthrough {
    table: ArcSwap<Table>,
    settings: Settings,
    permits: Arc<Semaphore>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Metrics {
    connections: Family<ResultLabel, Counter>,
    open: Gauge,
    to_endpoint: Counter,
    to_client: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Direction {
    ToEndpoint,
    ToClient,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Forwarded,
    /// No TLS, or broken off before it had said enough.
    NotTls,
    Malformed,
    Slow,
    /// The endpoint is gone, not exported, or no name was given.
    Unknown,
    Unreachable,
}

impl Outcome {
    /// The alert that tells the client, where it would understand one (RFC 8446, section 6).
    fn alert(self) -> Option<u8> {
        match self {
            Outcome::Forwarded | Outcome::NotTls | Outcome::Slow => None,
            Outcome::Malformed => Some(50),
            Outcome::Unreachable => Some(80),
            Outcome::Unknown => Some(112),
        }
    }
}

impl Passthrough {
    /// A gateway that knows no endpoint yet.
    pub fn new(settings: Settings, registry: &Registry) -> Arc<Self> {
        Arc::new(Passthrough {
            table: ArcSwap::default(),
            permits: Arc::new(Semaphore::new(settings.max_flows)),
            settings,
            metrics: Metrics::new(registry),
        })
    }

    /// From now on new connections go by `wire`. An endpoint that cannot be read is left out and returned.
    pub fn update(&self, wire: &wire::Passthrough) -> Vec<BadTarget> {
        let (table, bad) = self.table.load().next(wire);
        self.table.store(Arc::new(table));
        bad
    }
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let bytes: Family<DirectionLabel, Counter> =
            registry.register("weft_eastwest_bytes", "Bytes forwarded", Family::default());
        let of = |direction| bytes.get_or_create(&DirectionLabel { direction }).clone();
        Metrics {
            connections: registry.register(
                "weft_eastwest_connections",
                "Connections, by what became of them",
                Family::default(),
            ),
            open: registry.register("weft_eastwest_open", "Connections open now", Gauge::default()),
            to_endpoint: of(Direction::ToEndpoint),
            to_client: of(Direction::ToClient),
        }
    }
}

/// Serves `listener` until the shutdown; then takes what is left in its queue, closes it and returns. Flows
/// are tasks of `shutdown` and end by themselves, at the latest when the time to drain is over.
pub async fn run(listener: TcpListener, gateway: Arc<Passthrough>, shutdown: Shutdown) {
    let next = async |listener: &TcpListener| {
        let permit = Arc::clone(&gateway.permits).acquire_owned().await.ok();
        (permit, listener.accept().await)
    };
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            (permit, accepted) = next(&listener) => match accepted {
                Ok((client, peer)) => begin(&gateway, client, peer, permit, &shutdown),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; are there file descriptors left?");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((client, peer)) = listener.accept() {
            let permit = Arc::clone(&gateway.permits).try_acquire_owned().ok();
            if client.set_nonblocking(true).is_ok()
                && let Ok(client) = TcpStream::from_std(client)
            {
                begin(&gateway, client, peer, permit, &shutdown);
            }
        }
    }
}

fn begin(
    gateway: &Arc<Passthrough>,
    client: TcpStream,
    peer: SocketAddr,
    permit: Option<OwnedSemaphorePermit>,
    shutdown: &Shutdown,
) {
    let (gateway, end) = (Arc::clone(gateway), shutdown.cancelled_owned());
    shutdown.spawn("east-west flow", async move {
        let _permit = permit;
        let end = async {
            end.await;
            sleep(gateway.settings.drain).await;
        };
        tokio::select! {
            () = serve(&gateway, client, peer) => {}
            () = end => tracing::info!(%peer, "closed a flow that outlasted the time to drain"),
        }
    });
}

/// One connection, from its first byte to its last.
async fn serve(gateway: &Passthrough, mut client: TcpStream, peer: SocketAddr) {
    let metrics = &gateway.metrics;
    let _open = flow::Raised::new(&metrics.open);
    let reached = reach(gateway, &mut client).await;
    let result = reached.as_ref().map_or_else(|refused| *refused, |_| Outcome::Forwarded);
    metrics.connections.get_or_create(&ResultLabel { result }).inc();
    match reached {
        Ok((server, hello, _open)) => {
            let counters = (&metrics.to_endpoint, &metrics.to_client);
            if let Err(error) = flow::forward(client, server, &hello, counters, gateway.settings.idle).await {
                tracing::debug!(%peer, %error, "a flow was broken off");
            }
        }
        Err(refused) => {
            tracing::debug!(%peer, ?refused, "refused a connection");
            refuse(client, refused).await;
        }
    }
}

/// The endpoint that the client asks for, and what of its words it has to hear first.
async fn reach(gateway: &Passthrough, client: &mut TcpStream) -> Result<(TcpStream, Vec<u8>, Open), Outcome> {
    prepare(client);
    let mut hello = Vec::with_capacity(2048);
    let name = timeout(gateway.settings.hello, read_hello(client, &mut hello))
        .await
        .map_err(|_| Outcome::Slow)??;
    let name = name.as_deref().and_then(ServerName::parse).ok_or(Outcome::Unknown)?;
    let targets = gateway.table.load().find(&name);
    if targets.is_empty() {
        return Err(Outcome::Unknown);
    }
    for target in targets {
        // Counted before the connect, so that many at once see each other.
        let open = target.open();
        match connect(&gateway.settings, target.address).await {
            Ok(server) => return Ok((server, hello, open)),
            Err(error) => tracing::debug!(endpoint = %target.id, %error, "cannot reach an endpoint"),
        }
    }
    Err(Outcome::Unreachable)
}

async fn read_hello(client: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Option<String>, Outcome> {
    loop {
        let room = HELLO_BYTES - bytes.len();
        match client.take(room as u64).read_buf(bytes).await {
            Ok(0) | Err(_) if room > 0 => return Err(Outcome::NotTls),
            _ => {}
        }
        match hello::read(bytes) {
            Ok(Reading::Hello(name)) => return Ok(name),
            Ok(Reading::More) if bytes.len() < HELLO_BYTES => {}
            Ok(Reading::More) | Err(NotHello::Malformed) => return Err(Outcome::Malformed),
            Err(NotHello::NotTls) => return Err(Outcome::NotTls),
        }
    }
}

async fn connect(settings: &Settings, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = settings.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = timeout(settings.connect, socket.connect(address)).await??;
    prepare(&stream);
    Ok(stream)
}

/// A socket that refuses these is worse, not unusable.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE);
}

/// Says why, if the client can understand it, and closes.
async fn refuse(mut client: TcpStream, refused: Outcome) {
    let farewell = async {
        if let Some(code) = refused.alert() {
            // Record: alert, TLS 1.2 as all versions write it, 2 bytes: fatal, code.
            client.write_all(&[21, 3, 3, 0, 2, 2, code]).await?;
        }
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(FAREWELL.1), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL.0, farewell).await;
}

#[cfg(test)]
mod tests;
