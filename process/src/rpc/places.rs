//! How many connections a listener keeps: of members as many as proxies may be, of strangers few.
//!
//! A stranger is whoever has not shown a certificate: a handshake under way, and a peer that wants to enrol.
//! Invariant: strangers take no member's place, and those of one source leave places for those of others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limits of one listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Members: as many proxies as one control plane may have.
    pub(super) members: usize,
    /// Strangers. Each may cost some 300 KiB: a handshake, four calls of 64 KiB.
    pub(super) strangers: usize,
    /// Strangers from one source: a machine whose proxies all come back at once.
    pub(super) of_a_source: usize,
    /// A stranger's whole life.
    pub(super) life: Duration,
}

impl Limits {
    pub(super) const USUAL: Limits =
        Limits { members: 10_000, strangers: 512, of_a_source: 128, life: Duration::from_secs(10) };
}

/// The places of one listener.
pub(super) struct Places {
    members: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// One connection's place, until it is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _source: Option<Taken>,
}

/// How many strangers come from where.
struct Sources {
    most: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

struct Taken {
    source: IpAddr,
    sources: Arc<Sources>,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Places {
            members: Arc::new(Semaphore::new(limits.members)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            sources: Arc::new(Sources { most: limits.of_a_source, taken: Mutex::default() }),
        }
    }

    /// Room for one more stranger, from wherever. Until there is, the kernel keeps who comes.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.strangers.clone().acquire_owned().await.ok()
    }

    /// The place of a stranger from `source`; `None` where that has too many.
    pub(super) fn stranger(&self, room: OwnedSemaphorePermit, source: IpAddr) -> Option<Place> {
        Some(Place { _permit: room, _source: Some(self.sources.take(source)?) })
    }

    /// A member's place; `None` when all are taken.
    pub(super) fn member(&self) -> Option<Place> {
        let permit = self.members.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _source: None })
    }
}

impl Sources {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Taken> {
        let source = network(address);
        let mut sources = self.lock();
        let taken = sources.entry(source).or_default();
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        Some(Taken { source, sources: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut sources = self.sources.lock();
        if let Some(taken) = sources.get_mut(&self.source) {
            *taken -= 1;
            if *taken == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// What one machine can make many of counts as one: the lower half of an IPv6 address is its own to choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_source_leaves_places_for_others_and_members_have_their_own() {
        let limits = Limits { members: 1, strangers: 3, of_a_source: 2, life: Duration::MAX };
        let places = Places::new(limits);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = places.stranger(places.room().await.unwrap(), ip("2001:db8::1"));
        let _second = places.stranger(places.room().await.unwrap(), ip("2001:db8::2")).unwrap();
        assert!(places.stranger(places.room().await.unwrap(), ip("2001:db8::3")).is_none(), "the same /64");
        let _third = places.stranger(places.room().await.unwrap(), ip("::ffff:192.0.2.1")).unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, places.room()).await.is_err());
        let _member = places.member().unwrap();
        assert!(places.member().is_none());
        drop(first);
        assert!(places.stranger(places.room().await.unwrap(), ip("2001:db8::3")).is_some());
        assert_eq!(places.sources.lock().len(), 2, "who has gone is forgotten");
    }
}
