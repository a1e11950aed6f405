//! Where a workload runs: region, zone, subzone. Failover goes by how many of them match.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A place. An empty part means that nothing is known of it.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Locality {
    /// For instance `eu-east`.
    pub region: String,
    /// For instance `a`.
    pub zone: String,
    /// Usually empty.
    pub subzone: String,
}

impl fmt::Display for Locality {
    /// `region/zone/subzone`, empty parts at the end left out.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.subzone);
        out.write_str(text.trim_end_matches('/'))
    }
}

impl FromStr for Locality {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Ok(Locality { region: next(), zone: next(), subzone: next() })
    }
}
