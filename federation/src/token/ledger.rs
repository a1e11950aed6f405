//! Which tokens were used.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use api::identity::UnixTime;
use serde::{Deserialize, Serialize};

use super::{BadToken, MacKey, Payload, TokenId};
use crate::{authority::AuthorityError, file};

/// The most used tokens remembered at a time; each is forgotten a day after it expired.
const MAX_USED: usize = 100_000;
/// How long a used token is remembered beyond its end, should a clock be set back.
const GRACE_S: u64 = 24 * 60 * 60;

/// The used tokens, with the Unix second at which each expires. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    used: BTreeMap<TokenId, u64>,
}

impl Ledger {
    /// How many used tokens it remembers.
    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// Notes that the token was used, unless it was before; forgets those that expired long ago.
    pub fn redeem(&mut self, id: TokenId, expires: u64, now: UnixTime) -> Result<(), BadToken> {
        self.used.retain(|_, expires| expires.saturating_add(GRACE_S) > now.as_secs());
        if self.used.contains_key(&id) {
            return Err(BadToken::Used);
        }
        if self.used.len() >= MAX_USED {
            return Err(BadToken::Full);
        }
        self.used.insert(id, expires);
        Ok(())
    }
}

/// Redeems tokens: the key they were issued under, and the ledger in its file.
///
/// One process at a time redeems a cluster's tokens. Who does it next begins with the ledger's file.
#[derive(Debug)]
pub struct Redeemer {
    key: MacKey,
    ledger: Ledger,
    path: PathBuf,
}

impl Redeemer {
    /// With the ledger in the file at `path`, empty if there is none.
    pub fn open(key: MacKey, path: &Path) -> Result<Self, AuthorityError> {
        let ledger = match file::read(path)? {
            None => Ledger::default(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| AuthorityError::File {
                path: path.to_owned(),
                why: "it is not a ledger of tokens; without it, used tokens would be good again",
            })?,
        };
        Ok(Redeemer { key, ledger, path: path.to_owned() })
    }

    /// The key, to issue with.
    pub fn key(&self) -> &MacKey {
        &self.key
    }

    /// What the token says, if it is genuine, alive and was never used; from now on it was.
    pub fn redeem<P: Payload>(&mut self, text: &str, now: UnixTime) -> Result<P, BadToken> {
        let payload: P = self.key.check(text, now)?;
        let mut ledger = self.ledger.clone();
        ledger.redeem(payload.id(), payload.expires(), now)?;
        let bytes = serde_json::to_vec(&ledger).expect("names and numbers are always JSON");
        file::write(&self.path, &bytes)?;
        self.ledger = ledger;
        Ok(payload)
    }
}
