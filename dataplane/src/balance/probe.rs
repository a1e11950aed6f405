//! Whose turn it is to find out how an endpoint is that others keep away from: one request at a time.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Moment;

/// A request that must not be sent twice takes a turn only after so many of the usual intervals: it may hang.
const BY_ANY: u32 = 10;

/// How long the request that has the turn waits, since there are others to go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a connection, where there is none.
    pub connect: Duration,
    /// For the response head.
    pub head: Duration,
}

/// One turn at a time, an interval after the last.
#[derive(Debug, Default)]
pub(super) struct Turn {
    taken: AtomicBool,
    last: AtomicU64,
}

impl Turn {
    /// The next turn is due an interval after `now`.
    pub fn wait_from(&self, now: Moment) {
        self.last.store(now.as_nanos(), Relaxed);
    }

    /// Takes the turn if it is due and nobody has it.
    pub fn claim(&self, now: Moment, interval: Duration, may_repeat: bool) -> bool {
        let interval = if may_repeat { interval } else { interval * BY_ANY };
        let since = now.after(Moment::from_nanos(self.last.load(Relaxed)));
        if since < interval || self.taken.swap(true, Relaxed) {
            return false;
        }
        self.wait_from(now);
        true
    }

    /// The turn is over.
    pub fn end(&self) {
        self.taken.store(false, Relaxed);
    }
}
