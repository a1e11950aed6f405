//! The settings of a control plane: what was said, and what is meant.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use api::{
    admin::Role,
    locality::Locality,
    name::{ClusterName, NetworkName},
};
use serde::{Deserialize, Serialize};

use crate::{git::Source, ownership::Ownership, snapshot::Place};

mod source;
mod store;

pub use source::RawSource;
pub use store::{Keep, RawStore};

/// The settings file, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawConfig {
    /// This cluster.
    pub cluster: ClusterName,
    /// `primary` or `remote`.
    pub role: Role,
    /// Where all state is kept; of this process alone.
    pub state_dir: PathBuf,
    /// From where it connects, and where it listens unless told otherwise.
    pub address: IpAddr,
    /// For proxies; port 15012 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<SocketAddr>,
    /// For remote control planes (primary only); port 15013 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub federation: Option<SocketAddr>,
    /// For webhooks of sources that have a secret (primary only); port 15017 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SocketAddr>,
    /// Metrics and readiness; port 15014 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Admin API and console; port 15080 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    /// The configuration repository (primary only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<RawSource>,
    /// Or several of them, each with the namespaces that it owns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<RawSource>>,
    /// The file with the join token (remote only); not needed once joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// The primary's federation address (remote only), or those of all its control planes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<OneOrMore<SocketAddr>>,
    /// Where all control planes of this cluster are, this one among them; this one alone by default. More than one share
    /// a `store`, and one of them serves at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Vec<IpAddr>>,
    /// What the cluster says of itself where Git says nothing.
    pub network: NetworkName,
    /// Likewise.
    #[serde(default)]
    pub locality: Locality,
    /// Where state is kept; a file in the state directory by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<RawStore>,
    /// How long a proxy may be away before its workload counts as gone; 15 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u32>,
}

/// One, or a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore<T> {
    /// One alone.
    One(T),
    /// Some; none makes no sense.
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn all(self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// The settings, complete.
#[derive(Debug, Clone)]
pub struct Config {
    /// This cluster.
    pub cluster: ClusterName,
    /// What it is.
    pub duty: Duty,
    /// Where all state is kept.
    pub state_dir: PathBuf,
    /// From where it connects.
    pub address: IpAddr,
    /// Where all control planes of its cluster are.
    pub replicas: Vec<IpAddr>,
    /// Listens for proxies.
    pub proxies: SocketAddr,
    /// Metrics and readiness.
    pub metrics: SocketAddr,
    /// Admin API and console.
    pub admin: SocketAddr,
    /// Where it is.
    pub place: Place,
    /// Where state is kept.
    pub store: Keep,
    /// How long a proxy may be away.
    pub lease: Duration,
}

/// What sets the two roles apart.
#[derive(Debug, Clone)]
pub enum Duty {
    /// Reads Git, holds the root.
    Primary {
        /// Where configuration comes from.
        sources: Vec<Source>,
        /// Which of them may say what.
        ownership: Ownership,
        /// Listens for remotes.
        federation: SocketAddr,
        /// Listens for webhooks, if a source has any.
        webhook: SocketAddr,
    },
    /// Follows a primary.
    Remote {
        /// Where the primary listens.
        primaries: Vec<SocketAddr>,
        /// The one-time token, until joined.
        join_token_file: Option<PathBuf>,
    },
}

impl Duty {
    /// The role alone.
    pub fn role(&self) -> Role {
        match self {
            Duty::Primary { .. } => Role::Primary,
            Duty::Remote { .. } => Role::Remote,
        }
    }
}

/// What is wrong with the settings, all of it.
#[derive(Debug, thiserror::Error)]
#[error("the settings are not complete: {}", .0.join("; "))]
pub struct BadConfig(pub Vec<String>);

/// Less would take the loss of two heartbeats for the loss of a proxy.
const MIN_LEASE: Duration = Duration::from_secs(3);

impl RawConfig {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, process::config::ConfigError> {
        process::config::read(path)
    }

    /// What is meant, or all that is missing.
    pub fn meant(self) -> Result<Config, BadConfig> {
        let mut wrong = Vec::new();
        let at = |said: Option<SocketAddr>, port| said.unwrap_or(SocketAddr::new(self.address, port));
        let lease = Duration::from_secs(self.lease_seconds.unwrap_or(15).into());
        if lease < MIN_LEASE {
            wrong.push(format!("leaseSeconds must be at least {}", MIN_LEASE.as_secs()));
        }
        let has_source = self.source.is_some() || self.sources.is_some();
        let duty = match (self.role, has_source, self.primary) {
            (Role::Primary, true, None) => {
                let sources = source::all(self.source, self.sources, &mut wrong);
                sources.map(|(sources, ownership)| Duty::Primary {
                    sources,
                    ownership,
                    federation: at(self.federation, 15013),
                    webhook: at(self.webhook, 15017),
                })
            }
            (Role::Primary, ..) => {
                wrong.push("a primary needs `source` or `sources`, and takes no `primary`".into());
                None
            }
            (Role::Remote, false, Some(primary)) => {
                let primaries = primary.all();
                if primaries.is_empty() {
                    wrong.push("`primary` needs at least one address".into());
                }
                Some(Duty::Remote { primaries, join_token_file: self.join_token_file.clone() })
            }
            (Role::Remote, ..) => {
                wrong.push("a remote needs `primary`, and takes no `source` or `sources`".into());
                None
            }
        };
        let store = match &self.store {
            Some(store) => {
                store.meant(&self.cluster, store::holder(self.address, at(self.admin, 15080)), &mut wrong)
            }
            None => Keep::File,
        };
        let replicas = self.replicas.unwrap_or_else(|| vec![self.address]);
        if !replicas.contains(&self.address) {
            wrong.push(format!("`replicas` lacks {}, the `address` of this control plane", self.address));
        }
        if replicas.len() > 1 && matches!(store, Keep::File) {
            wrong.push("several `replicas` need a `store` that they share: `store: { etcd: ... }`".into());
        }
        let duty = match duty {
            Some(duty) if wrong.is_empty() => duty,
            _ => return Err(BadConfig(wrong)),
        };
        Ok(Config {
            replicas,
            proxies: at(self.proxies, 15012),
            metrics: at(self.metrics, 15014),
            admin: at(self.admin, 15080),
            cluster: self.cluster,
            duty,
            state_dir: self.state_dir,
            address: self.address,
            place: Place { network: self.network, locality: self.locality },
            store,
            lease,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::{store::RawEtcd, *};

    /// The fields that a type knows, by its own word.
    fn fields<T: DeserializeOwned>() -> Vec<String> {
        let unknown = serde_json::from_str::<T>(r#"{"?": 0}"#).err().expect("it knows no such field");
        unknown.to_string().split('`').skip(3).step_by(2).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn each_setting_stands_in_the_documents() {
        let document = include_str!("../../docs/settings.md");
        let all = [fields::<RawConfig>(), fields::<RawSource>(), fields::<RawStore>(), fields::<RawEtcd>()];
        assert!(all.iter().all(|fields| !fields.is_empty()), "{all:?}");
        for field in all.concat().iter().filter(|field| *field != "url") {
            let named = [format!("`{field}`"), format!("\"{field}\"")];
            assert!(named.iter().any(|name| document.contains(name)), "{field} is not told of");
        }
    }
}
