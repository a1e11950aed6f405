//! `Namespace`, `Service` and `ServiceExport`: the standard kinds that name what is served.

use std::{collections::BTreeSet, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Labels;

/// A namespace says nothing but its name and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {}

/// Offers the Service of the same name to the other clusters (MCS-API, KEP-1645).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceExport {}

/// A service (core/v1): ports, and the labels of the workloads that serve it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Service {
    /// Workloads of the namespace with all of these labels serve it; empty: its EndpointSlices say.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub selector: Labels,
    /// At least one unless headless.
    #[schemars(length(max = 100))]
    pub ports: Vec<ServicePort>,
    /// How Kubernetes publishes it; the mesh treats all alike.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// Its virtual address, or `None` (the word) for a headless one.
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub cluster_ip: Option<String>,
    /// All of its virtual addresses.
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub cluster_ips: Vec<String>,
    /// Whether endpoints count whatever is said of their readiness.
    #[serde(skip_serializing_if = "super::is_false")]
    pub publish_not_ready_addresses: bool,
}

impl Service {
    /// Its virtual addresses; none when it is headless.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let said = self.cluster_ip.iter().chain(&self.cluster_ips);
        said.filter_map(|address| address.parse().ok()).collect()
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port with this name.
    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.name.as_deref() == Some(name))
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Needed when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The number that callers use.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The workload's port, by number or by name; the same number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// The transport.
    #[serde(default)]
    pub protocol: Transport,
    /// What is spoken, as Kubernetes names it: `http`, `kubernetes.io/h2c`, `grpc`, `tcp`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub app_protocol: Option<String>,
}

impl ServicePort {
    /// The workload's port, default resolved.
    pub fn target(&self) -> TargetPort {
        self.target_port.clone().unwrap_or(TargetPort::Number(self.port))
    }

    /// What is spoken: by `appProtocol`, else by the port's name (`http`, `http-admin`, `grpc-...`), else sniffed.
    pub fn application(&self) -> Application {
        let word = self.app_protocol.as_deref().or(self.name.as_deref()).unwrap_or_default();
        Application::named(word)
    }
}

impl Application {
    /// By what Kubernetes calls it: a word, with a prefix perhaps and a suffix.
    pub fn named(word: &str) -> Self {
        let word = word.strip_prefix("kubernetes.io/").unwrap_or(word).to_ascii_lowercase();
        match word.split('-').next().unwrap_or_default() {
            "http" | "ws" => Application::Http,
            "http2" | "h2c" | "grpc" => Application::Http2,
            "tcp" | "tls" | "https" | "wss" | "mysql" | "redis" | "mongo" | "postgres" => Application::Tcp,
            _ => Application::Sniff,
        }
    }
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// The number.
    Number(u16),
    /// A name that the workload gives to one of its ports.
    Name(String),
}

impl JsonSchema for TargetPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TargetPort".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["integer", "string"], "minimum": 1, "maximum": 65535,
            "maxLength": 15, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "description": "a port by number or by name"
        })
    }
}

/// A transport.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Transport {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Application {
    /// HTTP/1.1; HTTP/2 too when the client begins so.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes.
    Tcp,
    /// Nothing is said: the first bytes tell.
    Sniff,
}

/// How Kubernetes publishes a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Inside the cluster.
    #[default]
    ClusterIP,
    /// At a port of every node too.
    NodePort,
    /// Behind a load balancer too.
    LoadBalancer,
    /// An alias in DNS.
    ExternalName,
}
