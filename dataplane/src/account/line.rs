//! One line of the access log.

use std::time::Duration;

use policies::By;
use process::access_log::AccessLog;
use serde::Serialize;

use super::{Exchange, Side};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: String,
    direction: &'static str,
    decision: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    flag: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    route: &'a str,
    rule: &'a str,
    route_commit: &'a str,
    policy: String,
    policy_rule: &'a str,
    policy_commit: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    noted: Vec<String>,
    commit: &'a str,
    source: &'a str,
    source_cluster: &'a str,
    destination: String,
    endpoint: &'a str,
    endpoint_cluster: &'a str,
    endpoint_id: &'a str,
    gateway: Option<String>,
    priority: Option<u32>,
    tries: u32,
    duration_ms: f64,
    upstream_ms: Option<f64>,
    bytes_in: u64,
    bytes_out: u64,
    trace_id: Option<String>,
    request_id: &'a str,
    remote: String,
    protocol: &'static str,
    mtls: bool,
}

/// Writes the line of an exchange that is over.
pub(super) fn write(log: &AccessLog, exchange: &Exchange, took: Duration) {
    let time = time::OffsetDateTime::from(exchange.time);
    let own = exchange.runtime.as_deref().map(|runtime| &runtime.workload);
    let peer = exchange.caller.peer.as_ref().map(|identified| &*identified.peer);
    let inbound = matches!(exchange.caller.side, Side::Inbound { .. });
    let (source, source_cluster) = match (inbound, peer, own) {
        (true, Some(peer), _) => (peer.principal.as_str(), peer.cluster.as_str()),
        (true, None, _) | (false, _, None) => ("", ""),
        (false, _, Some(own)) => (own.principal.as_str(), own.guarded.cluster.as_str()),
    };
    let endpoint = exchange.endpoint.as_deref();
    let (endpoint_name, endpoint_cluster) = match (inbound, own, endpoint) {
        (true, Some(own), _) => (own.guarded.workload.as_str(), own.guarded.cluster.as_str()),
        (_, _, Some(endpoint)) => (endpoint.wire.workload.as_str(), endpoint.wire.cluster.as_str()),
        (_, _, None) => ("", ""),
    };
    let service = match (inbound, own) {
        (true, Some(own)) => own.guarded.services.first(),
        _ => exchange.service.as_ref(),
    };
    let (policy, policy_rule, policy_commit) = policy(exchange.by.as_ref());
    let part = |at: usize| exchange.route.as_ref().map_or("", |route| &*route[at]);
    let text = |value: &'_ http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let (decision, host, request_id) =
        (text(&exchange.decision), text(&exchange.host), text(&exchange.request_id));
    let line = Line {
        time: time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        direction: exchange.caller.side.as_str(),
        decision: &decision,
        method: if exchange.connection { "" } else { exchange.method.as_str() },
        host: &host,
        path: if exchange.connection { "" } else { exchange.uri.path() },
        status: exchange.status,
        flag: exchange.flag,
        reason: &exchange.reason,
        route: part(0),
        rule: part(1),
        route_commit: part(2),
        policy,
        policy_rule,
        policy_commit,
        noted: exchange.noted.iter().map(ToString::to_string).collect(),
        commit: exchange.runtime.as_ref().map_or("", |runtime| &runtime.revision),
        source,
        source_cluster,
        destination: service.map(ToString::to_string).unwrap_or_default(),
        endpoint: endpoint_name,
        endpoint_cluster,
        endpoint_id: endpoint.map_or("", |endpoint| endpoint.id.as_str()),
        gateway: exchange.gateway.map(|gateway| gateway.to_string()),
        priority: endpoint.map(|endpoint| endpoint.priority),
        tries: exchange.tries,
        duration_ms: millis(took),
        upstream_ms: exchange.upstream.map(millis),
        bytes_in: exchange.bytes_in + exchange.body.as_ref().map_or(0, |body| body.bytes()),
        bytes_out: exchange.bytes_out,
        trace_id: exchange.trace.as_ref().map(|trace| trace.context.trace.to_string()),
        request_id: &request_id,
        remote: exchange.caller.remote.to_string(),
        protocol: if exchange.connection { "tcp" } else { exchange.caller.protocol },
        mtls: peer.is_some() || exchange.upstream_mtls,
    };
    if let Ok(line) = serde_json::to_vec(&line) {
        log.write(&line);
    }
}

fn policy(by: Option<&By>) -> (String, &str, &str) {
    match by {
        None | Some(By::Default) => (String::new(), if by.is_some() { "default" } else { "" }, ""),
        Some(By::Rule { rule, .. }) => (rule.policy.clone(), &rule.rule, &rule.commit),
        Some(By::NoRuleMatched { policies }) => {
            let names: Vec<_> = policies.iter().map(|one| one.policy.as_str()).collect();
            (names.join(","), "", policies.first().map_or("", |first| &first.commit))
        }
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
