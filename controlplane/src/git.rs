//! Stage 1: text at the commit of a branch.
//!
//! A server's branch is fetched into a bare mirror, and read there. A repository is read as an object database: never its work tree, its index, or anything that it could execute.
//! Every call opens it anew (well under a millisecond), so that one that was moved away, cloned again or repacked
//! leaves no stale state behind. The calls block: call them where blocking is allowed.
//!
//! Invariant: `gix` is named in this module and below, nowhere else.

use std::{path::PathBuf, time::Duration};

use api::{head::CommitId, name::SourceName};

mod access;
mod address;
mod attempt;
mod checkout;
#[cfg(test)]
mod fixture;
mod https;
mod mirror;
mod repository;
mod ssh;
mod watcher;

pub use access::Access;
pub(crate) use access::secret;
pub use address::{Address, BadAddress, Scheme, Server};
pub use checkout::{Checkout, Fault, File, MAX_BYTES, MAX_FILE_BYTES, MAX_FILES, Refusal};
pub use repository::Repository;
pub use watcher::{Bell, watch};

/// Where configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What revisions and people call it.
    pub name: SourceName,
    /// Where it is: a work tree's directory, a bare repository, or a server's.
    pub address: Address,
    /// The branch whose commit counts, without `refs/heads/`.
    pub branch: String,
    /// The folder inside that is read; empty for all.
    pub folder: String,
    /// How a server is entered.
    pub access: Access,
    /// How often a server is asked, unless a webhook tells.
    pub poll: Duration,
    /// The file with what webhooks of this source are signed with.
    pub webhook_secret: Option<PathBuf>,
}

/// What a look at a source found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// The commit that the branch is at, as far as is known: a mirror remembers it while its server is away.
    pub commit: Option<CommitId>,
    /// Why nothing newer is known; the last good revision stays in force.
    pub trouble: Option<Trouble>,
}

impl Observation {
    /// The branch is at `commit`.
    pub fn at(commit: CommitId) -> Self {
        Observation { commit: Some(commit), trouble: None }
    }
}

/// Why a source could not be read. All of them are looked at again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is no repository at present.
    #[error("there is no repository at {path}: {reason}; is it mounted, and is the path right?")]
    Away {
        /// The source's path.
        path: String,
        /// What the attempt said.
        reason: String,
    },
    /// The server cannot be asked, or does not give what it has.
    #[error("{url} cannot be fetched: {reason}")]
    Unfetched {
        /// The source's URL.
        url: String,
        /// Why not, and what to do; never a secret.
        reason: String,
    },
    /// The branch is not there (any more, or yet).
    #[error("branch `{branch}` does not exist in {path}: commit or push to it, or name another")]
    BranchGone {
        /// The source's path.
        path: String,
        /// The source's branch.
        branch: String,
    },
    /// The references are in a form that this build cannot read.
    #[error(
        "{path} keeps its references as reftable, which is not yet supported by this build: \
         convert with `git refs migrate --ref-format=files`"
    )]
    Reftable {
        /// The source's path.
        path: String,
    },
    /// It is there and cannot be read.
    #[error("{path} cannot be read: {reason}; does `git fsck` there say more?")]
    Unreadable {
        /// The source's path.
        path: String,
        /// What the attempt said.
        reason: String,
    },
    /// A text that should name a commit does not.
    #[error("`{text}` names no commit in {path}: was it pushed? ({reason})")]
    Unknown {
        /// The text.
        text: String,
        /// The source's path.
        path: String,
        /// Why not.
        reason: String,
    },
}
