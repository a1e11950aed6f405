//! What the system allows this process, and what it does before that runs out.
//!
//! Invariant: connections never take the last file descriptors: the admin listener, the control stream, logs and the
//! durable files need some still when traffic has taken what it may.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::logs::Limit;

/// When the system does not say.
const UNKNOWN_OPEN_FILES: u64 = 1024;

/// Descriptors that connections leave to others: room for every admin connection, in a process that may have many.
const RESERVED: u64 = 640;

/// The first descriptor that no connection may have.
static CEILING: AtomicI32 = AtomicI32::new(RawFd::MAX);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static REFUSALS: Limit = Limit::new(1);

/// Raises the soft limit of open files to the hard one, which is the administrator's word, and returns what holds then.
/// The soft one is mostly 1,024, for the sake of `select`, which nothing here calls.
pub fn raise_open_files() -> u64 {
    let limit = raised();
    let ceiling = ceiling(limit);
    if CEILING.swap(ceiling, Relaxed) != ceiling {
        tracing::info!(limit, for_connections = ceiling, "files that may be open at once");
    }
    limit
}

fn raised() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return UNKNOWN_OPEN_FILES };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
            soft
        }
    }
}

/// At least half of a small limit is for connections.
fn ceiling(limit: u64) -> RawFd {
    RawFd::try_from(limit - RESERVED.min(limit / 2)).unwrap_or(RawFd::MAX)
}

/// Whether a connection has to be given up at once because it took a descriptor that is kept for others; if so, that is
/// counted, and logged once a second.
///
/// A new descriptor has the lowest number that is free, so that its number tells at no cost how many are open.
pub fn is_too_many(connection: &impl AsRawFd) -> bool {
    if connection.as_raw_fd() < CEILING.load(Relaxed) {
        return false;
    }
    let all = REFUSED.fetch_add(1, Relaxed) + 1;
    if REFUSALS.pass(Instant::now()).is_some() {
        tracing::warn!(all, "connections are refused: as many files are open as `ulimit -Hn` lets them have");
    }
    true
}

/// How many connections were given up so far.
pub(crate) fn refused() -> u64 {
    REFUSED.load(Relaxed)
}

/// How many files may be open at once.
pub(crate) fn open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_the_soft_limit_is_the_hard_one() {
        let raised = raise_open_files();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((raised, raised)));
    }

    #[test]
    fn something_is_left_to_others_whatever_the_limit() {
        let limits = [0, 1, 256, 1024, 20_000, u64::MAX];
        assert_eq!(limits.map(ceiling), [0, 1, 128, 512, 19_360, RawFd::MAX]);
    }
}
