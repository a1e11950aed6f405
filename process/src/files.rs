//! State on disk: written durably and whole, readable by its owner alone.
//!
//! The calls block; call them where a moment of disk is no harm, or from a blocking task.

use std::fs::{DirBuilder, File, OpenOptions, remove_file, rename};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One write at a time in a process, so that the name of the unfinished file can be fixed and what a crash
/// left of it is replaced by the next write instead of piling up.
static WRITING: Mutex<()> = Mutex::new(());

/// Replaces the file by `bytes`, mode 0600. After it returns the new content survives a crash of the machine;
/// before, a reader sees the old content or the new, never a mixture. A directory must belong to one process.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let _turn = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let (folder, unfinished) = places(path)?;
    fill(&unfinished, bytes).and_then(|()| rename(&unfinished, path)).inspect_err(|_| {
        let _ = remove_file(&unfinished);
    })?;
    File::open(folder)?.sync_all()
}

/// The file's content, if it is there. Larger than `limit` bytes is an error.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes a directory and those above it, mode 0700, unless they are there.
pub fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// More than what is kept of an identity.
static PROOF: [u8; 64 * 1024] = [0; 64 * 1024];

/// Whether files can be kept in a directory, which is made if it is not there.
pub fn prove_writable(directory: &Path) -> io::Result<()> {
    private_directory(directory)?;
    let proof = directory.join("proof");
    write_private(&proof, &PROOF)?;
    remove_file(proof)
}

fn places(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let name =
        path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut unfinished = std::ffi::OsString::from(".");
    unfinished.push(name);
    unfinished.push(".new");
    Ok((folder, folder.join(unfinished)))
}

fn fill(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::{read_dir, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/key");
        private_directory(path.parent().unwrap()).unwrap();
        write(&path, "old").unwrap();
        set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        write(dir.path().join("state/.key.new"), "left by a crash").unwrap();

        write_private(&path, b"new").unwrap();

        assert_eq!(read(&path, 3).unwrap().unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished stays");
    }

    #[test]
    fn a_directory_is_proven_writable_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        prove_writable(&state).unwrap();
        assert_eq!(read_dir(&state).unwrap().count(), 0);
        write(dir.path().join("file"), "").unwrap();
        assert!(prove_writable(&dir.path().join("file")).is_err());
    }

    #[test]
    fn reads_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read(&path, 3).unwrap(), None);
        write_private(&path, b"four").unwrap();
        assert_eq!(read(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(write_private(&dir.path().join("taken"), b"x").is_err());
        assert_eq!(read_dir(dir.path()).unwrap().count(), 1);
    }
}
