//! Where state is kept: what was said, and what is meant.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use api::name::ClusterName;
use serde::{Deserialize, Serialize};

use crate::store::EtcdSettings;

/// A store at servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawStore {
    /// etcd, 3.4 or later.
    pub etcd: RawEtcd,
}

/// An etcd cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawEtcd {
    /// Its members' URLs, `https://` or `http://`.
    pub endpoints: Vec<String>,
    /// What all keys begin with; `/weft/CLUSTER` by default. No other cluster may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The certificates that the members' are checked against (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The client certificate (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file with the user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl RawStore {
    /// What is meant; what is wrong is added to `wrong`.
    pub(super) fn meant(&self, cluster: &ClusterName, holder: String, wrong: &mut Vec<String>) -> Keep {
        Keep::Etcd(self.etcd.meant(cluster, holder, wrong))
    }
}

/// What a control plane is called by the others of its cluster, and none of them is: where its admin API is, or where that
/// is for its machine alone, the address of this.
pub(super) fn holder(address: IpAddr, admin: SocketAddr) -> String {
    match admin.ip() {
        ip if ip.is_unspecified() => format!("http://{}", SocketAddr::new(address, admin.port())),
        ip if ip.is_loopback() && ip != address => address.to_string(),
        _ => format!("http://{admin}"),
    }
}

impl RawEtcd {
    fn meant(&self, cluster: &ClusterName, holder: String, wrong: &mut Vec<String>) -> EtcdSettings {
        let url = |text: &String| text.starts_with("https://") || text.starts_with("http://");
        if self.endpoints.is_empty() || !self.endpoints.iter().all(url) {
            wrong.push("`store.etcd.endpoints` needs at least one URL, `https://...` or `http://...`".into());
        }
        let secure = self.ca.is_some() || self.certificate.is_some();
        if secure && self.endpoints.iter().any(|text| text.starts_with("http://")) {
            wrong.push("`store.etcd` has certificates, so its endpoints must be `https://`".into());
        }
        let prefix = self.prefix.clone().unwrap_or_else(|| format!("/weft/{cluster}"));
        if prefix.trim_end_matches('/').is_empty() {
            wrong.push("`store.etcd.prefix` is empty: all of etcd would be this cluster's".into());
        }
        let both = |one: &Option<PathBuf>, other: &Option<PathBuf>| one.clone().zip(other.clone());
        if self.certificate.is_some() != self.key.is_some() {
            wrong.push("`store.etcd.certificate` and `store.etcd.key` belong together".into());
        }
        if self.user.is_some() != self.password_file.is_some() {
            wrong.push("`store.etcd.user` and `store.etcd.passwordFile` belong together".into());
        }
        EtcdSettings {
            endpoints: self.endpoints.clone(),
            prefix,
            ca: self.ca.clone(),
            certificate: both(&self.certificate, &self.key),
            user: self.user.clone().zip(self.password_file.clone()),
            holder,
        }
    }
}

/// Where state is kept.
#[derive(Debug, Clone)]
pub enum Keep {
    /// In a file of the state directory.
    File,
    /// In etcd; what is in force also in the state directory.
    Etcd(EtcdSettings),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig};

    fn primary(store: &str) -> Result<Config, String> {
        let said = format!(
            r#"{{"cluster":"east","role":"primary","stateDir":"/s","address":"127.0.0.1","network":"east",
                "source":{{"repository":"/r"}},"store":{store}}}"#
        );
        let raw: RawConfig = serde_json::from_str(&said).map_err(|error| error.to_string())?;
        raw.meant().map_err(|error| error.to_string())
    }

    #[test]
    fn a_store_in_etcd_is_said_and_meant() {
        let said = r#"{"etcd":{"endpoints":["https://a:2379","https://b:2379"],"ca":"/ca","certificate":"/c",
            "key":"/k","user":"weft","passwordFile":"/p"}}"#;
        let Keep::Etcd(meant) = primary(said).unwrap().store else { panic!("it is in etcd") };
        assert_eq!(meant.prefix, "/weft/east");
        assert_eq!(meant.certificate, Some(("/c".into(), "/k".into())));
        assert_eq!(meant.user, Some(("weft".into(), "/p".into())));
    }

    #[test]
    fn no_two_control_planes_have_one_name() {
        let called = |address: &str, admin: &str| holder(address.parse().unwrap(), admin.parse().unwrap());
        assert_eq!(called("10.0.0.1", "10.0.0.1:15080"), "http://10.0.0.1:15080");
        assert_eq!(called("127.1.0.1", "127.1.0.1:15080"), "http://127.1.0.1:15080");
        assert_eq!(called("10.0.0.1", "127.0.0.1:15080"), "10.0.0.1");
        assert_eq!(called("10.0.0.1", "0.0.0.0:15080"), "http://10.0.0.1:15080");
        assert_eq!(called("fd00::1", "[::1]:15080"), "fd00::1");
    }

    #[test]
    fn several_replicas_share_a_store_and_this_one_is_among_them() {
        let said = |replicas: &str, store: &str| {
            let text = format!(
                r#"{{"cluster":"west","role":"remote","stateDir":"/s","address":"10.0.0.1","network":"west",
                    "primary":["10.1.0.1:15013","10.1.0.2:15013"],"replicas":{replicas}{store}}}"#
            );
            serde_json::from_str::<RawConfig>(&text).unwrap().meant()
        };
        let store = r#","store":{"etcd":{"endpoints":["http://a:2379"]}}"#;
        let meant = said(r#"["10.0.0.1","10.0.0.2"]"#, store).unwrap();
        assert_eq!(meant.replicas.len(), 2);
        let crate::config::Duty::Remote { primaries, .. } = meant.duty else { panic!("it is a remote") };
        assert_eq!(primaries.len(), 2);
        let alone = said(r#"["10.0.0.1","10.0.0.2"]"#, "").unwrap_err().to_string();
        assert!(alone.contains("need a `store`"), "{alone}");
        let absent = said(r#"["10.0.0.2"]"#, store).unwrap_err().to_string();
        assert!(absent.contains("lacks 10.0.0.1"), "{absent}");
    }

    #[test]
    fn all_mistakes_of_a_store_are_told() {
        let said =
            r#"{"etcd":{"endpoints":["http://a:2379"],"prefix":"/","ca":"/ca","key":"/k","user":"weft"}}"#;
        let wrong = primary(said).map(drop).unwrap_err();
        for part in ["must be `https://`", "prefix", "`store.etcd.key` belong", "passwordFile` belong"] {
            assert!(wrong.contains(part), "{part} in {wrong}");
        }
        assert!(primary(r#"{"etcd":{"endpoints":[]}}"#).is_err());
        assert!(primary(r#"{"etcd":{"endpoints":["a:2379"]}}"#).is_err());
    }
}
