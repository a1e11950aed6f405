//! gRPC over mesh TLS, between proxies and control planes and between clusters.
//!
//! Who may speak is decided by the TLS configurations that the caller brings, and by the service, which
//! finds the [`PeerInfo`] of the connection among each request's extensions. Whoever has shown no certificate
//! has little: few connections, each for a short time, and on them nothing but small calls that enrol or join.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use std::{error, io};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Server};

use crate::logs::causes;
use crate::shutdown::Shutdown;
use crate::tls::rejection_of;
use crate::world::{Clock, Listener, SharedWorld, Stream};

mod gate;
mod incoming;
mod places;

use gate::{Gate, MAX_OPEN_BYTES};
use places::Limits;

pub use incoming::PeerInfo;

/// The stubs of the two services, `control_{client,server}` and `federation_{client,server}`, over the
/// messages of `api::wire`.
#[allow(missing_docs, clippy::all)]
pub mod stub {
    include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));
}

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer is asked this often whether it is there, and must answer as fast.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Room for a view of ordinary size to travel without waiting for window updates.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The most calls at a time on one connection.
const MAX_STREAMS: u32 = 128;

/// The same of a peer that has shown no certificate, and what may be under way on its connection: it has one
/// small call to make.
const STRANGERS_STREAMS: u32 = 4;
const STRANGERS_WINDOW_BYTES: u32 = 64 * 1024;

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The name to expect is none.
    #[error("`{0}` is not a server name")]
    Name(String),
    /// TCP or TLS failed.
    #[error("cannot connect to {address}: {reason}")]
    Unreachable {
        /// Where to.
        address: SocketAddr,
        /// All causes in one line.
        reason: String,
    },
}

/// Why serving ended early.
#[derive(Debug, Error)]
#[error("the gRPC server ended: {0}")]
pub struct ServeError(String);

/// Connects now, so that a failure is told with its reason; a channel that breaks later connects anew at its
/// next call. `source` is the local address to connect from. ALPN is set to HTTP/2 whatever `tls` says.
pub async fn connect(
    world: &SharedWorld,
    address: SocketAddr,
    source: Option<IpAddr>,
    tls: Arc<ClientConfig>,
    server_name: String,
) -> Result<Channel, ConnectError> {
    let name = ServerName::try_from(server_name.clone()).map_err(|_| ConnectError::Name(server_name))?;
    let mut tls = ClientConfig::clone(&tls);
    tls.time_provider = Arc::new(Clock(world.clone()));
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    let world = world.clone();
    let dial = tower::service_fn(move |_| {
        let dialled = dial(world.clone(), address, source, connector.clone(), name.clone());
        async move { timeout(CONNECT_TIMEOUT, dialled).await.map_err(too_slow)?.map(TokioIo::new) }
    });
    // The authority is for the protocol's sake: the connector above knows where to go and whom to expect.
    Endpoint::from_static("http://weft.internal")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
        .connect_with_connector(dial)
        .await
        .map_err(|error| ConnectError::Unreachable { address, reason: reason(&error) })
}

async fn dial(
    world: SharedWorld,
    address: SocketAddr,
    source: Option<IpAddr>,
    connector: TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<Stream>> {
    let stream = world.connect(address, source).await?;
    connector.connect(name, stream).await
}

fn too_slow(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"))
}

/// What the transport's own error wraps says more than it does, and why we refused the peer more than that.
fn reason(error: &tonic::transport::Error) -> String {
    if let Some(rejection) = rejection_of(error) {
        return rejection.to_string();
    }
    causes(error::Error::source(error).unwrap_or(error))
}

/// Serves one gRPC service until `shutdown` is cancelled; then connections are told to go, and it returns
/// when the last call has ended. Long streams must therefore watch the same handle.
/// `service` makes the service that takes messages of so many bytes; members may send `max_message_bytes`.
/// ALPN is set to HTTP/2 whatever `tls` says.
pub async fn serve<S>(
    world: SharedWorld,
    listener: Listener,
    tls: Arc<ServerConfig>,
    max_message_bytes: usize,
    service: impl Fn(usize) -> S + Send + 'static,
    shutdown: Shutdown,
) -> Result<(), ServeError>
where
    S: GrpcService,
{
    let gate = Gate { open: service(MAX_OPEN_BYTES), members: service(max_message_bytes) };
    serve_within(world, Limits::USUAL, listener, tls, gate, shutdown).await
}

/// What tonic serves.
pub trait GrpcService:
    tower::Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> GrpcService for S where
    S: tower::Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

async fn serve_within<S: GrpcService>(
    world: SharedWorld,
    limits: Limits,
    listener: Listener,
    tls: Arc<ServerConfig>,
    gate: Gate<S>,
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let mut tls = ServerConfig::clone(&tls);
    tls.time_provider = Arc::new(Clock(world));
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let incoming = incoming::connections(listener, Arc::new(tls), limits, &shutdown);
    let members = server(MAX_STREAMS, STREAM_WINDOW_BYTES, 2 * STREAM_WINDOW_BYTES)
        .serve_with_incoming_shutdown(gate.clone(), incoming.members, shutdown.clone().cancelled_owned());
    let strangers = server(STRANGERS_STREAMS, STRANGERS_WINDOW_BYTES, STRANGERS_WINDOW_BYTES)
        .serve_with_incoming_shutdown(gate, incoming.strangers, shutdown.cancelled_owned());
    tokio::try_join!(members, strangers).map_err(|error| ServeError(reason(&error)))?;
    Ok(())
}

fn server(streams: u32, stream_window: u32, connection_window: u32) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(streams)
}

#[cfg(test)]
mod tests;
