//! `Mesh` and `Cluster`: who belongs together, and under which defaults.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cidr, Duration};
use crate::{
    locality::Locality,
    name::{BadName, Namespace, NetworkName, TrustDomain},
};

/// Trust domain and defaults. A repository holds exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mesh {
    /// Fixed once the root exists.
    pub trust_domain: TrustDomain,
    /// How long certificates live.
    #[serde(default)]
    pub certificates: Certificates,
    /// What happens where no ALLOW policy selects a workload.
    #[serde(default)]
    pub default_authorization: DefaultAuthorization,
    /// What sidecars do with a destination that no one in the mesh knows.
    #[serde(default)]
    pub outbound: Outbound,
    /// Whether `name.namespace.svc.cluster.local` fails over to other clusters once the service is exported.
    #[serde(default = "yes")]
    pub cluster_local_failover: bool,
    /// What the gate does with a reference that Git owns and that leads nowhere.
    #[serde(default)]
    pub unresolved_references: UnresolvedReferences,
    /// What happens to `%2F`, `%5C`, NUL and invalid UTF-8 in a path.
    #[serde(default)]
    pub path_normalization: PathNormalization,
    /// The ranges that `clusterIP`s of Services may come from; those for private use when absent.
    // What has its default is left out, so that who does not know the field yet can read what does not need it.
    #[serde(default = "private_ranges", skip_serializing_if = "is_private")]
    #[schemars(length(max = 64))]
    pub virtual_addresses: Vec<Cidr>,
}

/// Addresses that no one on the Internet has (RFC 1918, 6598, 1112, 1122 and 4193).
const PRIVATE_RANGES: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "240.0.0.0/4",
    "127.0.0.0/8",
    "fc00::/7",
];

fn private_ranges() -> Vec<Cidr> {
    PRIVATE_RANGES.iter().map(|range| range.parse().expect("a range")).collect()
}

fn is_private(ranges: &[Cidr]) -> bool {
    ranges == private_ranges()
}

fn yes() -> bool {
    true
}

impl Mesh {
    /// A mesh of this trust domain in which everything else has its default.
    pub fn of(trust_domain: TrustDomain) -> Self {
        Mesh {
            trust_domain,
            certificates: Certificates::default(),
            default_authorization: DefaultAuthorization::default(),
            outbound: Outbound::default(),
            cluster_local_failover: true,
            unresolved_references: UnresolvedReferences::default(),
            path_normalization: PathNormalization::default(),
            virtual_addresses: private_ranges(),
        }
    }

    /// Whether a Service may have this virtual address: captured callers are led to it from whoever else has it.
    pub fn may_be_virtual(&self, address: IpAddr) -> bool {
        super::cidr::nobodys(address).is_none()
            && self.virtual_addresses.iter().any(|range| range.contains(address))
    }
}

/// How long certificates live. Invariant of a linked set: leaf < intermediate < root, leaf 5m to 2160h.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Certificates {
    /// Of a workload: 5m to 2160h.
    pub leaf: Duration,
    /// Of a cluster's issuer.
    pub intermediate: Duration,
    /// Of the mesh's root.
    pub root: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates {
            leaf: Duration::from_hours(24),
            intermediate: Duration::from_hours(2160),
            root: Duration::from_secs(87_600 * 3600),
        }
    }
}

/// What happens where no ALLOW policy selects a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DefaultAuthorization {
    /// It is allowed.
    #[default]
    Allow,
    /// It is denied.
    Deny,
}

/// What sidecars do with a destination that no one in the mesh knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outbound {
    /// Pass it on as it is.
    #[default]
    AllowAny,
    /// Refuse it.
    RegistryOnly,
}

/// What the gate does with a reference that Git owns and that leads nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnresolvedReferences {
    /// Refuse the commit.
    #[default]
    Refuse,
    /// Take it, and warn of the reference; a backend answers 500 for its share of the weight.
    Report,
}

/// What happens to `%2F`, `%5C`, NUL and invalid UTF-8 in a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// The request is answered with 400.
    #[default]
    Refuse,
    /// They stay as they are; NUL is refused even so.
    Keep,
    /// They are decoded.
    Decode,
}

/// A member. What is not said here comes from the cluster itself when it joins; Git overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Cluster {
    /// Endpoints of another network are reached through its gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Of workloads that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// East-west gateway addresses, instead of what the cluster says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<SocketAddrText>>", length(max = 64))]
    pub gateways: Option<Vec<SocketAddr>>,
    /// The namespaces that it may vouch for and export; none when absent, `["*"]` for all.
    pub namespaces: Vouched,
}

/// Gives socket addresses their format in the schema.
struct SocketAddrText;

impl JsonSchema for SocketAddrText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SocketAddr".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "SocketAddr", "description": "an IP address and a port, `127.2.0.2:15443`" })
    }
}

/// The namespaces that a cluster may vouch for and export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum Vouched {
    /// `["*"]`.
    All,
    /// These; none by default.
    Only(BTreeSet<Namespace>),
}

impl Vouched {
    /// Whether `namespace` is among them.
    pub fn contains(&self, namespace: &Namespace) -> bool {
        match self {
            Vouched::All => true,
            Vouched::Only(list) => list.contains(namespace),
        }
    }
}

impl Default for Vouched {
    fn default() -> Self {
        Vouched::Only(BTreeSet::new())
    }
}

impl TryFrom<Vec<String>> for Vouched {
    type Error = BadName;
    fn try_from(list: Vec<String>) -> Result<Self, BadName> {
        match list.iter().any(|name| name == "*") {
            true => Ok(Vouched::All),
            false => Ok(Vouched::Only(list.iter().map(Namespace::new).collect::<Result<_, _>>()?)),
        }
    }
}

impl From<Vouched> for Vec<String> {
    fn from(vouched: Vouched) -> Self {
        match vouched {
            Vouched::All => vec!["*".into()],
            Vouched::Only(list) => list.into_iter().map(String::from).collect(),
        }
    }
}

impl JsonSchema for Vouched {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Vouched".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "array", "maxItems": 10_000, "items": { "type": "string", "format": "NamespaceOrAll" },
            "description": "names of namespaces, or `[\"*\"]` for all"
        })
    }
}
