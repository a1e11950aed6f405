//! SPIFFE ids, of the three shapes that this mesh knows.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::{BadName, ClusterName, Namespace, ServiceAccount, TrustDomain};

/// The most bytes a SPIFFE id has (SPIFFE-ID, section 2.3).
const MAX_ID_BYTES: usize = 2048;

/// A SPIFFE id. One text for one id: it is written exactly as it was read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SpiffeId {
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
    Workload {
        /// The trust domain.
        trust_domain: TrustDomain,
        /// The namespace, which the issuing cluster must be allowed to vouch for.
        namespace: Namespace,
        /// The service account.
        service_account: ServiceAccount,
    },
    /// `spiffe://<trust domain>/weft/controlplane/<cluster>`; it counts only from that cluster's own intermediate.
    ControlPlane {
        /// The trust domain.
        trust_domain: TrustDomain,
        /// The cluster whose control plane it is.
        cluster: ClusterName,
    },
    /// `spiffe://<trust domain>`: a root or an intermediate, never a peer.
    Signer {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
}

impl SpiffeId {
    /// The id of a workload.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &Namespace,
        service_account: &ServiceAccount,
    ) -> Self {
        SpiffeId::Workload {
            trust_domain: trust_domain.clone(),
            namespace: namespace.clone(),
            service_account: service_account.clone(),
        }
    }

    /// The id of the control plane of `cluster`.
    pub fn control_plane(trust_domain: &TrustDomain, cluster: &ClusterName) -> Self {
        SpiffeId::ControlPlane { trust_domain: trust_domain.clone(), cluster: cluster.clone() }
    }

    /// The id of every signer of the trust domain.
    pub fn signer(trust_domain: &TrustDomain) -> Self {
        SpiffeId::Signer { trust_domain: trust_domain.clone() }
    }

    /// The trust domain, which every id has.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            SpiffeId::Workload { trust_domain, .. }
            | SpiffeId::ControlPlane { trust_domain, .. }
            | SpiffeId::Signer { trust_domain } => trust_domain,
        }
    }

    /// The namespace of a workload.
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            SpiffeId::Workload { namespace, .. } => Some(namespace),
            SpiffeId::ControlPlane { .. } | SpiffeId::Signer { .. } => None,
        }
    }

    /// The service account of a workload.
    pub fn service_account(&self) -> Option<&ServiceAccount> {
        match self {
            SpiffeId::Workload { service_account, .. } => Some(service_account),
            SpiffeId::ControlPlane { .. } | SpiffeId::Signer { .. } => None,
        }
    }
}

/// Why a text is not a SPIFFE id of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSpiffeId {
    /// Longer than the specification allows.
    #[error("a SPIFFE id has at most 2048 bytes, this one has {0}")]
    TooLong(usize),
    /// Another scheme, or none.
    #[error("a SPIFFE id begins with `spiffe://`")]
    Scheme,
    /// A character that the specification forbids: query, fragment, port, user, escape.
    #[error("a SPIFFE id has no `{0}`: only letters, digits, `.`, `_`, `-` and `/`")]
    Character(char),
    /// An empty, `.` or `..` segment, or a slash at the end.
    #[error("the path of a SPIFFE id has no empty, `.` or `..` segment and no slash at its end")]
    Segment,
    /// A well-formed path that means nothing here.
    #[error(
        "the path of a SPIFFE id here is `/ns/<namespace>/sa/<service account>` or `/weft/controlplane/<cluster>`"
    )]
    Shape,
    /// A part that breaks the rule of its kind.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        if text.len() > MAX_ID_BYTES {
            return Err(BadSpiffeId::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(BadSpiffeId::Scheme)?;
        if let Some(bad) = rest.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-/".contains(*c)) {
            return Err(BadSpiffeId::Character(bad));
        }
        let (trust_domain, segments) = match rest.split_once('/') {
            None => (rest, vec![]),
            Some((trust_domain, path)) => (trust_domain, path.split('/').collect()),
        };
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(BadSpiffeId::Segment);
        }
        let trust_domain = trust_domain.parse()?;
        match *segments {
            [] => Ok(SpiffeId::Signer { trust_domain }),
            ["ns", namespace, "sa", account] => Ok(SpiffeId::Workload {
                trust_domain,
                namespace: namespace.parse()?,
                service_account: account.parse()?,
            }),
            ["weft", "controlplane", cluster] => {
                Ok(SpiffeId::ControlPlane { trust_domain, cluster: cluster.parse()? })
            }
            _ => Err(BadSpiffeId::Shape),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpiffeId::Workload { trust_domain, namespace, service_account } => {
                write!(out, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
            }
            SpiffeId::ControlPlane { trust_domain, cluster } => {
                write!(out, "spiffe://{trust_domain}/weft/controlplane/{cluster}")
            }
            SpiffeId::Signer { trust_domain } => write!(out, "spiffe://{trust_domain}"),
        }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{self}\"")
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = BadSpiffeId;
    fn try_from(text: String) -> Result<Self, BadSpiffeId> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_it_was_read() {
        for good in [
            "spiffe://shop.example/ns/shop/sa/front",
            "spiffe://shop.example/ns/shop/sa/front.v1",
            "spiffe://shop.example/weft/controlplane/east",
            "spiffe://shop_1.example",
        ] {
            let id: SpiffeId = good.parse().unwrap();
            assert_eq!(id.to_string(), good);
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(json, format!("\"{good}\""));
            assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn of_a_workload_its_namespace_and_account_are_known_and_of_nobody_else() {
        let parts = |text: &str| {
            let id: SpiffeId = text.parse().unwrap();
            (id.namespace().map(ToString::to_string), id.service_account().map(ToString::to_string))
        };
        let (shop, front) = ("shop".to_owned(), "front".to_owned());
        assert_eq!(parts("spiffe://shop.example/ns/shop/sa/front"), (Some(shop), Some(front)));
        assert_eq!(parts("spiffe://shop.example/weft/controlplane/east"), (None, None));
        assert_eq!(parts("spiffe://shop.example"), (None, None));
    }

    #[test]
    fn each_rule_of_the_specification_has_its_error() {
        let check = |text: &str, wanted: fn(&BadSpiffeId) -> bool| {
            let error = text.parse::<SpiffeId>().expect_err(text);
            assert!(wanted(&error), "{text}: {error:?}");
        };
        check("", |e| *e == BadSpiffeId::Scheme);
        check("SPIFFE://a/ns/b/sa/c", |e| *e == BadSpiffeId::Scheme);
        check("https://a/ns/b/sa/c", |e| *e == BadSpiffeId::Scheme);
        check("spiffe://a/ns/b/sa/c?x", |e| *e == BadSpiffeId::Character('?'));
        check("spiffe://a/ns/b/sa/c#x", |e| *e == BadSpiffeId::Character('#'));
        check("spiffe://a:1/ns/b/sa/c", |e| *e == BadSpiffeId::Character(':'));
        check("spiffe://u@a/ns/b/sa/c", |e| *e == BadSpiffeId::Character('@'));
        check("spiffe://a/ns/b%2Fc/sa/c", |e| *e == BadSpiffeId::Character('%'));
        check("spiffe://a/ns/b/sa/ç", |e| *e == BadSpiffeId::Character('ç'));
        check("spiffe://a/ns/b/sa/c/", |e| *e == BadSpiffeId::Segment);
        check("spiffe://a/", |e| *e == BadSpiffeId::Segment);
        check("spiffe://a/ns//sa/c", |e| *e == BadSpiffeId::Segment);
        check("spiffe://a/ns/b/../sa/c", |e| *e == BadSpiffeId::Segment);
        check("spiffe://a/./ns/b/sa/c", |e| *e == BadSpiffeId::Segment);
        check("spiffe://a/ns/b", |e| *e == BadSpiffeId::Shape);
        check("spiffe://a/ns/b/sa/c/d", |e| *e == BadSpiffeId::Shape);
        check("spiffe:///ns/b/sa/c", |e| matches!(e, BadSpiffeId::Name(_)));
        check("spiffe://A/ns/b/sa/c", |e| matches!(e, BadSpiffeId::Name(_)));
        check("spiffe://a/ns/B/sa/c", |e| matches!(e, BadSpiffeId::Name(_)));
        let long = |bytes: usize| format!("spiffe://a/{:b<1$}", "", bytes - "spiffe://a/".len());
        check(&long(MAX_ID_BYTES), |e| *e == BadSpiffeId::Shape);
        check(&long(MAX_ID_BYTES + 1), |e| *e == BadSpiffeId::TooLong(MAX_ID_BYTES + 1));
    }
}
