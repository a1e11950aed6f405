//! Who is a member of the mesh, and what is said of one that is not heard, or is one no more.

use std::time::Duration;

use weft_tests::harness::{Client, Mesh, eventually};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);
/// Enough that an endpoint of another cluster would be taken.
const REQUESTS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_unheard_of_since_the_restart_is_named() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    // Who has never called a host does not know it, and without a control plane does not come to know it.
    let ingress = mesh.ingress("west");
    eventually("west's own fronts have called all services", SOON, async || {
        for _ in 0..REQUESTS {
            let hops = ingress.get("/").await?.served_by();
            if let Some(other) = hops.iter().find(|hop| hop.cluster != "west") {
                return Err(format!("{} was served by {}", other.service, other.cluster));
            }
        }
        Ok(())
    })
    .await;
    for cluster in ["east", "west"] {
        mesh.kill(mesh.cluster(cluster).controlplane_pid);
    }
    mesh.weft(&["controlplane", "start", "east"]).await;
    mesh.repository().edit("traffic/reviews.yaml", "weight: 60", "weight: 50");
    mesh.repository().commit("while west is away").await;

    let waited = mesh.try_weft(&["wait", "HEAD", "--timeout", "3"]).await;
    let said = String::from_utf8_lossy(&waited.stderr);
    assert!(!waited.status.success(), "{said}");
    let west = said.lines().find(|line| line.trim_start().starts_with("west"));
    assert!(west.is_some_and(|line| line.contains("partitioned")), "{said}");

    let text = mesh.weft(&["status", "--cluster", "east"]).await;
    let row = text.lines().find(|line| line.trim_start().starts_with("west ")).unwrap_or_default();
    assert!(row.contains("away for"), "{text}");
    assert_eq!(ingress.get("/").await.unwrap().status, 200, "west goes on all the same");

    mesh.weft(&["controlplane", "start", "west"]).await;
    mesh.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_taken_out_of_git_is_a_member_no_more() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let ingress = mesh.ingress("east");
    let reviews = mesh.workloads("east", "reviews");
    reviews.iter().for_each(|one| mesh.kill(one.pid));
    let page = ingress.get("/").await.unwrap();
    assert_eq!((page.status, page.clusters_of("reviews")), (200, ["west".to_owned()].into()), "{page:?}");

    let members = mesh.repository().read("clusters/members.yaml");
    let east = members.split("\n---\n").next().expect("east comes first").to_owned() + "\n";
    mesh.repository().write("clusters/members.yaml", &east);
    mesh.repository().edit("gateways/ingress.yaml", "clusters: east,west", "clusters: east");
    mesh.repository().commit("west is a member no more").await;
    mesh.weft(&["wait", "HEAD", "--timeout", "10s"]).await;

    // East alone has to obey now, and uses nothing of west's any more.
    mesh.status_tells("east", "west is no member of the mesh", SOON, |status| {
        let names: Vec<_> = status.clusters.iter().map(|one| one.name.as_str()).collect();
        let ended = status
            .events
            .iter()
            .any(|event| event.subject == "cluster west" && event.message.starts_with("its link is ended"));
        if names == ["east"] && ended { Ok(()) } else { Err(format!("{names:?}, {:?}", status.events)) }
    })
    .await;
    assert_eq!(ingress.get("/catalogue").await.unwrap().status, 200, "what east has itself");
    let statuses = ask(&ingress).await;
    assert!(statuses.iter().all(|status| *status == 503), "nobody is left for the reviews: {statuses:?}");
    let explained = mesh.weft(&["explain", "--from", "shop/front", "GET", "reviews:8080", "/reviews"]).await;
    assert!(!explained.contains("west"), "{explained}");

    // West is told nothing, and says so.
    mesh.status_tells("west", "west has lost its primary", SOON, |status| {
        let west = status.clusters.iter().find(|one| one.name.as_str() == "west").ok_or("no west")?;
        west.primary_away_since.map(drop).ok_or("it is not away".to_owned())
    })
    .await;

    mesh.repository().write("clusters/members.yaml", &members);
    mesh.repository().edit("gateways/ingress.yaml", "clusters: east", "clusters: east,west");
    mesh.repository().commit("west is a member again").await;
    mesh.weft(&["wait", "HEAD", "--timeout", "60s"]).await;
    eventually("west serves east again", SOON, async || match ingress.get("/").await {
        Ok(page) if page.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

async fn ask(ingress: &Client) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..REQUESTS {
        statuses.push(ingress.get("/").await.map_or(0, |answer| answer.status));
    }
    statuses
}
