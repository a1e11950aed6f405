//! The root, which lives in the primary and signs intermediates and the key of heads.

use std::{path::Path, time::Duration};

use api::{
    digest::Hash,
    identity::{CertificateDer, Day, SpiffeId, UnixTime, validity},
    name::{ClusterName, TrustDomain},
};
use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey};
use serde::{Deserialize, Serialize};

use super::{AuthorityError, SealKey, intermediate::belongs, request};
use crate::file;

const ROOT_FILE: &str = "root.sealed";
const PURPOSE: &str = "weft root v1";

/// The root of the trust domain: its key and its self-signed certificate.
#[derive(Debug)]
pub struct Root {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    trust_domain: TrustDomain,
    not_after: UnixTime,
}

/// What the sealed file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    key: Vec<u8>,
    certificate: Vec<u8>,
}

impl Root {
    /// A new root.
    pub fn generate(
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let (not_before, not_after) = request::span(now, lifetime, None);
        let uri = SpiffeId::signer(trust_domain).to_string();
        // The day in the name tells two roots apart while one replaces the other.
        let name = format!("Weft root {}", now.as_secs());
        let mut params = request::params(Some(&name), &[uri], not_before, not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Root::new(params.self_signed(&key)?.into(), key)
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let trust_domain = belongs(&certificate, &key)?;
        let not_after = *validity(&certificate)?.end();
        Ok(Root { key, certificate, trust_domain, not_after })
    }

    /// The root in `dir`, made there if there is none; sealed under `seal` (see [`SealKey`] for what that is worth).
    ///
    /// A file that cannot be opened is an error and is never replaced: a new root would cut off every member.
    pub fn load_or_create(
        dir: &Path,
        seal: &SealKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let path = dir.join(ROOT_FILE);
        let Some(sealed) = file::read(&path)? else {
            let root = Root::generate(trust_domain, lifetime, now)?;
            file::write(&path, &seal.seal(PURPOSE, &root.stored()?)?)?;
            return Ok(root);
        };
        let plain = seal
            .open(PURPOSE, sealed)
            .ok_or(AuthorityError::File { path: path.clone(), why: "the seal key does not open it" })?;
        let stored: Stored = serde_json::from_slice(&plain)
            .map_err(|_| AuthorityError::File { path: path.clone(), why: "it does not hold a root" })?;
        let key = KeyPair::try_from(stored.key)?;
        let root = Root::new(stored.certificate.into(), key)?;
        if root.trust_domain == *trust_domain {
            Ok(root)
        } else {
            Err(AuthorityError::TrustDomain { path, found: root.trust_domain })
        }
    }

    fn stored(&self) -> Result<Vec<u8>, AuthorityError> {
        let stored = Stored { key: self.key.serialize_der(), certificate: self.certificate.to_vec() };
        serde_json::to_vec(&stored).map_err(|error| AuthorityError::Crypto(error.to_string()))
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of its certificate, which tokens carry.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.certificate)
    }

    /// Until when it can sign.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Signs the intermediate of `cluster` with the key of `request`; it ends before the root does.
    pub fn sign_intermediate(
        &self,
        request: &[u8],
        cluster: &ClusterName,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        if now >= self.not_after {
            return Err(AuthorityError::Expired(Day(self.not_after)));
        }
        let key = request::proven_key(request)?;
        let (not_before, not_after) = request::span(now, lifetime, Some(self.not_after));
        let uri = SpiffeId::signer(&self.trust_domain).to_string();
        let mut params = request::params(Some(cluster.as_str()), &[uri], not_before, not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        Ok(params.signed_by(&key, &issuer)?.into())
    }

    /// Signs a statement. Its first bytes name its kind, so that it can never be read as a certificate.
    pub(super) fn sign(&self, statement: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        Ok(self.key.sign(statement)?)
    }
}
