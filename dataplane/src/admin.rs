//! The admin view of a proxy: the compiled runtime as JSON, and the word to drain.

mod settings;

use std::sync::{Arc, OnceLock};

use process::{admin::Routes, shutdown::Shutdown};
use runtime::Runtime;
use serde_json::{Value, json};

use crate::{limit::Kind, proxy::Proxy};

/// What may be asked of a proxy that perhaps has not come to its identity yet.
pub type Later = Arc<OnceLock<Arc<Proxy>>>;

/// `/runtime` and `POST /drain`, beside what every process answers.
pub fn routes(routes: Routes, proxy: Later, end: Shutdown) -> Routes {
    let runtime = async move || match proxy.get() {
        Some(proxy) => axum::Json(view(proxy)),
        None => axum::Json(json!({ "ready": false, "reason": "no credentials yet" })),
    };
    let drain = async move || {
        end.cancel();
        "draining\n"
    };
    let router = axum::Router::new()
        .route("/runtime", axum::routing::get(runtime))
        .route("/drain", axum::routing::post(drain));
    routes.merge(router)
}

/// All that this proxy obeys and has seen.
fn view(proxy: &Proxy) -> Value {
    let credentials = proxy.identity.credentials();
    let bundle = proxy.identity.bundle();
    let mut whole = json!({
        "ready": proxy.state().is_some(),
        "draining": proxy.is_draining(),
        "identity": credentials.id().to_string(),
        "certificateNotAfter": credentials.validity().end().as_secs(),
        "bundle": { "sequence": bundle.sequence, "clusters": bundle.clusters.keys().collect::<Vec<_>>() },
    });
    if let (Some(state), Value::Object(map)) = (proxy.state(), &mut whole) {
        map.insert("runtime".into(), runtime(&state.runtime));
        map.insert("endpoints".into(), endpoints(proxy));
        map.insert("load".into(), load(proxy));
    }
    whole
}

fn runtime(runtime: &Runtime) -> Value {
    let own = &runtime.workload;
    let inbound: Vec<_> = runtime
        .inbound()
        .iter()
        .map(|one| {
            json!({ "port": one.port, "application": one.address, "mtls": one.mtls.as_str_name(),
                    "mtlsOrigin": settings::origin(&one.mtls_origin),
                    "protocol": one.protocol.as_str_name(), "endpoint": one.endpoint.as_ref().map(|id| id.as_str()) })
        })
        .collect();
    let services: Vec<_> = runtime
        .services()
        .map(|service| {
            let ports: Vec<_> = service
                .ports
                .iter()
                .map(|port| {
                    json!({ "port": port.port, "target": port.target, "traffic": settings::traffic(&port.traffic) })
                })
                .collect();
            json!({ "name": service.name.to_string(), "ports": ports,
                    "identities": service.identities.iter().map(ToString::to_string).collect::<Vec<_>>() })
        })
        .collect();
    json!({
        "revision": &*runtime.revision,
        "configDigest": runtime.digests.config.to_string(),
        "endpointDigest": runtime.digests.endpoint.to_string(),
        "workload": { "id": own.id, "namespace": own.guarded.namespace, "serviceAccount": own.service_account,
                      "cluster": own.guarded.cluster, "network": own.network, "locality": own.locality.to_string(),
                      "services": own.guarded.services.iter().map(ToString::to_string).collect::<Vec<_>>() },
        "mesh": settings::mesh(&runtime.mesh),
        "inbound": inbound,
        "services": services,
        "listeners": runtime.listener_ports().collect::<Vec<_>>(),
        "networks": runtime.networks.networks.iter().map(|(name, one)| (name.clone(), json!(one.addresses))).collect::<serde_json::Map<_, _>>(),
        "passthrough": runtime.passthrough.endpoints.iter().map(|one| json!({ "id": one.id, "address": one.address, "services": one.services })).collect::<Vec<_>>(),
    })
}

fn load(proxy: &Proxy) -> Value {
    let mut all = serde_json::Map::new();
    proxy.each_load(|(service, port), load| {
        let count = |kind| load.count(kind);
        all.insert(
            format!("{service}:{port}"),
            json!({ "connections": count(Kind::Connection), "requests": count(Kind::Request), "pending": count(Kind::Pending) }),
        );
    });
    Value::Object(all)
}

fn endpoints(proxy: &Proxy) -> Value {
    let now = proxy.now();
    let mut all = serde_json::Map::new();
    proxy.each_balancer(|(service, port), balancer| {
        all.insert(format!("{service}:{port}"), json!(balancer.report(now)));
    });
    Value::Object(all)
}
