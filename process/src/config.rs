//! A process's own settings: one strict JSON file, read once at start.
//!
//! What is strict beyond JSON itself (unknown fields, ranges) is said by the type that is read: it should
//! `deny_unknown_fields`.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::files;

/// A settings file is short; a larger one is another file given by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Why a settings file was not taken.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is none.
    #[error("{path}: there is no such file", path = .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{path}: {1}", path = .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is not what was expected.
    #[error("{at}:{line}:{column}: {message}", at = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
}

/// Reads the settings at `path`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let bytes = files::read(path, MAX_BYTES)
        .map_err(|error| ConfigError::Read(path.into(), error))?
        .ok_or_else(|| ConfigError::Missing(path.into()))?;
    serde_json::from_slice(&bytes).map_err(|error| content(path, &error))
}

fn content(path: &Path, error: &serde_json::Error) -> ConfigError {
    let (line, column) = (error.line(), error.column());
    let whole = error.to_string();
    // The position stands before the message here, so it is not said again behind it.
    let message =
        whole.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&whole).to_owned();
    ConfigError::Content { path: path.into(), line, column, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        port: u16,
    }

    fn check(text: &str, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.json");
        std::fs::write(&path, text).unwrap();
        let got = match read::<Settings>(&path) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => error.to_string().replace(&format!("{}/", dir.path().display()), ""),
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn strict_with_positions() {
        check("{\"port\": 80}", "Settings { port: 80 }");
        check("{\n  \"prot\": 80}", "settings.json:2:8: unknown field `prot`, expected `port`");
        check("{\"port\": 80} x", "settings.json:1:14: trailing characters");
        check("{\"port\": 1, \"port\": 2}", "settings.json:1:18: duplicate field `port`");
        check(&" ".repeat(MAX_BYTES as usize + 1), "settings.json: is larger than 1048576 bytes");
        let missing = read::<Settings>(Path::new("/nowhere/x.json")).unwrap_err();
        assert_eq!(missing.to_string(), "/nowhere/x.json: there is no such file");
    }
}
