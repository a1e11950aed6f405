//! Bytes both ways, once an exchange has become something else: a WebSocket, a CONNECT.

use std::{cell::Cell, io, rc::Rc, sync::Arc};

use api::identity::{UnixTime, Verified};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::{
    account::Exchange,
    caller::Caller,
    dial::Stream,
    review::Terms,
    tcp::{self, Counted, Cut},
    worker::Worker,
};

/// Both ends of a tunnel that is about to be one.
pub struct Ends {
    /// Towards the caller.
    pub below: OnUpgrade,
    /// Towards the endpoint.
    pub above: Above,
    /// What it was allowed by.
    pub terms: Box<Terms>,
}

/// A caller that is ready for a tunnel.
pub struct Below {
    /// Its end.
    pub upgrade: OnUpgrade,
    /// What it is allowed by.
    pub terms: Box<Terms>,
}

impl Below {
    /// With the other end, and who is there.
    pub fn onto(self, above: Above, upstream: Option<(Arc<Verified>, UnixTime)>) -> Ends {
        let mut terms = self.terms;
        terms.upstream = upstream;
        Ends { below: self.upgrade, above, terms }
    }
}

/// The end towards the endpoint.
pub enum Above {
    /// The response that switched protocols.
    Upgrade(OnUpgrade),
    /// A stream of its own.
    Stream(Box<Stream>),
}

/// Copies until both directions have ended, or it is not allowed any more; the exchange is accounted for then. What is no
/// end of both sides is passed on as a reset.
pub fn start(worker: &Rc<Worker>, caller: &Rc<Caller>, ends: Ends, mut exchange: Box<Exchange>) {
    let Ends { below, above, terms } = ends;
    let revoked = terms.revoked(worker.clone(), caller.clone());
    let reset = caller.reset;
    let tunnel = async move {
        let (up, down) = (Cell::new(0), Cell::new(0));
        match open(below, above).await {
            Ok((mut below, mut above)) => {
                tokio::select! {
                    copied = copy(&mut below, &mut above, &up, &down) => match copied {
                        Ok(_) => exchange.ended(),
                        Err(error) => broken(&mut exchange, &error),
                    },
                    reason = revoked => exchange.revoked(&reason),
                }
                if !exchange.is_complete() {
                    reset(below.into_inner());
                    above.reset();
                }
            }
            Err(error) => broken(&mut exchange, &error),
        }
        exchange.carried(up.get(), down.get());
    };
    worker.spawn(caller.shutdown.track("tunnel".into(), tunnel));
}

fn broken(exchange: &mut Exchange, error: &io::Error) {
    tracing::debug!(%error, "a tunnel broke off");
    exchange.cut();
}

/// The end towards the endpoint, once it is open.
enum Opened {
    Upgraded(TokioIo<Upgraded>),
    Stream(Box<Stream>),
}

async fn open(below: OnUpgrade, above: Above) -> io::Result<(TokioIo<Upgraded>, Opened)> {
    let below = TokioIo::new(below.await.map_err(io::Error::other)?);
    let above = match above {
        Above::Upgrade(above) => Opened::Upgraded(TokioIo::new(above.await.map_err(io::Error::other)?)),
        Above::Stream(stream) => Opened::Stream(stream),
    };
    Ok((below, above))
}

/// Counts what comes from below and from above.
async fn copy(
    below: &mut TokioIo<Upgraded>,
    above: &mut Opened,
    up: &Cell<u64>,
    down: &Cell<u64>,
) -> io::Result<(u64, u64)> {
    let mut below = Counted::new(below, up);
    match above {
        Opened::Upgraded(above) => copy_bidirectional(&mut below, &mut Counted::new(above, down)).await,
        Opened::Stream(above) => copy_bidirectional(&mut below, &mut Counted::new(&mut **above, down)).await,
    }
}

impl Opened {
    fn reset(self) {
        match self {
            Opened::Stream(stream) => tcp::reset(stream.socket()),
            Opened::Upgraded(upgraded) => {
                if let Ok(parts) = upgraded.into_inner().downcast::<TokioIo<Stream>>() {
                    tcp::reset(parts.io.inner().socket());
                }
            }
        }
    }
}
