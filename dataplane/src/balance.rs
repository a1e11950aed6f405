//! Which endpoint takes a request: locality priorities, load shares, ejection, suspicion, least request of two.
//!
//! Pure arithmetic over shared atomics. A [`Balancer`] stands for one service and target port and is shared
//! by all workers; its table is replaced whole when endpoints change, and what was learnt of an endpoint
//!  outlives the table for as long as the endpoint does.
//!
//! The life of a try: `balancer.pick(&ask)` gives a [`Picked`], which counts as outstanding from then on;
//! `picked.head(now)` when the response head is there; `picked.finished(outcome, now)` at the end. A dropped
//! `Picked` is a cancelled try.
//!
//! Invariant: nothing here reads a clock, draws a random number or waits; `pick` takes no lock.

pub mod balancer;
mod choice;
pub mod endpoint;
pub mod gateway;
mod live;
pub mod outlier;
mod probe;
pub mod retry;
mod silence;
mod table;

use std::time::{Duration, Instant};

pub use balancer::{Balancer, NoEndpoint, Pick, Picked, Report};
pub use choice::{Ask, Tried};
pub use endpoint::{BadEndpoint, Endpoint};
pub use gateway::{Gateway, Gateways, Network, TRIAL};
pub use live::Outcome;
pub use probe::Limits;
pub use retry::{Budget, backoff};
pub use runtime::locality::Place;
pub use table::Input;

/// Nanoseconds since the process began. Never 0, which stands for *never* in the atomics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// `now` as seen from `start`, which is the same instant for the whole process.
    pub fn since(start: Instant, now: Instant) -> Self {
        Moment::from_nanos(u64::try_from(now.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX))
    }

    /// From nanoseconds since the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Moment(if nanos == 0 { 1 } else { nanos })
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero when that lies ahead.
    pub const fn after(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The next of a row of numbers that look random, from one that is (splitmix64).
pub(crate) const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in `0.0..1.0` from a random one.
pub(crate) fn unit(chance: u64) -> f64 {
    (chance >> 11) as f64 / (1u64 << 53) as f64
}
