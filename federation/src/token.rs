//! One-time tokens: how a workload or a cluster first proves what it is.
//!
//! A token is one line of text: `weftw1.<payload>.<mac>` for a workload, `weftj1.<payload>.<mac>` for a cluster
//! that joins; payload (JSON) and mac (HMAC-SHA256 over everything before it) in unpadded base64url.
//!
//! 1. The control plane issues it under its [`MacKey`] and shows it to an operator.
//! 2. The bearer reads it with [`read`], without the key: it learns where to connect and which root to expect,
//!    and sends the token only to a control plane that presented that root.
//! 3. The control plane redeems it, once, through [`Redeemer`].
//!
//! Invariant: a token is worth one certificate. Who needs another renews by the certificate it has, or gets a
//! new token. The ledger is on disk before the answer leaves, so a crash never makes a token good again.

mod ledger;

pub use ledger::{Ledger, Redeemer};

use std::{collections::BTreeMap, fmt, path::Path};

use api::{
    digest::Hash,
    identity::UnixTime,
    name::{ClusterName, Namespace, ServiceAccount, WorkloadId},
};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    authority::{AuthorityError, random},
    file,
};

/// The most bytes of a token, so that what a stranger sends is cheap to refuse.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// What a kind of token carries.
pub trait Payload: Serialize + DeserializeOwned {
    /// What its text begins with.
    const PREFIX: &'static str;
    /// Which token it is.
    fn id(&self) -> TokenId;
    /// The Unix second from which it is worth nothing.
    fn expires(&self) -> u64;
}

/// Makes one workload a member: bound to all that its certificate and its registration will say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadToken {
    /// Which token it is.
    pub id: TokenId,
    /// The cluster that issued it, and alone redeems it.
    pub cluster: ClusterName,
    /// The namespace of the certificate.
    pub namespace: Namespace,
    /// The service account of the certificate.
    pub service_account: ServiceAccount,
    /// The workload's labels, which it cannot choose itself.
    pub labels: BTreeMap<String, String>,
    /// The workload's name.
    pub workload: WorkloadId,
    /// SHA-256 of the root that the control plane must present.
    pub root: Hash,
    /// Where the cluster's control plane is, `host:port` each.
    pub control_planes: Vec<String>,
    /// The Unix second from which it is worth nothing.
    pub expires: u64,
}

/// Makes one cluster a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// Which token it is.
    pub id: TokenId,
    /// The cluster that may join with it.
    pub cluster: ClusterName,
    /// The primary, whose control plane alone may receive the token.
    pub primary: ClusterName,
    /// SHA-256 of the root that the primary must present.
    pub root: Hash,
    /// Where the primary's federation port is, `host:port` each.
    pub addresses: Vec<String>,
    /// The Unix second from which it is worth nothing.
    pub expires: u64,
}

impl Payload for WorkloadToken {
    const PREFIX: &'static str = "weftw1";
    fn id(&self) -> TokenId {
        self.id
    }
    fn expires(&self) -> u64 {
        self.expires
    }
}

impl Payload for JoinToken {
    const PREFIX: &'static str = "weftj1";
    fn id(&self) -> TokenId {
        self.id
    }
    fn expires(&self) -> u64 {
        self.expires
    }
}

/// A token's 16 random bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId([u8; 16]);

impl TokenId {
    /// A new one, from the system's random numbers.
    pub fn random() -> Result<Self, AuthorityError> {
        random().map(TokenId)
    }
}

impl TryFrom<String> for TokenId {
    type Error = BadToken;
    fn try_from(text: String) -> Result<Self, BadToken> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| BadToken::Malformed)?;
        bytes.try_into().map(TokenId).map_err(|_| BadToken::Malformed)
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> String {
        id.to_string()
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "TokenId({self})")
    }
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    /// Not a token, or cut short.
    #[error("this is not a token of this kind: was all of its one line copied?")]
    Malformed,
    /// The mac does not fit: another cluster's token, or a changed one.
    #[error("this token was not issued by this control plane: was it made for another cluster?")]
    Forged,
    /// Its time is over.
    #[error("this token has expired: ask for a new one")]
    Expired,
    /// It was redeemed before.
    #[error("this token was used before, and each is good once: ask for a new one")]
    Used,
    /// The ledger is full of tokens that have not expired.
    #[error("too many tokens were used within their lifetime: wait until some expire")]
    Full,
    /// The ledger could not be kept, so nothing was redeemed.
    #[error("the ledger of used tokens could not be kept: {0}")]
    Ledger(#[from] AuthorityError),
}

/// What a token says, without knowing whether it is genuine: for the bearer, who has it from an operator.
pub fn read<P: Payload>(text: &str) -> Result<P, BadToken> {
    split(text).and_then(|(_, payload, _)| decode(payload))
}

/// The key under which a cluster's control plane issues and redeems tokens.
pub struct MacKey(hmac::Key);

impl MacKey {
    /// The key in the file at `path`, made there if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, AuthorityError> {
        let bytes: [u8; 32] = match file::read(path)? {
            Some(bytes) => bytes.try_into().map_err(|_| AuthorityError::File {
                path: path.to_owned(),
                why: "a key for tokens has exactly 32 bytes",
            })?,
            None => {
                let bytes = random()?;
                file::write(path, &bytes)?;
                bytes
            }
        };
        Ok(MacKey(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The token's text.
    pub fn issue<P: Payload>(&self, payload: &P) -> String {
        let json = serde_json::to_vec(payload).expect("names and numbers are always JSON");
        let signed = format!("{}.{}", P::PREFIX, URL_SAFE_NO_PAD.encode(json));
        let mac = hmac::sign(&self.0, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// What a token says, if it was issued under this key and has not expired. Says nothing about its use.
    pub fn check<P: Payload>(&self, text: &str, now: UnixTime) -> Result<P, BadToken> {
        let (signed, payload, mac) = split(text)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| BadToken::Malformed)?;
        hmac::verify(&self.0, signed.as_bytes(), &mac).map_err(|_| BadToken::Forged)?;
        if !signed.starts_with(P::PREFIX) {
            return Err(BadToken::Malformed);
        }
        let payload: P = decode(payload)?;
        if now.as_secs() >= payload.expires() { Err(BadToken::Expired) } else { Ok(payload) }
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("MacKey(..)")
    }
}

/// What the mac covers, the payload in it, and the mac.
fn split(text: &str) -> Result<(&str, &str, &str), BadToken> {
    let text = text.trim();
    if text.len() > MAX_TOKEN_BYTES {
        return Err(BadToken::Malformed);
    }
    let (signed, mac) = text.rsplit_once('.').ok_or(BadToken::Malformed)?;
    let (_, payload) = signed.split_once('.').ok_or(BadToken::Malformed)?;
    Ok((signed, payload, mac))
}

fn decode<P: Payload>(payload: &str) -> Result<P, BadToken> {
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| BadToken::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| BadToken::Malformed)
}

#[cfg(test)]
mod tests;
