//! How a proxy comes by its first certificate: a one-time token, shown only to whom the token expects.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use api::{digest::Hash, name::ClusterName, wire};
use data_encoding::BASE64URL_NOPAD;
use process::{
    files,
    rpc::{self, stub::control_client::ControlClient},
    tls::{self, Credentials, Identity, Key},
    world::SharedWorld,
};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

/// More than a token file can hold.
const FILE_BYTES: u64 = 64 * 1024;

/// What the bearer reads of a token: `weftw1.<payload>.<mac>`, the payload JSON in base64url. Whether it is genuine
/// only its issuer knows.
#[derive(Debug, Clone, Deserialize)]
pub struct Token {
    /// The cluster that issued it.
    pub cluster: ClusterName,
    /// SHA-256 of the root that its control plane must present before it is sent.
    pub root: Hash,
    #[serde(skip)]
    text: String,
}

/// Why there is no first certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// There is no file that can be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// Not a token.
    #[error("the token file does not hold a workload's token: was all of its one line copied?")]
    Token,
    /// No connection to a control plane with that root.
    #[error(transparent)]
    Connect(#[from] rpc::ConnectError),
    /// The control plane says no.
    #[error("the control plane refused the token: {0}")]
    Refused(String),
    /// Key and chain do not fit.
    #[error(transparent)]
    Credentials(#[from] tls::CredentialsError),
    /// The bundle cannot be read, or the certificate does not verify against it.
    #[error("the control plane's answer cannot be used: {0}")]
    Answer(String),
}

impl Token {
    /// Reads the token that a file holds.
    pub fn from_file(path: &Path) -> Result<Self, EnrolError> {
        let unread = |reason: String| EnrolError::File { path: path.to_owned(), reason };
        let text = files::read(path, FILE_BYTES).map_err(|error| unread(error.to_string()))?;
        let text = text.ok_or_else(|| unread("no such file".into()))?;
        Self::read(&String::from_utf8_lossy(&text))
    }

    /// Reads a token's text.
    pub fn read(text: &str) -> Result<Self, EnrolError> {
        let text = text.trim();
        let payload = text.strip_prefix("weftw1.").and_then(|rest| rest.split('.').next());
        let json = payload.and_then(|payload| BASE64URL_NOPAD.decode(payload.as_bytes()).ok());
        let token: Token =
            json.and_then(|json| serde_json::from_slice(&json).ok()).ok_or(EnrolError::Token)?;
        Ok(Token { text: text.to_owned(), ..token })
    }
}

/// Redeems the token at one control plane.
pub async fn enrol(
    world: &SharedWorld,
    token: &Token,
    address: SocketAddr,
    source: IpAddr,
) -> Result<std::sync::Arc<Identity>, EnrolError> {
    let config = tls::enrolment(token.root, &token.cluster, &["h2"]);
    let channel = rpc::connect(world, address, Some(source), config, super::SERVER_NAME.to_owned()).await?;
    let key = Key::generate()?;
    let request = wire::EnrolRequest { token: token.text.clone(), csr: key.request()? };
    let answer = ControlClient::new(channel).enrol(request).await;
    let signed = answer.map_err(|status| EnrolError::Refused(status.message().to_owned()))?.into_inner();
    let bundle =
        serde_json::from_slice(&signed.bundle).map_err(|error| EnrolError::Answer(error.to_string()))?;
    Ok(Identity::new(certified(key, signed)?, bundle))
}

/// The credentials of a key, once its chain has come.
pub fn certified(key: Key, signed: wire::SignedChain) -> Result<Credentials, tls::CredentialsError> {
    key.certified(signed.chain.into_iter().map(CertificateDer::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_its_cluster_and_root() {
        let root = Hash::of(b"root");
        let payload =
            format!(r#"{{"id":"00","cluster":"west","root":"{root}","namespace":"shop","expires":1}}"#);
        let text = format!(" weftw1.{}.bWFj\n", BASE64URL_NOPAD.encode(payload.as_bytes()));
        let token = Token::read(&text).unwrap();
        assert_eq!((token.cluster.as_str(), token.root), ("west", root));
        for bad in ["", "weftj1.e30.x", "weftw1.e30.x", "weftw1.!.x"] {
            assert!(Token::read(bad).is_err(), "{bad}");
        }
    }
}
