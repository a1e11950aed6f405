//! The front page, an order, a trace, explanations: a mesh in which nothing goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::json;
use weft_tests::harness::{Collector, Mesh, client::request, collector::Span, eventually, explanations};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_mesh_serves_traces_and_explains() {
    let collector = Collector::start().await;
    let mesh = Mesh::up(&BLOCKS, &["--trace", &collector.endpoint()]).await;
    println!("ready after {:?}", mesh.ready_after);
    assert!(mesh.ready_after < Duration::from_secs(30), "{:?}", mesh.ready_after);

    the_front_page_has_the_data_of_all_services(&mesh).await;
    an_order_reaches_one_catalogue(&mesh).await;
    println!("explained: {}", explanations::told(&explanations::hold(&mesh, 100).await));
    a_request_that_crosses_clusters_is_one_trace(&mesh, &collector).await;
}

async fn the_front_page_has_the_data_of_all_services(mesh: &Mesh) {
    for cluster in ["east", "west"] {
        // Load comes to what is new by degrees, as it comes back to what was away: within seconds all is served nearby.
        let own = BTreeSet::from([cluster.to_owned()]);
        let page = eventually("a page served by its own cluster", SOON, async || {
            let page = mesh.ingress(cluster).get("/").await.map_err(|error| format!("{error:?}"))?;
            assert_eq!(page.status, 200, "{page:?}");
            let nearby =
                ["front", "catalogue", "reviews", "ratings"].iter().all(|one| page.clusters_of(one) == own);
            if nearby { Ok(page) } else { Err(format!("{:?}", page.served_by())) }
        })
        .await;
        let said = page.json();
        assert!(said["catalogue"]["books"].is_array(), "{said}");
        assert!(said["reviews"]["reviews"].is_array() && said["ratings"]["stars"].is_object(), "{said}");
        for path in ["/catalogue", "/reviews", "/ratings"] {
            let answer = mesh.ingress(cluster).get(path).await.unwrap();
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert_eq!(answer.served_by()[0].service, "front", "{path}");
            assert!(!answer.clusters_of(&path[1..]).is_empty(), "{path}");
        }
    }
}

async fn an_order_reaches_one_catalogue(mesh: &Mesh) {
    let answer = mesh.ingress("east").post("/orders", &json!({ "id": "weaving-1" })).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(mesh.orders(), ["weaving-1"]);
}

/// East loses its ratings, so that a page of east needs west.
async fn a_request_that_crosses_clusters_is_one_trace(mesh: &Mesh, collector: &Collector) {
    mesh.workloads("east", "ratings").iter().for_each(|one| mesh.kill(one.pid));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let page =
        mesh.ingress("east").send(request("GET", "/", &[("traceparent", &parent)]), true).await.unwrap();
    assert_eq!(page.clusters_of("ratings"), BTreeSet::from(["west".to_owned()]), "{page:?}");

    let spans = eventually("the whole trace arrives", SOON, async || {
        let spans = collector.trace(trace);
        let has = |workload: &str| spans.iter().any(|span| span.workload.contains(workload));
        let wanted = ["ingress", "front", "catalogue", "reviews", "west-ratings"];
        match wanted.into_iter().find(|workload| !has(workload)) {
            None => Ok(spans),
            Some(missing) => Err(format!("no span of {missing} yet: {spans:#?}")),
        }
    })
    .await;
    the_parents_are_right(&spans);
}

/// Client spans under the server span of the same proxy or of the application's caller, server spans under the client
/// span of the other end; the ingress under the one that the client named.
fn the_parents_are_right(spans: &[Span]) {
    const SERVER: i32 = 2;
    const CLIENT: i32 = 3;
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "every span has an id of its own: {spans:#?}");
    let roots: Vec<_> = spans.iter().filter(|span| !by_id.contains_key(span.parent.as_str())).collect();
    assert_eq!(roots.len(), 1, "one trace has one root: {roots:#?} of {spans:#?}");
    assert!(roots[0].workload.contains("ingress") && roots[0].kind == SERVER, "{roots:?}");
    assert_eq!(roots[0].parent, "00f067aa0ba902b7");
    for span in spans.iter().filter(|span| span.id != roots[0].id) {
        let parent = by_id[span.parent.as_str()];
        match span.kind {
            // A workload is reached by somebody else's call.
            SERVER => {
                assert!(parent.kind == CLIENT && parent.workload != span.workload, "{span:?} {parent:?}")
            }
            // A workload calls because it was called.
            CLIENT => {
                assert!(parent.kind == SERVER && parent.workload == span.workload, "{span:?} {parent:?}")
            }
            other => panic!("a span of kind {other}: {span:?}"),
        }
    }
    let crossing = spans.iter().find(|span| span.workload.starts_with("west-ratings") && span.kind == SERVER);
    let crossing = crossing.expect("the call that crossed");
    assert_eq!(
        (crossing.cluster.as_str(), by_id[crossing.parent.as_str()].cluster.as_str()),
        ("west", "east")
    );
}
