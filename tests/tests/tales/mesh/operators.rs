//! What operators do beside committing: they show who they are, stop and revoke workloads, end a mesh and begin it again.

use std::{fs, time::Duration};

use serde_json::json;
use weft_tests::harness::{Answer, Client, Mesh, client::request, eventually};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn operators_show_who_they_are_take_workloads_out_and_begin_again() {
    let mut mesh = Mesh::up(&BLOCKS, &[]).await;
    who_has_no_credential_learns_nothing(&mesh).await;
    a_login_opens_the_console_once(&mesh).await;
    who_is_stopped_comes_back_and_who_is_revoked_needs_a_token(&mesh).await;
    it_ends_and_goes_on(&mut mesh).await;
}

async fn who_has_no_credential_learns_nothing(mesh: &Mesh) {
    let api = Client::new(&mesh.cluster("east").api);
    let token = fs::read_to_string(mesh.dir().join("east/controlplane/admin.token")).unwrap();
    let call = async |method: &str, path: &str, authorization: &str| -> Answer {
        let headers = [("authorization", authorization), ("content-type", "application/json")];
        api.send(request(method, path, &headers), true).await.unwrap()
    };
    let right = format!("Bearer {}", token.trim());
    let document = call("GET", "/api/v1/openapi.json", &right).await;
    assert_eq!((document.status, &document.json()["openapi"]), (200, &json!("3.1.0")));
    let said = document.json();
    let paths = said["paths"].as_object().unwrap();
    assert!(paths.len() >= 8, "{paths:?}");
    let of_another = fs::read_to_string(mesh.dir().join("west/controlplane/admin.token")).unwrap();
    let wrong =
        [String::new(), "Bearer x".into(), format!("Bearer {}", of_another.trim()), format!("{right}x")];
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys().filter(|name| *name != "parameters") {
            for authorization in &wrong {
                let path = path.replace("{id}", "east-ratings-v1-1");
                let answer = call(&method.to_uppercase(), &path, authorization).await;
                assert_eq!(answer.status, 401, "{method} {path} with {authorization:?}");
                assert!(!String::from_utf8_lossy(&answer.body).contains("east-"), "it tells of the mesh");
            }
        }
    }
    assert_eq!(call("GET", "/api/v1/status", &right).await.status, 200);
}

async fn a_login_opens_the_console_once(mesh: &Mesh) {
    let console = mesh.now().console;
    let (address, login) = console.rsplit_once('/').unwrap();
    let client = Client::new(address);
    assert_eq!(client.get("/").await.unwrap().status, 401);
    let opened = client.get(&format!("/{login}")).await.unwrap();
    assert_eq!((opened.status, opened.header("location")), (303, "/"));
    let cookie = opened.header("set-cookie").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert_eq!(client.get(&format!("/{login}")).await.unwrap().status, 401, "a login is used once");
    let cookie = cookie.split(';').next().unwrap();
    let page = client.send(request("GET", "/", &[("cookie", cookie)]), true).await.unwrap();
    assert!(page.status == 200 && String::from_utf8_lossy(&page.body).contains("<title>"), "{page:?}");
    let status = client.send(request("GET", "/api/v1/status", &[("cookie", cookie)]), true).await.unwrap();
    assert_eq!(status.status, 200, "what the page asks for");
}

async fn lists(mesh: &Mesh, id: &str, wanted: bool) {
    eventually(&format!("{id} is listed: {wanted}"), SOON, async || {
        let text = mesh.weft(&["workload", "list", "--cluster", "east"]).await;
        if text.contains(id) == wanted { Ok(()) } else { Err(text) }
    })
    .await;
}

async fn who_is_stopped_comes_back_and_who_is_revoked_needs_a_token(mesh: &Mesh) {
    let [first, second] = &mesh.workloads("east", "ratings")[..] else { panic!("two of each service") };
    mesh.weft(&["workload", "stop", &first.id]).await;
    lists(mesh, &first.id, false).await;
    mesh.weft(&["workload", "start", &first.id]).await;
    lists(mesh, &first.id, true).await;

    mesh.weft(&["workload", "revoke", &second.id, "--cluster", "east"]).await;
    mesh.status_tells("east", "it tries to come back, and may not", SOON, |status| {
        let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
        let is_there = east.proxies.iter().any(|proxy| proxy.workload.as_str() == second.id);
        let told = |event: &api::admin::Event| event.message.starts_with("was revoked");
        match (is_there, status.events.iter().any(told)) {
            (false, true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let again = mesh.try_weft(&["workload", "revoke", &second.id, "--cluster", "east"]).await;
    assert!(!again.status.success(), "there is nothing left to revoke");
    mesh.kill(second.sidecar_pid);
    mesh.weft(&["workload", "start", &second.id]).await;
    lists(mesh, &second.id, true).await;
    assert_eq!(mesh.ingress("east").get("/").await.unwrap().status, 200);
}

async fn it_ends_and_goes_on(mesh: &mut Mesh) {
    let order = mesh.ingress("east").post("/orders", &json!({ "id": "before" })).await.unwrap();
    assert_eq!(order.status, 200, "{order:?}");
    mesh.repository().edit("traffic/reviews.yaml", "weight: 60", "weight: 50");
    mesh.repository().commit("before the end").await;
    mesh.weft(&["wait", "HEAD"]).await;
    mesh.down().await;
    mesh.up_again().await;
    mesh.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
    assert!(mesh.repository().read("traffic/reviews.yaml").contains("weight: 50"), "with what was committed");
    assert_eq!(mesh.ingress("west").get("/").await.unwrap().status, 200);
    assert_eq!(mesh.orders(), ["before"], "and with its files");
}
