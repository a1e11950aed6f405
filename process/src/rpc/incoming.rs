//! The server's side of connections: accept, TLS handshake, who the peer is.
//!
//! Invariant: a slow handshake holds up nobody but itself; each runs in a task of its own and is bounded.
//! Invariant: whoever has shown no certificate is gone after a short while, whatever it does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::places::{Limits, Place, Places};
use crate::accept;
use crate::logs::Limit;
use crate::shutdown::Shutdown;
use crate::world::{Listener, Stream};

/// A whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that the server has not taken over yet.
const READY: usize = 64;

/// Anybody can cause these.
static FAILURES: Limit = Limit::new(10);

/// Who is at the other end of the connection that a request came on.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address.
    pub address: SocketAddr,
    /// The certificates it presented, leaf first, after the server's verifier has accepted them; `None` when
    /// it presented none.
    pub chain: Option<Arc<[CertificateDer<'static>]>>,
}

/// The connections of a listener that have finished their handshake, by who came.
pub(super) struct Incoming {
    /// Those that have shown a certificate.
    pub(super) members: ReceiverStream<io::Result<Connection>>,
    /// Those that have not.
    pub(super) strangers: ReceiverStream<io::Result<Connection>>,
}

/// Accepts from now on.
pub(super) fn connections(
    listener: Listener,
    tls: Arc<ServerConfig>,
    limits: Limits,
    shutdown: &Shutdown,
) -> Incoming {
    let (to_members, members) = mpsc::channel(READY);
    let (to_strangers, strangers) = mpsc::channel(READY);
    let places = Places::new(limits);
    let door = Door { tls: tls.into(), places, life: limits.life, to_members, to_strangers };
    shutdown.spawn("rpc accept", accept_all(listener, Arc::new(door), shutdown.clone()));
    Incoming { members: ReceiverStream::new(members), strangers: ReceiverStream::new(strangers) }
}

/// What every handshake of a listener needs.
struct Door {
    tls: TlsAcceptor,
    places: Places,
    life: Duration,
    to_members: mpsc::Sender<io::Result<Connection>>,
    to_strangers: mpsc::Sender<io::Result<Connection>>,
}

async fn accept_all(listener: Listener, door: Arc<Door>, shutdown: Shutdown) {
    loop {
        let next = async { (door.places.room().await, accept::tirelessly(|| listener.accept()).await) };
        let (room, (stream, address)) = tokio::select! {
            () = shutdown.cancelled() => return,
            () = door.to_members.closed() => return,
            next = next => next,
        };
        let Some(room) = room else { return };
        let Some(place) = door.places.stranger(room, address.ip()) else {
            refused(address, "too many of its source have shown no certificate");
            continue;
        };
        let (door, stop) = (door.clone(), shutdown.clone());
        shutdown.spawn("rpc handshake", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = door.take(stream, address, place) => {}
            }
        });
    }
}

impl Door {
    /// From a TCP connection of a stranger to a connection that is served.
    async fn take(&self, stream: Stream, address: SocketAddr, place: Place) {
        let begun = tokio::time::Instant::now();
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refused(address, &error.to_string()),
            Err(_) => return refused(address, &format!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}")),
        };
        let chain: Option<Arc<[_]>> =
            stream.get_ref().1.peer_certificates().map(|chain| chain.to_vec().into());
        let known = chain.is_some();
        let (place, end) = match known {
            true => (self.places.member(), None),
            false => (Some(place), Some(Box::pin(sleep_until(begun + self.life)))),
        };
        let Some(place) = place else {
            return refused(address, "as many proxies as one control plane may have are connected");
        };
        let peer = PeerInfo { address, chain };
        let to = if known { &self.to_members } else { &self.to_strangers };
        // Fails only where nobody serves any more.
        let _ = to.send(Ok(Connection { stream, peer, end, _place: place })).await;
    }
}

fn refused(peer: SocketAddr, reason: &str) {
    if let Some(suppressed) = FAILURES.pass(Instant::now()) {
        tracing::warn!(%peer, reason, suppressed, "a connection is refused");
    }
}

/// A TLS connection that knows its peer.
pub(super) struct Connection {
    stream: TlsStream<Stream>,
    peer: PeerInfo,
    /// When a stranger has to be gone.
    end: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

crate::writes_pass!(Connection);
