//! A new connection to an endpoint, its gateway, the application, or a host outside the mesh.
//!
//! Invariant: what is asked for over mTLS proves its identity *and* its cluster before a byte of a request is sent.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use api::{
    endpoint::GATEWAY_NAME,
    identity::{SpiffeId, Verified},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use process::{
    limits,
    tls::{self, Expect},
};
use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    balance::{Endpoint, Gateway, Outcome, TRIAL},
    liveness::{Handle, Watched},
    tcp::Cut,
    worker::Worker,
};

/// After this part of a connect's limit the sibling of a silent gateway is tried as well: 250 ms unless told otherwise
/// (RFC 8305, 5).
const SIBLING: u32 = 8;

/// Where to, and how.
pub struct Route<'a> {
    /// The endpoint's own address.
    pub address: SocketAddr,
    /// The endpoint, when it is one of the mesh.
    pub endpoint: Option<&'a Arc<Endpoint>>,
    /// How to speak TLS, if the endpoint does.
    pub tls: Option<Arc<ClientConfig>>,
    /// For TCP, and for TLS after it.
    pub timeout: Duration,
    /// How the kernel probes it while it idles.
    pub keep_alive: Option<TcpKeepalive>,
}

impl Route<'_> {
    /// In plaintext, to what is not of the mesh.
    pub fn plain(address: SocketAddr, timeout: Duration) -> Self {
        Route { address, endpoint: None, tls: None, timeout, keep_alive: None }
    }
}

/// A connection that stands.
pub struct Dialled {
    /// To speak through.
    pub stream: Stream,
    /// Who is at the other end, over mTLS.
    pub peer: Option<Arc<Verified>>,
    /// The gateway that it goes through.
    pub gateway: Option<Arc<Gateway>>,
    /// Whether HTTP/2 was agreed on.
    pub h2: bool,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No gateway of the network answers: that tells nothing of the endpoint.
    #[error("no gateway of network `{0}` can be reached; is port 15443 open towards it?")]
    Gateway(String),
    /// TCP.
    #[error("{0}: {1}")]
    Tcp(SocketAddr, String),
    /// Nothing came in time.
    #[error("{0}: no connection within {1:?}")]
    Slow(SocketAddr, Duration),
    /// TLS.
    #[error("{0}: TLS: {1}")]
    Tls(SocketAddr, String),
    /// The configuration names no identity that could be expected.
    #[error("{0}: its identity `{1}` is not among those of its service")]
    Identity(SocketAddr, String),
    /// The service has as many connections as it may.
    #[error("as many connections stand as `limits.connections` allows")]
    Full,
    /// Another request tried to connect, and tells why it failed.
    #[error(transparent)]
    Shared(Box<DialError>),
}

impl DialError {
    /// What it tells of the endpoint. A gateway that cannot be reached tells nothing of the endpoint behind it.
    pub fn outcome(&self) -> Outcome {
        match self {
            DialError::Gateway(_) | DialError::Full | DialError::Shared(_) => Outcome::Cancelled,
            DialError::Slow(..) => Outcome::Late { connected: false },
            DialError::Tcp(..) | DialError::Tls(..) | DialError::Identity(..) => Outcome::ConnectFailure,
        }
    }
}

/// How TLS to an endpoint is spoken: expecting who it is, in the cluster it is in. Without ALPN it carries bytes.
pub fn tls_config(
    worker: &Worker,
    endpoint: &Endpoint,
    identities: &[SpiffeId],
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, DialError> {
    let named = &endpoint.wire.identity;
    let unknown = || DialError::Identity(endpoint.address, named.clone());
    let id: SpiffeId = named.parse().map_err(|_| unknown())?;
    if !identities.contains(&id) {
        return Err(unknown());
    }
    let cluster = endpoint.wire.cluster.parse().map_err(|_| unknown())?;
    let expect = Expect { ids: vec![id], cluster: Some(cluster) };
    Ok(tls::client(&worker.proxy.identity, expect, alpn))
}

/// Connects.
pub async fn dial(worker: &Worker, route: &Route<'_>) -> Result<Dialled, DialError> {
    let (stream, gateway) =
        match route.endpoint.and_then(|endpoint| Some((endpoint, endpoint.gateway.as_ref()?))) {
            None => (tcp(worker, route.address, route.timeout).await?, None),
            Some((endpoint, network)) => {
                let (stream, gateway) =
                    through_gateway(worker, network, &endpoint.wire.network, route.timeout).await?;
                (stream, Some(gateway))
            }
        };
    if let Some(keep_alive) = &route.keep_alive {
        // Without it the connection serves as well: what dies is found by TCP_INFO as soon as something is sent.
        let _ = SockRef::from(&stream).set_tcp_keepalive(keep_alive);
    }
    let stream = worker.liveness.watch(stream, gateway.clone());
    let (Some(config), Some(endpoint)) = (&route.tls, route.endpoint) else {
        return Ok(Dialled { stream: Stream::Plain(stream), peer: None, gateway, h2: false });
    };
    let broken = |reason: String| DialError::Tls(route.address, reason);
    let name = ServerName::try_from(endpoint.id.sni()).map_err(|error| broken(error.to_string()))?;
    let overdue = Overdue { worker, gateway: gateway.clone() };
    let shaken = timeout(route.timeout, TlsConnector::from(config.clone()).connect(name, stream)).await;
    let shaken = shaken.map_err(|_| DialError::Slow(route.address, route.timeout))?;
    overdue.over(shaken.as_ref().err().is_none_or(|error| tls::alert_of(error).is_some()));
    let stream = shaken.map_err(|error| broken(error.to_string()))?;
    let connection = stream.get_ref().1;
    let peer = worker.proxy.identity.peer_of(connection).map_err(|error| broken(error.to_string()))?;
    let h2 = connection.alpn_protocol() == Some(b"h2");
    Ok(Dialled { stream: Stream::Tls(Box::new(stream)), peer: Some(peer), gateway, h2 })
}

/// A gateway's own failure counts against its address; its sibling is tried at once. One that is silent has it tried beside
/// itself: on a path that loses packets the first of a connection is sent again after a second, which may come earlier.
async fn through_gateway(
    worker: &Worker,
    network: &crate::balance::Network,
    name: &str,
    limit: Duration,
) -> Result<(TcpStream, Arc<Gateway>), DialError> {
    let begun = Instant::now();
    let mut tried = Vec::new();
    let mut trying = FuturesUnordered::new();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let next = network.choose(worker.chance(), &tried).filter(|_| !left.is_zero());
        let was_last = next.is_none();
        if let Some(gateway) = next {
            tried.push(gateway.address);
            trying.push(knock(worker, gateway, left));
        }
        tokio::select! {
            biased;
            answer = trying.next() => match answer {
                None => return Err(DialError::Gateway(name.to_owned())),
                Some(Some(reached)) => return Ok(reached),
                Some(None) => {}
            },
            () = sleep(limit / SIBLING), if !was_last => {}
        }
    }
}

/// A connection to a gateway, which is lost if there is none within `limit`, and doubted if it is not waited for.
async fn knock(worker: &Worker, gateway: Arc<Gateway>, limit: Duration) -> Option<(TcpStream, Arc<Gateway>)> {
    let overdue = Overdue { worker, gateway: Some(gateway.clone()) };
    let connected = tcp(worker, gateway.address, limit).await;
    // That its kernel takes connections is no answer.
    overdue.over(false);
    match connected {
        Ok(stream) => Some((stream, gateway)),
        Err(error) => {
            tracing::debug!(%error, "a gateway cannot be reached");
            gateway.lost(worker.proxy.now());
            None
        }
    }
}

/// An answer that is awaited, perhaps through a gateway: if it is given up, that may be who is silent.
struct Overdue<'a> {
    worker: &'a Worker,
    gateway: Option<Arc<Gateway>>,
}

impl Overdue<'_> {
    /// No longer; it came, or the connection broke, of which others tell.
    fn over(mut self, answered: bool) {
        if let Some(gateway) = self.gateway.take().filter(|_| answered) {
            gateway.answered(self.worker.proxy.now());
        }
    }
}

impl Drop for Overdue<'_> {
    fn drop(&mut self) {
        if let Some(gateway) = &self.gateway {
            gateway.doubt(self.worker.proxy.now());
        }
    }
}

/// Finds out whether a gateway that was lost, or is doubted, is there.
pub async fn try_gateway(worker: &Worker, gateway: &Gateway) {
    match ask_gateway(worker, gateway).await {
        Ok(()) => gateway.answered(worker.proxy.now()),
        Err(error) => {
            tracing::debug!(%error, "a gateway does not answer");
            gateway.tried_in_vain(worker.proxy.now());
        }
    }
}

/// Whatever it says to a name that it cannot forward to is an answer.
async fn ask_gateway(worker: &Worker, gateway: &Gateway) -> Result<(), DialError> {
    let (connect, answer) = TRIAL;
    let stream = tcp(worker, gateway.address, connect).await?;
    let nobody = tls::client(&worker.proxy.identity, Expect { ids: Vec::new(), cluster: None }, &[]);
    let name = ServerName::try_from(GATEWAY_NAME).expect("it is a name");
    match timeout(answer, TlsConnector::from(nobody).connect(name, stream)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(DialError::Slow(gateway.address, answer)),
    }
}

async fn tcp(worker: &Worker, address: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
    let connect = async {
        let stream = socket(address, worker.proxy.config.source)?.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match timeout(limit, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(tcp_error(address, &error)),
        Err(_) => Err(DialError::Slow(address, limit)),
    }
}

fn tcp_error(address: SocketAddr, error: &io::Error) -> DialError {
    DialError::Tcp(address, error.to_string())
}

fn socket(address: SocketAddr, source: IpAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if limits::is_too_many(&socket) {
        return Err(io::Error::other("too many files are open"));
    }
    if source.is_ipv4() == address.is_ipv4() {
        // The port is chosen with the peer known: there are then so many for each peer, not for all together.
        let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
        socket.bind((source, 0).into())?;
    }
    Ok(socket)
}

/// Whether the peer broke off the first exchange of a connection because of who we are or whom we asked for: a TLS
/// 1.3 client finishes its handshake before the server has judged its certificate.
pub fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    tls::alert_of(error).is_some_and(|alert| {
        matches!(
            alert,
            AlertDescription::UnrecognisedName
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
        )
    })
}

/// A connection in plaintext or TLS.
pub enum Stream {
    /// Plaintext.
    Plain(Watched),
    /// TLS.
    Tls(Box<TlsStream<Watched>>),
}

impl Stream {
    /// By what the connection is found again.
    pub fn handle(&self) -> Handle {
        match self {
            Stream::Plain(stream) => stream.handle(),
            Stream::Tls(stream) => stream.get_ref().0.handle(),
        }
    }
}

impl Cut for Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream.socket(),
            Stream::Tls(stream) => stream.get_ref().0.socket(),
        }
    }
}

macro_rules! each {
    ($stream:expr, $method:ident $(, $argument:expr)*) => {
        match $stream.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tls(stream) => Pin::new(&mut **stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, poll_write, context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, poll_write_vectored, context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, poll_shutdown, context)
    }
}
