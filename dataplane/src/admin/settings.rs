//! What is in force, each value with its origin: `default`, or the object that says it.

use api::wire;
use policies::DefaultAction;
use runtime::{Mesh, path::PathMode};
use serde_json::{Value, json};

/// `default` where nobody is named.
pub(super) fn origin(said: &str) -> &str {
    if said.is_empty() { "default" } else { said }
}

/// What the `Mesh` says. What has its default may have been said all the same.
pub(super) fn mesh(mesh: &Mesh) -> Value {
    let of = |value: &str, default: &str| json!({ "value": value, "origin": if value == default { "default" } else { "Mesh" } });
    let authorization = match mesh.default {
        DefaultAction::Allow => "ALLOW",
        DefaultAction::Deny => "DENY",
    };
    let paths = match mesh.paths {
        PathMode::Refuse => "REFUSE",
        PathMode::Keep => "KEEP",
        PathMode::Decode => "DECODE",
    };
    json!({
        "defaultAuthorization": of(authorization, "ALLOW"),
        "outbound": of(if mesh.registry_only { "REGISTRY_ONLY" } else { "ALLOW_ANY" }, "ALLOW_ANY"),
        "pathNormalization": of(paths, "REFUSE"),
        "leafLifetimeSeconds": of(&mesh.leaf_lifetime.as_secs().to_string(), "86400"),
    })
}

/// The groups of a `TrafficPolicy`.
pub(super) fn traffic(policy: &wire::TrafficPolicy) -> Value {
    let outlier = policy.outlier.unwrap_or_default();
    let retry = policy.retry.clone().unwrap_or_default();
    let timeouts = policy.timeouts.unwrap_or_default();
    let failover = policy.failover.iter().map(|one| json!({ "from": one.from, "to": one.to }));
    let distribute = policy.distribute.iter().map(|one| json!({ "from": one.from, "to": one.to }));
    let groups = json!({
        "loadBalancing": { "policy": policy.load_balancing().as_str_name(), "slowStartMs": policy.slow_start_ms },
        "locality": {
            "priority": policy.priority_labels,
            "failover": failover.collect::<Vec<_>>(),
            "distribute": distribute.collect::<Vec<_>>(),
            "overprovisioningPercent": policy.overprovisioning_percent,
            "panicPercent": policy.panic_percent,
            "staleEndpoints": policy.stale_endpoints().as_str_name(),
            "staleAfterMs": policy.stale_after_ms,
        },
        "outlierEjection": {
            "consecutiveGatewayErrors": outlier.consecutive_gateway_errors,
            "consecutiveConnectFailures": outlier.consecutive_connect_failures,
            "consecutiveServerErrors": outlier.consecutive_server_errors,
            "intervalMs": outlier.interval_ms,
            "baseEjectionMs": outlier.base_ejection_ms,
            "maxEjectionMs": outlier.max_ejection_ms,
            "maxEjectedPercent": outlier.max_ejected_percent,
            "successRate": {
                "minimumHosts": outlier.success_rate_minimum_hosts,
                "requestVolume": outlier.success_rate_request_volume,
                "deviationsMilli": outlier.success_rate_deviations_milli,
            },
        },
        "limits": {
            "connections": policy.limit_connections,
            "requests": policy.limit_requests,
            "pending": policy.limit_pending,
        },
        "retry": {
            "attempts": retry.attempts,
            "on": retry.on().map(|on| on.as_str_name()).collect::<Vec<_>>(),
            "statuses": retry.statuses,
            "grpcStatuses": retry.grpc_statuses,
            "backoffBaseMs": retry.backoff_base_ms,
            "backoffMaxMs": retry.backoff_max_ms,
            "budgetPercent": retry.budget_percent,
            "budgetMinPerSecond": retry.budget_min_per_second,
            "budgetWindowMs": retry.budget_window_ms,
        },
        "timeouts": {
            "connectMs": timeouts.connect_ms,
            "connectRemoteMs": timeouts.connect_remote_ms,
            "firstByteMs": timeouts.first_byte_ms,
            "suspectAfterMs": timeouts.suspect_after_ms,
            "requestMs": timeouts.request_ms,
            "idleMs": timeouts.idle_ms,
        },
        "keepAlive": {
            "maxIdlePerEndpoint": policy.max_idle_per_endpoint,
            "tcpTimeMs": policy.tcp_keepalive_time_ms,
            "tcpIntervalMs": policy.tcp_keepalive_interval_ms,
            "tcpProbes": policy.tcp_keepalive_probes,
        },
    });
    let Value::Object(groups) = groups else { return groups };
    let said = |group: &str| policy.origins.get(group).map_or("", String::as_str);
    let with_origin = |(group, value): (String, Value)| {
        let origin = origin(said(&group)).to_owned();
        (group, json!({ "value": value, "origin": origin }))
    };
    Value::Object(groups.into_iter().map(with_origin).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_group_says_whose_word_it_is() {
        let origins = [("retry".to_owned(), "TrafficPolicy shop/calm".to_owned())];
        let shown = traffic(&wire::TrafficPolicy { origins: origins.into(), ..crate::fixture::traffic() });
        assert_eq!(shown["retry"]["origin"], "TrafficPolicy shop/calm");
        assert_eq!(shown["retry"]["value"]["on"], json!(["RESET", "REFUSED", "FIRST_BYTE"]));
        let others: Vec<_> =
            shown.as_object().unwrap().iter().filter(|(group, _)| *group != "retry").collect();
        assert_eq!(others.len(), 6);
        assert!(others.iter().all(|(_, group)| group["origin"] == "default"), "{others:?}");
    }

    #[test]
    fn what_has_its_default_is_called_so() {
        let strict = Mesh {
            registry_only: true,
            default: DefaultAction::Allow,
            paths: PathMode::Refuse,
            leaf_lifetime: Duration::from_hours(24),
        };
        let shown = mesh(&strict);
        assert_eq!(shown["outbound"], json!({ "value": "REGISTRY_ONLY", "origin": "Mesh" }));
        for field in ["defaultAuthorization", "pathNormalization", "leafLifetimeSeconds"] {
            assert_eq!(shown[field]["origin"], "default", "{field}");
        }
    }
}
