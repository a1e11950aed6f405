//! A commit that would empty the mesh waits for an operator's word.

use std::{
    fs,
    time::{Duration, Instant},
};

use api::admin::{CommitState, Status};
use weft_tests::harness::{
    Mesh, Prober,
    shop::{CLOSED, closed_to},
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);
const PROBES_PER_SECOND: u32 = 50;
const AGREEING: usize = 20;
/// More services than all else that the shop's repository holds.
const SERVICES: usize = 60;
const WHY: &str = "it removes more than half of all resources of its source";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_removes_most_of_the_mesh_opens_no_door_until_it_is_accepted() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let probers = ["east", "west"]
        .map(|cluster| Prober::start(cluster, &mesh.cluster(cluster).ingress, PROBES_PER_SECOND));
    mesh.repository().write(CLOSED, &closed_to("front"));
    mesh.repository().write("many.yaml", &(0..SERVICES).map(service).collect::<String>());
    let whole = mesh.commit("many services, and the reviews are closed").await;
    all_are(403, &probers).await;

    for file in ["many.yaml", CLOSED] {
        fs::remove_file(mesh.repository().path().join(file)).unwrap();
    }
    let emptied = mesh.repository().commit("emptied by mistake").await;
    let waited = mesh.try_weft(&["wait", "HEAD", "--timeout", "20s"]).await;
    let said = String::from_utf8_lossy(&waited.stderr);
    assert!(!waited.status.success() && said.contains(&format!("the commit is held: {WHY}")), "{said}");
    it_is_held(&mesh, &emptied.id, &whole.id).await;
    all_are(403, &probers).await;

    // Nor does a restart let it pass.
    mesh.kill(mesh.cluster("east").controlplane_pid);
    mesh.weft(&["controlplane", "start", "east"]).await;
    it_is_held(&mesh, &emptied.id, &whole.id).await;
    all_are(403, &probers).await;

    let text = mesh.weft(&["rollout", "accept", "HEAD"]).await;
    assert!(text.contains(&format!("{} may pass", &emptied.id[..7])), "{text}");
    mesh.weft(&["wait", "HEAD", "--timeout", "20s"]).await;
    all_are(200, &probers).await;
    assert_eq!(mesh.status("west").await.commit, Some(emptied.id));
}

fn service(n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: many-{n}, namespace: shop }}\n\
         spec: {{ selector: {{ app: many }}, ports: [{{ name: http, port: 8080 }}] }}\n---\n"
    )
}

/// `weft status` shows one commit as held, says why, and that another one rules.
async fn it_is_held(mesh: &Mesh, held: &str, in_force: &str) {
    let told = |status: &Status| {
        let commit = status.sources[0].commits.iter().find(|one| one.commit == held);
        let is_held = commit.is_some_and(|one| one.state == CommitState::Held);
        let rules = status.commit.as_deref() == Some(in_force);
        if is_held && rules { Ok(()) } else { Err(format!("{commit:?}, {:?}", status.commit)) }
    };
    mesh.status_tells("east", "the commit is held", SOON, told).await;
    let text = mesh.weft(&["status"]).await;
    let row = text.lines().find(|line| line.trim_start().starts_with(&held[..7]));
    assert!(row.is_some_and(|row| row.contains("held")), "{text}");
    assert!(text.contains(&format!("held: {WHY}")), "{text}");
}

async fn all_are(status: u16, probers: &[Prober]) {
    for prober in probers {
        for probe in prober.after(Instant::now(), AGREEING).await {
            assert_eq!(probe.status, status, "{probe:?}");
        }
    }
}
