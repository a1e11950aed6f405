//! Ends everything that runs in a `weft up` directory, in order, by the pid files of its processes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    pid::{self, Pid},
    progress::Progress,
    proxy::DRAIN_SECONDS,
};

/// A proxy finishes its requests first.
pub(crate) const PROXY_GRACE: Duration = Duration::from_secs(DRAIN_SECONDS + 2);
pub(crate) const APP_GRACE: Duration = Duration::from_secs(5);
pub(crate) const CONTROLPLANE_GRACE: Duration = Duration::from_secs(5);

/// Ends sidecars, applications, gateways, control planes. Says how many processes there were.
pub(crate) async fn everything(dir: &Path, progress: &Progress) -> usize {
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
    let mut ended = 0;
    for (what, dirs, grace) in phases {
        let pids: Vec<Pid> = dirs.iter().filter_map(|dir| Pid::read(dir)).collect();
        if !pids.is_empty() {
            progress.at(&format!("ending {} {what} …", pids.len()));
            pid::end(&pids, grace).await;
        }
        dirs.iter().for_each(|dir| Pid::forget(dir));
        ended += pids.len();
    }
    ended
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
        assert_eq!(everything(up.path(), &Progress::new()).await, 4);
        assert!(children.iter_mut().all(|child| child.try_wait().unwrap().is_some()));
        assert_eq!(everything(up.path(), &Progress::new()).await, 0);
    }
}
