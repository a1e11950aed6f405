//! What the control planes of one cluster have in common beside what is in force: keys, the ledger of used tokens, whom
//! they trust, and what other clusters offer.
//!
//! A control plane works with files in its state directory. Where several share a store, the one that serves keeps
//! copies of these files there, sealed under the key that all of them were given, and who serves next begins with them.
//!
//! Invariant: the copies bear the term of who served last, so that everybody knows whether that was himself.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use api::{head::SignedHead, identity::Bundle};
use federation::authority::{AuthorityError, SealKey};
use process::files;
use prost::Message;
use tokio::sync::Mutex;

use crate::store::{Conflict, Election, Leading, Store, StoreError};

/// The documents and the files of which they are copies. The one that says who served last comes last.
const DOCUMENTS: [(&str, &[&str]); 2] = [
    ("catalogues", &["catalogues.bin"]),
    (
        TRUST,
        &[
            "root.sealed",
            "head.key",
            "intermediate.key",
            "intermediate.der",
            "identity.pem",
            BUNDLE_FILE,
            "token.key",
            "tokens.json",
            "admin.token",
            "primary",
        ],
    ),
];
const TRUST: &str = "trust";
const BUNDLE_FILE: &str = "bundle.json";
const SEAL_FILE: &str = "seal.key";
/// Holds the term in which this control plane served last; not there if another one served after it.
pub(crate) const TERM_FILE: &str = "term";
const PURPOSE: &str = "weft control planes v1";
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Why the common state could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another one leads by now, or the store failed.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Another one has served, so that this one's files are old.
    #[error("another control plane of this cluster has served meanwhile")]
    Succeeded,
    /// This replica cannot read what the others keep.
    #[error(
        "the keys of this cluster lie in the store, sealed under a key that {0} does not hold: copy `seal.key` there \
         from the state directory of the control plane that made them"
    )]
    Sealed(PathBuf),
    /// The seal key.
    #[error(transparent)]
    Key(#[from] AuthorityError),
    /// A file.
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    File(PathBuf, #[source] io::Error),
}

/// See the module.
pub struct Vault {
    dir: PathBuf,
    shared: Option<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    leading: Leading,
    kept: Mutex<Kept>,
}

/// What the copies in the store are of.
#[derive(Default)]
struct Kept {
    term: Option<u64>,
    stamps: BTreeMap<&'static str, Vec<Option<Stamp>>>,
}

/// What tells one content of a file from the next: all are replaced, none is changed.
type Stamp = (u64, i64, i64, u64);

#[derive(prost::Message)]
struct Copies {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(btree_map = "string, bytes", tag = "2")]
    files: BTreeMap<String, Vec<u8>>,
}

impl Vault {
    /// Of a control plane that is the only one of its cluster: its files are all there is.
    pub fn alone(dir: &Path) -> Self {
        Vault { dir: dir.to_owned(), shared: None }
    }

    /// Of one of several that share `store`.
    pub fn shared(dir: &Path, store: Arc<dyn Store>, leading: Leading) -> Self {
        Vault { dir: dir.to_owned(), shared: Some(Shared { store, leading, kept: Mutex::default() }) }
    }

    /// Begins with what was left by who served last. True if that was another one, whose files are here now, and whose
    /// store [goes on](Store::succeed) here; false if it was this one, whose own are newer if any are, or nobody.
    pub async fn begin(&self) -> Result<bool, VaultError> {
        let Some(shared) = &self.shared else { return Ok(false) };
        let Some(trust) = self.copies(shared, TRUST).await? else { return Ok(false) };
        if self.is_own_by(shared, &trust).await? {
            return Ok(false);
        }
        for (document, _) in DOCUMENTS {
            for (name, bytes) in self.copies(shared, document).await?.into_iter().flat_map(|one| one.files) {
                // Who was removed is not believed again because the other one had not heard of it yet.
                if name != BUNDLE_FILE || sequence(&bytes) >= self.read(&name)?.as_deref().and_then(sequence)
                {
                    self.write(&name, &bytes)?;
                }
            }
        }
        shared.store.succeed().await?;
        // Last: who ends before this begins all of it again.
        self.write(TERM_FILE, trust.term.to_string().as_bytes())?;
        Ok(true)
    }

    /// Whether nobody else has served since this one began.
    pub async fn is_own(&self) -> Result<bool, VaultError> {
        match &self.shared {
            Some(shared) => self.is_own_in(shared).await,
            None => Ok(true),
        }
    }

    async fn is_own_in(&self, shared: &Shared) -> Result<bool, VaultError> {
        match self.copies(shared, TRUST).await? {
            Some(trust) => self.is_own_by(shared, &trust).await,
            None => Ok(true),
        }
    }

    /// Whether nobody else has served since this one did, by the copies of who served last. What the store had before a
    /// restore says nothing: it is behind what this one knows.
    async fn is_own_by(&self, shared: &Shared, trust: &Copies) -> Result<bool, VaultError> {
        let Some(own) = self.term()? else { return Ok(false) };
        if own == trust.term {
            return Ok(true);
        }
        let seq = |head: Option<&SignedHead>| head.map(|head| head.head().seq());
        let known = seq(shared.store.watch_head().borrow().as_ref());
        let theirs = seq(shared.store.head().await?.as_ref());
        Ok(theirs < known || (theirs == known && trust.term < own))
    }

    /// The leadership by which copies are kept, where there are others for whom they are.
    pub fn leading(&self) -> Option<Leading> {
        self.shared.as_ref().map(|shared| shared.leading.clone())
    }

    /// Whether this control plane served last, as far as it knows by itself.
    pub fn served_last(&self) -> Result<bool, VaultError> {
        Ok(self.term()?.is_some())
    }

    /// Another one serves.
    pub fn retire(&self) -> Result<(), VaultError> {
        let path = self.dir.join(TERM_FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VaultError::File(path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Keeps copies of what has changed. Without a leadership that waits: nobody else serves meanwhile. Whether there are
    /// others for whom they are kept, and it is sure that none of them has served.
    pub async fn keep(&self) -> Result<bool, VaultError> {
        let Some(shared) = &self.shared else { return Ok(false) };
        let Some(election) = shared.leading.now() else { return Ok(false) };
        self.keep_in(shared, &election).await?;
        Ok(true)
    }

    /// The same for who may only go on once the copies are kept: by a leadership that is over it fails.
    pub async fn keep_by(&self, election: &Election) -> Result<(), VaultError> {
        match &self.shared {
            Some(shared) => self.keep_in(shared, election).await,
            None => Ok(()),
        }
    }

    async fn keep_in(&self, shared: &Shared, election: &Election) -> Result<(), VaultError> {
        let mut kept = shared.kept.lock().await;
        let term = election.term();
        if kept.term != Some(term) && !self.is_own_in(shared).await? {
            return Err(VaultError::Succeeded);
        }
        for (document, names) in DOCUMENTS {
            // Looked at before they are read: what changes in between is kept next time.
            let stamps = names.iter().map(|name| self.stamp(name)).collect::<Result<Vec<_>, _>>()?;
            if kept.term == Some(term) && kept.stamps.get(document) == Some(&stamps) {
                continue;
            }
            let mut files = BTreeMap::new();
            for name in names {
                files.extend(self.read(name)?.map(|bytes| ((*name).to_owned(), bytes)));
            }
            let copies = Copies { term, files }.encode_to_vec();
            let sealed = SealKey::load_or_create(&self.dir.join(SEAL_FILE))?.seal(PURPOSE, &copies)?;
            match shared.store.keep_document(document, sealed.into(), election).await {
                // What others offer comes again with their links; what is trusted must not wait for it.
                Err(Conflict::Store(error @ StoreError::TooLarge { .. })) if document != TRUST => {
                    tracing::warn!(%error, document, "whoever takes over from this control plane begins without");
                }
                kept => kept?,
            }
            kept.stamps.insert(document, stamps);
        }
        if kept.term != Some(term) {
            self.write(TERM_FILE, term.to_string().as_bytes())?;
            kept.term = Some(term);
        }
        Ok(())
    }

    async fn copies(&self, shared: &Shared, document: &'static str) -> Result<Option<Copies>, VaultError> {
        let Some(sealed) = shared.store.document(document).await? else { return Ok(None) };
        let key = SealKey::load(&self.dir.join(SEAL_FILE))?;
        let copies = key
            .and_then(|key| key.open(PURPOSE, sealed.into()))
            .and_then(|plain| Copies::decode(&*plain).ok());
        copies.map(Some).ok_or_else(|| VaultError::Sealed(self.dir.clone()))
    }

    /// In which term this control plane served last, unless another one has since.
    pub fn term(&self) -> Result<Option<u64>, VaultError> {
        let text = self.read(TERM_FILE)?;
        Ok(text.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok()))
    }

    fn stamp(&self, name: &str) -> Result<Option<Stamp>, VaultError> {
        let path = self.dir.join(name);
        match std::fs::metadata(&path) {
            Ok(one) => Ok(Some((one.ino(), one.mtime(), one.mtime_nsec(), one.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VaultError::File(path, error)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, VaultError> {
        let path = self.dir.join(name);
        files::read(&path, MAX_FILE_BYTES).map_err(|error| VaultError::File(path, error))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), VaultError> {
        let path = self.dir.join(name);
        files::write_private(&path, bytes).map_err(|error| VaultError::File(path, error))
    }
}

/// Of a bundle, as its file says it.
fn sequence(bundle: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Bundle>(bundle).ok().map(|bundle| bundle.sequence)
}

#[cfg(test)]
mod tests;
