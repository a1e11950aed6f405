//! How much may be under way to one port of a service, all workers together (`TrafficPolicy.limits`; 0: no limit).
//!
//! A connection counts for as long as it stands, a request until its answer has come to its end, whatever protocol
//! carries it. A request that finds no standing connection is pending until it has one; where no further one may be
//! made it waits for one to come free, and then chooses its endpoint anew. What is over a limit ends at once: the limit
//! is the service's, so that another endpoint would be no way around it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use api::wire::TrafficPolicy;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::failure::Failure;

/// How long a request waits for a connection where `timeouts.firstByte` does not say.
const WAIT: Duration = Duration::from_secs(15);

/// What is under way.
#[derive(Debug, Default)]
pub struct Load {
    counts: [AtomicU32; 3],
    /// Requests that wait until there is room for another connection, or one is free.
    waiting: AtomicU32,
    freed: Notify,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A connection.
    Connection,
    /// A request.
    Request,
    /// A request without a connection.
    Pending,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// At once.
    #[error("as many requests are under way as `limits.requests` allows")]
    Requests,
    /// At once.
    #[error("as many requests wait for a connection as `limits.pending` allows")]
    Pending,
    /// After the time that a request waits for one.
    #[error("`limits.connections` allows no more, and none of them came free")]
    Connections,
}

/// One of the places that a limit gives; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    load: Arc<Load>,
    kind: Kind,
}

/// One request's wait for a connection.
pub struct Wait<'a> {
    load: &'a Arc<Load>,
    policy: &'a TrafficPolicy,
    place: Option<Place>,
    until: Option<Instant>,
}

impl Load {
    /// How many there are.
    pub fn count(&self, kind: Kind) -> u32 {
        self.counts[kind as usize].load(Relaxed)
    }
}

impl Place {
    /// A place, unless `limit` are taken.
    pub fn take(load: &Arc<Load>, kind: Kind, limit: u32) -> Option<Self> {
        let more = |count| (limit == 0 || count < limit).then_some(count + 1);
        let taken = load.counts[kind as usize].fetch_update(Relaxed, Relaxed, more);
        taken.is_ok().then(|| Place { load: load.clone(), kind })
    }

    /// Whether it is one of these.
    pub fn is_of(&self, load: &Arc<Load>) -> bool {
        Arc::ptr_eq(&self.load, load)
    }

    /// Whether somebody waits for a connection like the one of this place.
    pub fn is_wanted(&self) -> bool {
        self.load.waiting.load(Relaxed) > 0
    }

    /// What has this place could be used by another request now.
    pub fn idles(&self) {
        if self.is_wanted() {
            self.load.freed.notify_waiters();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.counts[self.kind as usize].fetch_sub(1, Relaxed);
        if self.kind == Kind::Connection {
            self.idles();
        }
    }
}

impl<'a> Wait<'a> {
    /// Nothing is waited for yet.
    pub fn new(load: &'a Arc<Load>, policy: &'a TrafficPolicy) -> Self {
        Wait { load, policy, place: None, until: None }
    }

    /// There is no standing connection: the request is pending from now on.
    pub fn begin(&mut self) -> Result<(), Over> {
        if self.place.is_none() {
            let place = Place::take(self.load, Kind::Pending, self.policy.limit_pending);
            self.place = Some(place.ok_or(Over::Pending)?);
        }
        Ok(())
    }

    /// There is a connection.
    pub fn end(&mut self) {
        self.place = None;
    }

    /// Until a connection has come free or may be made.
    pub async fn room(&mut self) -> Result<(), Over> {
        let patience = self.policy.timeouts.as_ref().map_or(0, |timeouts| timeouts.first_byte_ms);
        let patience = if patience > 0 { Duration::from_millis(patience) } else { WAIT };
        let until = *self.until.get_or_insert_with(|| Instant::now() + patience);
        let _waiting = Waiting::new(&self.load.waiting);
        let mut freed = std::pin::pin!(self.load.freed.notified());
        freed.as_mut().enable(); // before the look, so that nothing comes free between it and the wait
        if self.load.count(Kind::Connection) < self.policy.limit_connections {
            return Ok(());
        }
        timeout_at(until, freed).await.map_err(|_| Over::Connections)
    }
}

/// Counted for as long as it lives.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Over {
    /// For log and metrics.
    pub fn flag(self) -> &'static str {
        match self {
            Over::Requests => "limit-requests",
            Over::Pending => "limit-pending",
            Over::Connections => "limit-connections",
        }
    }
}

impl From<Over> for Failure {
    fn from(over: Over) -> Self {
        Failure::upstream(503, over.flag(), over.to_string())
    }
}

#[cfg(test)]
mod tests {
    use api::wire::Timeouts;

    use super::*;

    fn policy(connections: u32, pending: u32) -> TrafficPolicy {
        let timeouts = Some(Timeouts { first_byte_ms: 20, ..Timeouts::default() });
        TrafficPolicy {
            limit_connections: connections,
            limit_pending: pending,
            timeouts,
            ..TrafficPolicy::default()
        }
    }

    #[test]
    fn places_are_given_up_to_the_limit_and_given_back() {
        let load = Arc::default();
        let take = |limit| Place::take(&load, Kind::Request, limit);
        let (first, second) = (take(2), take(2));
        assert!(first.is_some() && second.is_some() && take(2).is_none());
        let unlimited = take(0);
        assert!(unlimited.is_some());
        drop(first);
        assert!(take(2).is_none(), "what began without a limit counts");
        drop(unlimited);
        assert!(take(2).is_some());
        assert!(Place::take(&load, Kind::Pending, 1).is_some(), "each kind for itself");
    }

    #[test]
    fn a_request_is_pending_once_however_often_it_connects() {
        let (load, policy) = (Arc::default(), policy(0, 1));
        let (mut one, mut other) = (Wait::new(&load, &policy), Wait::new(&load, &policy));
        assert_eq!([one.begin(), one.begin(), other.begin()], [Ok(()), Ok(()), Err(Over::Pending)]);
        one.end();
        assert_eq!(other.begin(), Ok(()));
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_a_connection_ends_or_idles_and_not_for_ever() {
        let (load, policy) = (Arc::default(), policy(1, 0));
        let connection = Place::take(&load, Kind::Connection, 1).unwrap();
        let began = Instant::now();
        assert_eq!(Wait::new(&load, &policy).room().await, Err(Over::Connections));
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert!(!connection.is_wanted());
        let mut wait = Wait::new(&load, &policy);
        let (room, ()) = tokio::join!(wait.room(), async { connection.idles() });
        assert_eq!(room, Ok(()));
        let (room, ()) = tokio::join!(wait.room(), async { drop(connection) });
        assert_eq!((room, wait.room().await), (Ok(()), Ok(())));
    }
}
