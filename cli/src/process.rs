//! Starting a process of the mesh: its own process group (so that Ctrl-C reaches only `weft up`, which ends
//! all in order), its own state directory with log and pid file.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context;

use crate::pid::Pid;

/// Where a process's stdout and stderr go, in its state directory.
pub(crate) const LOG: &str = "output.log";

/// A process to be started.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// How people call it: `sidecar of east-front-1`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// Its state directory.
    pub(crate) dir: PathBuf,
    /// Its working directory, when that is not its state directory.
    pub(crate) cwd: Option<PathBuf>,
    /// Whether it writes to our own stdout and stderr instead of its log.
    pub(crate) foreground: bool,
}

impl Process {
    /// Starts it.
    pub(crate) fn spawn(&self) -> anyhow::Result<Child> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.cwd.as_ref().unwrap_or(&self.dir))
            .stdin(Stdio::null())
            .process_group(0);
        if !self.foreground {
            let log = log_file(&self.dir)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start the {}: {}", self.name, self.program.display()))?;
        match Pid::of(child.id()) {
            Some(pid) => pid.write(&self.dir)?,
            None => Pid::forget(&self.dir), // it has ended already; whoever waits for it will see
        }
        Ok(child)
    }
}

fn log_file(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOG);
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a process's log, for when it did not come up.
pub(crate) fn last_words(dir: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read(dir.join(LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8 * 1024)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("    {line}\n")).collect()
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("cannot write {}", fresh.display()))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

/// This very binary.
pub(crate) fn weft() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot tell where the weft binary lies")
}

/// `weft-proxy`, beside this binary.
pub(crate) fn weft_proxy() -> anyhow::Result<PathBuf> {
    let proxy = weft()?.with_file_name("weft-proxy");
    anyhow::ensure!(proxy.is_file(), "{} is missing: `cargo build` makes both binaries", proxy.display());
    Ok(proxy)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_process_has_its_own_directory_log_and_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process {
            name: "test".into(),
            program: "/bin/sh".into(),
            args: ["-c", "pwd; echo $PORT; read line; exec sleep 60"].map(OsString::from).into(),
            env: vec![("PORT", "8080".into())],
            dir: dir.path().join("app"),
            cwd: None,
            foreground: false,
        };
        let mut child = process.spawn().unwrap();
        assert_eq!(Pid::read(&process.dir).unwrap().number, child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Pid::read(&process.dir), None);
    }

    #[test]
    fn secrets_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_private(&path, "one").unwrap();
        write_private(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
