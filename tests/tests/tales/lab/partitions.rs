//! What callers see of a partition between two clusters.

use std::time::{Duration, Instant};

use weft_tests::lab::{
    Host, Mesh, answers,
    mesh::{Workload, gateways, name_yourself},
};

/// What a silent loss costs a request at most: somewhat over 2 s until a connection without an answer is held to be dead
/// (none other is tried through the same gateway then), and what else the machine of the test does meanwhile.
const LATE: Duration = Duration::from_secs(4);

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: { name: echo, namespace: shop }
spec: { selector: { app: echo }, ports: [{ name: http, port: 8080 }] }
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: { name: echo, namespace: shop }
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: in-turn, namespace: shop }
spec: { loadBalancing: { policy: ROUND_ROBIN } }
";

/// Half of the calls in east go to west while west can be reached.
const SPREAD: &str = "---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: spread, namespace: shop }
spec:
  targetRefs: [{ group: \"\", kind: Service, name: echo }]
  locality: { distribute: [{ from: eu-east, to: { eu-east: 50, eu-west: 50 } }] }
";

/// Who answered a request of a front.
async fn ask(front: &Host) -> Result<String, String> {
    front.call("http://echo.shop.svc.clusterset.local:8080/").await
}

/// A front in east, and the service in these clusters.
async fn shop(clusters: &[&str]) -> Mesh {
    let mut mesh = Mesh::up(SHOP).await;
    let echo = Workload::of("echo").serving(8080);
    for cluster in clusters {
        mesh.workload(cluster, &echo, |host| name_yourself(host, 8080)).await;
    }
    mesh.workload("east", &Workload::of("front"), |_| {}).await;
    let front = &mesh.lab["east-front-1"];
    answers(&format!("{}-echo-1", clusters[0]), async || ask(front).await).await;
    for cluster in clusters {
        front.knows(&format!("{cluster}-echo-1")).await;
    }
    mesh
}

/// Asks so often; each time it has to be this one who answers, and none may wait for longer. The longest wait is said.
async fn all_answered(front: &Host, times: u32, by: &str, within: Duration) {
    let mut longest = Duration::ZERO;
    for n in 0..times {
        let began = Instant::now();
        let answer = ask(front).await;
        let took = began.elapsed();
        assert_eq!(answer.as_deref(), Ok(by), "request {n}, after {took:?}");
        assert!(took < within, "request {n} took {took:?}");
        longest = longest.max(took);
    }
    println!("{times} requests answered by {by}; the longest took {longest:?}");
}

#[tokio::test]
async fn a_workload_that_is_cut_off_is_replaced_by_the_other_cluster() {
    let mesh = shop(&["east", "west"]).await;
    let front = &mesh.lab["east-front-1"];

    let refused = mesh.lab.partition("east-front-1", "east-echo-1").reject();
    all_answered(front, 50, "west-echo-1", LATE).await;
    refused.heal();

    answers("east-echo-1", async || ask(front).await).await;
    let silent = mesh.lab.partition("east-front-1", "east-echo-1").drop();
    all_answered(front, 50, "west-echo-1", LATE).await;
    silent.heal();
}

#[tokio::test]
async fn one_gateway_of_two_that_cannot_be_reached_costs_no_request() {
    let mesh = shop(&["west"]).await;
    let front = &mesh.lab["east-front-1"];
    for gateway in ["west-gateway-1", "west-gateway-2"] {
        let refused = mesh.lab.partition("east", gateway).reject();
        all_answered(front, 50, "west-echo-1", LATE).await;
        refused.heal();
    }
    for gateway in ["west-gateway-1", "west-gateway-2"] {
        let silent = mesh.lab.partition("east", gateway).drop();
        all_answered(front, 50, "west-echo-1", LATE).await;
        silent.heal();
    }
    let late = mesh.lab.partition("west-gateway-1", "east-front-1").late(Duration::from_millis(100));
    let lossy = gateways("west").map(|gateway| mesh.lab.partition("east-front-1", &gateway).lossy(5));
    all_answered(front, 50, "west-echo-1", LATE).await;
    drop((late, lossy));
}

#[tokio::test]
async fn a_workload_that_vanishes_behind_a_gateway_is_replaced_as_soon() {
    let mut mesh = shop(&["west"]).await;
    mesh.workload("west", &Workload::of("echo").serving(8080), |host| name_yourself(host, 8080)).await;
    let front = &mesh.lab["east-front-1"];
    for one in ["west-echo-2", "west-echo-1"] {
        // So that each of the two has a connection.
        answers(one, async || ask(front).await).await;
    }
    let silent = mesh.lab.cut_off(&["west-echo-1".to_owned()]).drop();
    all_answered(front, 50, "west-echo-2", LATE).await;
    silent.heal();
}

/// Half of what goes to the other cluster is cut: callers cannot see which one, only that nothing comes back.
#[tokio::test]
async fn a_gateway_that_hears_or_is_heard_alone_costs_no_request() {
    let mesh = shop(&["west"]).await;
    let front = &mesh.lab["east-front-1"];
    // The gateways one after the other, since a connection goes through one and stays there until that is cut.
    for heard in [true, false] {
        for gateway in gateways("west") {
            let cut = mesh.lab.partition("east", &gateway);
            let silent = if heard { cut.other_way().drop() } else { cut.one_way().drop() };
            all_answered(front, 50, "west-echo-1", LATE).await;
            silent.heal();
        }
    }
}

#[tokio::test]
async fn a_cluster_that_hears_or_is_heard_alone_is_left_out_until_it_is_both() {
    let mesh = shop(&["east", "west"]).await;
    mesh.repository().edit("shop.yaml", SHOP, &format!("{SHOP}{SPREAD}"));
    mesh.commit("Half of the calls go to west").await;
    let front = &mesh.lab["east-front-1"];
    let both = async || {
        for echo in ["east-echo-1", "west-echo-1"] {
            answers(echo, async || ask(front).await).await;
        }
    };
    both().await;
    // What west says is lost, and then what is said to it.
    for heard in [true, false] {
        let guards = gateways("west").map(|gateway| {
            let cut = mesh.lab.partition("east", &gateway);
            if heard { cut.other_way().drop() } else { cut.one_way().drop() }
        });
        all_answered(front, 50, "east-echo-1", LATE).await;
        drop(guards);
        both().await;
    }
}

#[tokio::test]
async fn a_path_that_is_late_and_loses_packets_costs_time_and_no_request() {
    let mesh = shop(&["west"]).await;
    let front = &mesh.lab["east-front-1"];
    let delay = Duration::from_millis(100);
    let late = gateways("west").map(|gateway| mesh.lab.partition("east-front-1", &gateway).late(delay));
    let began = Instant::now();
    assert_eq!(ask(front).await.as_deref(), Ok("west-echo-1"));
    assert!(began.elapsed() >= delay, "it was not late");
    let lossy = gateways("west").map(|gateway| mesh.lab.partition("east", &gateway).one_way().lossy(5));
    all_answered(front, 50, "west-echo-1", LATE).await;
    drop(lossy);
    let lossy = gateways("west").map(|gateway| mesh.lab.partition("east", &gateway).other_way().lossy(5));
    all_answered(front, 50, "west-echo-1", LATE).await;
    drop((late, lossy));
}
