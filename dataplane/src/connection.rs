//! One accepted connection: TLS or plaintext → protocol → who it is → its requests.
//!
//! Invariant: a ClientHello for the mesh's domain brings a valid certificate, in every mode. Plaintext reaches an
//! application only where some port of it allows that, and each request is judged by its own port's mode.

use std::{
    cell::OnceCell,
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use api::{endpoint::ServerName, wire};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use process::{
    logs::{self, Limit},
    shutdown::Shutdown,
    tls,
};
use runtime::Runtime;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};
use tokio_rustls::{
    LazyConfigAcceptor,
    server::{StartHandshake, TlsStream},
};

use crate::{
    caller::{Caller, Identified, Open, Side},
    capture, captured,
    http1::{Guard, HEAD_BYTES},
    request, review,
    sniff::{self, Spoken},
    tcp::{self, Cut},
    worker::{LocalExecutor, Worker},
};

/// First bytes and TLS handshake, each.
pub(crate) const HELLO: Duration = Duration::from_secs(5);

/// The very first byte: clients connect ahead of their requests.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Between looks at a beginning that may become anything, doubled from one to the next.
pub(crate) const PEEK_PAUSE: Duration = Duration::from_millis(1);
pub(crate) const PEEK_PAUSE_MAX: Duration = Duration::from_millis(100);

/// The head of a request must be there, and a kept connection be used again, within this time.
const HEAD: Duration = Duration::from_secs(120);

/// The same for members of the mesh. Longer than they keep idle connections, and than a gateway between does, so that it
/// is never the server who closes one that may be used this very moment.
const MEMBER_HEAD: Duration = Duration::from_secs(70 * 60);

/// How long the last words of a connection may take on which nothing is under way.
const FAREWELL: Duration = Duration::from_secs(1);

/// How the kernel finds out whether a caller that says nothing is still there.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// Streams of one HTTP/2 connection at a time.
const STREAMS: u32 = 1000;

/// What a stream of HTTP/2 may bring before it is read, and what all of a connection may together: of a member as much as
/// it would ever send at a time, so that none holds up the others; of a stranger no more than is good for us.
const WINDOW: u32 = 1 << 20;
const MEMBER_WINDOW: u32 = 100 * WINDOW;
const STRANGER_WINDOW: u32 = 16 * WINDOW;

/// A TLS alert as bytes: fatal, `unrecognized_name` (RFC 8446, 6.2).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Strangers can cause these at will.
static REFUSALS: Limit = Limit::new(10);

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// From the application.
    Outbound,
    /// To the application.
    Inbound,
    /// From outside the mesh.
    Ingress {
        /// The listener's port.
        port: u16,
    },
}

/// How a connection begins.
pub(crate) enum Opening {
    Tls,
    Http2,
    Other,
}

/// Serves one connection to its end.
pub async fn run(
    worker: Rc<Worker>,
    stream: TcpStream,
    remote: SocketAddr,
    entrance: Entrance,
    shutdown: Shutdown,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEP_ALIVE);
    let Ok(local) = stream.local_addr() else { return };
    let captures = worker.proxy.config.capture.is_some();
    let original = captures.then(|| capture::original(&stream, local)).flatten();
    let side = match entrance {
        Entrance::Outbound => Side::Outbound,
        Entrance::Inbound => Side::Inbound { port: None },
        Entrance::Ingress { port } => Side::Ingress { port },
    };
    let caller = Caller {
        side,
        remote,
        written: OnceCell::new(),
        local,
        peer: None,
        sni: String::new(),
        protocol: "http/1.1",
        original,
        shutdown,
        open: Open::none(),
        hang_up: Notify::new(),
        reset: drop,
    };
    // Boxed, so that each connection has room for its own kind alone.
    match (entrance, original) {
        (Entrance::Outbound, Some(_)) => {
            return Box::pin(captured::outbound(&worker, stream, caller)).await;
        }
        (Entrance::Inbound, Some(original)) => {
            return Box::pin(captured::inbound(&worker, stream, original, caller)).await;
        }
        (Entrance::Inbound | Entrance::Outbound, None) | (Entrance::Ingress { .. }, _) => {}
    }
    let Ok(opening) = opening(&stream, SILENCE, HELLO).await else { return };
    match (entrance, opening) {
        (Entrance::Inbound, Opening::Tls) => Box::pin(tls(&worker, stream, caller)).await,
        (Entrance::Inbound, opening) => match worker.proxy.state() {
            Some(state) if takes_plaintext(&state.runtime) => http(&worker, stream, caller, opening).await,
            Some(_) => refused(remote, "plaintext where every port is STRICT"),
            None => {}
        },
        (Entrance::Outbound | Entrance::Ingress { .. }, opening) => {
            http(&worker, stream, caller, opening).await;
        }
    }
}

/// Serves one inbound connection that begins with a ClientHello.
pub(crate) async fn tls(worker: &Rc<Worker>, stream: TcpStream, caller: Caller) {
    let remote = caller.remote;
    if let Err(reason) = inbound_tls(worker, stream, caller).await {
        refused(remote, &reason);
    }
}

pub(crate) fn refused(remote: SocketAddr, reason: &str) {
    if let Some(suppressed) = REFUSALS.pass(Instant::now()) {
        tracing::warn!(%remote, reason, suppressed, "a connection is refused");
    }
}

fn takes_plaintext(runtime: &Runtime) -> bool {
    runtime
        .inbound()
        .iter()
        .any(|one| matches!(one.mtls, wire::MtlsMode::Permissive | wire::MtlsMode::Disable))
}

/// Looks at the first bytes without taking them. The first may take its time; once it is there, the others may not.
pub(crate) async fn opening(stream: &TcpStream, silence: Duration, rest: Duration) -> io::Result<Opening> {
    timeout(silence, stream.peek(&mut [0])).await??;
    timeout(rest, recognised(stream)).await?
}

async fn recognised(stream: &TcpStream) -> io::Result<Opening> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut bytes = [0; PREFACE.len()];
    // What was seen is not taken, so that nothing tells when more is there.
    let mut pause = PEEK_PAUSE;
    loop {
        let seen = stream.peek(&mut bytes).await?;
        match &bytes[..seen] {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            [22, ..] => return Ok(Opening::Tls),
            begun if begun == PREFACE => return Ok(Opening::Http2),
            begun if PREFACE.starts_with(begun) => tokio::time::sleep(pause).await,
            _ => return Ok(Opening::Other),
        }
        pause = (pause * 2).min(PEEK_PAUSE_MAX);
    }
}

async fn inbound_tls(worker: &Rc<Worker>, stream: TcpStream, caller: Caller) -> Result<(), String> {
    let state = worker.proxy.state().ok_or("no view has come yet")?;
    let (port, sni, stream) = Box::pin(shaken(worker, &state.runtime, stream)).await?;
    let connection = stream.get_ref().1;
    let verified = worker.proxy.identity.peer_of(connection).map_err(|rejection| rejection.to_string())?;
    let opening = if connection.alpn_protocol() == Some(b"h2") { Opening::Http2 } else { Opening::Other };
    let agreed = connection.alpn_protocol().is_some();
    let protocol = state.runtime.inbound().iter().find(|one| one.port == port).map(|one| one.protocol);
    let id = verified.id.clone();
    let peer = Identified::new(verified, &state.runtime.workload.principal)
        .ok_or_else(|| format!("{id} is no workload"))?;
    drop(state);
    let caller = Caller { side: Side::Inbound { port: Some(port) }, peer: Some(peer), sni, ..caller };
    match protocol {
        // Who speaks HTTP agrees on which; here nothing was, so that bytes come.
        Some(wire::Protocol::Tcp) if !agreed => tcp::inbound(worker, &Rc::new(caller), port, stream).await,
        Some(wire::Protocol::Unspecified) if !agreed => {
            let (spoken, stream) =
                sniff::read(stream, sniff::SILENCE).await.map_err(|error| error.to_string())?;
            match spoken {
                Spoken::Http1 => http(worker, stream, caller, Opening::Other).await,
                Spoken::Http2 => http(worker, stream, caller, Opening::Http2).await,
                Spoken::Tls | Spoken::Bytes => tcp::inbound(worker, &Rc::new(caller), port, stream).await,
            }
        }
        _ => http(worker, stream, caller, opening).await,
    }
    Ok(())
}

/// After the handshake: the application's port that was asked for, by which name, and the stream.
async fn shaken(
    worker: &Worker,
    runtime: &Runtime,
    stream: TcpStream,
) -> Result<(u16, String, Box<TlsStream<TcpStream>>), String> {
    let accepting = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let start = timeout(HELLO, accepting)
        .await
        .map_err(|_| "no ClientHello in time")?
        .map_err(|error| error.to_string())?;
    let sni = start.client_hello().server_name().unwrap_or_default().to_owned();
    let Some(port) = port_of(runtime, &sni) else {
        unrecognized(start).await;
        return Err(format!("nothing here is called `{sni}`"));
    };
    let shaken =
        timeout(HELLO, start.into_stream(worker.tls.clone())).await.map_err(|_| "no handshake in time")?;
    let stream = shaken.map_err(|error| match tls::rejection_of(&error) {
        Some(rejection) => rejection.to_string(),
        None => error.to_string(),
    })?;
    Ok((port, sni, Box::new(stream)))
}

/// The application's port that a server name asks for.
fn port_of(runtime: &Runtime, sni: &str) -> Option<u16> {
    match ServerName::parse(sni)? {
        ServerName::Gateway => None,
        ServerName::Endpoint(id) => runtime.inbound_at(&id).map(|inbound| inbound.port),
        ServerName::Service { port, service } => {
            let own = runtime.workload.guarded.services.iter().any(|own| own.to_string() == service);
            runtime.inbound().iter().find(|inbound| own && inbound.port == port).map(|inbound| inbound.port)
        }
    }
}

async fn unrecognized(start: StartHandshake<TcpStream>) {
    let mut stream = start.io;
    let farewell = async {
        stream.write_all(&UNRECOGNIZED_NAME).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(Duration::from_secs(1), farewell).await;
}

/// Serves the requests of a connection; ends early when its peer is no longer believed.
pub(crate) async fn http<S>(worker: &Rc<Worker>, stream: S, mut caller: Caller, opening: Opening)
where
    S: AsyncRead + AsyncWrite + Cut + Unpin + Send + 'static,
{
    let h2 = matches!(opening, Opening::Http2);
    caller.protocol = if h2 { "h2" } else { "http/1.1" };
    caller.reset = reset::<S>;
    let caller = Rc::new(caller);
    tokio::select! {
        ended = served(worker, stream, &caller, h2) => if let Err(error) = ended {
            tracing::debug!(remote = %caller.remote, error = logs::causes(&error), "a connection broke off");
        },
        reason = distrusted(worker, &caller) => refused(caller.remote, &reason),
    }
}

async fn served<S>(worker: &Rc<Worker>, stream: S, caller: &Rc<Caller>, h2: bool) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match h2 {
        true => Box::pin(http2(worker, stream, caller.clone())).await,
        false => http1(worker, stream, caller.clone()).await,
    }
}

async fn http1<S>(worker: &Rc<Worker>, stream: S, caller: Rc<Caller>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (worker, owner) = (worker.clone(), caller.clone());
    let service = service_fn(move |request| request::serve(worker.clone(), owner.clone(), request));
    // Not `pipeline_flush`: with it hyper never flushes the 400 to a broken head, which still lies in its buffer. Nor its
    // own time limit for heads, which is a timer for each request: `idle` looks once in a while.
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES * 4).header_read_timeout(None);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(Guard::new(stream)), service).with_upgrades());
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = caller.hang_up.notified() => return Ok(()),
        () = caller.open.idle(patience(&caller)) => return Ok(()),
        () = caller.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        ended = connection => ended,
        () = caller.hang_up.notified() => Ok(()),
        () = caller.open.idle(patience(&caller)) => Ok(()),
    }
}

/// How long nothing may be under way.
fn patience(caller: &Caller) -> Duration {
    if caller.peer.is_some() { MEMBER_HEAD } else { HEAD }
}

async fn http2<S>(worker: &Rc<Worker>, stream: S, caller: Rc<Caller>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (worker, owner) = (worker.clone(), caller.clone());
    let window = if caller.peer.is_some() { MEMBER_WINDOW } else { STRANGER_WINDOW };
    let service = service_fn(move |request| request::serve(worker.clone(), owner.clone(), request));
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(window);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let in_use = tokio::select! {
        ended = connection.as_mut() => return ended,
        () = caller.shutdown.cancelled() => caller.open.ever(),
        () = caller.open.idle(patience(&caller)) => false,
    };
    connection.as_mut().graceful_shutdown();
    if in_use {
        return connection.await;
    }
    // It says farewell only to who takes part: not in a handshake that is never ended.
    caller.open.awake();
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = caller.open.idle(FAREWELL) => Ok(()),
    }
}

/// What an HTTP/1.1 connection has become ends as one that broke.
fn reset<S>(upgraded: Upgraded)
where
    S: AsyncRead + AsyncWrite + Cut + Unpin + Send + 'static,
{
    if let Ok(parts) = upgraded.downcast::<TokioIo<Guard<S>>>() {
        tcp::reset(parts.io.inner().socket());
    }
}

/// Ends when the caller's chain would not be believed any more.
async fn distrusted(worker: &Worker, caller: &Caller) -> String {
    match &caller.peer {
        Some(_) => review::revoked(worker, caller, None, |_| Ok(())).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn opened(first: &'static [u8], silence: Duration, rest: Duration) -> io::Result<Opening> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        client.write_all(first).await?;
        opening(&listener.accept().await?.0, silence, rest).await
    }

    /// Room for each of many that wait, and cold memory for each that wakes: an argument that is moved on, or a rare way
    /// that is not boxed, is easily had twice.
    #[test]
    fn what_waits_is_small() {
        fn connection<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        fn request<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let (connection, request) = (connection(run), request(request::serve));
        assert!(connection <= 2560 && request <= 5632, "{connection} {request}");
    }

    #[test]
    fn who_calls_gives_up_an_idle_connection_before_whoever_serves_it() {
        let gateway = crate::passthrough::Settings::default().idle;
        assert!(crate::pool::MEMBER_IDLE < gateway && gateway < MEMBER_HEAD);
    }

    #[tokio::test]
    async fn a_preface_that_is_begun_is_not_waited_for_as_long_as_a_first_byte() {
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(20));
        let late = timeout(Duration::from_secs(10), opened(b"PRI", long, short)).await.unwrap();
        assert_eq!(late.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        let silent = opened(b"", short, long).await;
        assert_eq!(silent.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        let whole = opened(b"PRI * HTTP/2.0\r\n", long, long).await;
        assert!(matches!(whole, Ok(Opening::Http2)));
        assert!(matches!(opened(b"PRICE / HTTP/1.1", long, long).await, Ok(Opening::Other)));
    }
}
