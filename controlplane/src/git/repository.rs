//! A repository on this machine: its branch, its commits, their order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::head::CommitId;
use gix::ObjectId;
use gix::object::Kind;

use super::{Address, Source, Trouble, mirror};

/// How many commits a question about ancestry looks at: some seconds of work.
const MAX_WALK: usize = 100_000;
/// The longest text that may name a commit.
const MAX_NAME: usize = 255;
/// Extensions of the repository format that do not change how references and objects are read, or that `gix` knows.
const EXTENSIONS: [&str; 7] = [
    "objectformat",
    "refstorage",
    "noop",
    "partialclone",
    "preciousobjects",
    "worktreeconfig",
    "relativeworktrees",
];

/// What one object may take in memory, whatever it says of itself.
const MAX_ALLOCATION: &str = "gitoxide.objects.allocLimit=67108864";

/// A repository, which need not be there yet: a local one, or the mirror of a server's.
pub struct Repository {
    pub(super) source: Source,
    /// Where its objects are on this machine.
    pub(super) dir: PathBuf,
    /// The texts of the last checkout by blob, so that a commit reads only what it changed.
    pub(super) known: Mutex<HashMap<ObjectId, Arc<str>>>,
}

impl Repository {
    /// The repository of `source`; that of a server is mirrored below `mirrors`. Nothing is read before it is asked.
    pub fn new(source: Source, mirrors: &Path) -> Self {
        let dir = match &source.address {
            Address::Local(path) => path.clone(),
            Address::Remote(_) => mirrors.join(source.name.as_str()),
        };
        Repository { source, dir, known: Mutex::default() }
    }

    /// Brings the mirror to where the server is. A local repository is always there.
    pub async fn fetch(&self) -> Result<(), Trouble> {
        mirror::fetch(&self.source, &self.dir).await
    }

    /// Where it is and what is read of it.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The commit that the branch is at.
    pub fn head(&self) -> Result<CommitId, Trouble> {
        let repository = self.open()?;
        let name = format!("refs/heads/{}", self.source.branch);
        let found = repository.try_find_reference(name.as_str()).map_err(|error| self.unreadable(error))?;
        // Between opening and reading, the whole repository may have been moved away.
        let mut reference = found.ok_or_else(|| match repository.common_dir().join("HEAD").try_exists() {
            Ok(true) => Trouble::BranchGone { path: self.path(), branch: self.source.branch.clone() },
            _ => Trouble::Away { path: self.path(), reason: "it has just gone".into() },
        })?;
        let commit = reference.peel_to_commit().map_err(|error| self.unreadable(error))?;
        self.id(commit.id)
    }

    /// Whether `ancestor` is `descendant` or one of its ancestors, among the nearest hundred thousand.
    pub fn descends(&self, ancestor: &CommitId, descendant: &CommitId) -> Result<bool, Trouble> {
        if ancestor == descendant {
            return Ok(true);
        }
        let repository = self.open()?;
        let ancestor = self.object_id(ancestor)?;
        let walk = repository.rev_walk([self.object_id(descendant)?]).all();
        for commit in walk.map_err(|error| self.unreadable(error))?.take(MAX_WALK) {
            if commit.map_err(|error| self.unreadable(error))?.id == ancestor {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The commit that `text` names: `HEAD`, a branch, a tag, an id or its beginning, each with `~` and `^`.
    pub fn resolve(&self, text: &str) -> Result<CommitId, Trouble> {
        let repository = self.open()?;
        let unknown = |reason: String| Trouble::Unknown {
            text: text.chars().take(80).collect(),
            path: self.path(),
            reason: reason.lines().next().unwrap_or_default().to_owned(),
        };
        // No braces and colons: they search histories, reflogs and trees, none of which names a commit for long.
        let plain = |c: char| c.is_alphanumeric() || "/._-~^+#@".contains(c);
        if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(plain) {
            return Err(unknown("expected HEAD, a branch, or the beginning of a commit id".into()));
        }
        let object = repository.rev_parse_single(text).and_then(|id| id.object());
        let commit = object.and_then(|object| object.peel_to_kind(Kind::Commit));
        self.id(commit.map_err(|error| unknown(error.to_string()))?.id)
    }

    /// Opens the object database, or says why not.
    pub(super) fn open(&self) -> Result<gix::Repository, Trouble> {
        let repository = open(&self.dir).map_err(|error| self.unopened(error))?;
        let config = repository.config_snapshot();
        match config
            .string("extensions.refStorage")
            .map(|format| format.to_string().to_lowercase())
            .as_deref()
        {
            None | Some("files") => {}
            Some("reftable") => return Err(Trouble::Reftable { path: self.path() }),
            Some(format) => {
                return Err(
                    self.unreadable(format!("it keeps its references as `{format}`, which is not supported"))
                );
            }
        }
        let sections = config.plumbing().sections_by_name("extensions").into_iter().flatten();
        for section in sections {
            let names: Vec<_> =
                section.body().value_names().map(|name| name.to_string().to_lowercase()).collect();
            if let Some(name) = names.iter().find(|name| !EXTENSIONS.contains(&name.as_str())) {
                return Err(
                    self.unreadable(format!("it uses the extension `{name}`, which is not supported"))
                );
            }
        }
        Ok(repository)
    }

    /// The directories in which a moved branch shows, with whether to look below them too.
    pub(super) fn places(&self) -> Result<[(PathBuf, bool); 2], Trouble> {
        let common = self.open()?.common_dir().to_owned();
        Ok([(common.join("refs").join("heads"), true), (common, false)])
    }

    fn unopened(&self, error: gix::Error) -> Trouble {
        let inside = [self.dir.join(".git"), self.dir.clone()];
        if inside.iter().any(|dir| dir.join("reftable").is_dir()) {
            return Trouble::Reftable { path: self.path() };
        }
        if inside[0].exists() || inside[1].join("HEAD").exists() {
            return self.unreadable(error);
        }
        let reason = match &self.source.address {
            Address::Remote(_) => "it has not been fetched yet",
            Address::Local(_) if inside[1].exists() => "the directory holds none",
            Address::Local(_) => "the directory does not exist",
        };
        Trouble::Away { path: self.path(), reason: reason.into() }
    }

    pub(super) fn unreadable(&self, reason: impl ToString) -> Trouble {
        let reason = reason.to_string().lines().next().unwrap_or_default().to_owned();
        Trouble::Unreadable { path: self.path(), reason }
    }

    pub(super) fn object_id(&self, commit: &CommitId) -> Result<ObjectId, Trouble> {
        ObjectId::from_hex(commit.as_str().as_bytes()).map_err(|error| self.unreadable(error))
    }

    fn id(&self, id: ObjectId) -> Result<CommitId, Trouble> {
        id.to_hex().to_string().parse().map_err(|error| self.unreadable(error))
    }

    fn path(&self) -> String {
        self.source.address.to_string()
    }
}

/// Opens the object database at `dir`, as all of this module does.
pub(super) fn open(dir: &Path) -> Result<gix::Repository, gix::Error> {
    // Full trust whoever owns the files: nothing that the configuration names is ever executed here.
    // Replacements would let one commit id mean two things.
    let options = gix::open::Options::isolated()
        .with(gix::sec::Trust::Full)
        .config_overrides(["core.useReplaceRefs=false", MAX_ALLOCATION]);
    Ok(options.open(dir)?.to_thread_local())
}

#[cfg(test)]
mod tests;
