//! Connections that carry bytes: decided once, by the connection alone, then copied until both sides have ended.
//!
//! Outbound they are balanced as requests are, and a connect in vain goes elsewhere; once a byte could have passed,
//! nothing is sent again. Inbound they are judged without a request, so that a rule which asks for one closes them.
//!
//! Invariants: a connection goes on only for as long as it would be allowed now; each one is told of when it ends.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use api::{
    endpoint,
    identity::{UnixTime, Verified},
};
use policies::facts::{Connection, Destination, Facts, Source};
use runtime::{Decision, Refusal, Runtime, Target};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::timeout,
};

use crate::{
    account::Exchange,
    caller::Caller,
    control::hosts::{WAIT, Word},
    dial::{self, Route},
    failure::Failure,
    forward::{address, stream},
    proxy::State,
    review,
    worker::Worker,
};

/// A connection over which nothing has passed for so long is given up, in whatever direction. Longer than the
/// kernel's own keep-alive of applications (2 h) would only serve the dead; pools of databases live well within it.
const IDLE: Duration = Duration::from_secs(3600);

/// What is copied at a time; a TLS record holds as much.
const CHUNK: usize = 16 << 10;

/// What is in force, once it says who is at `address` or that nobody knows; and whether nobody does.
pub async fn informed(worker: &Worker, address: SocketAddr) -> Option<(Arc<State>, bool)> {
    let host = endpoint::host(address.ip());
    let hosts = &worker.proxy.hosts;
    let knows = || worker.proxy.state().is_some_and(|state| state.runtime.knows(&host));
    let absent = !knows() && hosts.ask(&host, WAIT, knows).await != Word::Known;
    Some((worker.proxy.state()?, absent))
}

/// What is done with a connection of `caller`; `absent` where it is known that nobody knows who is there.
pub fn decide<'r>(runtime: &'r Runtime, caller: &Caller, port: u16, absent: bool) -> Decision<'r> {
    let mtls = caller.peer.is_some();
    let facts = Facts {
        source: Source {
            peer: caller.peer.as_ref().map(|identified| &*identified.peer),
            address: caller.remote,
        },
        destination: Destination { guarded: &runtime.workload.guarded, address: caller.destination(port) },
        request: None,
        connection: Connection {
            mtls,
            sni: &caller.sni,
            protocol: "tcp",
            tls_version: if mtls { "TLSv1.3" } else { "" },
        },
    };
    runtime.decide(caller.side.at(absent, port), &facts, 0)
}

/// From the application to where its connection was going.
pub async fn outbound(worker: &Rc<Worker>, caller: &Rc<Caller>, below: TcpStream) {
    let mut exchange = Exchange::connection(worker, caller, caller.destination(0));
    match reach(worker, caller, &mut exchange).await {
        Ok((above, upstream)) => {
            let believed = |_: &Runtime| match &upstream {
                Some((peer, at)) => peer
                    .still_holds(&worker.proxy.identity.bundle(), *at)
                    .map_err(|rejection| rejection.to_string()),
                None => Ok(()),
            };
            let revoked = review::revoked(worker, caller, exchange.runtime.clone(), believed);
            carry(below, above, &mut exchange, revoked).await;
        }
        Err(failure) => {
            exchange.failed_with(failure);
            reset(&below);
        }
    }
}

type Upstream = Option<(Arc<Verified>, UnixTime)>;

async fn reach(
    worker: &Rc<Worker>,
    caller: &Caller,
    exchange: &mut Exchange,
) -> Result<(dial::Stream, Upstream), Failure> {
    let address = caller.destination(0);
    let not_ready = || Failure::Ours { flag: "not-ready", reason: "no view has come yet".into() };
    let (state, absent) = informed(worker, address).await.ok_or_else(not_ready)?;
    exchange.obeys(&state.runtime);
    let dialled = match decide(&state.runtime, caller, 0, absent) {
        Decision::Forward(plan) => match plan.target {
            Target::Service { service, port, endpoint } => {
                exchange.service = Some(service.name.clone());
                let callee = state.callee(service, port).ok_or_else(|| Failure::Ours {
                    flag: "no-balancer",
                    reason: "the service's port is not balanced".into(),
                })?;
                let (dialled, picked) =
                    stream::open(worker, service, port, callee, endpoint, exchange).await?;
                exchange.holds(0, Some(picked));
                dialled
            }
            Target::Direct { .. } if worker.proxy.config.leads_back(address) => {
                return Err(Failure::upstream(502, "connect-failed", "it leads back to this proxy"));
            }
            Target::Direct { .. } => {
                let dialled = dial::dial(worker, &Route::plain(address, address::CONNECT_OUTSIDE)).await;
                exchange.tries = 1;
                dialled.map_err(|error| Failure::upstream(502, "connect-failed", error.to_string()))?
            }
            Target::Application(_) => return Err(Failure::client(400, "bad-request", "it is outbound")),
        },
        Decision::Refuse(refusal) => return Err(refused(exchange, refusal)),
        Decision::Answer { .. } | Decision::Unknown { .. } => {
            return Err(Failure::upstream(502, "unknown-host", "nobody in the mesh knows this address"));
        }
    };
    Ok((dialled.stream, dialled.peer.map(|peer| (peer, UnixTime::now()))))
}

/// From a caller to the application's `port`. Ends with the reason, where it is refused.
pub async fn inbound<S>(worker: &Rc<Worker>, caller: &Rc<Caller>, port: u16, below: S)
where
    S: AsyncRead + AsyncWrite + Cut + Unpin,
{
    let mut exchange = Exchange::connection(worker, caller, caller.destination(port));
    match admit(worker, caller, port, &mut exchange).await {
        Ok(above) => {
            let allowed = |runtime: &Runtime| match decide(runtime, caller, port, false) {
                Decision::Refuse(refusal) => Err(refusal.reason.into_owned()),
                _ => Ok(()),
            };
            let revoked = review::revoked(worker, caller, exchange.runtime.clone(), allowed);
            carry(below, above, &mut exchange, revoked).await;
        }
        Err(failure) => exchange.failed_with(failure),
    }
}

async fn admit(
    worker: &Rc<Worker>,
    caller: &Caller,
    port: u16,
    exchange: &mut Exchange,
) -> Result<TcpStream, Failure> {
    let not_ready = || Failure::Ours { flag: "not-ready", reason: "no view has come yet".into() };
    let state = worker.proxy.state().ok_or_else(not_ready)?;
    exchange.obeys(&state.runtime);
    let application = match decide(&state.runtime, caller, port, false) {
        Decision::Forward(plan) => {
            exchange.judged(plan.judgement);
            match plan.target {
                Target::Application(inbound) => inbound.address,
                Target::Service { .. } | Target::Direct { .. } => {
                    return Err(Failure::client(400, "bad-request", "it is not for the application"));
                }
            }
        }
        Decision::Refuse(refusal) => return Err(refused(exchange, refusal)),
        Decision::Answer { .. } | Decision::Unknown { .. } => {
            return Err(Failure::client(400, "bad-request", "it is no request that could be answered"));
        }
    };
    drop(state);
    exchange.tries = 1;
    let connected = timeout(address::CONNECT, TcpStream::connect(application)).await;
    let connected = connected.map_err(|_| Failure::refused("application", "it does not answer"))?;
    let stream = connected.map_err(|error| Failure::refused("application", error.to_string()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn refused(exchange: &mut Exchange, refusal: Refusal<'_>) -> Failure {
    exchange.judged(refusal.judgement);
    Failure::client(refusal.status, refusal.flag.as_str(), refusal.reason)
}

/// Copies both ways until both sides have ended (one may go on for long after the other has), until nothing passes any
/// more, or until it is `revoked`. Whatever is no end of both sides is passed on as a reset: protocols that end with their
/// connection would take the part that has come for the whole.
async fn carry<A, B>(below: A, above: B, exchange: &mut Exchange, revoked: impl Future<Output = String>)
where
    A: AsyncRead + AsyncWrite + Cut + Unpin,
    B: AsyncRead + AsyncWrite + Cut + Unpin,
{
    let (up, down) = (Cell::new(0), Cell::new(0));
    let mut below = Counted::new(below, &up);
    let mut above = Counted::new(above, &down);
    exchange.connected();
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut below, &mut above, CHUNK, CHUNK) => match copied {
            Ok(_) => exchange.ended(),
            Err(error) => {
                tracing::debug!(%error, "a connection broke off");
                exchange.cut();
            }
        },
        () = idle(IDLE, || up.get() + down.get()) => exchange.revoked_as("idle", "nothing has passed for an hour"),
        reason = revoked => exchange.revoked(&reason),
    }
    if !exchange.is_complete() {
        reset(below.stream.socket());
        reset(above.stream.socket());
    }
    exchange.carried(up.get(), down.get());
}

/// A stream that can be cut off.
pub trait Cut {
    /// The socket that all of it goes over.
    fn socket(&self) -> &TcpStream;
}

impl Cut for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<S: Cut> Cut for Box<S> {
    fn socket(&self) -> &TcpStream {
        (**self).socket()
    }
}

impl<S: Cut> Cut for tokio_rustls::server::TlsStream<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.socket()
    }
}

/// Ends once `count` has not grown for `limit`.
async fn idle(limit: Duration, count: impl Fn() -> u64) {
    let mut before = count();
    loop {
        tokio::time::sleep(limit).await;
        let now = count();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Tells the application at once that there is no connection, rather than that it has ended well.
pub fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// A stream, and how much was read from it.
pub struct Counted<'a, S> {
    stream: S,
    bytes: &'a Cell<u64>,
}

impl<'a, S> Counted<'a, S> {
    /// Counts in `bytes` what is read from `stream`.
    pub fn new(stream: S, bytes: &'a Cell<u64>) -> Self {
        Counted { stream, bytes }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.bytes.set(self.bytes.get() + (buffer.filled().len() - before) as u64);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
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
    use super::*;

    #[tokio::test]
    async fn what_passes_nothing_is_idle() {
        let asked = Cell::new(0);
        let growing_thrice = || {
            asked.set(asked.get() + 1);
            asked.get().min(3)
        };
        idle(Duration::from_millis(1), growing_thrice).await;
        assert_eq!(asked.get(), 4, "it has asked until nothing more had passed");
    }
}
