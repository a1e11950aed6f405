//! What a commit may not hold beside its YAML, found in a directory as the gate finds it in Git. It is told in the gate's
//! own words; what the files say is judged apart.

use std::{
    fs::{self, DirEntry},
    path::Path,
};

use api::admin::{Problem, Severity};

use crate::controlplane::{Fault, MAX_BYTES, MAX_FILE_BYTES};

/// What a control plane would refuse of the tree below `root`, whatever its files say.
pub(super) fn refusals(root: &Path) -> Vec<Problem> {
    let mut walk = Walk { root, bytes: 0, refused: Vec::new() };
    walk.directory(root);
    walk.refused
}

struct Walk<'a> {
    root: &'a Path,
    /// Of all files that would be read.
    bytes: u64,
    refused: Vec<Problem>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path) {
        // One that cannot be read is told by who reads the files.
        let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries.iter().filter(|entry| entry.file_name() != ".git") {
            if self.bytes > MAX_BYTES {
                return;
            }
            self.entry(entry);
        }
    }

    fn entry(&mut self, entry: &DirEntry) {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { return };
        let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        // Git keeps nothing of a repository in a repository but its commit.
        if kind.is_dir() && path.join(".git").symlink_metadata().is_ok() {
            self.refuse(&path, Fault::Submodule);
        } else if kind.is_symlink() {
            self.refuse(&path, Fault::Symlink);
        } else if (kind.is_dir() || is_yaml) && entry.file_name().to_str().is_none() {
            self.refuse(&path, Fault::NameNotUtf8);
        } else if kind.is_dir() {
            self.directory(&path);
        } else if is_yaml {
            self.file(entry);
        }
    }

    fn file(&mut self, entry: &DirEntry) {
        let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
        if bytes <= MAX_FILE_BYTES {
            self.bytes += bytes;
        }
        if self.bytes > MAX_BYTES {
            self.refuse(&entry.path(), Fault::TooMuch);
        }
    }

    fn refuse(&mut self, path: &Path, fault: Fault) {
        self.refused.push(Problem {
            file: path.strip_prefix(self.root).unwrap_or(path).display().to_string(),
            line: 0,
            column: 0,
            message: fault.to_string(),
            help: None,
            severity: Severity::Error,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink};

    use super::*;

    fn told(root: &Path) -> Vec<(String, String)> {
        refusals(root).into_iter().map(|one| (one.file, one.message)).collect()
    }

    #[test]
    fn links_and_submodules_are_refused_whatever_they_are_called() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for dir in [".git/refs", "apps", "vendored"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("apps/a.yaml"), "").unwrap();
        symlink("a.yaml", at("apps/b.yaml")).unwrap();
        symlink("../README.md", at("apps/notes")).unwrap();
        symlink("apps", at("same")).unwrap();
        symlink("nowhere", at(".git/HEAD")).unwrap();
        fs::write(at("vendored/.git"), "gitdir: ../.git/modules/vendored\n").unwrap();
        symlink("nowhere", at("vendored/c.yaml")).unwrap();

        let link = "a symbolic link is not followed: commit the file instead";
        let submodule = "a submodule is not read: commit its files instead";
        let expected = [("apps/b.yaml", link), ("apps/notes", link), ("same", link), ("vendored", submodule)];
        assert_eq!(told(root.path()), expected.map(|(file, why)| (file.to_owned(), why.to_owned())));
    }

    #[test]
    fn what_is_too_much_together_is_told_where_it_becomes_so() {
        let root = tempfile::tempdir().unwrap();
        let sparse =
            |name: &str, bytes| File::create(root.path().join(name)).unwrap().set_len(bytes).unwrap();
        let whole = MAX_BYTES / MAX_FILE_BYTES;
        for number in 0..whole {
            sparse(&format!("{number:03}.yaml"), MAX_FILE_BYTES);
        }
        sparse("large.bin", MAX_BYTES);
        sparse("large.yaml", MAX_FILE_BYTES + 1); // told apart, and not read
        assert!(told(root.path()).is_empty());

        sparse("one.yml", 1);
        sparse("two.yml", 1);
        assert_eq!(told(root.path()), [("one.yml".to_owned(), Fault::TooMuch.to_string())]);
    }
}
