//! A primary whose disk is lost comes back from a backup of its keys, and all go on as the same mesh.

use std::{fs, time::Duration};

use weft_tests::harness::{Load, Mesh, copy, eventually};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);

/// What a backup leaves out: the store is made anew from Git, and the rest tells of the process that was.
const LEFT_OUT: [&str; 4] = ["store.redb", "pid", "output.log", "console.url"];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_primary_comes_back_from_its_keys() {
    let mut mesh = Mesh::up(&BLOCKS, &[]).await;
    let loads = ["east", "west"].map(|cluster| Load::start(&mesh.cluster(cluster).ingress, 50, 0));
    let dir = mesh.dir().join("east/controlplane");
    let backup = tempfile::tempdir().unwrap();
    copy(&dir, backup.path());
    LEFT_OUT.iter().for_each(|left| drop(fs::remove_file(backup.path().join(left))));

    // The mesh goes on after the backup: what is trusted changes, and so does a route.
    mesh.repository().edit("clusters/members.yaml", "[\"shop\"", "[\"later\", \"shop\"");
    mesh.commit("west may vouch for one namespace more").await;
    mesh.repository().edit("traffic/reviews.yaml", "weight: 60", "weight: 50");
    mesh.commit("after the backup").await;
    let [east, west] = sequences(&mesh).await;
    assert_eq!(east, west);

    mesh.kill(mesh.cluster("east").controlplane_pid);
    fs::remove_dir_all(&dir).unwrap();
    copy(backup.path(), &dir);
    mesh.repository().edit("traffic/reviews.yaml", "weight: 50", "weight: 40");
    mesh.repository().commit("while the primary is lost").await;
    mesh.beside(&["controlplane", "--config", dir.join("config.json").to_str().unwrap()]);
    eventually("the primary answers", SOON, async || {
        let status = mesh.try_weft(&["status"]).await;
        if status.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&status.stderr).into_owned())
        }
    })
    .await;
    // It does not know who lives in its cluster, so it waits as long as any of them may take to come back.
    let early = mesh.try_weft(&["wait", "HEAD", "--timeout", "2s"]).await;
    let told = String::from_utf8_lossy(&early.stderr) + String::from_utf8_lossy(&early.stdout);
    assert!(!early.status.success() && told.contains("it began without its store"), "{told}");
    mesh.weft(&["wait", "HEAD", "--timeout", "40s"]).await;
    eventually("both trust what the restored one says", SOON, async || {
        let [now_east, now_west] = sequences(&mesh).await;
        let later = now_east > east && now_east == now_west;
        if later { Ok(()) } else { Err(format!("{now_east} and {now_west} after {east}")) }
    })
    .await;
    for load in loads {
        load.more(100).await;
        let tally = load.stop().await;
        tally.report("primary lost and restored");
        tally.no_get_failed();
    }
}

/// The bundles of east and of west, by the primary's word.
async fn sequences(mesh: &Mesh) -> [u64; 2] {
    let status = mesh.status("east").await;
    ["east", "west"].map(|name| {
        let cluster = status.clusters.iter().find(|one| one.name.as_str() == name);
        cluster.map_or(0, |one| one.bundle_sequence)
    })
}
