//! The files with which a server is entered: read anew for each fetch, so that they rotate without a restart.
//!
//! Invariant: what they hold is in no log, no error and no status; their paths are.

use std::path::{Path, PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// What a file of any of these kinds stays below; a system's list of authorities has some 200 KiB.
const MAX_FILE_BYTES: u64 = 2 * 1024 * 1024;
/// Where systems keep the authorities that they believe, all in one file.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The files, and the name that goes with the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The user that the token is sent with (`https`).
    pub user: String,
    /// The token (`https`).
    pub token: Option<PathBuf>,
    /// The chain that is shown to the server (`https`).
    pub certificate: Option<PathBuf>,
    /// The key of that chain, or of the account (`ssh`).
    pub key: Option<PathBuf>,
    /// The authorities that the server's certificate may be of, instead of the system's (`https`).
    pub ca: Option<PathBuf>,
    /// The keys that the server may have (`ssh`).
    pub known_hosts: Option<PathBuf>,
}

impl Access {
    /// The header that bears the token.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let Some(path) = &self.token else { return Ok(None) };
        let bytes = read(path)?;
        let token = std::str::from_utf8(&bytes).map(str::trim).unwrap_or_default();
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Err(format!("{} holds no token: expected one line with nothing else", path.display()));
        }
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{token}", self.user)));
        let mut value = HeaderValue::from_str(&basic).expect("base64 is plain");
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// How a server is believed, and what it is shown.
    pub(super) fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of TLS 1.2 and 1.3")
            .with_root_certificates(self.authorities()?);
        let (Some(chain), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(builder.with_no_client_auth());
        };
        let parsed = PrivateKeyDer::from_pem_slice(&read(key)?);
        let parsed = parsed.map_err(|_| format!("{} holds no private key in PEM", key.display()))?;
        let chain = certificates(chain)?;
        builder.with_client_auth_cert(chain, parsed).map_err(|error| {
            format!("{} cannot be used: {error}; is it the key of the certificate?", key.display())
        })
    }

    fn authorities(&self) -> Result<rustls::RootCertStore, String> {
        let system = || SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.is_file());
        let path = self.ca.as_deref().or_else(system).ok_or(
            "this system keeps no list of authorities: install ca-certificates, or name the server's in `caFile`",
        )?;
        let mut roots = rustls::RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(certificates(path)?);
        if taken == 0 {
            return Err(format!("{} holds no certificate that can be used", path.display()));
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(format!("{} holds no certificates in PEM", path.display())),
    }
}

/// A secret's bytes, without the end of the last line: see [`Access`].
pub(crate) fn secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read(path)?.trim_ascii_end().to_vec();
    if bytes.is_empty() { Err(format!("{} is empty: expected a secret", path.display())) } else { Ok(bytes) }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    match process::files::read(path, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("{} is not there", path.display())),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_anew_and_never_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let access = Access { user: "git".into(), token: Some(path.clone()), ..Access::default() };
        let error = access.authorization().unwrap_err();
        assert_eq!(error, format!("{} is not there", path.display()));
        for (said, header) in [("first\n", "Z2l0OmZpcnN0"), ("second", "Z2l0OnNlY29uZA==")] {
            std::fs::write(&path, said).unwrap();
            let value = access.authorization().unwrap().unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Basic {header}"));
            assert!(!format!("{value:?}{access:?}").contains(header));
        }
        std::fs::write(&path, "hunter2 and more").unwrap();
        assert!(!access.authorization().unwrap_err().contains("hunter2"));
    }

    #[test]
    fn a_key_that_is_none_is_told_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key, ca] = ["chain", "key", "ca"].map(|name| dir.path().join(name));
        let made = rcgen::generate_simple_self_signed(["git.example".to_owned()]).unwrap();
        std::fs::write(&ca, made.cert.pem()).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, "hunter2").unwrap();
        let access = Access {
            certificate: Some(certificate),
            key: Some(key.clone()),
            ca: Some(ca),
            ..Access::default()
        };
        let error = access.tls().unwrap_err();
        assert_eq!(error, format!("{} holds no private key in PEM", key.display()));
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        access.tls().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&key, other.serialize_pem()).unwrap();
        assert!(access.tls().unwrap_err().contains("is it the key of the certificate?"));
    }
}
