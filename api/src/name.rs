//! A newtype for every name, so that two names never stand side by side as two strings.
//!
//! Holding one is the proof that it is well-formed. Names are cheap to clone (`Arc<str>`).

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a text is not a name of the kind that was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {wanted}: {rule}")]
pub struct BadName {
    /// The text that was refused, cut to 80 characters.
    pub text: String,
    /// What it was to be, as a user would say it.
    pub wanted: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl BadName {
    fn new(text: &str, wanted: &'static str, rule: &'static str) -> Self {
        BadName { text: text.chars().take(80).collect(), wanted, rule }
    }
}

const LABEL_RULE: &str =
    "at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123)";
const SUBDOMAIN_RULE: &str = "at most 253 of `a-z`, `0-9`, `-` and `.`, each part beginning and ending with a letter or digit (RFC 1123)";

/// An RFC 1123 label: what Kubernetes asks of a namespace.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// An RFC 1123 subdomain: what Kubernetes asks of most object names.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $wanted:literal, $test:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name, or which rule the text breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, BadName> {
                let text = text.as_ref();
                if $test(text) { Ok($type(text.into())) } else { Err(BadName::new(text, $wanted, $rule)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                $type::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                $type::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{:?}", &*self.0)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": stringify!($type), "description": $rule })
            }
        }
    };
}

name! {
    /// A namespace. Sameness: the same namespace in two clusters means the same.
    Namespace, "namespace", is_label, LABEL_RULE
}
name! {
    /// The name of an object in its namespace.
    ObjectName, "name of an object", is_subdomain, SUBDOMAIN_RULE
}
name! {
    /// The name of a Service: one label of its host names.
    ServiceLabel, "name of a service", is_label, LABEL_RULE
}
name! {
    /// A service account, the last part of a SPIFFE id.
    ServiceAccount, "service account", is_subdomain, SUBDOMAIN_RULE
}
name! {
    /// A member cluster.
    ClusterName, "name of a cluster", is_label, LABEL_RULE
}
name! {
    /// A network: endpoints of one network reach each other without a gateway.
    NetworkName, "name of a network", is_label, LABEL_RULE
}
name! {
    /// A SPIFFE trust domain: `[a-z0-9._-]`, at most 255 bytes.
    TrustDomain, "trust domain",
    |t: &str| (1..=255).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)),
    "1 to 255 of `a-z`, `0-9`, `.`, `_` and `-` (SPIFFE-ID, section 2.1)"
}
name! {
    /// A host as routes and subscriptions name it: lower case, no port, no trailing dot; `*.` may lead.
    Hostname, "host name",
    |t: &str| is_subdomain(t.strip_prefix("*.").unwrap_or(t)),
    "a DNS name in lower case without port or trailing dot, `*.` may lead (Gateway API, Hostname)"
}
name! {
    /// A source of configuration: what settings, revisions and people call a repository's branch.
    SourceName, "name of a source", is_label, LABEL_RULE
}
name! {
    /// One workload as operators name it (`reviews-v1-1`); several instances of it may live one after another.
    WorkloadId, "workload id", is_subdomain, SUBDOMAIN_RULE
}
name! {
    /// One life of a workload. Invariant: never used again, so that no state outlives what it was about.
    InstanceId, "instance id", is_subdomain, SUBDOMAIN_RULE
}

impl Namespace {
    /// Where an object without a target rules the whole mesh.
    pub const SYSTEM: &str = "weft-system";

    /// `weft-system`.
    pub fn system() -> Self {
        Namespace(Self::SYSTEM.into())
    }

    /// Whether an object here without a target rules the whole mesh.
    pub fn is_system(&self) -> bool {
        &*self.0 == Self::SYSTEM
    }
}

/// A service: the same namespace and name in two clusters is the same service once it is exported.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name there.
    pub name: ObjectName,
}

impl ServiceName {
    /// From its two parts.
    pub fn new(namespace: Namespace, name: ObjectName) -> Self {
        ServiceName { namespace, name }
    }

    /// `name.namespace.svc.cluster.local`.
    pub fn cluster_local(&self) -> Hostname {
        Hostname(format!("{}.{}.svc.cluster.local", self.name, self.namespace).into())
    }

    /// `name.namespace.svc.clusterset.local`, the union of all clusters that export it (KEP-1645).
    pub fn clusterset_local(&self) -> Hostname {
        Hostname(format!("{}.{}.svc.clusterset.local", self.name, self.namespace).into())
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{self}\"")
    }
}

impl FromStr for ServiceName {
    type Err = BadName;
    /// Reads `namespace/name`.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| BadName::new(text, "service", "written as `namespace/name`"))?;
        Ok(ServiceName { namespace: namespace.parse()?, name: name.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_their_rule() {
        assert!(Namespace::new("shop").is_ok());
        for bad in ["", "Shop", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(Namespace::new(bad).is_err(), "{bad}");
        }
        assert!(Hostname::new("*.shop.example").is_ok());
        assert!(Hostname::new("*").is_err());
        assert!(TrustDomain::new("Shop").is_err());
        assert_eq!("shop/reviews".parse::<ServiceName>().unwrap().to_string(), "shop/reviews");
    }
}
