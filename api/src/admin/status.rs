//! What is told of the mesh: clusters, commits, proxies, services, events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Role;
use crate::{
    locality::Locality,
    name::{ClusterName, Namespace, ServiceAccount, ServiceName, SourceName, WorkloadId},
};

/// `GET /api/v1/status`: all that one control plane knows of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The cluster that answers.
    pub cluster: ClusterName,
    /// Its role.
    pub role: Role,
    /// The mesh's trust domain; empty before the first accepted commit.
    pub trust_domain: String,
    /// Where configuration comes from and what became of it, in order of name. None on a remote.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// The commit that this control plane serves; of several sources those of all, as `a@COMMIT b@COMMIT`.
    pub commit: Option<String>,
    /// Every cluster, in order of name; the others by their own last word.
    pub clusters: Vec<ClusterStatus>,
    /// What happened lately, newest last: proxies that went, ejections, refused commits, peers away.
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When, seconds since the epoch.
    pub time: f64,
    /// What it is about: `proxy reviews-v1-1`, `commit 1a2b3c4`, `cluster west`.
    pub subject: String,
    /// What happened, in words.
    pub message: String,
}

/// A source of configuration, and what became of its commits.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its name.
    pub name: SourceName,
    /// The namespaces that it alone may say something in; none of the source that owns the rest and what is mesh-wide.
    pub namespaces: Vec<Namespace>,
    /// Its commit in force.
    pub commit: Option<String>,
    /// Its path or URL.
    pub repository: String,
    /// The branch that rules.
    pub branch: String,
    /// What is wrong with the repository now (away, branch gone); the last good commit stays in force.
    pub trouble: Option<String>,
    /// Since when something is.
    pub trouble_since: Option<f64>,
    /// The newest commits seen, newest last.
    pub commits: Vec<CommitStatus>,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CommitState {
    /// It passed, and is not in force yet: the store does not take it, or it is judged once more.
    Accepted,
    /// Refused whole; `errors` says why.
    Refused,
    /// Accepted, and not every proxy is there yet.
    Rolling,
    /// On every proxy of every cluster.
    Effective,
    /// Checked and held until an operator accepts it.
    Held,
    /// A newer commit took its place.
    Superseded,
}

/// One commit.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitStatus {
    /// Its full id.
    pub commit: String,
    /// Its first line.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// When it was first seen.
    pub seen: f64,
    /// What became of it.
    pub state: CommitState,
    /// Milliseconds from seen to effective everywhere.
    pub effective_after_ms: Option<u64>,
    /// Why it was refused.
    pub errors: Vec<Problem>,
    /// What does not refuse it, as it was when the commit was judged.
    #[serde(default)]
    pub warnings: Vec<Problem>,
}

/// Whether a problem refuses a commit.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does.
    #[default]
    Error,
    /// It is told of, and let pass.
    Warning,
}

/// One mistake in a configuration repository, where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Path in the repository.
    pub file: String,
    /// From 1; 0 when it is about the whole file.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Whether it refuses the commit.
    #[serde(default)]
    pub severity: Severity,
}

impl Problem {
    /// Whether it refuses the commit.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// One cluster, by its own word.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its name.
    pub name: ClusterName,
    /// Its role.
    pub role: Role,
    /// Where it is.
    pub locality: Locality,
    /// Its network.
    pub network: String,
    /// The version of its control plane.
    pub version: String,
    /// The commit that it serves to its proxies.
    pub commit: Option<String>,
    /// Whether every proxy of its own obeys that commit.
    pub effective: bool,
    /// Since when its link to the primary is down; absent when it is up (or it is the primary).
    pub primary_away_since: Option<f64>,
    /// Since when its store does not answer: it serves what it has, and commits wait. Absent when it is there.
    #[serde(default)]
    pub store_away_since: Option<f64>,
    /// Until when proxies may live here of which it does not know: it began without its store, and they have one lease
    /// to come back. Absent when all are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxies_unknown_until: Option<f64>,
    /// Since when the control plane that answers has not heard from this cluster; absent when the link is up.
    pub away_since: Option<f64>,
    /// When this word was given.
    pub reported: f64,
    /// End of its intermediate certificate; 0 when this cluster was not heard of yet.
    pub intermediate_not_after: f64,
    /// End of its control plane's own certificate.
    #[serde(default)]
    pub certificate_not_after: f64,
    /// The sequence of the trust bundle that it holds.
    pub bundle_sequence: u64,
    /// Its proxies, by workload.
    pub proxies: Vec<ProxyStatus>,
    /// Its services, by name.
    pub services: Vec<ServiceStatus>,
}

/// Whether a proxy is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyState {
    /// Its stream is up.
    Connected,
    /// Its stream is away, its lease still runs.
    Away,
    /// Its lease has run out: it gets no traffic from the mesh any more.
    Gone,
}

/// One proxy.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// The workload.
    pub workload: WorkloadId,
    /// This life of it.
    pub instance: String,
    /// `sidecar`, `ingress` or `east-west`.
    pub kind: String,
    /// Namespace.
    pub namespace: Namespace,
    /// Service account.
    pub service_account: ServiceAccount,
    /// Where other proxies reach it.
    pub address: String,
    /// Whether it is there.
    pub state: ProxyState,
    /// Since when it is in that state.
    pub since: f64,
    /// The commit that it obeys.
    pub commit: Option<String>,
    /// Whether it obeys all of the commit that its cluster serves.
    pub effective: bool,
    /// What it refused in its last push, or why its disk does not keep that.
    pub refused: Vec<String>,
    /// Whether its application answers.
    pub app_ready: bool,
    /// Whether it drains.
    pub draining: bool,
    /// End of its certificate; 0 when it has not said since this control plane began.
    pub certificate_not_after: f64,
    /// Its version.
    pub version: String,
    /// The endpoints that it holds to be bad now, with the reason.
    pub ejected: BTreeMap<String, String>,
}

/// One service, as its cluster's callers see it.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its name.
    pub service: ServiceName,
    /// Whether this cluster offers it to the others.
    pub exported: bool,
    /// Endpoints by cluster: healthy of total.
    pub endpoints: BTreeMap<ClusterName, EndpointCount>,
    /// Since when the endpoints of a cluster are stale.
    pub stale_since: BTreeMap<ClusterName, f64>,
}

/// How many endpoints there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EndpointCount {
    /// That take requests.
    pub healthy: u32,
    /// In all.
    pub total: u32,
}
