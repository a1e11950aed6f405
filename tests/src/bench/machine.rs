//! This machine: processes pinned to a core, and what they cost. Reads Linux's `/proc`.
//!
//! Invariant: a process that was started here ends with its [`Running`].

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// `/proc` counts CPU time in these (`USER_HZ`, 100 a second on every Linux of today).
const TICK: Duration = Duration::from_millis(10);
/// How long a process may take to end in order.
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// The programs that are not ours, and the Debian packages that bring them.
const TOOLS: [(&str, &str); 7] = [
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("setpriv", "util-linux"),
    ("taskset", "util-linux"),
    ("openssl", "openssl"),
    ("git", "git"),
];

/// Our own.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The command line and control plane.
    pub weft: PathBuf,
    /// The proxy.
    pub proxy: PathBuf,
}

/// Where a process runs.
#[derive(Debug, Clone, Copy)]
pub enum Core {
    /// What is measured.
    Proxies,
    /// All that it is measured with.
    Load,
    /// What is timed as a whole.
    Any,
}

impl Core {
    fn number(self) -> &'static str {
        match self {
            Core::Proxies => "0",
            Core::Load => "1",
            Core::Any => "0,1",
        }
    }
}

/// A command that will run on one core, and end when this process does, however that ends.
pub fn pinned(core: Core, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "taskset", "-c", core.number()]).arg(program).stdin(Stdio::null());
    command
}

/// A process of ours.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it; what it says goes to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Running { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Asks until `ready` says yes.
    pub fn wait(&mut self, limit: Duration, ready: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.last_words());
            }
            ensure!(
                Instant::now() < deadline,
                "{} is not ready after {limit:?}:\n{}",
                self.name,
                self.last_words()
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().map(|line| format!("    {line}\n")).collect()
    }

    /// User and system time so far, its children's included.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        family(self.child.id())?.iter().try_fold(Duration::ZERO, |sum, stat| Ok(sum + stat.cpu))
    }

    /// Resident memory now in KiB, its children's included.
    pub fn rss_kib(&self) -> anyhow::Result<u64> {
        family(self.child.id())?.iter().try_fold(0, |sum, stat| Ok(sum + status_kib(stat.pid, "VmRSS:")?))
    }

    /// Resident memory that no file backs: what it allocated and touched.
    pub fn anonymous_kib(&self) -> anyhow::Result<u64> {
        status_kib(self.child.id(), "RssAnon:")
    }

    /// The most resident memory that it ever had, in KiB.
    pub fn peak_kib(&self) -> anyhow::Result<u64> {
        status_kib(self.child.id(), "VmHWM:")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                eprintln!("weft-bench: {} had to be killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// One line of `/proc/PID/stat`.
struct Stat {
    pid: u32,
    parent: u32,
    cpu: Duration,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split_once(' ')?.0.parse().ok()?;
        // The name stands in parentheses and may hold anything; what follows the last one is numbers.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
        Some(Stat { pid, parent: fields.get(1)?.parse().ok()?, cpu: TICK * ticks })
    }
}

/// A process and its children. Nginx's master and worker are one.
fn family(pid: u32) -> anyhow::Result<Vec<Stat>> {
    let processes = fs::read_dir("/proc").context("cannot read /proc: is this Linux?")?;
    let texts = processes.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let all = texts.filter_map(|text| Stat::parse(&text));
    let family: Vec<_> = all.filter(|stat| stat.pid == pid || stat.parent == pid).collect();
    ensure!(family.iter().any(|stat| stat.pid == pid), "process {pid} has ended");
    Ok(family)
}

fn status_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no memory in its status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Where a program lies.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = std::env::split_paths(&path).collect();
    dirs.push("/usr/sbin".into());
    dirs.into_iter().map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Puts this process, with all its threads to come, on the load's core. Fails with the remedy where a tool or a core
/// is missing.
pub fn prepare() -> anyhow::Result<()> {
    let missing = TOOLS.iter().filter(|(tool, _)| find(tool).is_none());
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    ensure!(packages.is_empty(), "tools are missing: `scripts/setup bench`, or {}", packages.join(" "));
    let cores = thread::available_parallelism()?.get();
    ensure!(cores >= 2, "two cores are needed, one for the proxies and one for the load; this has {cores}");
    let own = std::process::id().to_string();
    output(Command::new("taskset").args(["-cp", Core::Load.number(), &own])).map(drop)
}

/// Runs a command to its end, and gives what it says.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{name} failed: {}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout) + &text(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = Stat::parse("7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 120 30 0 0 20 0 1 0 9").unwrap();
        assert_eq!((stat.pid, stat.parent, stat.cpu), (7, 3, Duration::from_millis(1500)));
        assert!(Stat::parse("7 (sh) S 3").is_none());
    }
}
