//! `Gateway` (gateway.networking.k8s.io/v1): where requests enter a cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GATEWAY_GROUP;
use crate::name::{Hostname, ObjectName};

/// The gateway class that is built in.
pub const CLASS: &str = "weft";

/// Listeners at which routes may attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Who serves it; ours is `weft`.
    pub gateway_class_name: ObjectName,
    /// The ports and hosts.
    #[schemars(length(min = 1, max = 64))]
    pub listeners: Vec<Listener>,
    /// The addresses that a gateway process must serve it at; any when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<GatewayAddress>,
}

/// A port, and the host names that it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Unique in the gateway; what `sectionName` means.
    pub name: ObjectName,
    /// The host names that it serves; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// What is spoken there.
    pub protocol: ListenerProtocol,
    /// Which routes may attach.
    #[serde(default)]
    pub allowed_routes: AllowedRoutes,
}

/// What is spoken at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ListenerProtocol {
    /// HTTP in plaintext.
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP in TLS.
    #[serde(rename = "HTTPS")]
    Https,
    /// TLS, by server name.
    #[serde(rename = "TLS")]
    Tls,
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// Which routes may attach to a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AllowedRoutes {
    /// From where.
    pub namespaces: RouteNamespaces,
    /// Of which kinds; those that the protocol can carry when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub kinds: Vec<RouteGroupKind>,
}

/// From where routes may attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RouteNamespaces {
    /// From where.
    pub from: FromNamespaces,
}

/// From where routes may attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FromNamespaces {
    /// Any namespace.
    All,
    /// The gateway's own.
    #[default]
    Same,
    /// Namespaces with certain labels.
    Selector,
}

/// A kind of route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteGroupKind {
    /// Its group.
    #[serde(default = "gateway_group")]
    pub group: String,
    /// The kind.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub kind: String,
}

pub(super) fn gateway_group() -> String {
    GATEWAY_GROUP.to_owned()
}

/// An address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayAddress {
    /// What `value` is.
    #[serde(rename = "type", default)]
    pub type_: GatewayAddressType,
    /// The address.
    #[schemars(length(min = 1, max = 253))]
    pub value: String,
}

/// What the value of a gateway's address is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GatewayAddressType {
    /// An IP address.
    #[default]
    IPAddress,
    /// A host name.
    Hostname,
    /// A name that the implementation knows.
    NamedAddress,
}
