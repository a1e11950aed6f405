//! What the system allows this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// When the system does not say.
const UNKNOWN_OPEN_FILES: u64 = 1024;

/// Raises the soft limit of open files to the hard one, which is the administrator's word, and returns what holds then.
/// The soft one is mostly 1,024, for the sake of `select`, which nothing here calls.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return UNKNOWN_OPEN_FILES };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_the_soft_limit_is_the_hard_one() {
        let raised = raise_open_files();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((raised, raised)));
    }
}
