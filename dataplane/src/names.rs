//! What names mean outside the mesh, as the machine's resolver says it. An answer serves for a moment: a resolver is asked
//! by a thread that waits, which no request to a busy host should need.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use foldhash::HashMap;

/// How long a name may take to be resolved.
const LOOK_UP: Duration = Duration::from_secs(2);

/// How long an answer serves. The resolver keeps names for as long as they may be kept, and is seldom asked with this.
const SERVES: Duration = Duration::from_secs(5);

/// Names that are remembered; applications may make up any number of them.
const MOST: usize = 1024;

/// The names that a worker has asked for lately.
#[derive(Default)]
pub struct Names(RefCell<HashMap<Box<str>, Known>>);

struct Known {
    addresses: Vec<IpAddr>,
    until: Instant,
}

impl Names {
    /// The addresses of a host; why there are none.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let with_port =
            |addresses: &[IpAddr]| addresses.iter().map(|&one| SocketAddr::new(one, port)).collect();
        if let Some(known) = self.0.borrow().get(host).filter(|known| known.until > Instant::now()) {
            return Ok(with_port(&known.addresses));
        }
        let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host((host, port))).await;
        let found = found.map_err(|_| "no answer of the resolver in time".to_owned())?;
        let found: Vec<_> = found.map_err(|error| error.to_string())?.map(|found| found.ip()).collect();
        let addresses = with_port(&found);
        self.learn(host, found, Instant::now());
        Ok(addresses)
    }

    fn learn(&self, host: &str, addresses: Vec<IpAddr>, now: Instant) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MOST {
            all.retain(|_, known| known.until > now);
        }
        if all.len() < MOST {
            all.insert(host.into(), Known { addresses, until: now + SERVES });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[tokio::test]
    async fn an_answer_serves_for_a_moment() {
        let (names, now) = (Names::default(), Instant::now());
        // Nobody resolves these (RFC 6761, 6.4).
        names.learn("fresh.invalid", vec![ADDRESS], now);
        names.learn("stale.invalid", vec![ADDRESS], now.checked_sub(SERVES).unwrap());
        assert_eq!(names.addresses("fresh.invalid", 80).await, Ok(vec![SocketAddr::new(ADDRESS, 80)]));
        assert!(names.addresses("stale.invalid", 80).await.is_err());
        assert_eq!(names.addresses("192.0.2.1", 443).await, Ok(vec![SocketAddr::new(ADDRESS, 443)]));
        assert_eq!(names.addresses("::1", 443).await, Ok(vec!["[::1]:443".parse().unwrap()]));
    }

    #[test]
    fn names_that_are_made_up_take_no_room_for_ever() {
        let (names, now) = (Names::default(), Instant::now());
        let count = |names: &Names| names.0.borrow().len();
        (0..MOST + 9).for_each(|n| names.learn(&format!("{n}.invalid"), vec![ADDRESS], now));
        assert_eq!(count(&names), MOST);
        names.learn("later.invalid", vec![ADDRESS], now + SERVES);
        assert_eq!(count(&names), 1);
    }
}
