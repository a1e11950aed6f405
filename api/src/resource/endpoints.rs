//! `EndpointSlice` (discovery.k8s.io/v1): endpoints that do not register themselves.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::service::Transport;

/// The label that names the Service of a slice.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Endpoints of the Service that the label `kubernetes.io/service-name` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSlice {
    /// The family of all addresses.
    pub address_type: AddressType,
    /// The endpoints.
    #[schemars(length(max = 1000))]
    pub endpoints: Vec<Endpoint>,
    /// The ports that each endpoint has.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub ports: Vec<EndpointPort>,
}

/// The family of a slice's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AddressType {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
    /// DNS names.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Interchangeable addresses of it; consumers use the first.
    #[schemars(length(min = 1, max = 100))]
    pub addresses: Vec<IpAddr>,
    /// Whether it serves.
    #[serde(default)]
    pub conditions: Conditions,
    /// Its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hostname: Option<String>,
    /// The node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// The zone that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub zone: Option<String>,
}

/// Whether an endpoint serves. Absent means ready, as the specification asks consumers to read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Conditions {
    /// It takes new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// It serves, perhaps while it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// It is ending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Whether it is for new requests: by `ready`, which an owner may say of an ending endpoint too.
    pub fn is_ready(&self) -> bool {
        match self.ready {
            Some(ready) => ready,
            None => self.terminating != Some(true) && self.serving != Some(false),
        }
    }

    /// Whether it ends but still serves: better than nothing. `serving` is as `ready` where it is absent.
    pub fn is_draining(&self) -> bool {
        self.terminating == Some(true) && self.serving.or(self.ready).unwrap_or(true)
    }
}

/// A port that each endpoint of the slice has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointPort {
    /// The name of the Service's port that is served here; empty where that has none.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub name: String,
    /// The transport.
    #[serde(default)]
    pub protocol: Transport,
    /// The number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// What is spoken, where the Service's port does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub app_protocol: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_the_specification_asks() {
        let check = |ready, serving, terminating, expect: (bool, bool)| {
            let one = Conditions { ready, serving, terminating };
            assert_eq!((one.is_ready(), one.is_draining()), expect, "{one:?}");
        };
        let (yes, no) = (Some(true), Some(false));
        check(None, None, None, (true, false));
        check(no, None, None, (false, false));
        check(None, no, None, (false, false));
        check(no, yes, yes, (false, true));
        check(no, no, yes, (false, false));
        check(no, None, yes, (false, false));
        check(None, None, yes, (false, true));
        check(yes, yes, yes, (true, true)); // a Service that publishes addresses that are not ready
    }
}
