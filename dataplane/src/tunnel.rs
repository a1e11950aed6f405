//! Bytes both ways, once an exchange has become something else: a WebSocket, a CONNECT.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::{account::Exchange, worker::Worker};

/// Both ends of a tunnel that is about to be one.
pub struct Ends {
    /// Towards the caller.
    pub below: OnUpgrade,
    /// Towards the endpoint.
    pub above: OnUpgrade,
}

/// Copies until both directions have ended; the exchange is accounted for then.
pub fn start(worker: &Rc<Worker>, ends: Ends, exchange: Box<Exchange>) {
    worker.spawn(async move {
        let _exchange = exchange;
        let (below, above) = match futures_util::future::try_join(ends.below, ends.above).await {
            Ok(ends) => ends,
            Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
        };
        let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(below), &mut TokioIo::new(above)).await;
        if let Err(error) = copied {
            tracing::debug!(%error, "a tunnel broke off");
        }
    });
}
