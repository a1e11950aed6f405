//! The mesh's configuration repository, changed with the real git.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

/// A working tree.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
}

/// A commit that was made.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its full id.
    pub id: String,
    /// When `git commit` was called.
    pub began: Instant,
    /// When `git commit` returned.
    pub returned: Instant,
    /// The same, by the wall clock.
    pub at: SystemTime,
}

impl Repository {
    /// The one at `path`.
    pub fn at(path: &Path) -> Self {
        Repository { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file as it lies there.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Writes a file.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path.join(file);
        fs::create_dir_all(path.parent().expect("a file in the repository")).expect("a writable repository");
        fs::write(path, text).expect("a writable repository");
    }

    /// Replaces text that has to be there.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} does not contain {from:?}");
        self.write(file, &text.replace(from, to));
    }

    /// Commits everything. Git's hooks run as they would for a person.
    pub async fn commit(&self, message: &str) -> Commit {
        let repository = self.clone();
        let message = message.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            repository.git(&["add", "--all"]);
            let began = Instant::now();
            repository.git(&["commit", "--quiet", "-m", &message]);
            let (returned, at) = (Instant::now(), SystemTime::now());
            let id = repository.git(&["rev-parse", "HEAD"]).trim().to_owned();
            Commit { id, began, returned, at }
        });
        made.await.expect("git is installed")
    }

    /// Runs git in it; it has to succeed. Gives what it printed.
    pub fn git(&self, args: &[&str]) -> String {
        super::git::git(&self.path, args)
    }
}
