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

/// What a port accepts. A sidecar accepts mTLS in every mode but DISABLE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mtls {
    /// Only mTLS.
    #[default]
    Strict,
    /// Plaintext too.
    Permissive,
    /// Only plaintext.
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

/// What a workload accepts once all that was said is merged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// At every port that `ports` does not name.
    pub mtls: Mtls,
    /// At single ports.
    pub ports: Vec<PortMtls>,
}

impl Effective {
    /// What `port` accepts.
    pub fn at(&self, port: u16) -> Mtls {
        self.ports.iter().find(|own| own.port == port).map_or(self.mtls, |own| own.mtls)
    }
}

/// Merges what was said, narrowest first: workload, namespace, mesh. Each field group comes from the first that says it.
pub fn merge(narrowest_first: &[&PeerAuthentication]) -> Effective {
    Effective {
        mtls: narrowest_first.iter().find_map(|said| said.mtls).unwrap_or_default(),
        ports: narrowest_first.iter().find_map(|said| said.ports.clone()).unwrap_or_default(),
    }
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
        let effective = merge(&[&workload, &namespace, &mesh]);
        assert_eq!((effective.at(8080), effective.at(9090)), (Mtls::Permissive, Mtls::Disable));
        assert_eq!(merge(&[]).at(1), Mtls::Strict);
    }
}
