//! Bytes both ways, once an exchange has become something else: a WebSocket, a CONNECT, TCP from the start.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use api::identity::{UnixTime, Verified};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use policies::facts::{Connection, Destination, Facts, Source};
use runtime::{Decision, Runtime, Target};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use crate::{
    account::Exchange,
    caller::Caller,
    dial::Stream,
    review::{self, Terms},
    worker::Worker,
};

/// How long the application may take to accept.
const CONNECT: Duration = Duration::from_secs(1);

/// Both ends of a tunnel that is about to be one.
pub struct Ends {
    /// Towards the caller.
    pub below: OnUpgrade,
    /// Towards the endpoint.
    pub above: Above,
    /// What it was allowed by.
    pub terms: Terms,
}

/// A caller that is ready for a tunnel.
pub struct Below {
    /// Its end.
    pub upgrade: OnUpgrade,
    /// What it is allowed by.
    pub terms: Terms,
}

impl Below {
    /// With the other end, and who is there.
    pub fn onto(self, above: Above, upstream: Option<(Arc<Verified>, UnixTime)>) -> Ends {
        Ends { below: self.upgrade, above, terms: Terms { upstream, ..self.terms } }
    }
}

/// The end towards the endpoint.
pub enum Above {
    /// The response that switched protocols.
    Upgrade(OnUpgrade),
    /// A stream of its own.
    Stream(Box<Stream>),
}

/// Copies until both directions have ended, or it is not allowed any more; the exchange is accounted for then.
pub fn start(worker: &Rc<Worker>, caller: &Rc<Caller>, ends: Ends, mut exchange: Box<Exchange>) {
    let Ends { below, above, terms } = ends;
    let revoked = terms.revoked(worker.clone(), caller.clone());
    let tunnel = async move {
        tokio::select! {
            copied = copy(below, above) => match copied {
                Ok(bytes) => exchange.tunnelled(bytes),
                Err(error) => tracing::debug!(%error, "a tunnel broke off"),
            },
            reason = revoked => exchange.revoked(&reason),
        }
    };
    worker.spawn(caller.shutdown.track("tunnel".into(), tunnel));
}

async fn copy(below: OnUpgrade, above: Above) -> io::Result<(u64, u64)> {
    let mut below = TokioIo::new(below.await.map_err(io::Error::other)?);
    match above {
        Above::Upgrade(above) => {
            let mut above = TokioIo::new(above.await.map_err(io::Error::other)?);
            copy_bidirectional(&mut below, &mut above).await
        }
        Above::Stream(mut above) => copy_bidirectional(&mut below, &mut *above).await,
    }
}

/// Judges a connection that carries no HTTP, and passes its bytes to the application.
pub async fn to_application<S>(
    worker: &Worker,
    caller: &Caller,
    port: u16,
    mut stream: S,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let state = worker.proxy.state().ok_or("no view has come yet")?;
    let address = judge(&state.runtime, caller, port)?;
    let judged_by = Some(state.runtime.clone());
    drop(state);
    let revoked =
        review::revoked(worker, caller, judged_by, |runtime| judge(runtime, caller, port).map(drop));
    let connected = timeout(CONNECT, TcpStream::connect(address)).await;
    let mut application =
        connected.map_err(|_| "the application does not answer")?.map_err(|error| error.to_string())?;
    let _ = application.set_nodelay(true);
    tokio::select! {
        copied = copy_bidirectional(&mut stream, &mut application) => {
            copied.map(drop).map_err(|error| error.to_string())
        }
        reason = revoked => Err(format!("no longer allowed: {reason}")),
    }
}

fn judge(runtime: &Runtime, caller: &Caller, port: u16) -> Result<SocketAddr, String> {
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
    match runtime.decide(caller.side.at(false, port), &facts, 0) {
        Decision::Forward(plan) => match plan.target {
            Target::Application(inbound) => Ok(inbound.address),
            Target::Service { .. } | Target::Direct { .. } => Err("it is not for the application".to_owned()),
        },
        Decision::Refuse(refusal) => Err(refusal.reason.into_owned()),
        Decision::Answer { .. } | Decision::Unknown { .. } => {
            Err("it is no request that could be answered".to_owned())
        }
    }
}
