//! `AuthorizationPolicy`: who may do what, in CEL. The expressions are text here; the gate type-checks them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Selector, TargetRef};

/// Rules for the selected workloads, for what it is attached to, for its namespace or (in `weft-system`) the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// What it is attached to; never beside `selector`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// The workloads; never beside `targetRefs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What a matching rule does.
    pub action: Action,
    /// Whether it is in force.
    pub mode: Mode,
    /// One matching rule is enough; without any nothing matches.
    #[schemars(length(max = 256))]
    pub rules: Vec<Rule>,
}

/// What a matching rule does.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Turns the request away, whatever else allows it.
    Deny,
    /// Lets it pass; where an ALLOW policy selects a workload, one of its rules must match.
    #[default]
    Allow,
    /// Only notes it.
    Audit,
}

/// Whether a policy is in force.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// It is.
    #[default]
    Enforce,
    /// Its verdict is noted beside the one that is in force.
    DryRun,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Rule {
    /// What logs and refusals call it; its number when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The condition, in CEL; without one the rule matches all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub when: Option<String>,
}
