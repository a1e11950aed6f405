//! What the control plane's admin API says and hears, as JSON. The command line and the console read it.
//!
//! Times are seconds since the epoch (UTC); durations bear their unit in the name.

mod explain;
mod status;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{explain::*, status::*};
use crate::name::{ClusterName, Namespace, ServiceAccount, WorkloadId};

/// Where the API lives below a control plane's admin address.
pub const BASE: &str = "/api/v1";

/// The header by which a call says which cluster it is meant for. The control plane of another one refuses it.
pub const MEANT_FOR: &str = "weft-cluster";

/// What a control plane is in its mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads Git, holds the root.
    Primary,
    /// Follows the primary, and goes on without it.
    Remote,
}

/// `GET /api/v1/wait?commit=ID&timeout=SECONDS`: answers when the commit (or a descendant) is effective, or
/// when the time is up.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitAnswer {
    /// The commit that was asked for, in full.
    pub commit: String,
    /// Whether it or a descendant is effective everywhere.
    pub effective: bool,
    /// What became of it.
    pub state: Option<CommitState>,
    /// Why it was refused.
    pub errors: Vec<Problem>,
    /// Who is not there yet, and why.
    pub lagging: Vec<Laggard>,
    /// Who is gone: counts only with `strict`.
    pub gone: Vec<Laggard>,
}

/// A proxy or cluster that is not there yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Laggard {
    /// Its cluster.
    pub cluster: ClusterName,
    /// The workload; absent when it is the cluster itself.
    pub workload: Option<WorkloadId>,
    /// Why: slow, partitioned, refused (with the reasons), gone (with the end of its certificate).
    pub why: String,
}

/// `POST /api/v1/tokens`: a one-time token for one workload of this cluster.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    /// The workload's id.
    pub workload: WorkloadId,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// Its labels: services select by them, so the token vouches for them.
    pub labels: BTreeMap<String, String>,
    /// How long the token may be used, seconds; 600 when absent, a week at most.
    pub ttl_seconds: Option<u64>,
}

/// `POST /api/v1/join-tokens` (primary only): a one-time token for one remote cluster.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenRequest {
    /// The cluster that it names.
    pub cluster: ClusterName,
    /// How long the token may be used, seconds; 3600 when absent, a week at most.
    pub ttl_seconds: Option<u64>,
}

/// A token.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Token {
    /// To be handed over by a safe way; works once.
    pub token: String,
}

/// Any answer that is no success.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Failure {
    /// What is wrong and what to do.
    pub error: String,
}
