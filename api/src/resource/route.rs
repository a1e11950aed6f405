//! `HTTPRoute` (gateway.networking.k8s.io/v1): where HTTP requests go, at a Gateway or (GAMMA) at a Service.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, GATEWAY_GROUP, gateway::gateway_group};
use crate::name::{Hostname, Namespace, ObjectName, ServiceName};

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

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpMatch {
    /// On the path.
    pub path: PathMatch,
    /// On headers; of those with the same name only the first counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// On query parameters; of those with the same name only the first counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryMatch>,
    /// On the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PathMatch {
    /// How.
    #[serde(rename = "type")]
    pub type_: PathMatchType,
    /// Against what.
    #[schemars(length(max = 1024))]
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> Self {
        PathMatch { type_: PathMatchType::PathPrefix, value: "/".to_owned() }
    }
}

/// How a path is compared.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// Element by element: `/foo` matches `/foo/bar`, not `/foobar`.
    #[default]
    PathPrefix,
    /// The whole path, as RE2 reads it.
    RegularExpression,
}

/// How a value is compared.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum ValueMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// The whole value, as RE2 reads it.
    RegularExpression,
}

/// A condition on a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How.
    #[serde(rename = "type", default)]
    pub type_: ValueMatchType,
    /// The header.
    pub name: HeaderName,
    /// Against what.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// A condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryMatch {
    /// How.
    #[serde(rename = "type", default)]
    pub type_: ValueMatchType,
    /// The parameter, in its case.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$"))]
    pub name: String,
    /// Against what.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// A method that a route may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

impl Method {
    /// As it stands in a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Connect => "CONNECT",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Patch => "PATCH",
        }
    }
}

/// The name of a header, kept in lower case since case means nothing in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderName(Arc<str>);

/// A text that is no header name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a header name: 1 to 256 letters, digits or !#$%&'*+-.^_`|~ (RFC 9110, token)")]
pub struct BadHeaderName(String);

impl HeaderName {
    /// The name, in lower case.
    pub fn new(text: &str) -> Result<Self, BadHeaderName> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if (1..=256).contains(&text.len()) && text.bytes().all(is_token) {
            Ok(HeaderName(text.to_ascii_lowercase().into()))
        } else {
            Err(BadHeaderName(text.chars().take(80).collect()))
        }
    }

    /// In lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", &*self.0)
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl TryFrom<String> for HeaderName {
    type Error = BadHeaderName;
    fn try_from(text: String) -> Result<Self, BadHeaderName> {
        HeaderName::new(&text)
    }
}

impl From<HeaderName> for String {
    fn from(name: HeaderName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl JsonSchema for HeaderName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HeaderName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "HeaderName", "description": "a header name; case means nothing" })
    }
}

/// What is done to a request or a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum HttpFilter {
    /// Headers of the request.
    RequestHeaderModifier {
        /// What changes.
        request_header_modifier: HeaderModifier,
    },
    /// Headers of the response.
    ResponseHeaderModifier {
        /// What changes.
        response_header_modifier: HeaderModifier,
    },
    /// Answers with a redirect.
    RequestRedirect {
        /// Where to.
        request_redirect: Redirect,
    },
    /// Changes host or path of the request.
    #[serde(rename = "URLRewrite")]
    UrlRewrite {
        /// What changes.
        url_rewrite: UrlRewrite,
    },
}

/// What changes in headers: first `set`, then `add`, then `remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replaces all values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HeaderValue>,
    /// Adds a value to those that are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HeaderValue>,
    /// Removes all values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub remove: Vec<HeaderName>,
}

/// A header and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValue {
    /// The header.
    pub name: HeaderName,
    /// The value.
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^[^\x00-\x08\x0a-\x1f\x7f]*$"))]
    pub value: String,
}

/// Where a redirect leads. What is absent stays as the request had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// The port; by scheme, else the listener's, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: u16,
}

impl Default for Redirect {
    fn default() -> Self {
        Redirect { scheme: None, hostname: None, path: None, port: None, status_code: 302 }
    }
}

/// The scheme of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Port 80.
    Http,
    /// Port 443.
    Https,
}

/// What changes in a request's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UrlRewrite {
    /// The host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum PathModifier {
    /// All of it.
    ReplaceFullPath {
        /// By this.
        #[schemars(length(max = 1024))]
        replace_full_path: String,
    },
    /// The prefix that the rule matched.
    ReplacePrefixMatch {
        /// By this.
        #[schemars(length(max = 1024))]
        replace_prefix_match: String,
    },
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
    /// With all tries.
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
