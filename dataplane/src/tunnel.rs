//! Bytes both ways, once an exchange has become something else: a WebSocket, a CONNECT.

use std::{cell::Cell, io, rc::Rc, sync::Arc};

use api::identity::{UnixTime, Verified};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::{account::Exchange, caller::Caller, dial::Stream, review::Terms, tcp::Counted, worker::Worker};

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
        let (up, down) = (Cell::new(0), Cell::new(0));
        tokio::select! {
            copied = copy(below, above, &up, &down) => if let Err(error) = copied {
                tracing::debug!(%error, "a tunnel broke off");
                exchange.revoked_as("broken-off", "one of its ends broke off");
            },
            reason = revoked => exchange.revoked(&reason),
        }
        exchange.carried(up.get(), down.get());
    };
    worker.spawn(caller.shutdown.track("tunnel".into(), tunnel));
}

/// Counts what comes from below and from above.
async fn copy(below: OnUpgrade, above: Above, up: &Cell<u64>, down: &Cell<u64>) -> io::Result<()> {
    let below = TokioIo::new(below.await.map_err(io::Error::other)?);
    let mut below = Counted::new(below, up);
    match above {
        Above::Upgrade(above) => {
            let above = TokioIo::new(above.await.map_err(io::Error::other)?);
            copy_bidirectional(&mut below, &mut Counted::new(above, down)).await?;
        }
        Above::Stream(above) => {
            copy_bidirectional(&mut below, &mut Counted::new(*above, down)).await?;
        }
    }
    Ok(())
}
