//! The key that signs what replicates, and the root's word that it is that key.
//!
//! Remotes believe a head only with this key's signature, and the key only with the root's. Of two certified
//! keys the one with the higher sequence holds; who keeps a [`HeadCertificate`] also keeps that rule.

use std::path::Path;

use api::{
    digest::Hash,
    identity::{Bundle, CertificateDer},
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, Root};
use crate::file;

const KEY_FILE: &str = "head.key";
/// The first bytes of what the root signs, so that nothing else it signs can be taken for it.
const KEY_PURPOSE: &[u8] = b"weft head key v1\0";

/// What the key signs; the signature of one kind is none for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// A head of the store.
    Head,
    /// A bundle of trust.
    Bundle,
}

impl Signed {
    fn with(self, bytes: &[u8]) -> Vec<u8> {
        let purpose: &[u8] = match self {
            Signed::Head => b"weft head v1\0",
            Signed::Bundle => b"weft bundle v1\0",
        };
        [purpose, bytes].concat()
    }
}

/// The key with which the primary signs heads.
pub struct HeadKey(EcdsaKeyPair);

impl HeadKey {
    /// The key in `dir`, made there if there is none.
    pub fn load_or_create(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(KEY_FILE);
        let pkcs8 = match file::read(&path)? {
            Some(pkcs8) => pkcs8,
            None => {
                let key = rcgen::KeyPair::generate()?;
                file::write(&path, key.serialized_der())?;
                key.serialize_der()
            }
        };
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
            .map(HeadKey)
            .map_err(|_| AuthorityError::File { path, why: "it is not an ECDSA P-256 key in PKCS #8" })
    }

    /// Its signature of `bytes`, which are `what`.
    pub fn sign(&self, what: Signed, bytes: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let signature = self
            .0
            .sign(&SystemRandom::new(), &what.with(bytes))
            .map_err(|error| AuthorityError::Crypto(error.to_string()))?;
        Ok(signature.as_ref().to_vec())
    }

    /// The root's word for this key. `sequence` grows with each new key.
    pub fn certify(&self, root: &Root, sequence: u64) -> Result<HeadCertificate, AuthorityError> {
        let public_key = self.0.public_key().as_ref().to_vec();
        let signature = root.sign(&statement(sequence, &public_key))?;
        Ok(HeadCertificate { public_key, sequence, signature })
    }
}

impl std::fmt::Debug for HeadKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "HeadKey({})", Hash::of(self.0.public_key().as_ref()).short())
    }
}

/// A signed statement: this public key signs heads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadCertificate {
    /// The public key, an uncompressed P-256 point.
    pub public_key: Vec<u8>,
    /// Grows with each new key.
    pub sequence: u64,
    /// The root's signature (ECDSA P-256, SHA-256, ASN.1).
    pub signature: Vec<u8>,
}

impl HeadCertificate {
    /// The key, once a root of `bundle` stands behind it.
    pub fn verify(&self, bundle: &Bundle) -> Result<TrustedHeadKey, AuthorityError> {
        let statement = statement(self.sequence, &self.public_key);
        if bundle.roots.iter().any(|root| signed(root.der(), &statement, &self.signature)) {
            Ok(TrustedHeadKey { public_key: self.public_key.clone(), sequence: self.sequence })
        } else {
            Err(AuthorityError::HeadKey)
        }
    }
}

/// A key for which a trusted root stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedHeadKey {
    public_key: Vec<u8>,
    sequence: u64,
}

impl TrustedHeadKey {
    /// The higher of two holds.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether this key signed `bytes` as `what`.
    pub fn verify(&self, what: Signed, bytes: &[u8], signature: &[u8]) -> Result<(), AuthorityError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key)
            .verify(&what.with(bytes), signature)
            .map_err(|_| AuthorityError::Signature)
    }
}

fn statement(sequence: u64, public_key: &[u8]) -> Vec<u8> {
    [KEY_PURPOSE, &sequence.to_be_bytes(), public_key].concat()
}

fn signed(root: &CertificateDer<'_>, statement: &[u8], signature: &[u8]) -> bool {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &root.public_key().subject_public_key.data)
        .verify(statement, signature)
        .is_ok()
}
