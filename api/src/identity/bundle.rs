//! The bundle: what one trust domain trusts, as every proxy of it holds it.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Hash,
    name::{ClusterName, Namespace, TrustDomain},
    resource::mesh::Vouched,
};

/// All that peers of one trust domain are checked against.
///
/// Bundles of different trust domains are never merged; of two of one domain, the higher `sequence` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The domain whose members these are.
    pub trust_domain: TrustDomain,
    /// Grows with every change of the bundle.
    pub sequence: u64,
    /// The trusted roots: one, and two while a root is rotated.
    pub roots: Vec<RootCertificate>,
    /// The members; the intermediate of a cluster that is not here is refused.
    pub clusters: BTreeMap<ClusterName, Vouch>,
    /// SHA-256 of revoked intermediates, with the Unix second at which each expires by itself.
    #[serde(default)]
    pub revoked: BTreeMap<Hash, u64>,
}

impl Bundle {
    /// Whether this bundle replaces `other`: the same domain, a higher sequence.
    pub fn supersedes(&self, other: &Bundle) -> bool {
        self.trust_domain == other.trust_domain && self.sequence > other.sequence
    }
}

/// What a member cluster's intermediate may vouch for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouch {
    /// The namespaces of the workloads it may certify, from its `Cluster`.
    #[serde(default)]
    pub namespaces: Vouched,
}

impl Vouch {
    /// Whether it may certify workloads of `namespace`. Every member may for `weft-system`, since its own gateways
    /// live there: so a rule about `weft-system` that means one cluster must name that cluster too.
    pub fn covers(&self, namespace: &Namespace) -> bool {
        namespace.is_system() || self.namespaces.contains(namespace)
    }
}

/// A root's certificate that can serve as a trust anchor. Written as base64 of its DER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootCertificate {
    der: CertificateDer<'static>,
    hash: Hash,
}

/// Bytes that are no root certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a root certificate: expected the DER of an X.509 certificate ({0})")]
pub struct BadRoot(String);

impl RootCertificate {
    /// The root, if `der` is a certificate that can anchor a path.
    pub fn new(der: CertificateDer<'static>) -> Result<Self, BadRoot> {
        webpki::anchor_from_trusted_cert(&der).map_err(|error| BadRoot(error.to_string()))?;
        Ok(RootCertificate { hash: Hash::of(&der), der })
    }

    /// Its DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of its DER, which tokens carry.
    pub fn hash(&self) -> Hash {
        self.hash
    }
}

impl TryFrom<String> for RootCertificate {
    type Error = BadRoot;
    fn try_from(text: String) -> Result<Self, BadRoot> {
        let der = BASE64.decode(text.as_bytes()).map_err(|error| BadRoot(error.to_string()))?;
        RootCertificate::new(der.into())
    }
}

impl From<RootCertificate> for String {
    fn from(root: RootCertificate) -> String {
        BASE64.encode(&root.der)
    }
}
