//! Which requests a rule is for.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
