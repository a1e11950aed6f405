//! Sealing of keys at rest, and random bytes.

use std::path::Path;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use rcgen::KeyPair;

use super::AuthorityError;
use crate::file;

const KEY_BYTES: usize = 32;

/// The key that the root is sealed under (AES-256-GCM), and what control planes of a cluster share; kept in a file of
/// its own.
///
/// A purpose is bound to what is sealed, so that nothing else under the same key passes for it.
///
/// What it protects: whoever gets the sealed file without this key, from a backup, a copied volume or a
/// replica, has nothing. What it does not protect: whoever reads both files, and so anyone with the rights of
/// the control plane while both lie in one state directory, which is the default. Keep the key file elsewhere
/// (a mounted secret) to have them apart, and back up both, apart.
pub struct SealKey([u8; KEY_BYTES]);

impl SealKey {
    /// The key in the file at `path`, if there is one.
    pub fn load(path: &Path) -> Result<Option<Self>, AuthorityError> {
        let key = file::read(path)?.map(|bytes| {
            bytes.try_into().map(SealKey).map_err(|_| AuthorityError::File {
                path: path.to_owned(),
                why: "a seal key has exactly 32 bytes",
            })
        });
        key.transpose()
    }

    /// The key in the file at `path`, made there if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, AuthorityError> {
        if let Some(key) = SealKey::load(path)? {
            return Ok(key);
        }
        let key = SealKey(random()?);
        file::write(path, &key.0)?;
        Ok(key)
    }

    /// `plain` sealed for `purpose`: a random nonce, then ciphertext and tag.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let mut text = plain.to_vec();
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut text)
            .map_err(crypto)?;
        Ok([nonce.as_ref().as_slice(), &text].concat())
    }

    /// What was sealed under this key for `purpose`, if nobody has changed it.
    pub fn open(&self, purpose: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.cipher().ok()?.open_in_place(nonce, Aad::from(purpose.as_bytes()), text).ok()?;
        Some(plain.to_vec())
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, AuthorityError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(crypto)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SealKey(..)")
    }
}

/// Bytes from the system's random numbers.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], AuthorityError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(crypto)?;
    Ok(bytes)
}

/// The same key once more, since rcgen's is not `Clone`.
pub(super) fn copy(key: &KeyPair) -> Result<KeyPair, AuthorityError> {
    Ok(KeyPair::try_from(key.serialized_der())?)
}

fn crypto(error: aws_lc_rs::error::Unspecified) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}
