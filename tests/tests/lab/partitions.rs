//! What callers see of a partition between two clusters.

use std::time::{Duration, Instant};

use weft_tests::{
    harness::{Client, client::request, eventually},
    lab::{
        Host, Mesh,
        mesh::{Workload, name_yourself},
    },
};

const SOON: Duration = Duration::from_secs(20);

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: { name: echo, namespace: shop }
spec: { selector: { app: echo }, ports: [{ name: http, port: 8080 }] }
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: { name: echo, namespace: shop }
";

/// Who answered a request of the front in east.
async fn ask(front: &Host) -> Result<String, String> {
    let proxy = format!("{}:15001", front.addresses.v4);
    front
        .run(move || async move {
            let request = request("GET", "http://echo.shop.svc.clusterset.local:8080/", &[]);
            let answer = Client::new(&proxy).send(request, true).await?;
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status == 200 { Ok(said) } else { Err(format!("{}: {said}", answer.status)) }
        })
        .await
}

async fn shop() -> Mesh {
    let mut mesh = Mesh::up(SHOP).await;
    let echo = Workload::of("echo").serving(8080);
    mesh.workload("east", &echo, |host| name_yourself(host, 8080)).await;
    mesh.workload("west", &echo, |host| name_yourself(host, 8080)).await;
    mesh.workload("east", &Workload::of("front"), |_| {}).await;
    let front = &mesh.lab["east-front-1"];
    let told = async || ask(front).await.and_then(|who| if who == "east-echo-1" { Ok(()) } else { Err(who) });
    eventually("the front is served by its own cluster", SOON, told).await;
    mesh
}

#[tokio::test]
async fn a_workload_that_is_cut_off_is_replaced_by_the_other_cluster() {
    let mesh = shop().await;
    let front = &mesh.lab["east-front-1"];

    let refused = mesh.lab.partition("east-front-1", "east-echo-1").reject();
    for _ in 0..50 {
        assert_eq!(ask(front).await.as_deref(), Ok("west-echo-1"), "nobody sees a refusal");
    }
    refused.heal();

    let silent = mesh.lab.partition("east-front-1", "east-echo-1").drop();
    let began = Instant::now();
    for _ in 0..50 {
        let answer = ask(front).await;
        assert!(answer.is_ok() || began.elapsed() < Duration::from_secs(3), "{answer:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "all of them wait: {:?}", began.elapsed());
    silent.heal();
}
