//! The YAML files of one commit, and what in it cannot be taken.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use api::{head::CommitId, name::SourceName};
use gix::ObjectId;
use gix::bstr::{BStr, ByteSlice};
use gix::object::tree::EntryKind;

use super::{Repository, Trouble};

/// The largest file.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// All files of a commit together.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The files of a commit.
pub const MAX_FILES: usize = 10_000;
/// Entries of all kinds, and so the work of one walk, even where one tree stands in itself a thousand times.
const MAX_ENTRIES: usize = 200_000;
/// A directory's listing, or a commit's text.
const MAX_OBJECT_BYTES: u64 = 16 * 1024 * 1024;
/// Refusals of one commit: more help nobody.
const MAX_REFUSALS: usize = 1_000;
/// What is kept of an author and a subject.
const MAX_LINE_CHARS: usize = 200;

/// One commit of one source.
#[derive(Debug, Clone)]
pub struct Checkout {
    /// The source.
    pub source: SourceName,
    /// The commit.
    pub commit: CommitId,
    /// All `*.yaml` and `*.yml` below the source's folder, sorted by path.
    pub files: Vec<File>,
    /// What cannot be taken, sorted by path. Unless it is empty the commit must be refused.
    pub refusals: Vec<Refusal>,
    /// `Name <address>`.
    pub author: String,
    /// When it was committed, in seconds since 1970.
    pub time: i64,
    /// The first line of its message.
    pub subject: String,
    /// The branch's last commit is not an ancestor of this one: history was rewritten.
    pub rewrote: bool,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path from the root of the repository.
    pub path: String,
    /// Its content.
    pub text: Arc<str>,
}

/// Something in a commit that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The file or directory; bytes that are not UTF-8 are replaced.
    pub file: String,
    /// The line, counted from 1; 1 when it is the whole file.
    pub line: u32,
    /// The column in characters, counted from 1.
    pub column: u32,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}: {}", self.file, self.line, self.column, self.fault)
    }
}

/// Why a file cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Too large.
    #[error("{0} bytes are over the limit of {MAX_FILE_BYTES} a file: split it")]
    TooLarge(u64),
    /// Another repository's commit.
    #[error("a submodule is not read: commit its files instead")]
    Submodule,
    /// A link.
    #[error("a symbolic link is not followed: commit the file instead")]
    Symlink,
    /// Its name.
    #[error("its name is not UTF-8: rename it")]
    NameNotUtf8,
    /// Its content.
    #[error("not UTF-8: save the file as UTF-8")]
    NotUtf8,
    /// All of them.
    #[error(
        "more than {MAX_FILES} files, {MAX_BYTES} bytes or {MAX_ENTRIES} entries up to here: split the repository"
    )]
    TooMuch,
    /// The folder that is to be read.
    #[error("there is no such folder in this commit: restore it, or name another in the source")]
    NoFolder,
}

impl Repository {
    /// Reads `commit`. `last` is the commit that was read before it on this branch.
    pub fn checkout(&self, commit: &CommitId, last: Option<&CommitId>) -> Result<Checkout, Trouble> {
        let repository = self.open()?;
        let found = read(&repository, self.object_id(commit)?).and_then(|object| object.try_into_commit());
        let found = found.map_err(|error| self.unreadable(error))?;
        let taken = self.walk(&repository, found.tree_id().map_err(|error| self.unreadable(error))?.detach());
        let Walk { mut files, mut refusals, .. } = taken.map_err(|error| self.unreadable(error))?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        refusals.sort_by(|a, b| a.file.cmp(&b.file));
        let author = found.author().map_err(|error| self.unreadable(error))?;
        let message = found.message().map_err(|error| self.unreadable(error))?;
        Ok(Checkout {
            source: self.source.name.clone(),
            commit: commit.clone(),
            files,
            refusals,
            author: format!("{} <{}>", line(author.name), line(author.email)),
            time: found.time().map_err(|error| self.unreadable(error))?.seconds,
            subject: line(&message.summary()),
            rewrote: match last {
                Some(last) => !self.descends(last, commit)?,
                None => false,
            },
        })
    }

    /// Walks the source's folder of `root`, and remembers the texts for the next time.
    fn walk(&self, repository: &gix::Repository, root: ObjectId) -> Result<Walk, gix::Error> {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut walk = Walk { known: std::mem::take(&mut known), ..Walk::default() };
        let folder = self.source.folder.trim_matches('/');
        let start = match folder {
            "" | "." => Some((String::new(), root)),
            folder => read(repository, root)?
                .try_into_tree()?
                .lookup_entry_by_path(folder)?
                .filter(|entry| entry.mode().is_tree())
                .map(|entry| (format!("{folder}/"), entry.object_id())),
        };
        match start {
            Some(start) => walk.all(repository, start)?,
            None => walk.refuse(folder, Fault::NoFolder),
        }
        *known = std::mem::take(&mut walk.read);
        Ok(walk)
    }
}

/// A walk through the trees of one commit.
#[derive(Default)]
struct Walk {
    files: Vec<File>,
    refusals: Vec<Refusal>,
    /// Directories to come: their path with `/` at its end, and their tree.
    ahead: Vec<(String, ObjectId)>,
    entries: usize,
    bytes: u64,
    /// Texts of the walk before.
    known: HashMap<ObjectId, Arc<str>>,
    /// Texts of this walk.
    read: HashMap<ObjectId, Arc<str>>,
}

impl Walk {
    fn all(&mut self, repository: &gix::Repository, start: (String, ObjectId)) -> Result<(), gix::Error> {
        self.ahead.push(start);
        while let Some((directory, tree)) = self.ahead.pop() {
            let size = repository.find_header(tree)?.size();
            if size > MAX_OBJECT_BYTES {
                self.refuse(&directory, Fault::TooLarge(size));
                continue;
            }
            for entry in repository.find_tree(tree)?.iter() {
                let entry = entry?;
                self.entries += 1;
                self.entry(repository, &directory, entry.filename(), entry.kind(), entry.object_id())?;
                let full =
                    self.entries > MAX_ENTRIES || self.files.len() > MAX_FILES || self.bytes > MAX_BYTES;
                if full || self.refusals.len() >= MAX_REFUSALS {
                    let path = format!("{directory}{}", entry.filename());
                    if full {
                        self.refuse(&path, Fault::TooMuch);
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        repository: &gix::Repository,
        directory: &str,
        name: &BStr,
        kind: EntryKind,
        id: ObjectId,
    ) -> Result<(), gix::Error> {
        let yaml = name.ends_with(b".yaml") || name.ends_with(b".yml");
        let path = format!("{directory}{name}");
        match kind {
            EntryKind::Commit => self.refuse(&path, Fault::Submodule),
            EntryKind::Link => self.refuse(&path, Fault::Symlink),
            EntryKind::Blob | EntryKind::BlobExecutable if !yaml => {}
            _ if name.to_str().is_err() => self.refuse(&path, Fault::NameNotUtf8),
            EntryKind::Tree => self.ahead.push((path + "/", id)),
            EntryKind::Blob | EntryKind::BlobExecutable => self.file(repository, path, id)?,
        }
        Ok(())
    }

    fn file(&mut self, repository: &gix::Repository, path: String, id: ObjectId) -> Result<(), gix::Error> {
        let text = match self.known.get(&id).or_else(|| self.read.get(&id)) {
            Some(text) => text.clone(),
            None => {
                let size = repository.find_header(id)?.size();
                if size > MAX_FILE_BYTES {
                    self.refuse(&path, Fault::TooLarge(size));
                    return Ok(());
                }
                let blob = repository.find_blob(id)?;
                match std::str::from_utf8(&blob.data) {
                    Ok(text) => text.into(),
                    Err(error) => {
                        let (line, column) = place(&blob.data[..error.valid_up_to()]);
                        self.refusals.push(Refusal { file: path, line, column, fault: Fault::NotUtf8 });
                        return Ok(());
                    }
                }
            }
        };
        self.bytes += text.len() as u64;
        self.read.insert(id, text.clone());
        self.files.push(File { path, text });
        Ok(())
    }

    fn refuse(&mut self, file: &str, fault: Fault) {
        self.refusals.push(Refusal { file: file.to_owned(), line: 1, column: 1, fault });
    }
}

/// An object of bounded size.
fn read(repository: &gix::Repository, id: ObjectId) -> Result<gix::Object<'_>, gix::Error> {
    let size = repository.find_header(id)?.size();
    if size > MAX_OBJECT_BYTES {
        return Err(gix::error::message!(
            "object {id} has {size} bytes, over the limit of {MAX_OBJECT_BYTES}"
        )
        .into());
    }
    repository.find_object(id)
}

/// Line and column of what follows `before`.
fn place(before: &[u8]) -> (u32, u32) {
    let last = before.rfind_byte(b'\n').map_or(before, |at| &before[at + 1..]);
    (before.iter().filter(|byte| **byte == b'\n').count() as u32 + 1, last.chars().count() as u32 + 1)
}

/// One line for people: bounded, without control characters.
fn line(text: &BStr) -> String {
    text.to_str_lossy().chars().filter(|c| !c.is_control()).take(MAX_LINE_CHARS).collect()
}

#[cfg(test)]
mod tests;
