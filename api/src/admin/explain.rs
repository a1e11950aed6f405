//! What would happen to a request, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::ClusterName;

/// `POST /api/v1/explain`: what would happen to this request.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    /// The cluster of the caller; absent: the one that answers. It must be the one that answers, or one
    /// that this control plane has the catalogue of.
    pub cluster: Option<ClusterName>,
    /// The calling workload's id, `namespace/serviceaccount`, or `ingress` for a client of the ingress.
    pub source: String,
    /// `GET`.
    pub method: String,
    /// `reviews`, `reviews.shop:8080`, or for an ingress the Host header.
    pub host: String,
    /// With query.
    pub path: String,
    /// Request headers.
    pub headers: BTreeMap<String, String>,
}

/// What would happen, hop by hop: at the caller, then at the workload called.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainAnswer {
    /// The commit that this is judged by.
    pub commit: Option<String>,
    /// The status if all endpoints do their part: 200 means that the application is reached.
    pub status: u16,
    /// Which route and rule chose.
    pub route: Option<ExplainedRoute>,
    /// The service called, after routing; several when weights split.
    pub backends: Vec<ExplainedBackend>,
    /// The verdict at the caller's side (gateways only), then at each backend.
    pub authorization: Vec<ExplainedVerdict>,
    /// The reason for a status other than 200, in words.
    pub reason: Option<String>,
    /// Attributes that policies on the way read and no explanation knows, such as `source.ip`: they were taken to be
    /// empty, and a verdict that goes by them may be another one.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Values in force that nobody said, and those that somebody did: field to value and origin. Those of the `Mesh`,
    /// `mtls` of who is called, `rule.timeouts` and `rule.retry` of the route's rule, and the groups of the
    /// `TrafficPolicy`; where another backend has another value, also as `FIELD at NAMESPACE/NAME:PORT`.
    pub settings: BTreeMap<String, ExplainedSetting>,
}

/// A value in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedSetting {
    /// As configuration writes it.
    pub value: String,
    /// `default`, or the object that says it and where: `TrafficPolicy shop/reviews, reviews.yaml:25`.
    pub origin: String,
}

/// A route that matched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRoute {
    /// `HTTPRoute shop/reviews`.
    pub route: String,
    /// The rule's name or index.
    pub rule: String,
    /// Where it stands.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// The commit that last changed it.
    pub commit: String,
}

/// One backend of the route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedBackend {
    /// `shop/reviews-v1:8080`.
    pub service: String,
    /// Its share of the requests, percent.
    pub percent: f64,
    /// Its endpoints by locality priority, first those that are taken first.
    pub priorities: Vec<ExplainedPriority>,
}

/// The endpoints of one locality priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedPriority {
    /// From 0.
    pub priority: u32,
    /// Its share of the load with all endpoints healthy as the control plane knows them, percent.
    pub load_percent: u32,
    /// Who they are.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// The workload.
    pub workload: String,
    /// Its cluster.
    pub cluster: String,
    /// `ip:port` on its own network.
    pub address: String,
    /// `region/zone`.
    pub locality: String,
    /// `healthy`, `unhealthy` or `draining`.
    pub health: String,
    /// Through which gateways, when its network is another.
    pub via: Vec<String>,
}

/// One authorization verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedVerdict {
    /// Where: `ingress`, or `shop/reviews-v1`.
    pub at: String,
    /// Whether the request passes.
    pub allowed: bool,
    /// `shop/reviews-readers`, or `default`.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// Where it stands.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// The commit that last changed the policy.
    pub commit: String,
}
