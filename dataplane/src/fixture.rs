//! A small mesh for tests: an authority, views made by hand, proxies on their own threads, applications.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{
    delta::View,
    endpoint::EndpointId,
    identity::{Bundle, RootCertificate, SpiffeId, UnixTime, Vouch, Vouched},
    name::{ClusterName, Namespace, ServiceAccount, TrustDomain},
    wire::{self, resource::Body},
};
use federation::authority::{Intermediate, IntermediateKey, ROOT_LIFETIME, Root};
use process::{
    access_log::{AccessLog, Sink},
    metrics::Registry,
    shutdown::Shutdown,
    tls::{Identity, Key},
    trace::Exporter,
};
use runtime::Runtime;

use crate::{
    account::{Meters, Telemetry},
    config::{Config, Role, Tracing},
    control::hosts::Hosts,
    proxy::Proxy,
    run::Threads,
};

const DAY: Duration = Duration::from_secs(86_400);
/// What has not come by then does not come.
const LONG: Duration = Duration::from_secs(30);

/// Who signs, in every test.
pub struct Authority {
    pub root: Root,
    pub east: Intermediate,
    pub west: Intermediate,
}

pub static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

impl Authority {
    pub fn new() -> Self {
        let root = Root::generate(&trust_domain(), ROOT_LIFETIME, UnixTime::now()).unwrap();
        let intermediate = |name: &str| {
            let key = IntermediateKey::generate().unwrap();
            let cluster: ClusterName = name.parse().unwrap();
            let signed =
                root.sign_intermediate(&key.request().unwrap(), &cluster, DAY, UnixTime::now()).unwrap();
            key.certified(signed).unwrap()
        };
        let (east, west) = (intermediate("east"), intermediate("west"));
        Authority { root, east, west }
    }

    pub fn bundle(&self) -> Bundle {
        let vouch = || Vouch { namespaces: Vouched::All };
        Bundle {
            trust_domain: trust_domain(),
            sequence: 1,
            roots: vec![RootCertificate::new(self.root.certificate().clone()).unwrap()],
            clusters: [("east".parse().unwrap(), vouch()), ("west".parse().unwrap(), vouch())].into(),
            revoked: Default::default(),
        }
    }

    pub fn identity(&self, cluster: &str, account: &str) -> Arc<Identity> {
        let signer = if cluster == "west" { &self.west } else { &self.east };
        let key = Key::generate().unwrap();
        let id: SpiffeId = spiffe(account).parse().unwrap();
        let chain = signer.sign_leaf(&key.request().unwrap(), &id, DAY / 24, UnixTime::now()).unwrap();
        Identity::new(key.certified(chain).unwrap(), self.bundle())
    }
}

fn trust_domain() -> TrustDomain {
    "test.example".parse().unwrap()
}

pub fn spiffe(account: &str) -> String {
    let (namespace, account): (Namespace, ServiceAccount) =
        ("shop".parse().unwrap(), account.parse().unwrap());
    SpiffeId::workload(&trust_domain(), &namespace, &account).to_string()
}

/// A view in the making.
#[derive(Clone)]
pub struct Sidecar {
    pub name: String,
    pub cluster: String,
    pub ports: Vec<wire::InboundPort>,
    pub services: Vec<(wire::Service, Vec<wire::Endpoint>)>,
    pub policies: Vec<wire::Policy>,
    pub gateways: Vec<(String, String)>,
    pub passthrough: Vec<wire::PassthroughEndpoint>,
    pub listener: Option<(u16, wire::RouteTable)>,
    pub registry_only: bool,
    pub expelled: Option<&'static str>,
}

pub fn sidecar(name: &str) -> Sidecar {
    Sidecar {
        name: name.to_owned(),
        cluster: "east".to_owned(),
        ports: Vec::new(),
        services: Vec::new(),
        policies: Vec::new(),
        gateways: Vec::new(),
        passthrough: Vec::new(),
        listener: None,
        registry_only: false,
        expelled: None,
    }
}

pub fn endpoint_id(cluster: &str, instance: &str) -> EndpointId {
    EndpointId::new(&cluster.parse().unwrap(), &instance.parse().unwrap(), 8080)
}

/// One endpoint of `account` as others see it.
pub fn endpoint(cluster: &str, instance: &str, account: &str, address: SocketAddr) -> wire::Endpoint {
    wire::Endpoint {
        id: endpoint_id(cluster, instance).to_string(),
        address: address.to_string(),
        port: 8080,
        cluster: cluster.to_owned(),
        network: cluster.to_owned(),
        locality: Some(locality(cluster)),
        weight: 1,
        mtls: true,
        workload: instance.to_owned(),
        identity: spiffe(account),
        ..Default::default()
    }
}

fn locality(cluster: &str) -> wire::Locality {
    wire::Locality { region: format!("eu-{cluster}"), zone: "a".into(), subzone: String::new() }
}

/// The defaults of `kinds.md`, with a first-byte time that a test can wait for.
pub fn traffic() -> wire::TrafficPolicy {
    use wire::RetryOn::{FirstByte, Refused, Reset};
    wire::TrafficPolicy {
        overprovisioning_percent: 140,
        panic_percent: 50,
        outlier: Some(wire::OutlierEjection {
            consecutive_gateway_errors: 5,
            consecutive_connect_failures: 3,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            max_ejection_ms: 300_000,
            max_ejected_percent: 50,
            ..Default::default()
        }),
        retry: Some(wire::Retry {
            attempts: 2,
            on: vec![Reset as i32, Refused as i32, FirstByte as i32],
            grpc_statuses: vec![14],
            backoff_base_ms: 5,
            backoff_max_ms: 20,
            budget_percent: 20,
            budget_min_per_second: 10,
            budget_window_ms: 10_000,
            ..Default::default()
        }),
        timeouts: Some(wire::Timeouts {
            connect_ms: 1000,
            connect_remote_ms: 2000,
            first_byte_ms: 500,
            suspect_after_ms: 1000,
            idle_ms: 300_000,
            ..Default::default()
        }),
        max_idle_per_endpoint: 64,
        ..Default::default()
    }
}

impl Sidecar {
    pub fn in_cluster(mut self, cluster: &str) -> Self {
        self.cluster = cluster.to_owned();
        self
    }

    /// Serves an application.
    pub fn serving(mut self, application: SocketAddr, mtls: wire::MtlsMode) -> Self {
        self.ports.push(wire::InboundPort {
            port: 8080,
            address: application.to_string(),
            mtls: mtls as i32,
            protocol: wire::Protocol::Http as i32,
            endpoint_id: endpoint_id(&self.cluster, &self.name).to_string(),
            policies: Vec::new(),
            mtls_origin: String::new(),
        });
        self
    }

    /// Calls a service.
    pub fn calling(mut self, service: &str, endpoints: Vec<wire::Endpoint>) -> Self {
        let service = wire::Service {
            namespace: "shop".into(),
            name: service.into(),
            hosts: vec![service.to_owned(), format!("{service}.shop")],
            ports: vec![wire::ServicePort {
                port: 80,
                target: 8080,
                protocol: wire::Protocol::Http as i32,
                ..Default::default()
            }],
            identities: vec![spiffe(service)],
            traffic: Some(traffic()),
        };
        self.services.push((service, endpoints));
        self
    }

    /// Guarded by one rule.
    pub fn denying(mut self, when: &str) -> Self {
        self.policies.push(wire::Policy {
            namespace: "shop".into(),
            name: "deny".into(),
            action: wire::Action::Deny as i32,
            rules: vec![wire::PolicyRule { name: "rule".into(), when: when.into() }],
            commit: "c0ffee".into(),
            ..Default::default()
        });
        self.ports.iter_mut().for_each(|port| port.policies.push("policy/shop/deny".into()));
        self
    }

    pub fn view(&self) -> View {
        let mut view = View::default();
        let mut put = |name: String, body: Body| view.insert(name, &wire::Resource { body: Some(body) });
        put("workload".into(), Body::Workload(self.workload()));
        let mesh = wire::Mesh {
            trust_domain: "test.example".into(),
            registry_only: self.registry_only,
            leaf_lifetime_seconds: 3600,
            ..Default::default()
        };
        put("mesh".into(), Body::Mesh(mesh));
        let mut bundle = AUTHORITY.bundle();
        if let Some(expelled) = self.expelled {
            bundle.sequence += 1;
            bundle.clusters.remove(&expelled.parse::<ClusterName>().unwrap());
        }
        put("trust".into(), Body::Trust(wire::Trust { bundle: serde_json::to_vec(&bundle).unwrap() }));
        for (service, endpoints) in &self.services {
            put(format!("service/shop/{}", service.name), Body::Service(service.clone()));
            let mut endpoints = endpoints.clone();
            endpoints.sort_by(|a, b| a.id.cmp(&b.id));
            put(format!("endpoints/shop/{}", service.name), Body::Endpoints(wire::Endpoints { endpoints }));
        }
        for policy in &self.policies {
            put(format!("policy/shop/{}", policy.name), Body::Policy(policy.clone()));
        }
        if let Some((port, table)) = &self.listener {
            put(format!("listener/shop/gateway/{port}"), Body::Routes(table.clone()));
        }
        let mut networks = wire::Networks::default();
        for (network, address) in &self.gateways {
            networks.networks.entry(network.clone()).or_default().addresses.push(address.clone());
        }
        put("networks".into(), Body::Networks(networks));
        put(
            "passthrough".into(),
            Body::Passthrough(wire::Passthrough { endpoints: self.passthrough.clone() }),
        );
        view
    }

    fn workload(&self) -> wire::Workload {
        wire::Workload {
            id: self.name.clone(),
            namespace: "shop".into(),
            service_account: account(&self.name),
            cluster: self.cluster.clone(),
            network: self.cluster.clone(),
            locality: Some(locality(&self.cluster)),
            ports: self.ports.clone(),
            services: vec![format!("shop/{}", account(&self.name))],
            workload: self.name.clone(),
            trust_domain: "test.example".into(),
            ..Default::default()
        }
    }

    /// Runs it.
    pub async fn start(self) -> Running {
        let (inbound, outbound) = (free(), free());
        self.start_as(Role::Sidecar { inbound, outbound, apps: Vec::new() }).await
    }

    pub async fn start_as(self, role: Role) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let (inbound, outbound) = match &role {
            Role::Sidecar { inbound, outbound, .. } => (*inbound, *outbound),
            Role::EastWest { listen, .. } => (*listen, *listen),
            Role::Ingress { listen } => (SocketAddr::new(*listen, 0), SocketAddr::new(*listen, 0)),
        };
        let config = Config {
            role,
            workload: self.name.clone(),
            state_dir: dir.path().to_owned(),
            token_file: None,
            control_planes: Vec::new(),
            source: "127.0.0.1".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            zone: String::new(),
            workers: 1,
            access_log: None,
            tracing: Tracing { endpoint: None, sample: 0.0 },
            drain: Duration::from_secs(2),
            capture: None,
        };
        let registry = Registry::new();
        let writing = Shutdown::new();
        let log = AccessLog::open(Sink::File(dir.path().join("access.log")), &writing).unwrap();
        let telemetry = Telemetry {
            meters: Meters::new(&registry),
            log: Some((log, 1.0)),
            spans: Exporter::disabled(),
            trace_share: 0.0,
        };
        let identity = AUTHORITY.identity(&self.cluster, &account(&self.name));
        let (hosts, questions) = Hosts::new();
        let proxy = Proxy::new(config, identity, hosts, telemetry);
        install(&proxy, &self);
        let threads = Threads::start(&proxy, &registry).await.unwrap();
        Running {
            proxy,
            threads: Some(threads),
            inbound,
            outbound,
            registry,
            dir,
            _writing: writing,
            _questions: questions,
        }
    }
}

/// `reviews-v1-1` runs as `reviews`.
fn account(name: &str) -> String {
    name.split('-').next().unwrap().to_owned()
}

fn install(proxy: &Proxy, sidecar: &Sidecar) {
    proxy.install(Arc::new(Runtime::compile(&sidecar.view(), "c0ffee", None).unwrap()));
}

/// Where nobody listens, on an IP of its own: proxies share their ports, so that two on one IP could be given the same.
pub fn free() -> SocketAddr {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let [high, low] = TAKEN.fetch_add(1, Relaxed).to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, 200, high, low), 0)).unwrap().local_addr().unwrap()
}

/// Waits until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let so = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(LONG, so).await;
    assert!(waited.is_ok(), "not within {LONG:?}: {what}");
}

/// A proxy that runs.
pub struct Running {
    pub proxy: Arc<Proxy>,
    threads: Option<Threads>,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub registry: Registry,
    dir: tempfile::TempDir,
    _writing: Shutdown,
    _questions: tokio::sync::mpsc::Receiver<String>,
}

impl Running {
    /// Obeys another view from now on.
    pub fn obey(&self, sidecar: &Sidecar) {
        install(&self.proxy, sidecar);
    }

    /// The first line of its access log that is `wanted`, once it is written.
    pub async fn told(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let path = self.dir.path().join("access.log");
        let told = async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap();
                let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
                if let Some(line) = whole.into_iter().find(&wanted) {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, told).await.expect("nothing of the kind is told")
    }

    /// Drains it and waits for its end.
    pub async fn drain(&mut self) {
        let control = Shutdown::new();
        self.threads.take().unwrap().drain(&self.proxy, &control).await;
    }
}
