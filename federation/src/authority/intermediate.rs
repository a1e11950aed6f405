//! A cluster's intermediate: its key, its certificate, and the leaves that it signs.

use std::{path::Path, time::Duration};

use api::{
    identity::{CertificateDer, Day, SpiffeId, UnixTime, signer_cluster, validity},
    name::{ClusterName, TrustDomain},
};
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, LEAF_MAX, LEAF_MIN, LeafSpec, request, seal};
use crate::file;

const KEY_FILE: &str = "intermediate.key";
const CERTIFICATE_FILE: &str = "intermediate.der";

/// The key of an intermediate before the root has certified it.
#[derive(Debug)]
pub struct IntermediateKey(KeyPair);

impl IntermediateKey {
    /// A new key.
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(IntermediateKey(KeyPair::generate()?))
    }

    /// The key in `dir`, made there if there is none. Readable by its owner alone; not sealed.
    pub fn load_or_create(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(KEY_FILE);
        match file::read(&path)? {
            Some(der) => KeyPair::try_from(der)
                .map(IntermediateKey)
                .map_err(|_| AuthorityError::File { path, why: "it is not a private key in PKCS #8" }),
            None => {
                let key = IntermediateKey::generate()?;
                file::write(&path, key.0.serialized_der())?;
                Ok(key)
            }
        }
    }

    /// A request for the root to sign: PKCS #10 in DER, with nothing in it but the key.
    pub fn request(&self) -> Result<Vec<u8>, AuthorityError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    /// The intermediate, once `certificate` is for this key.
    pub fn certified(self, certificate: CertificateDer<'static>) -> Result<Intermediate, AuthorityError> {
        Intermediate::new(self.0, certificate)
    }
}

/// A cluster's intermediate, ready to sign leaves.
#[derive(Debug)]
pub struct Intermediate {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    cluster: ClusterName,
    trust_domain: TrustDomain,
    not_after: UnixTime,
}

impl Intermediate {
    fn new(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let cluster = signer_cluster(&certificate)?;
        let not_after = *validity(&certificate)?.end();
        let trust_domain = belongs(&certificate, &key)?;
        Ok(Intermediate { key, certificate, cluster, trust_domain, not_after })
    }

    /// The intermediate in `dir`, if its key was certified.
    pub fn load(dir: &Path) -> Result<Option<Self>, AuthorityError> {
        match file::read(&dir.join(CERTIFICATE_FILE))? {
            Some(der) => IntermediateKey::load_or_create(dir)?.certified(der.into()).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps key and certificate in `dir`.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        file::write(&dir.join(KEY_FILE), self.key.serialized_der())?;
        file::write(&dir.join(CERTIFICATE_FILE), &self.certificate)
    }

    /// A request for a new certificate of the same key, so that its leaves stay good and only chains change.
    pub fn request(&self) -> Result<Vec<u8>, AuthorityError> {
        Ok(CertificateParams::default().serialize_request(&self.key)?.der().to_vec())
    }

    /// The same key under a new certificate, for the same cluster and trust domain.
    pub fn renewed(&self, certificate: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let renewed = Intermediate::new(seal::copy(&self.key)?, certificate)?;
        if (&renewed.cluster, &renewed.trust_domain) != (&self.cluster, &self.trust_domain) {
            return Err(AuthorityError::Certificate("it names another cluster or trust domain"));
        }
        Ok(renewed)
    }

    /// The cluster in its subject.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The trust domain in its id.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Until when it can sign.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Signs a leaf for `id` with the key of `request` (PKCS #10 in DER or PEM); the chain, leaf first.
    ///
    /// The caller has decided that the asker is `id`. Checked here: the asker holds the key, `id` is a workload
    /// or this cluster's own control plane, and the leaf ends before the intermediate does.
    pub fn sign_leaf(
        &self,
        request: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        if !self.certifies(id) {
            return Err(AuthorityError::Id { id: id.clone(), cluster: self.cluster.clone() });
        }
        if !(LEAF_MIN..=LEAF_MAX).contains(&lifetime) {
            return Err(AuthorityError::Lifetime(lifetime));
        }
        if now >= self.not_after {
            return Err(AuthorityError::Expired(Day(self.not_after)));
        }
        let (not_before, not_after) = request::span(now, lifetime, Some(self.not_after));
        self.sign_spec(request, &LeafSpec::new(id, not_before, not_after))
    }

    /// Signs whatever `spec` says, checking only that the asker holds the key. For tests of refusals.
    pub fn sign_spec(
        &self,
        request: &[u8],
        spec: &LeafSpec,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let key = request::proven_key(request)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let leaf = spec.params()?.signed_by(&key, &issuer)?;
        Ok(vec![leaf.into(), self.certificate.clone()])
    }

    fn certifies(&self, id: &SpiffeId) -> bool {
        *id.trust_domain() == self.trust_domain
            && match id {
                SpiffeId::Workload { .. } => true,
                SpiffeId::ControlPlane { cluster, .. } => *cluster == self.cluster,
                SpiffeId::Signer { .. } => false,
            }
    }
}

/// The trust domain of a signer's certificate, once it is for `key`.
pub(super) fn belongs(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<TrustDomain, AuthorityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| AuthorityError::Certificate("it is not X.509"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(AuthorityError::Certificate("it is for another key"));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let uri = names.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    });
    match uri {
        Some(SpiffeId::Signer { trust_domain }) => Ok(trust_domain),
        _ => Err(AuthorityError::Certificate("it has no id of a signer")),
    }
}
