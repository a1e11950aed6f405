//! Histograms of request durations, by who called whom and how it ended.
//!
//! Labels come from the view and from certificates, never from a request. A worker finds the histogram of a request
//! by the addresses of what it is about, which its cache keeps alive; the labels are hashed once for each.

use std::{cell::RefCell, sync::Arc, time::Duration};

use api::name::ServiceName;
use foldhash::HashMap;
use http::Method;
use policies::facts::Peer;
use process::metrics::{Counter, EncodeLabelSet, Family, Histogram, Names, Registry, request_seconds};
use runtime::Runtime;

use super::{Exchange, Side};
use crate::balance::Endpoint;

/// Histograms that a worker remembers; beyond it begins anew, which bounds what it keeps alive.
const REMEMBERED: usize = 1024;

/// Workloads that are told apart by name, over the whole life of a process.
const WORKLOADS: usize = 4096;

type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// The histograms of a process, and the counts of its connections that carry bytes.
pub struct Meters {
    server: Durations,
    client: Durations,
    /// Workloads come and go while a process lives; what was counted once stays.
    workloads: Names,
    connections: Counts,
    received: Counts,
    sent: Counts,
}

type Counts = Family<Ends, Counter>;

/// Who is at both ends of a connection, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ends {
    direction: &'static str,
    weft_flag: &'static str,
    weft_mtls: &'static str,
    source_workload: String,
    source_namespace: String,
    source_cluster: String,
    destination_workload: Arc<str>,
    destination_service: String,
    destination_namespace: String,
    destination_cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    http_request_method: &'static str,
    http_response_status_code: u32,
    weft_flag: &'static str,
    weft_mtls: &'static str,
    source_workload: Arc<str>,
    source_namespace: Arc<str>,
    source_cluster: Arc<str>,
    destination_workload: Arc<str>,
    destination_service: Arc<str>,
    destination_namespace: Arc<str>,
    destination_cluster: Arc<str>,
}

impl Meters {
    /// Declares them.
    pub fn new(registry: &Registry) -> Self {
        let new = || Durations::new_with_constructor(request_seconds);
        Meters {
            server: registry.register(
                "http_server_request_duration_seconds",
                "Requests that were served here",
                new(),
            ),
            client: registry.register(
                "http_client_request_duration_seconds",
                "Requests that were sent to others",
                new(),
            ),
            workloads: Names::new(WORKLOADS),
            connections: registry.register(
                "tcp_connections",
                "Connections that carried bytes",
                Counts::default(),
            ),
            received: registry.register(
                "tcp_received_bytes",
                "Bytes that came from callers",
                Counts::default(),
            ),
            sent: registry.register("tcp_sent_bytes", "Bytes that went to callers", Counts::default()),
        }
    }
}

/// A worker's way to its histograms.
#[derive(Default)]
pub struct Handles(RefCell<HashMap<Key, Handle>>);

/// Addresses stand for what they point to: the entry keeps it alive.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    side: u8,
    status: u16,
    method: &'static str,
    flag: &'static str,
    mtls: bool,
    endpoint: usize,
    peer: usize,
    service: usize,
}

struct Handle {
    histogram: Histogram,
    _alive: (Option<Arc<Endpoint>>, Option<Arc<Peer>>, Option<ServiceName>),
}

/// Counts one request.
pub(super) fn observe(exchange: &Exchange, took: Duration) {
    let peer = exchange.caller.peer.as_ref().map(|identified| &identified.peer);
    let key = Key {
        side: match exchange.caller.side {
            Side::Outbound => 0,
            Side::Inbound { .. } => 1,
            Side::Ingress { .. } => 2,
        },
        status: exchange.status,
        method: method(&exchange.method),
        flag: exchange.flag,
        mtls: peer.is_some() || exchange.upstream_mtls,
        endpoint: exchange.endpoint.as_ref().map_or(0, |endpoint| Arc::as_ptr(endpoint) as usize),
        peer: peer.map_or(0, |peer| Arc::as_ptr(peer) as usize),
        service: exchange.service.as_ref().map_or(0, |service| service.name.as_str().as_ptr() as usize),
    };
    let mut handles = exchange.worker.handles.0.borrow_mut();
    if let Some(handle) = handles.get(&key) {
        return handle.histogram.observe(took.as_secs_f64());
    }
    if handles.len() >= REMEMBERED {
        handles.clear();
    }
    let meters = &exchange.worker.proxy.telemetry.meters;
    let family = if key.side == 1 { &meters.server } else { &meters.client };
    let histogram = family.get_or_create(&labels(exchange, &key, &meters.workloads)).clone();
    histogram.observe(took.as_secs_f64());
    let _alive = (exchange.endpoint.clone(), peer.cloned(), exchange.service.clone());
    handles.insert(key, Handle { histogram, _alive });
}

/// Counts one connection that is over.
pub(super) fn observe_connection(exchange: &Exchange) {
    let (source, destination) = ends(exchange);
    let mtls = exchange.caller.peer.is_some() || exchange.upstream_mtls;
    let meters = &exchange.worker.proxy.telemetry.meters;
    let ends = Ends {
        direction: exchange.caller.side.as_str(),
        weft_flag: exchange.flag,
        weft_mtls: if mtls { "true" } else { "false" },
        source_workload: source.workload.to_owned(),
        source_namespace: source.namespace.to_owned(),
        source_cluster: source.cluster.to_owned(),
        destination_workload: meters.workloads.admit(destination.workload),
        destination_service: destination.service.to_owned(),
        destination_namespace: destination.namespace.to_owned(),
        destination_cluster: destination.cluster.to_owned(),
    };
    meters.connections.get_or_create(&ends).inc();
    meters.received.get_or_create(&ends).inc_by(exchange.bytes_in);
    meters.sent.get_or_create(&ends).inc_by(exchange.bytes_out);
}

fn ends(exchange: &Exchange) -> (Who<'_>, Who<'_>) {
    let own = exchange.runtime.as_deref().map(Who::own).unwrap_or_default();
    match exchange.caller.side {
        Side::Inbound { .. } => {
            (exchange.caller.peer.as_ref().map(|one| Who::peer(&one.peer)).unwrap_or_default(), own)
        }
        Side::Outbound | Side::Ingress { .. } => (own, Who::called(exchange)),
    }
}

fn labels(exchange: &Exchange, key: &Key, workloads: &Names) -> Labels {
    let text = |text: &str| -> Arc<str> { text.into() };
    let (source, destination) = ends(exchange);
    Labels {
        http_request_method: key.method,
        http_response_status_code: u32::from(key.status),
        weft_flag: key.flag,
        weft_mtls: if key.mtls { "true" } else { "false" },
        source_workload: text(source.workload),
        source_namespace: text(source.namespace),
        source_cluster: text(source.cluster),
        destination_workload: workloads.admit(destination.workload),
        destination_service: text(destination.service),
        destination_namespace: text(destination.namespace),
        destination_cluster: text(destination.cluster),
    }
}

#[derive(Default)]
struct Who<'a> {
    workload: &'a str,
    service: &'a str,
    namespace: &'a str,
    cluster: &'a str,
}

impl<'a> Who<'a> {
    fn own(runtime: &'a Runtime) -> Self {
        let own = &runtime.workload.guarded;
        Who {
            workload: &own.workload,
            service: own.services.first().map_or("", |service| service.name.as_str()),
            namespace: own.namespace.as_str(),
            cluster: own.cluster.as_str(),
        }
    }

    /// A certificate names the service account, not the workload.
    fn peer(peer: &'a Peer) -> Self {
        Who {
            workload: peer.service_account.as_str(),
            service: "",
            namespace: peer.namespace.as_str(),
            cluster: peer.cluster.as_str(),
        }
    }

    fn called(exchange: &'a Exchange) -> Self {
        let endpoint = exchange.endpoint.as_ref();
        Who {
            workload: endpoint.map_or("", |endpoint| &endpoint.wire.workload),
            service: exchange.service.as_ref().map_or("", |service| service.name.as_str()),
            namespace: exchange.service.as_ref().map_or("", |service| service.namespace.as_str()),
            cluster: endpoint.map_or("", |endpoint| &endpoint.wire.cluster),
        }
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}
