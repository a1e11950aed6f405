//! The token of a control plane that runs on this machine as this user: its process says which
//! configuration it was started with, that one where its state lies. The file's mode guards it.

use std::{fs, path::Path};

use serde_json::Value;

use super::{ADMIN_TOKEN, read_token};
use crate::client::authority;

/// The token of the control plane whose admin API is `url`, if it runs here and may be read.
pub(super) fn token(url: &str) -> Option<String> {
    let address = authority(url)?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let config = config_of(&line)?;
        let config: Value = serde_json::from_slice(&fs::read(config).ok()?).ok()?;
        let state = Path::new(config["stateDir"].as_str()?);
        (config["admin"] == address).then(|| read_token(&state.join(ADMIN_TOKEN)).ok())?
    })
}

/// The file of `weft controlplane --config FILE`, from a `/proc/PID/cmdline`.
fn config_of(line: &[u8]) -> Option<&str> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split('\0').collect();
    match words[..] {
        [_, "controlplane", "--config", file, ..] => Some(file),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_control_plane_is_taken_for_one() {
        assert_eq!(config_of(b"/bin/weft\0controlplane\0--config\0/a/b.json\0"), Some("/a/b.json"));
        assert_eq!(config_of(b"/bin/weft-proxy\0--config\0/a/b.json\0"), None);
        assert_eq!(config_of(b""), None);
    }
}
