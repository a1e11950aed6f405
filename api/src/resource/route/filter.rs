//! What a rule does to requests and responses on their way.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::matching::HeaderName;
use crate::name::Hostname;

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
