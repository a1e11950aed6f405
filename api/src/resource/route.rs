//! `HTTPRoute` (gateway.networking.k8s.io/v1): where HTTP requests go, at a Gateway or (GAMMA) at a Service.

mod filter;
mod matching;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, GATEWAY_GROUP, gateway::gateway_group};
use crate::name::{Hostname, Namespace, ObjectName, ServiceName};

pub use filter::{HeaderModifier, HeaderValue, HttpFilter, PathModifier, Redirect, Scheme, UrlRewrite};
pub use matching::{
    BadHeaderName, HeaderMatch, HeaderName, HttpMatch, Method, PathMatch, PathMatchType, QueryMatch,
    ValueMatchType,
};

/// Rules for requests that arrive at the parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// Gateways (listeners) or Services that it attaches to.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// The hosts that it is about; those of the parent when empty. Ignored at a Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hostnames: Vec<Hostname>,
    /// What happens to the requests.
    #[serde(default = "one_rule")]
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<HttpRule>,
}

fn one_rule() -> Vec<HttpRule> {
    vec![HttpRule::default()]
}

/// What a route attaches to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Empty for a Service.
    #[serde(default = "gateway_group")]
    pub group: String,
    /// `Gateway` or `Service`.
    #[serde(default)]
    pub kind: ParentKind,
    /// The route's own namespace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The name.
    pub name: ObjectName,
    /// A listener, or a port of a Service, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// A listener, or a port of a Service, by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// The kinds that a route attaches to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ParentKind {
    /// North-south.
    #[default]
    Gateway,
    /// East-west: callers of this Service.
    Service,
}

impl ParentKind {
    /// The API group that goes with it.
    pub fn group(self) -> &'static str {
        match self {
            ParentKind::Gateway => GATEWAY_GROUP,
            ParentKind::Service => "",
        }
    }
}

/// What happens to the requests that match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpRule {
    /// What `sectionName` and logs call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// One of them is enough; every path when there is none. Invariant: once read there is at least one.
    #[serde(deserialize_with = "one_match_at_least")]
    #[schemars(length(max = 64))]
    pub matches: Vec<HttpMatch>,
    /// What is done to request and response, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpFilter>,
    /// Where requests go, by weight; nowhere (500) when empty and no filter answers.
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<BackendRef>,
    /// How long it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<HttpTimeouts>,
    /// When it is tried again; overrides the TrafficPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<HttpRetry>,
}

fn one_match_at_least<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Vec<HttpMatch>, D::Error> {
    let matches = Vec::<HttpMatch>::deserialize(source)?;
    Ok(if matches.is_empty() { vec![HttpMatch::default()] } else { matches })
}

impl Default for HttpRule {
    fn default() -> Self {
        HttpRule {
            name: None,
            matches: vec![HttpMatch::default()],
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
            retry: None,
        }
    }
}

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Empty for a Service.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    #[serde(default = "service_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The route's own namespace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The name.
    pub name: ObjectName,
    /// The Service's port; needed for a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Its share, relative to the sum of all.
    #[serde(default = "weight_one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
}

impl BackendRef {
    /// The Service, for a route in `namespace`.
    pub fn service(&self, namespace: &Namespace) -> ServiceName {
        ServiceName::new(self.namespace.clone().unwrap_or_else(|| namespace.clone()), self.name.clone())
    }
}

fn service_kind() -> String {
    "Service".to_owned()
}

fn weight_one() -> u32 {
    1
}

/// How long a request may take (GEP-1742). `0s`: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpTimeouts {
    /// With all tries; `0s` switches off what a `TrafficPolicy` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One try; at most `request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
}

/// When a request is tried again (GEP-1731).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpRetry {
    /// After these statuses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(range(min = 400, max = 599)))]
    pub codes: Vec<u16>,
    /// How many more tries.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// At least this long between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
}
