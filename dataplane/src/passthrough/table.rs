//! What a gateway may forward to: endpoints of its own cluster whose service is exported.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{
    endpoint::{EndpointId, ServerName},
    name::BadName,
    wire,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// How many endpoints of a service are tried for one connection.
const TRIES: usize = 3;

/// Why an endpoint is left out.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// Its id is none.
    #[error(transparent)]
    Id(#[from] BadName),
    /// Its address is none.
    #[error("endpoint {id}: `{address}` is not an ip:port")]
    Address {
        /// The endpoint.
        id: EndpointId,
        /// What stands there.
        address: String,
    },
}

#[derive(Debug, Default)]
pub(super) struct Table {
    endpoints: HashMap<EndpointId, Arc<Target>>,
    /// By `<port>.<service>.<namespace>`.
    services: HashMap<String, Vec<Arc<Target>>>,
    /// Offered no more, but with connections: it may come back before these are closed.
    withdrawn: HashMap<EndpointId, Arc<Target>>,
}

/// One endpoint, and how many connections to it are open.
#[derive(Debug)]
pub(super) struct Target {
    pub id: EndpointId,
    pub address: SocketAddr,
    pub connections: AtomicUsize,
    /// Since when it is offered no more.
    withdrawn: watch::Sender<Option<Instant>>,
}

/// A connection to a target, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Target>);

impl Table {
    /// The next table, as of `now`; endpoints that stay keep their count of connections.
    pub fn next(&self, wire: &wire::Passthrough, now: Instant) -> (Table, Vec<BadTarget>) {
        let mut table = Table::default();
        let mut bad = Vec::new();
        for endpoint in &wire.endpoints {
            match self.target(endpoint) {
                Ok(target) => {
                    for service in &endpoint.services {
                        table.services.entry(service.clone()).or_default().push(target.clone());
                    }
                    table.endpoints.insert(target.id.clone(), target);
                }
                Err(error) => bad.push(error),
            }
        }
        for target in self.endpoints.values().chain(self.withdrawn.values()) {
            let stays = table.endpoints.get(&target.id).is_some_and(|next| Arc::ptr_eq(next, target));
            target.withdrawn.send_if_modified(|since| {
                let next = (!stays).then(|| since.unwrap_or(now));
                std::mem::replace(since, next) != next
            });
            if !stays && target.connections.load(Relaxed) > 0 {
                table.withdrawn.insert(target.id.clone(), target.clone());
            }
        }
        (table, bad)
    }

    fn target(&self, wire: &wire::PassthroughEndpoint) -> Result<Arc<Target>, BadTarget> {
        let id = EndpointId::parse(&wire.id)?;
        let Ok(address) = wire.address.parse() else {
            return Err(BadTarget::Address { id, address: wire.address.chars().take(80).collect() });
        };
        let known = self.endpoints.get(&id).or_else(|| self.withdrawn.get(&id));
        Ok(known.filter(|known| known.address == address).cloned().unwrap_or_else(|| {
            let (connections, withdrawn) = (AtomicUsize::new(0), watch::Sender::new(None));
            Arc::new(Target { id, address, connections, withdrawn })
        }))
    }

    /// The endpoints to try for `name`, those with the fewest connections first; none when it is not known.
    pub fn find(&self, name: &ServerName) -> Vec<Arc<Target>> {
        match name {
            ServerName::Gateway => Vec::new(),
            ServerName::Endpoint(id) => self.endpoints.get(id).cloned().into_iter().collect(),
            ServerName::Service { port, service } => {
                let (namespace, name) = service.split_once('/').unwrap_or_default();
                let mut targets =
                    self.services.get(&format!("{port}.{name}.{namespace}")).cloned().unwrap_or_default();
                targets.sort_by_cached_key(|target| target.connections.load(Relaxed));
                targets.truncate(TRIES);
                targets
            }
        }
    }
}

impl Target {
    /// A connection to an endpoint that no table has.
    #[cfg(test)]
    pub fn open_for_test(id: EndpointId) -> Open {
        let address = (std::net::Ipv4Addr::LOCALHOST, 1).into();
        let (connections, withdrawn) = (AtomicUsize::new(0), watch::Sender::new(None));
        Arc::new(Target { id, address, connections, withdrawn }).open()
    }

    pub fn open(self: &Arc<Self>) -> Open {
        self.connections.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }
}

impl Open {
    /// Ends when the endpoint has been offered no more for `grace`.
    pub async fn withdrawn(&self, grace: Duration) {
        let mut since = self.0.withdrawn.subscribe();
        loop {
            // The sender lives as long as `self`.
            let Ok(Some(began)) = since.wait_for(Option::is_some).await.map(|since| *since) else { continue };
            tokio::select! {
                _ = since.wait_for(Option::is_none) => {}
                () = sleep_until(began + grace) => return,
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> EndpointId {
        EndpointId::new(&"west".parse().unwrap(), &name.parse().unwrap(), 8080)
    }

    fn wire(names: &[&str]) -> wire::Passthrough {
        let endpoint = |name: &&str| wire::PassthroughEndpoint {
            id: id(name).to_string(),
            address: "127.0.0.1:8080".into(),
            services: vec!["80.reviews.shop".into()],
        };
        wire::Passthrough { endpoints: names.iter().map(endpoint).collect() }
    }

    #[test]
    fn a_service_goes_by_fewest_connections_across_tables() {
        let (table, _) = Table::default().next(&wire(&["a", "b", "c", "d"]), Instant::now());
        let service = ServerName::parse("80.reviews.shop.svc.weft.internal").unwrap();
        let a = table.find(&ServerName::Endpoint(id("a")))[0].clone();
        let open = [a.open(), a.open(), table.find(&ServerName::Endpoint(id("b")))[0].open()];
        let (table, _) = table.next(&wire(&["a", "b"]), Instant::now());
        let order = |table: &Table| -> Vec<_> { table.find(&service).iter().map(|t| t.id.clone()).collect() };
        assert_eq!(order(&table), [id("b"), id("a")]);
        drop(open);
        assert_eq!(order(&table), [id("a"), id("b")]);
        assert!(table.find(&ServerName::Endpoint(id("c"))).is_empty(), "gone");
        assert!(table.find(&ServerName::parse("81.reviews.shop.svc.weft.internal").unwrap()).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let mut wire = wire(&["a", "b", "c"]);
        wire.endpoints[0].id = "a".into();
        wire.endpoints[1].address = "here".into();
        let (table, bad) = Table::default().next(&wire, Instant::now());
        assert_eq!((table.endpoints.len(), bad.len()), (1, 2));
        assert!(bad[1].to_string().ends_with("`here` is not an ip:port"), "{}", bad[1]);
    }
}
