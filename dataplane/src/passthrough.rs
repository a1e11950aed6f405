//! The east-west gateway: reads the server name of a ClientHello and forwards bytes to the endpoint it names.
//!
//! ```text
//! run (accept) → reach (ClientHello → table → connect, or an alert) → flow (two pumps: copy, then splice)
//! ```
//!
//! It never terminates TLS, holds no workload key and cannot read traffic. What it cannot forward it refuses
//! at once with a plaintext TLS alert, so that the calling sidecar knows that this is a failed connect:
//! `unrecognized_name` when the endpoint is gone or not exported, `internal_error` when it is unreachable.
//!
//! New connections see the newest table. Flows to an endpoint that it offers no more may finish, as when that
//! drains, but not for ever: what is exported no more must not be reached over what was opened before.

mod flow;
pub mod hello;
mod pipes;
mod pump;
mod reach;
mod silent;
mod sources;
mod table;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use api::wire;
use arc_swap::ArcSwap;
use process::{
    logs::Limit,
    metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Registry},
    shutdown::Shutdown,
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use pipes::Pipes;
use reach::Outcome;
use silent::Silent;
use sources::Sources;
use table::Table;

use crate::{balance::Moment, liveness::Liveness};

pub use table::BadTarget;

/// What a ClientHello may take, with its record headers. Those with post-quantum keys take under 2 KiB.
const HELLO_BYTES: usize = 16 * 1024;

/// How long to wait after a failed accept, mostly one for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Descriptors for all that is no flow: listeners, the control stream, admin connections, files.
const OTHER_FILES: usize = 128;

/// The part of all connections that may be without a ClientHello, one in so many.
const SILENT_SHARE: usize = 4;

static ACCEPT_FAILURES: Limit = Limit::new(1);

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
    /// How long a flow may last at all.
    pub total: Duration,
    /// How long a flow may outlast the offer of its endpoint: longer than a workload drains.
    pub withdrawn: Duration,
    /// How long flows may go on after the shutdown began.
    pub drain: Duration,
    /// Connections at once; beyond it they wait in the kernel's queue.
    pub max_flows: usize,
    /// Connections at once from one source address, of IPv6 from a /64; beyond it they are reset. A whole cluster
    /// may come from one, behind a NAT.
    pub max_flows_per_source: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            source: None,
            hello: Duration::from_secs(5),
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(3600),
            total: Duration::from_secs(7 * 24 * 3600),
            withdrawn: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            max_flows: 16 * 1024,
            max_flows_per_source: 8 * 1024,
        }
    }
}

impl Settings {
    /// With no more flows than so many open files carry: two for each, and two for each pipe of each worker. One
    /// source never gets more than half of them.
    pub fn within(self, open_files: u64, workers: usize) -> Self {
        let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
        let left = open_files.saturating_sub(OTHER_FILES + 2 * pipes::MOST * workers);
        let max_flows = self.max_flows.min(left / 2).max(2);
        Settings { max_flows, max_flows_per_source: self.max_flows_per_source.min(max_flows / 2), ..self }
    }
}

/// What the listeners of an east-west gateway share.
#[derive(Debug)]
pub struct Passthrough {
    table: ArcSwap<Table>,
    settings: Settings,
    permits: Arc<Semaphore>,
    sources: Sources,
    silent: Silent,
    liveness: Liveness,
    /// What moments count from.
    start: Instant,
    metrics: Metrics,
}

#[derive(Debug)]
struct Metrics {
    connections: Family<ResultLabel, Counter>,
    open: Gauge,
    to_endpoint: Counter,
    to_client: Counter,
    spliced: Counter,
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

impl Passthrough {
    /// A gateway that knows no endpoint yet.
    pub fn new(settings: Settings, registry: &Registry) -> Arc<Self> {
        Arc::new(Passthrough {
            table: ArcSwap::default(),
            permits: Arc::new(Semaphore::new(settings.max_flows)),
            sources: Sources::default(),
            silent: Silent::new(settings.max_flows / SILENT_SHARE),
            liveness: Liveness::default(),
            start: Instant::now(),
            settings,
            metrics: Metrics::new(registry),
        })
    }

    /// From now on new connections go by `wire`. An endpoint that cannot be read is left out and returned.
    pub fn update(&self, wire: &wire::Passthrough) -> Vec<BadTarget> {
        let (table, bad) = self.table.load().next(wire, tokio::time::Instant::now());
        self.table.store(Arc::new(table));
        bad
    }

    /// Ends flows one side of which is gone, until `shutdown`.
    pub async fn tend(self: Arc<Self>, shutdown: Shutdown) {
        self.liveness.tend(&shutdown, || Moment::since(self.start, Instant::now()), || {}).await;
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
            spliced: registry.register(
                "weft_eastwest_spliced_bytes",
                "Bytes forwarded by the kernel alone, of all that are",
                Counter::default(),
            ),
        }
    }
}

/// Serves `listener` until the shutdown; then takes what is left in its queue, closes it and returns. Flows
/// are tasks of `shutdown` and end by themselves, at the latest when the time to drain is over. Each listener is one
/// worker's and has its own pipes.
pub async fn run(listener: TcpListener, gateway: Arc<Passthrough>, shutdown: Shutdown) {
    // What it accepts inherits this. A socket that refuses it is worse, not unusable.
    let _ = SockRef::from(&listener).set_tcp_nodelay(true);
    let pipes = Arc::new(Pipes::default());
    let next = async |listener: &TcpListener| {
        let permit = Arc::clone(&gateway.permits).acquire_owned().await.ok();
        (permit, listener.accept().await)
    };
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            (permit, accepted) = next(&listener) => match accepted {
                Ok((client, peer)) => begin((&gateway, &pipes), client, peer, permit, &shutdown),
                Err(error) => {
                    if ACCEPT_FAILURES.pass(Instant::now()).is_some() {
                        tracing::warn!(%error, "cannot accept a connection; are there file descriptors left?");
                    }
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
                begin((&gateway, &pipes), client, peer, permit, &shutdown);
            }
        }
    }
}

fn begin(
    (gateway, pipes): (&Arc<Passthrough>, &Arc<Pipes>),
    client: TcpStream,
    peer: SocketAddr,
    permit: Option<OwnedSemaphorePermit>,
    shutdown: &Shutdown,
) {
    let (gateway, pipes, end) = (Arc::clone(gateway), Arc::clone(pipes), shutdown.cancelled_owned());
    shutdown.spawn("east-west flow", async move {
        let _permit = permit;
        let end = async {
            end.await;
            sleep(gateway.settings.drain).await;
        };
        tokio::select! {
            () = serve(&gateway, &pipes, client, peer) => {}
            () = end => tracing::info!(%peer, "closed a flow that outlasted the time to drain"),
        }
    });
}

/// One connection, from its first byte to its last.
async fn serve(gateway: &Passthrough, pipes: &Pipes, client: TcpStream, peer: SocketAddr) {
    let metrics = &gateway.metrics;
    let _open = flow::Raised::new(&metrics.open);
    let held = gateway.sources.hold(peer.ip(), gateway.settings.max_flows_per_source);
    let reached = match &held {
        Some(_) => reach::reach(gateway, client).await,
        None => Err((client, Outcome::Crowded)),
    };
    let result = reached.as_ref().map_or_else(|(_, refused)| *refused, |_| Outcome::Forwarded);
    metrics.connections.get_or_create(&ResultLabel { result }).inc();
    match reached {
        Ok(flow) => {
            if let Err(error) = flow.run(gateway, pipes).await {
                tracing::debug!(%peer, %error, "a flow was broken off");
            }
        }
        Err((client, refused)) => {
            tracing::debug!(%peer, ?refused, "refused a connection");
            reach::refuse(client, refused).await;
        }
    }
}

#[cfg(test)]
mod tests;
