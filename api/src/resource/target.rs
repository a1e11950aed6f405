//! What a policy is about: `targetRefs`, `selector`, or neither for its namespace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::name::{Namespace, ObjectName};

/// Workloads of the policy's namespace that bear all of these labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Every one of them must be there with this value.
    #[schemars(length(min = 1), extend("minProperties" = 1))]
    pub match_labels: Labels,
}

impl Selector {
    /// Whether a workload with `labels` is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        selects(&self.match_labels, labels)
    }
}

/// Whether `labels` bear all of `wanted`. Nothing wanted selects nothing (as a Service without selector does).
pub fn selects(wanted: &Labels, labels: &Labels) -> bool {
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One object that a policy is attached to, as the Gateway API writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The API group; empty for a Service.
    #[serde(default)]
    pub group: String,
    /// The kind.
    pub kind: TargetKind,
    /// The name.
    pub name: ObjectName,
    /// The namespace, when it is not the policy's own: only in a TrafficPolicy of the callers' namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// A port of the Service, a listener of the Gateway, or a rule of the route, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// The kinds that a policy may be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A Service: every workload that it selects.
    Service,
    /// A Gateway.
    Gateway,
    /// A route all of whose parents are Gateways.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
}
