//! Repositories for tests, made by the real `git`, untouched by the configuration of whoever runs it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use api::head::CommitId;
use tempfile::TempDir;

use super::{Access, Address, Repository, Source};

/// A work tree with the branch `main`. The repository lies one level down, so that a test can move it away.
pub(super) struct Fixture {
    home: TempDir,
}

impl Fixture {
    /// An empty one, with SHA-1.
    pub(super) fn new() -> Self {
        Fixture::with(&[])
    }

    /// One made with more arguments to `git init`.
    pub(super) fn with(arguments: &[&str]) -> Self {
        let fixture = Fixture { home: TempDir::new().unwrap() };
        fixture.init(arguments);
        fixture
    }

    /// Makes the repository (again).
    pub(super) fn init(&self, arguments: &[&str]) {
        std::fs::create_dir(self.path()).unwrap();
        self.git([&["init", "-q", "-b", "main"], arguments].concat());
    }

    /// The work tree.
    pub(super) fn path(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// Runs `git` in the work tree; gives what it prints.
    pub(super) fn git<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let output = Command::new("git")
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@shop.example")])
            .envs([("GIT_COMMITTER_NAME", "Bob"), ("GIT_COMMITTER_EMAIL", "bob@shop.example")])
            .env("GIT_COMMITTER_DATE", "1700000000 +0100")
            .args(arguments)
            .output()
            .expect("these tests need `git`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file of the work tree.
    pub(super) fn write(&self, path: impl AsRef<OsStr>, content: impl AsRef<[u8]>) {
        let path = self.path().join(path.as_ref());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits all of the work tree.
    pub(super) fn commit(&self, message: &str) -> CommitId {
        self.git(["add", "-A"]);
        self.git(["commit", "-q", "--allow-empty", "-m", message]);
        self.git(["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// Writes one file and commits it.
    pub(super) fn commit_file(&self, path: &str, content: &str) -> CommitId {
        self.write(path, content);
        self.commit(&format!("change {path}"))
    }

    /// What is tested, on this repository.
    pub(super) fn repository(&self) -> Arc<Repository> {
        self.folder("")
    }

    /// The same, reading one folder.
    pub(super) fn folder(&self, folder: &str) -> Arc<Repository> {
        self.source(self.path(), folder)
    }

    /// What is tested, on a repository within this one.
    pub(super) fn at(&self, path: &str) -> Arc<Repository> {
        self.source(self.path().join(path), "")
    }

    fn source(&self, path: PathBuf, folder: &str) -> Arc<Repository> {
        let source = Source {
            name: "main".parse().unwrap(),
            address: Address::Local(path),
            branch: "main".into(),
            folder: folder.into(),
            access: Access::default(),
            poll: Duration::ZERO,
            webhook_secret: None,
        };
        Arc::new(Repository::new(source, self.home.path()))
    }
}
