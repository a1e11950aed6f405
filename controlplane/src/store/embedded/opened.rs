//! The database, opened again where its disk failed it.
//!
//! redb does nothing more with a storage that has failed it once, be it for the moment that a disk was full. So it is
//! closed and opened anew, as after a crash: what was answered is there, and of what failed each transaction is there as a
//! whole or not at all.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::Database;

use crate::store::StoreError;

/// See the module.
pub(super) struct Opened {
    /// None where its disk failed it, and could not be opened again yet.
    database: RwLock<Option<Database>>,
    open: Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>,
}

impl Opened {
    /// What `open` gives, now and whenever it is needed anew.
    pub(super) fn new(
        open: impl Fn() -> Result<Database, StoreError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        Ok(Opened { database: RwLock::new(Some(open()?)), open: Box::new(open) })
    }

    /// Does `work`. Where its disk fails it, it fails; who comes next finds the database opened anew.
    pub(super) fn run<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, E> {
        loop {
            let opened = self.read();
            let Some(database) = &*opened else {
                drop(opened);
                self.open_again()?;
                continue;
            };
            let done = work(database);
            let is_over = done.is_err() && !serves(database);
            drop(opened);
            if is_over && let Err(error) = self.open_again() {
                tracing::warn!(%error, "the store's disk failed it, and it cannot be opened again yet");
            }
            return done;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it anew, unless somebody else has done so meanwhile. No work is under way then.
    fn open_again(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if !database.as_ref().is_some_and(serves) {
            // Closed first: the file is locked while it is open.
            *database = None;
            *database = Some((self.open)()?);
        }
        Ok(())
    }
}

/// Whether its storage has never failed it.
fn serves(database: &Database) -> bool {
    database.begin_write().is_ok()
}
