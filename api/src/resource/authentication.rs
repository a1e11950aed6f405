//! `PeerAuthentication`: whether plaintext is accepted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Selector;

/// Whether plaintext is accepted, by the selected workloads, the namespace or (in `weft-system`) the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PeerAuthentication {
    /// The workloads; all of the namespace when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// At every port that `ports` does not name; STRICT when nobody says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// At single ports of the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub ports: Option<Vec<PortMtls>>,
}

/// What a port accepts. A sidecar accepts mTLS in every mode, and others of the mesh call it so in every mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mtls {
    /// Only mTLS.
    #[default]
    Strict,
    /// Plaintext too.
    Permissive,
    /// As PERMISSIVE.
    Disable,
}

/// What one port accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    /// The workload's port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// What it accepts.
    pub mtls: Mtls,
}

/// What `port` accepts by what was said of it, narrowest first (workload, namespace, mesh), and the index of who says it;
/// `None` is the default. Each field group counts from the first that says it.
pub fn at(narrowest_first: &[&PeerAuthentication], port: u16) -> (Mtls, Option<usize>) {
    let ports = narrowest_first.iter().position(|said| said.ports.is_some());
    let own = ports.and_then(|place| {
        let said = narrowest_first[place].ports.iter().flatten().find(|own| own.port == port)?;
        Some((said.mtls, Some(place)))
    });
    own.unwrap_or_else(|| {
        let whole = narrowest_first.iter().position(|said| said.mtls.is_some());
        (whole.and_then(|place| narrowest_first[place].mtls).unwrap_or_default(), whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_wins_group_by_group() {
        let read = |text| serde_json::from_str::<PeerAuthentication>(text).unwrap();
        let workload =
            read(r#"{"selector":{"matchLabels":{"a":"b"}},"ports":[{"port":8080,"mtls":"PERMISSIVE"}]}"#);
        let namespace = read(r#"{"mtls":"DISABLE","ports":[{"port":9090,"mtls":"STRICT"}]}"#);
        let mesh = read(r#"{"mtls":"STRICT"}"#);
        let all = [&workload, &namespace, &mesh];
        assert_eq!(at(&all, 8080), (Mtls::Permissive, Some(0)));
        assert_eq!(at(&all, 9090), (Mtls::Disable, Some(1)), "a narrower list of ports replaces a wider one");
        assert_eq!(at(&all[1..], 9090), (Mtls::Strict, Some(0)));
        assert_eq!(at(&[], 1), (Mtls::Strict, None));
    }
}
