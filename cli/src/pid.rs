//! A process known by more than its number: pid and start time, kept in a file, so that a number which the
//! kernel has given to another process is never signalled.

use std::{fs, io, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid as Number,
};
use tokio::time::Instant;

/// The file in a process's state directory.
const FILE: &str = "pid";
const POLL: Duration = Duration::from_millis(10);

/// One life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pid {
    /// Its number.
    pub(crate) number: i32,
    /// Clock ticks between boot and its start.
    started: u64,
}

impl Pid {
    /// The process that runs under `number` now; `None` when there is none, or only a corpse.
    pub(crate) fn of(number: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // proc(5): the command stands in parentheses and may itself contain any; state is field 3, start 22.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let alive = !matches!(*fields.first()?, "Z" | "X");
        alive.then_some(Pid { number: number as i32, started: fields.get(19)?.parse().ok()? })
    }

    /// What the file in `dir` says, if that process is alive.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(FILE)).ok()?;
        let (number, started) = text.trim().split_once(' ')?;
        let pid = Pid { number: number.parse().ok()?, started: started.parse().ok()? };
        pid.is_alive().then_some(pid)
    }

    /// Writes the file in `dir`.
    pub(crate) fn write(self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(FILE), format!("{} {}\n", self.number, self.started))
    }

    /// Takes the file away.
    pub(crate) fn forget(dir: &Path) {
        let _ = fs::remove_file(dir.join(FILE));
    }

    pub(crate) fn is_alive(self) -> bool {
        u32::try_from(self.number).ok().and_then(Pid::of) == Some(self)
    }

    /// Says whether it was told: not when it is gone, or another user's.
    fn signal(self, signal: Signal) -> bool {
        self.is_alive() && kill(Number::from_raw(self.number), signal).is_ok()
    }
}

/// Asks all to end, and kills who has not within `grace`. Returns who is alive all the same: another user's, which is
/// not waited for, or one that the kernel holds.
pub(crate) async fn end(pids: &[Pid], grace: Duration) -> Vec<Pid> {
    let asked: Vec<Pid> = pids.iter().copied().filter(|pid| pid.signal(Signal::SIGTERM)).collect();
    for pid in &asked {
        pid.signal(Signal::SIGCONT); // a stopped process hears of SIGTERM only once it goes on
    }
    if !gone(&asked, grace).await {
        for pid in &asked {
            pid.signal(Signal::SIGKILL);
        }
        gone(&asked, grace).await;
    }
    pids.iter().copied().filter(|pid| pid.is_alive()).collect()
}

/// Waits until none is alive, at most `limit`; says whether none is.
async fn gone(pids: &[Pid], limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while pids.iter().any(|pid| pid.is_alive()) {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_given_to_another_process_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let me = Pid::of(std::process::id()).unwrap();
        me.write(dir.path()).unwrap();
        assert_eq!(Pid::read(dir.path()), Some(me));

        Pid { started: me.started + 1, ..me }.write(dir.path()).unwrap();
        assert_eq!(Pid::read(dir.path()), None);
        Pid::forget(dir.path());
        assert_eq!(Pid::read(dir.path()), None);
    }

    #[tokio::test]
    async fn a_stopped_process_ends_too() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::of(child.id()).unwrap();
        pid.signal(Signal::SIGSTOP);
        assert!(end(&[pid], Duration::from_secs(5)).await.is_empty());
        assert!(!pid.is_alive() && !pid.signal(Signal::SIGTERM));
        child.wait().unwrap();
    }
}
