//! Small secret files: read whole, written whole or not at all, readable by their owner alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::authority::AuthorityError;

/// More than any file kept here: a ledger of tokens is the largest.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The file's bytes, or none if there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, AuthorityError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuthorityError::Io { path: path.to_owned(), error }),
    }
}

/// Replaces the file by `bytes`, mode 0600: a crash leaves the old one or the new one. Makes its directory, 0700.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), AuthorityError> {
    replace(path, bytes).map_err(|error| AuthorityError::Io { path: path.to_owned(), error })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = dir.join(name);
    // What a crash has left. Where it cannot be removed, no new one can be made either.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}
