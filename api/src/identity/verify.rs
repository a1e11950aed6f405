//! The one verification of a certificate chain.

use std::ops::RangeInclusive;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    Bundle, Leaf, Rejection, RootCertificate, SpiffeId, Vouch,
    leaf::{signer_cluster, validity},
    rejection::Day,
};
use crate::{digest::Hash, name::ClusterName};

/// The most certificates a peer may present: leaf, intermediate, and roots beside them during a rotation.
pub const MAX_CHAIN: usize = 8;

/// A peer whose chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who it is.
    pub id: SpiffeId,
    /// The cluster that vouches for it: the name in the intermediate of the verified path.
    pub cluster: ClusterName,
    /// When the leaf or the intermediate, whichever is first, ceases to be valid.
    pub not_after: UnixTime,
    /// SHA-256 of the leaf.
    pub leaf: Hash,
    /// SHA-256 of the intermediate on the path, which a bundle may revoke.
    pub intermediate: Hash,
    /// SHA-256 of the root at the end of the path, which a bundle may drop.
    pub root: Hash,
    valid: [RangeInclusive<UnixTime>; 2],
}

/// Verifies that `chain`, leaf first and the rest in any order, leads over exactly one intermediate to a root
/// of `bundle`, and that the intermediate's cluster may vouch for the leaf's id.
///
/// A leaf must be good for both ends of a connection, so the answer does not depend on which end it is at.
pub fn verify(chain: &[CertificateDer<'_>], bundle: &Bundle, now: UnixTime) -> Result<Verified, Rejection> {
    let (end, others) = chain.split_first().ok_or(Rejection::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(Rejection::TooMany(chain.len()));
    }
    let leaf = Leaf::parse(end)?;
    check_domain(&leaf.id, bundle)?;
    check_time(&leaf.validity, now, Rejection::Expired)?;
    let (intermediate, root) = path(end, others, &bundle.roots, now)?;
    let valid = [leaf.validity, validity(&intermediate)?];
    let verified = Verified {
        id: leaf.id,
        cluster: signer_cluster(&intermediate)?,
        not_after: *valid[0].end().min(valid[1].end()),
        leaf: Hash::of(end),
        intermediate: Hash::of(&intermediate),
        root,
        valid,
    };
    verified.still_holds(bundle, now)?;
    Ok(verified)
}

/// Verifies the chain of a control plane by nothing but the root's hash that a token carries, before the token
/// is sent: the root must be among the certificates, and the leaf must be the control plane of `cluster`.
pub fn verify_enrolment(
    chain: &[CertificateDer<'_>],
    root: Hash,
    cluster: &ClusterName,
    now: UnixTime,
) -> Result<Verified, Rejection> {
    let leaf = Leaf::parse(chain.first().ok_or(Rejection::NoCertificate)?)?;
    if chain.len() > MAX_CHAIN {
        return Err(Rejection::TooMany(chain.len()));
    }
    if leaf.id != SpiffeId::control_plane(leaf.id.trust_domain(), cluster) {
        return Err(Rejection::UnexpectedId { found: leaf.id });
    }
    let anchor =
        chain.iter().find(|der| Hash::of(der) == root).ok_or(Rejection::OtherRoot { expected: root })?;
    let bundle = Bundle {
        trust_domain: leaf.id.trust_domain().clone(),
        sequence: 0,
        roots: vec![RootCertificate::new(anchor.clone().into_owned()).map_err(|_| Rejection::Malformed)?],
        clusters: [(cluster.clone(), Vouch::default())].into(),
        revoked: Default::default(),
    };
    verify(chain, &bundle, now)
}

impl Verified {
    /// Whether the peer would still be believed under `bundle` at `now`, without checking a signature again:
    /// what a signature says does not change, but roots, revocations, members and time do.
    pub fn still_holds(&self, bundle: &Bundle, now: UnixTime) -> Result<(), Rejection> {
        check_domain(&self.id, bundle)?;
        check_time(&self.valid[0], now, Rejection::Expired)?;
        check_time(&self.valid[1], now, Rejection::IssuerExpired)?;
        if !bundle.roots.iter().any(|root| root.hash() == self.root) {
            return Err(Rejection::UnknownRoot);
        }
        if bundle.revoked.contains_key(&self.intermediate) {
            return Err(Rejection::Revoked { cluster: self.cluster.clone(), fingerprint: self.intermediate });
        }
        let vouch =
            bundle.clusters.get(&self.cluster).ok_or_else(|| Rejection::NotAMember(self.cluster.clone()))?;
        self.vouched_by(vouch)
    }

    fn vouched_by(&self, vouch: &Vouch) -> Result<(), Rejection> {
        let cluster = self.cluster.clone();
        match &self.id {
            SpiffeId::Workload { namespace, .. } if vouch.covers(namespace) => Ok(()),
            SpiffeId::Workload { namespace, .. } => {
                Err(Rejection::Namespace { namespace: namespace.clone(), cluster })
            }
            SpiffeId::ControlPlane { cluster: claimed, .. } if *claimed == cluster => Ok(()),
            SpiffeId::ControlPlane { cluster: claimed, .. } => {
                Err(Rejection::ForeignControlPlane { claimed: claimed.clone(), cluster })
            }
            SpiffeId::Signer { .. } => Err(Rejection::Leaf("it bears the id of a signer")),
        }
    }
}

/// The intermediate and the root of the verified path. What the peer presented beside the path plays no part.
fn path(
    end: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: &[RootCertificate],
    now: UnixTime,
) -> Result<(CertificateDer<'static>, Hash), Rejection> {
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root.der()))
        .collect::<Result<_, _>>()
        .map_err(|_| Rejection::Malformed)?;
    let end = EndEntityCert::try_from(end).map_err(reject)?;
    let algorithms = [webpki::aws_lc_rs::ECDSA_P256_SHA256];
    let path = end
        .verify_for_usage(&algorithms, &anchors, others, now, KeyUsage::client_auth(), None, None)
        .map_err(reject)?;
    let intermediates: Vec<_> = path.intermediate_certificates().collect();
    let [intermediate] = *intermediates else {
        return Err(Rejection::PathLength(intermediates.len()));
    };
    let root = anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
    Ok((intermediate.der().into_owned(), roots[root.ok_or(Rejection::UnknownRoot)?].hash()))
}

fn check_domain(id: &SpiffeId, bundle: &Bundle) -> Result<(), Rejection> {
    if *id.trust_domain() == bundle.trust_domain {
        return Ok(());
    }
    Err(Rejection::OtherTrustDomain { found: id.trust_domain().clone(), ours: bundle.trust_domain.clone() })
}

fn check_time(
    valid: &RangeInclusive<UnixTime>,
    now: UnixTime,
    expired: fn(Day) -> Rejection,
) -> Result<(), Rejection> {
    if now < *valid.start() {
        return Err(Rejection::NotYetValid(Day(*valid.start())));
    }
    if now > *valid.end() { Err(expired(Day(*valid.end()))) } else { Ok(()) }
}

/// The leaf's own time was checked before the path was built, so a time that is over here is an issuer's.
fn reject(error: webpki::Error) -> Rejection {
    match error {
        webpki::Error::UnknownIssuer => Rejection::UnknownRoot,
        webpki::Error::InvalidSignatureForPublicKey => Rejection::UnknownRoot,
        webpki::Error::CertExpired { not_after, .. } => Rejection::IssuerExpired(Day(not_after)),
        webpki::Error::CertNotValidYet { not_before, .. } => Rejection::NotYetValid(Day(not_before)),
        webpki::Error::BadDer | webpki::Error::BadDerTime => Rejection::Malformed,
        other => Rejection::Path(other.to_string()),
    }
}
