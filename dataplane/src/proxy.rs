//! What all threads of one proxy share: who it is, what it obeys, what it has learnt of endpoints.
//!
//! Invariant: what a request obeys ([`State`]) is replaced whole; a request loads it once and keeps it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use api::{name::ServiceName, wire};
use arc_swap::ArcSwapOption;
use foldhash::HashMap;
use process::{logs, tls::Identity};
use runtime::{Runtime, Service, ServicePort};
use tokio::sync::watch;

use crate::{
    account::Telemetry,
    balance::{Balancer, Budget, Gateways, Input, Moment, Place},
    config::Config,
    control::hosts::Hosts,
    limit::Load,
};

/// One process.
pub struct Proxy {
    /// Its settings.
    pub config: Config,
    /// Key, chain and trust, swapped while it runs.
    pub identity: Arc<Identity>,
    /// Hosts that were asked for and not known.
    pub hosts: Hosts,
    /// The gateways to other networks.
    pub gateways: Gateways,
    /// Whether it is on its way out.
    pub draining: AtomicBool,
    /// Metrics, access log, spans.
    pub telemetry: Telemetry,
    start: Instant,
    state: ArcSwapOption<State>,
    changes: watch::Sender<u64>,
    callees: Mutex<BTreeMap<(ServiceName, u16), Arc<Callee>>>,
}

/// What one request obeys.
pub struct State {
    /// The compiled view.
    pub runtime: Arc<Runtime>,
    /// By the address of the `Service` in `runtime`, which lives as long as this does, and target port.
    callees: HashMap<(usize, u16), Arc<Callee>>,
}

/// One port of a service as this proxy calls it; outlives every view that has it.
#[derive(Default)]
pub struct Callee {
    /// Who takes the next try.
    pub balancer: Arc<Balancer>,
    /// How many tries beyond the first there may be.
    pub budget: Budget,
    /// What is under way to it.
    pub load: Arc<Load>,
}

impl State {
    /// How this port of this service is called. `service` is one of this state's own runtime.
    pub fn callee(&self, service: &Service, port: &ServicePort) -> Option<&Arc<Callee>> {
        self.callees.get(&(std::ptr::from_ref(service) as usize, port.target))
    }
}

impl Proxy {
    /// A proxy that obeys nothing yet.
    pub fn new(config: Config, identity: Arc<Identity>, hosts: Hosts, telemetry: Telemetry) -> Arc<Self> {
        Arc::new(Proxy {
            config,
            identity,
            hosts,
            gateways: Gateways::default(),
            draining: AtomicBool::new(false),
            telemetry,
            start: Instant::now(),
            state: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            callees: Mutex::default(),
        })
    }

    /// What requests obey from now on; none before the first view.
    pub fn state(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    /// Now, as balancing counts it.
    pub fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    /// An instant, as balancing counts it.
    pub fn moment(&self, instant: Instant) -> Moment {
        Moment::since(self.start, instant)
    }

    /// Tells of each change of the runtime.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes a runtime into force.
    pub fn install(&self, runtime: Arc<Runtime>) {
        if let Err(error) = self.identity.trust((*runtime.bundle).clone()) {
            tracing::debug!(%error, "the bundle in force stays");
        } else if let Err(error) = self.identity.store(&self.config.state_dir) {
            tracing::error!(error = logs::causes(&error), "the trust bundle cannot be kept on disk");
        }
        self.gateways.update(&runtime.networks, self.now());
        let callees = self.balance(&runtime);
        self.state.store(Some(Arc::new(State { runtime, callees })));
        self.hosts.learnt();
        self.changes.send_modify(|count| *count += 1);
    }

    fn balance(&self, runtime: &Runtime) -> HashMap<(usize, u16), Arc<Callee>> {
        let own = place(runtime);
        let mut kept = self.callees.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = BTreeMap::new();
        let mut found = HashMap::default();
        for service in runtime.services() {
            for port in &service.ports {
                let key = (service.name.clone(), port.target);
                let callee = kept.get(&key).cloned().unwrap_or_default();
                self.update(&callee.balancer, &own, runtime, service, port);
                found.insert((Arc::as_ptr(service) as usize, port.target), callee.clone());
                named.insert(key, callee);
            }
        }
        *kept = named;
        found
    }

    fn update(
        &self,
        balancer: &Balancer,
        own: &Place,
        runtime: &Runtime,
        service: &Service,
        port: &ServicePort,
    ) {
        let all = runtime.endpoints.get(&service.name).map_or(&[][..], |all| &all.endpoints);
        let mut endpoints: Vec<_> =
            all.iter().filter(|one| one.port == u32::from(port.target)).cloned().collect();
        endpoints.retain(|one| {
            let back =
                own.shares_network(one) && one.address.parse().is_ok_and(|to| self.config.leads_back(to));
            if back {
                tracing::error!(service = %service.name, endpoint = one.id, "left out: it leads back to this proxy");
            }
            !back
        });
        let unix_seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let input = Input {
            own,
            policy: &port.traffic,
            endpoints: &endpoints,
            gateways: &self.gateways,
            now: self.now(),
            unix_seconds,
        };
        for error in balancer.update(&input) {
            tracing::error!(service = %service.name, %error, "an endpoint is left out");
        }
    }

    /// Forgives and judges, once a second.
    pub fn sweep(&self) {
        let now = self.now();
        self.each_balancer(|_, balancer| balancer.sweep(now));
    }

    /// Each balancer by its service and target port.
    pub fn each_balancer(&self, mut see: impl FnMut(&(ServiceName, u16), &Arc<Balancer>)) {
        let callees = self.callees.lock().unwrap_or_else(PoisonError::into_inner);
        callees.iter().for_each(|(key, callee)| see(key, &callee.balancer));
    }

    /// What is under way to each service by its target port: connections, requests, and what waits for a connection.
    pub fn each_load(&self, mut see: impl FnMut(&(ServiceName, u16), &Arc<Load>)) {
        let callees = self.callees.lock().unwrap_or_else(PoisonError::into_inner);
        callees.iter().for_each(|(key, callee)| see(key, &callee.load));
    }

    /// The endpoints that this proxy holds to be bad now.
    pub fn ejected(&self) -> Vec<wire::EndpointHealth> {
        let now = self.now();
        let mut bad = Vec::new();
        self.each_balancer(|_, balancer| {
            let reports =
                balancer.report(now).into_iter().filter(|one| matches!(one.state, "ejected" | "suspect"));
            bad.extend(
                reports
                    .map(|one| wire::EndpointHealth { endpoint: one.endpoint, reason: one.state.to_owned() }),
            );
        });
        bad.dedup_by(|a, b| a.endpoint == b.endpoint);
        bad
    }

    /// Whether it is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}

fn place(runtime: &Runtime) -> Place {
    let own = &runtime.workload;
    Place {
        cluster: own.guarded.cluster.to_string(),
        network: own.network.to_string(),
        region: own.locality.region.clone(),
        zone: own.locality.zone.clone(),
        subzone: own.locality.subzone.clone(),
        node: own.labels.get("node").cloned().unwrap_or_default(),
    }
}
