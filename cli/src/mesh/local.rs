//! The token of a control plane that runs on this machine as this user: its process says which
//! configuration it was started with, that one where its state lies. The file's mode guards it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{ADMIN_TOKEN, read_token};
use crate::client::authority;

/// The token of the control plane whose admin API is `url`, if it runs here and may be read.
pub(super) fn token(url: &str) -> Option<String> {
    let address = authority(url)?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        // What it was told is meant from where it stands.
        let here = process.path().join("cwd");
        let config = here.join(config_of(&line)?);
        let config: Value = serde_json::from_slice(&fs::read(config).ok()?).ok()?;
        let state = here.join(config["stateDir"].as_str()?);
        (config["admin"] == address).then(|| read_token(&state.join(ADMIN_TOKEN)).ok())?
    })
}

/// The settings of a `weft controlplane --config FILE`, or of a `weft join --dir DIR`, from a `/proc/PID/cmdline`.
fn config_of(line: &[u8]) -> Option<PathBuf> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split('\0').collect();
    match words[..] {
        [_, "controlplane", ..] => option(&words, "--config").map(PathBuf::from),
        [_, "join", ..] => option(&words, "--dir").map(|dir| Path::new(dir).join("config.json")),
        _ => None,
    }
}

/// What stands behind an option, as the next word or behind `=`.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let mut words = words.iter();
    let behind = words
        .find_map(|word| word.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('=')))?;
    behind.strip_prefix('=').or_else(|| words.next().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_control_plane_is_taken_for_one() {
        let file = |path: &str| Some(PathBuf::from(path));
        assert_eq!(config_of(b"/bin/weft\0controlplane\0--config\0/a/b.json\0"), file("/a/b.json"));
        assert_eq!(config_of(b"weft\0controlplane\0-o\0json\0--config=b.json\0"), file("b.json"));
        assert_eq!(config_of(b"/bin/weft-proxy\0--config\0/a/b.json\0"), None);
        assert_eq!(config_of(b"weft\0controlplane\0stop\0east\0"), None);
        assert_eq!(config_of(b"weft\0controlplane\0--config\0"), file(""));
        assert_eq!(config_of(b""), None);
    }

    #[test]
    fn one_that_has_joined_has_its_settings_in_its_directory() {
        let file = |path: &str| Some(PathBuf::from(path));
        let line = b"weft\0join\0--cluster\0north\0--dir\0./north\0--region\0eu-north\0";
        assert_eq!(config_of(line), file("./north/config.json"));
        assert_eq!(config_of(b"weft\0join\0--dir=/n\0--cluster\0north\0"), file("/n/config.json"));
        assert_eq!(config_of(b"weft\0join\0--directory=/n\0"), None);
    }
}
