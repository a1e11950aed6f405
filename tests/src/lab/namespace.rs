//! One network namespace, made and changed by iproute2 and nft.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use super::failed;

/// Where iproute2 names namespaces.
const NAMED: &str = "/run/netns";

/// A namespace that is removed when it is dropped.
pub(super) struct Namespace {
    name: String,
}

/// Whether namespaces can be made here; else what has to be done.
pub(super) fn check() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err(
            "it takes root: `sudo -E ./test`, or `./test -p weft-tests -- --skip lab::` for what needs none"
                .to_owned(),
        );
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("setpriv", "util-linux")] {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|_| format!("`{program}` is missing: `scripts/setup lab` installs {package}"))?;
    }
    Ok(())
}

impl Namespace {
    pub(super) fn make(name: &str) -> Self {
        run(&format!("ip netns add {name}"));
        let namespace = Namespace { name: name.to_owned() };
        // Nobody doubles an address here: without this IPv6 waits a second for whoever might.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a batch of `ip` commands in it.
    pub(super) fn ip(&self, batch: &str) {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch);
    }

    /// The same, of IPv6 where the family cannot be told from a command.
    pub(super) fn ip6(&self, batch: &str) {
        feed(Command::new("ip").args(["-6", "-n", &self.name, "-batch", "-"]), batch);
    }

    /// Takes an nft script into force in it, whole or not at all.
    pub(super) fn nft(&self, script: &str) {
        feed(Command::new("ip").args(["netns", "exec", &self.name, "nft", "-f", "-"]), script);
    }

    /// Sets what lies below `/proc/sys`.
    pub(super) fn sysctl(&self, setting: &str, value: &str) {
        let inside = self.enter_in_a_thread(format!("/proc/sys/{setting}"), value.to_owned());
        inside.unwrap_or_else(|error| panic!("{setting}: {error}"));
    }

    fn enter_in_a_thread(&self, path: String, value: String) -> std::io::Result<()> {
        let name = self.name.clone();
        let write = std::thread::spawn(move || {
            enter(&name)?;
            fs::write(path, value)
        });
        write.join().expect("it does not panic")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Moves the calling thread, and all threads that it starts, into a namespace for good.
pub(super) fn enter(name: &str) -> std::io::Result<()> {
    Ok(setns(File::open(Path::new(NAMED).join(name))?, CloneFlags::CLONE_NEWNET)?)
}

/// Ends what runs in a namespace and removes it.
fn remove(name: &str) {
    let Ok(inside) = Command::new("ip").args(["netns", "pids", name]).output() else { return };
    for pid in String::from_utf8_lossy(&inside.stdout).lines().filter_map(|line| line.parse().ok()) {
        // A thread that entered counts as its process: that is this one.
        if pid != std::process::id() as i32 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Removes what killed runs have left: namespaces that bear the id of a process that is no more.
pub(super) fn sweep() {
    for entry in fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let pid = name.strip_prefix("weft-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

/// Runs a command that has to succeed.
///
/// # Panics
/// When it does not, with what it said.
pub(super) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{}", failed(line, output.status, &output.stderr));
}

fn feed(command: &mut Command, text: &str) {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // Dropped after it, so that the command sees the end. What it refuses it says on stderr.
    let _ = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().expect("a child");
    assert!(
        output.status.success(),
        "{}\n{text}",
        failed(&format!("{command:?}"), output.status, &output.stderr)
    );
}
