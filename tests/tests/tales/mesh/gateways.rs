//! East reaches west through west's gateway, and in no other way.

use std::{collections::BTreeSet, time::Duration};

use weft_tests::harness::{Client, Mesh, client::request, eventually, logs};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);
/// Enough that a way around the gateway would be taken.
const REQUESTS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn without_the_gateway_no_request_of_east_is_served_by_west() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let ingress = mesh.ingress("east");
    let east: BTreeSet<String> = ["east".to_owned()].into();

    let reviews = mesh.workloads("east", "reviews");
    reviews.iter().for_each(|one| mesh.kill(one.pid));
    let page = ingress.get("/").await.unwrap();
    assert_eq!((page.status, page.clusters_of("reviews")), (200, ["west".to_owned()].into()), "{page:?}");

    mesh.kill(mesh.cluster("west").gateway_pids.eastwest);
    assert_eq!(ingress.get("/catalogue").await.unwrap().status, 200, "what east has itself");
    let statuses = ask(&ingress, "cut-off").await;
    assert!(statuses.iter().all(|status| *status == 503), "nobody is left for the reviews: {statuses:?}");

    let ids: Vec<_> = reviews.into_iter().map(|one| one.id).collect();
    mesh.start_again(&ids).await;
    eventually("east serves its reviews again", SOON, async || match ingress.get("/").await {
        Ok(page) if page.status == 200 && page.clusters_of("reviews") == east => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let statuses = ask(&ingress, "alone").await;
    assert!(statuses.iter().all(|status| *status == 200), "east does not go on alone: {statuses:?}");

    for workload in mesh.cluster("west").workloads {
        let lines = logs::access(&workload.dir.join("sidecar"));
        let strays: Vec<_> = lines
            .iter()
            .filter(|line| ["cut-off", "alone"].iter().any(|id| line.get("requestId").starts_with(id)))
            .collect();
        assert!(strays.is_empty(), "{} served east: {strays:?}", workload.id);
    }
}

async fn ask(ingress: &Client, name: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    for n in 0..REQUESTS {
        let id = format!("{name}-{n}");
        let answer = ingress.send(request("GET", "/", &[("x-request-id", &id)]), true).await;
        statuses.push(answer.map_or(0, |answer| answer.status));
    }
    statuses
}
