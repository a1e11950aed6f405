//! A process's key and the chain that certifies it.

use std::{fmt, io, ops::RangeInclusive, path::Path, sync::Arc};

use api::identity::{CertificateDer, Leaf, Rejection, SpiffeId, UnixTime};
use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::PROVIDER;
use crate::files;

/// Key and chain in one file, so that a renewal replaces both at once.
const FILE: &str = "identity.pem";
/// A key and a chain need about 2 KiB.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why key and chain do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// No chain, a leaf of the wrong shape, or a key that is not the leaf's.
    #[error("the chain and the key do not belong together: {0}")]
    Mismatch(#[from] rustls::Error),
    /// The leaf is not a member's.
    #[error(transparent)]
    Leaf(#[from] Rejection),
    /// A renewal for somebody else.
    #[error("the new certificate is for {found}, and this process is {own}")]
    OtherId {
        /// Who this process is.
        own: SpiffeId,
        /// Whom the certificate is for.
        found: SpiffeId,
    },
    /// The key could not be made.
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    /// A file that is not what it should be.
    #[error("{0} in the state directory cannot be used: enrol anew with a fresh token")]
    File(&'static str),
    /// The disk.
    #[error("the identity in the state directory: {0}")]
    Io(#[from] io::Error),
}

/// A key that waits for its certificate. It never leaves the process but for its state directory.
#[derive(Debug)]
pub struct Key(KeyPair);

impl Key {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, CredentialsError> {
        Ok(Key(KeyPair::generate()?))
    }

    /// What asks for its certificate: PKCS #10 in DER, with nothing in it but the key.
    pub fn request(&self) -> Result<Vec<u8>, CredentialsError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    /// The credentials, once `chain` (leaf, then intermediate) is for this key.
    pub fn certified(self, chain: Vec<CertificateDer<'static>>) -> Result<Credentials, CredentialsError> {
        Credentials::new(self.0.serialize_der().into(), chain)
    }
}

/// A key with its chain. Invariant: the leaf is a member's and for this key.
pub struct Credentials {
    leaf: Leaf,
    key: PrivatePkcs8KeyDer<'static>,
    certified: Arc<CertifiedKey>,
}

impl Credentials {
    fn new(
        key: PrivatePkcs8KeyDer<'static>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        let leaf = Leaf::parse(chain.first().ok_or(Rejection::NoCertificate)?)?;
        let certified = CertifiedKey::from_der(chain, PrivateKeyDer::Pkcs8(key.clone_key()), &PROVIDER)?;
        Ok(Credentials { leaf, key, certified: Arc::new(certified) })
    }

    /// The credentials kept in `dir`, if there are any.
    pub fn load(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let Some(pem) = files::read(&dir.join(FILE), MAX_FILE_BYTES)? else { return Ok(None) };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| CredentialsError::File(FILE))?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|_| CredentialsError::File(FILE))?;
        Credentials::new(key, chain).map(Some)
    }

    /// Keeps them in `dir`, readable by its owner alone.
    pub fn store(&self, dir: &Path) -> Result<(), CredentialsError> {
        let mut text = pem("PRIVATE KEY", self.key.secret_pkcs8_der());
        text.extend(self.chain().iter().map(|der| pem("CERTIFICATE", der)));
        files::private_directory(dir)?;
        Ok(files::write_private(&dir.join(FILE), text.as_bytes())?)
    }

    /// Who this process is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// From when and until when its leaf is valid.
    pub fn validity(&self) -> &RangeInclusive<UnixTime> {
        &self.leaf.validity
    }

    /// Leaf, then intermediate.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Credentials({})", self.leaf.id)
    }
}

/// RFC 7468, for whoever looks at the file with other tools.
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line));
    let body: String = lines.map(|line| format!("{line}\n")).collect();
    format!("-----BEGIN {label}-----\n{body}-----END {label}-----\n")
}
