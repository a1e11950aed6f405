//! Requests to one address in plaintext: the application beside this proxy, or a host outside the mesh.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use super::{Reply, is_unprocessed};
use crate::{
    body::Replayable,
    dial::{DialError, Route},
    message::Outgoing,
    pool::Unsent,
    worker::Worker,
};

/// Where no policy says otherwise.
pub const CONNECT: Duration = Duration::from_secs(1);

/// To a host outside the mesh, of which no policy can say anything: long enough for a packet or two to be sent again.
pub const CONNECT_OUTSIDE: Duration = Duration::from_secs(10);

/// Connections that were closed under us before anything was sent; so many are tried before that counts.
const STALE_MAX: usize = 8;

/// Sends to one address in plaintext, over a connection that stands within `limit`.
pub async fn to_address(
    worker: &Rc<Worker>,
    (address, limit): (SocketAddr, Duration),
    h2: bool,
    outgoing: &Outgoing,
    body: &Replayable,
) -> Result<Reply, AddressError> {
    let slot = worker.pool.plain(address);
    let mut fresh = false;
    // Whether somebody may have read it already.
    let mut sent = false;
    for _ in 0..STALE_MAX {
        let standing = if fresh { None } else { slot.take(h2) };
        let mut lease = match standing {
            Some(lease) => lease,
            None => {
                let route = Route::plain(address, limit);
                let connected = slot.connect(worker, route, h2, worker.pool.unlimited()).await;
                connected.map_err(|error| match sent {
                    false => AddressError::Connect(error),
                    true => AddressError::Broken(error.to_string()),
                })?
            }
        };
        let Unsent { error, returned } = match lease.send(outgoing.request(body.body(), h2, None)).await {
            Ok(response) => return Ok(Reply { response, lease, picked: None, span: None }),
            Err(unsent) => unsent,
        };
        if body.client_failed() {
            return Err(AddressError::Client);
        }
        // A connection that was closed while it idled: nothing tells that the other end is not there.
        let unread = returned || is_unprocessed(&error);
        if !(lease.reused && body.is_whole() && (unread || outgoing.idempotent)) {
            return Err(AddressError::Broken(process::logs::causes(&error)));
        }
        body.supersede();
        sent |= !unread;
        fresh = !returned;
    }
    Err(AddressError::Broken("every connection was closed before the request was sent".into()))
}

/// Why an address gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Nothing was sent.
    #[error(transparent)]
    Connect(DialError),
    /// It broke off before the head of an answer.
    #[error("{0}")]
    Broken(String),
    /// The caller broke off.
    #[error("the request's body broke off")]
    Client,
}
