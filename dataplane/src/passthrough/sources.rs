//! How many connections each source address has, so that one cannot take what is there for all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The connections of all sources that have any.
#[derive(Debug, Default)]
pub(super) struct Sources(Mutex<HashMap<IpAddr, usize>>);

/// One connection of a source, until it is dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    sources: &'a Sources,
    source: IpAddr,
}

impl Sources {
    /// One more connection of `address`, unless it has `most` already.
    pub fn hold(&self, address: IpAddr, most: usize) -> Option<Held<'_>> {
        let source = source(address);
        let mut all = self.all();
        let count = all.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Held { sources: self, source })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut all = self.sources.all();
        match all.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.source)),
        }
    }
}

/// What counts as one: of IPv6 a /64, since that is what one host is given.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() >> 64 << 64).into(),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_share() {
        let sources = Sources::default();
        let hold = |address: &str| sources.hold(address.parse().unwrap(), 2);
        let first = [hold("192.0.2.1"), hold("::ffff:192.0.2.1")];
        assert!(first.iter().all(Option::is_some) && hold("192.0.2.1").is_none());
        assert!(hold("192.0.2.2").is_some());
        let _six = [hold("2001:db8::1"), hold("2001:db8::ffff:1")];
        assert!(hold("2001:db8::2").is_none(), "the same /64");
        assert!(hold("2001:db8:0:1::1").is_some(), "another");
        drop(first);
        assert!(hold("192.0.2.1").is_some());
        assert_eq!(sources.all().len(), 1, "who has none is forgotten");
    }
}
