//! The server's side of connections: accept, TLS handshake, who the peer is.
//!
//! Invariant: a slow handshake holds up nobody but itself; each runs in a task of its own and is bounded.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::accept;
use crate::logs::Limit;
use crate::shutdown::Shutdown;

/// A whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections and handshakes of one listener together: as many proxies as one control plane may have.
const MAX_CONNECTIONS: usize = 10_000;

/// Connections that the server has not taken over yet.
const READY: usize = 64;

/// Anybody can cause a failed handshake.
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

/// The connections of a listener that have finished their handshake.
pub(super) fn connections(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    shutdown: &Shutdown,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    shutdown.spawn("rpc accept", accept_all(listener, tls.into(), ready, shutdown.clone()));
    ReceiverStream::new(connections)
}

async fn accept_all(
    listener: TcpListener,
    tls: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Connection>>,
    shutdown: Shutdown,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async { (places.clone().acquire_owned().await, accept::next(&listener).await) };
        let (place, (stream, address)) = tokio::select! {
            () = shutdown.cancelled() => return,
            () = ready.closed() => return,
            next = next => next,
        };
        let Ok(place) = place else { return };
        let handshake = handshake(tls.clone(), stream, address, place);
        let (ready, stop) = (ready.clone(), shutdown.clone());
        shutdown.spawn("rpc handshake", async move {
            let shaken = async {
                if let Some(connection) = handshake.await {
                    let _ = ready.send(Ok(connection)).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = shaken => {}
            }
        });
    }
}

async fn handshake(
    tls: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    let reason = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().map(|chain| chain.to_vec().into());
            return Some(Connection { stream, peer: PeerInfo { address, chain }, _place: place });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}"),
    };
    if let Some(suppressed) = FAILURES.pass(Instant::now()) {
        tracing::warn!(peer = %address, reason, suppressed, "a TLS handshake failed");
    }
    None
}

/// A TLS connection that knows its peer.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    /// Its place among the connections of the listener.
    _place: OwnedSemaphorePermit,
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
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
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
