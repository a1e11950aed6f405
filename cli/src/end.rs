//! Ends everything that runs in a `weft up` directory, in order, by the pid files of its processes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;

use crate::{
    pid::{self, Pid},
    progress::Progress,
    proxy::DRAIN_SECONDS,
};

/// A proxy finishes its requests first.
pub(crate) const PROXY_GRACE: Duration = Duration::from_secs(DRAIN_SECONDS + 2);
pub(crate) const APP_GRACE: Duration = Duration::from_secs(5);
pub(crate) const CONTROLPLANE_GRACE: Duration = Duration::from_secs(5);

/// Ends sidecars, applications, gateways, control planes. Says how many processes there were; an error names who is left.
pub(crate) async fn everything(dir: &Path, progress: &Progress) -> anyhow::Result<usize> {
    let clusters = folders(dir);
    let workloads: Vec<PathBuf> =
        clusters.iter().flat_map(|cluster| folders(&cluster.join("workloads"))).collect();
    let below = |parents: &[PathBuf], names: &[&str]| -> Vec<PathBuf> {
        parents.iter().flat_map(|parent| names.iter().map(move |name| parent.join(name))).collect()
    };
    let phases = [
        ("sidecars", below(&workloads, &["sidecar"]), PROXY_GRACE),
        ("applications", below(&workloads, &["app"]), APP_GRACE),
        ("gateways", below(&clusters, &["ingress", "eastwest"]), PROXY_GRACE),
        ("control planes", below(&clusters, &["controlplane"]), CONTROLPLANE_GRACE),
    ];
    let (mut ended, mut left) = (0, Vec::new());
    for (what, dirs, grace) in phases {
        let running = dirs.iter().filter(|dir| Pid::read(dir).is_some()).count();
        if running > 0 {
            progress.at(&format!("ending {running} {what} …"));
        }
        left.extend(processes(&dirs, grace).await);
        ended += running;
    }
    none_is_left(&left)?;
    Ok(ended)
}

/// Ends the processes that live in these state directories, and forgets them. Names who is left, and keeps its pid file.
pub(crate) async fn processes(dirs: &[PathBuf], grace: Duration) -> Vec<String> {
    let pids: Vec<Pid> = dirs.iter().filter_map(|dir| Pid::read(dir)).collect();
    let left = pid::end(&pids, grace).await;
    forget_all_but(&left, dirs)
}

fn forget_all_but(left: &[Pid], dirs: &[PathBuf]) -> Vec<String> {
    let mut named = Vec::new();
    for dir in dirs {
        match Pid::read(dir).filter(|pid| left.contains(pid)) {
            Some(pid) => named.push(format!("process {} of {}", pid.number, dir.display())),
            None => Pid::forget(dir),
        }
    }
    named
}

/// An error where anybody is; it says who.
pub(crate) fn none_is_left(left: &[String]) -> anyhow::Result<()> {
    ensure!(left.is_empty(), "could not end {}: another user's?", left.join(", "));
    Ok(())
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn all_that_has_a_pid_file_ends() {
        let up = tempfile::tempdir().unwrap();
        let places =
            ["east/controlplane", "east/ingress", "west/workloads/w-1/app", "west/workloads/w-1/sidecar"];
        let mut children = Vec::new();
        for place in places {
            let dir = up.path().join(place);
            fs::create_dir_all(&dir).unwrap();
            let child = Command::new("sleep").arg("60").spawn().unwrap();
            Pid::of(child.id()).unwrap().write(&dir).unwrap();
            children.push(child);
        }
        assert_eq!(everything(up.path(), &Progress::new()).await.unwrap(), 4);
        assert!(children.iter_mut().all(|child| child.try_wait().unwrap().is_some()));
        assert_eq!(everything(up.path(), &Progress::new()).await.unwrap(), 0);
    }

    #[test]
    fn who_is_left_is_named_and_can_be_ended_later() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["left", "ended"].map(|name| root.path().join(name));
        let me = Pid::of(std::process::id()).unwrap();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        me.write(&dirs[0]).unwrap();
        fs::write(dirs[1].join("pid"), "4194304 1\n").unwrap(); // above any pid
        let named = forget_all_but(&[me], &dirs);
        assert_eq!(named, [format!("process {} of {}", me.number, dirs[0].display())]);
        assert_eq!(Pid::read(&dirs[0]), Some(me));
        assert!(!dirs[1].join("pid").exists());

        let error = none_is_left(&named).unwrap_err().to_string();
        assert!(error.starts_with("could not end process "), "{error}");
        assert!(none_is_left(&[]).is_ok());
    }
}
