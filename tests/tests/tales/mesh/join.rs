//! A third cluster joins a running mesh by the commands that its documents name, and is a member like any other.

use std::{fs, path::PathBuf, time::Duration};

use api::admin::{ClusterStatus, Role, Status};
use serde_json::{Value, json};
use weft_tests::harness::{
    Answer, Client, Hop, Mesh,
    client::request,
    eventually, logs,
    shop::{CLOSED, closed_to},
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(30);
const MEMBER: &str = "---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: north }
spec:
  network: north
  locality: { region: eu-north, zone: a }
  namespaces: [shop, weft-system]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_joins_a_running_mesh_by_a_token_that_names_it() {
    let mut north = North::beside(Mesh::up(&BLOCKS, &[]).await);
    let token = north.join_token("north").await;
    what_is_no_token_for_it_is_refused(&north, &token).await;

    let members = north.mesh.repository().read("clusters/members.yaml");
    north.mesh.repository().write("clusters/members.yaml", &(members + MEMBER));
    north.mesh.commit("north is a member").await;
    north.bring(&token);
    north.join();
    let told = north.is_up().await;
    assert_eq!((told.role, told.network.as_str()), (Role::Remote, "north"));
    let status = north.status().await.expect("its own control plane answers");
    assert_eq!(status.commit, north.mesh.status("east").await.commit, "it obeys what the others obey");
    let of_another = north.weft(&["status", "--cluster", "east"]).await.expect_err("its API is not east's");
    assert!(of_another.contains("this is the control plane of north"), "{of_another}");
    let long = north.weft(&["token", "north-1", "--namespace", "shop", "--ttl", "169h"]).await;
    let long = long.expect_err("nobody needs a token for so long");
    assert!(long.contains("a token lives from a second to 7 days, not 608400 s"), "{long}");
    let refused = north.refused(&token).await;
    assert!(refused.contains("the primary refused: this token was used before"), "{refused}");

    north.live().await;
    it_calls_the_others(&north).await;
    it_is_called_by_the_others(&north).await;
    it_obeys_the_next_commit(&north).await;

    // What it joined with is needed no more.
    fs::remove_file(north.file("join.token")).unwrap();
    north.mesh.end_beside(0).await;
    north.join();
    north.is_up().await;
    assert_eq!(north.reviews().await.unwrap().status, 403, "it goes on with what it had");
}

/// That it came too early does not use up the token.
async fn what_is_no_token_for_it_is_refused(north: &North, early: &str) {
    let of_a_workload = north.mesh.weft(&["token", "north-1", "--namespace", "shop"]).await;
    let of_another = north.join_token("south").await;
    let (payload, mac) = early.rsplit_once('.').unwrap();
    let forged = format!("{payload}.{}{}", if mac.starts_with('A') { 'B' } else { 'A' }, &mac[1..]);
    for (token, why) in [
        (of_a_workload.trim(), "this is not a token of this kind"),
        (&*of_another, "this join token is for cluster south"),
        (&*forged, "the primary refused: this token was not issued by this control plane"),
        (early, "cluster north is in no commit in force: commit a Cluster of that name first"),
    ] {
        let said = north.refused(token).await;
        assert!(said.contains(why), "{why}: {said}");
    }
    let names: Vec<_> = north.mesh.status("east").await.clusters.into_iter().map(|one| one.name).collect();
    assert_eq!(names.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["east", "west"]);
}

/// Its own version of the reviews, and those of which it has none.
async fn it_calls_the_others(north: &North) {
    let mut missing = vec![("v1", true), ("v2", false), ("v3", false)];
    eventually("north is served by itself and by the others", SOON, async || {
        let served = north.reviews().await?.served_by();
        let reviews = served.iter().find(|hop| hop.service == "reviews").ok_or(format!("{served:?}"))?;
        missing
            .retain(|(version, here)| *version != reviews.version || *here != (reviews.cluster == "north"));
        if missing.is_empty() { Ok(()) } else { Err(format!("last by {reviews:?}; missing {missing:?}")) }
    })
    .await;
}

async fn it_is_called_by_the_others(north: &North) {
    let mesh = &north.mesh;
    mesh.status_tells("east", "east counts what north offers", SOON, |status| {
        let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
        let wanted = |name: &str| east.services.iter().find(|one| one.service.to_string() == name);
        let reviews = wanted("shop/reviews-v1").ok_or("no reviews")?;
        let counted = reviews.endpoints.iter().find(|(cluster, _)| cluster.as_str() == "north");
        match counted {
            Some((_, count)) if (count.healthy, count.total) == (1, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for cluster in ["east", "west"] {
        let all = mesh.workloads(cluster, "reviews");
        all.iter().filter(|one| one.version == "v1").for_each(|one| mesh.kill(one.pid));
    }
    let ingress = mesh.ingress("west");
    eventually("north serves where west and east cannot", SOON, async || {
        let served = ingress.get("/reviews").await?.served_by();
        let is_north = |hop: &Hop| hop.service == "reviews" && hop.cluster == "north";
        if served.iter().any(is_north) { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
}

async fn it_obeys_the_next_commit(north: &North) {
    north.mesh.repository().write(CLOSED, &closed_to("front"));
    let commit = north.mesh.commit("reviews: closed").await;
    for _ in 0..20 {
        let answer = north.reviews().await.unwrap();
        assert_eq!(answer.status, 403, "after weft wait: {answer:?}");
    }
    eventually("north's own reviews have denied it by that commit", SOON, async || {
        let lines = logs::access(&north.dir.join("north-reviews-1"));
        let denied = lines.iter().rev().find(|line| line.get("status") == "403");
        let line = denied.ok_or(format!("{} lines", lines.len()))?;
        if line.get("policyCommit") == commit.id { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await;
}

/// A cluster on this machine that `weft up` knows nothing of.
struct North {
    mesh: Mesh,
    dir: PathBuf,
    /// The token that its last proxy has used.
    used: Option<String>,
}

impl North {
    const CONTROL: &str = "127.114.0.1";
    const ELSEWHERE: &str = "127.114.1.1";
    const GATEWAY: &str = "127.114.0.2";
    const REVIEWS: &str = "127.114.0.11";
    const FRONT: &str = "127.114.0.12";

    fn beside(mesh: Mesh) -> Self {
        let dir = mesh.dir().join("north");
        fs::create_dir_all(&dir).unwrap();
        North { mesh, dir, used: None }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What an operator gets at the primary.
    async fn join_token(&self, cluster: &str) -> String {
        self.mesh.weft(&["token", "--join", cluster]).await.trim().to_owned()
    }

    /// The line that makes it join, with its state in a directory below this one.
    fn line(&self, address: &str, state: &str) -> Vec<String> {
        let file = self.file("join.token");
        let primary = format!("127.{}.0.1:15013", self.mesh.block());
        let (file, state) = (file.display().to_string(), self.file(state).display().to_string());
        ["join", "--cluster", "north", "--primary", &primary, "--join-token-file", &file]
            .into_iter()
            .chain(["--address", address, "--region", "eu-north", "--zone", "a", "--dir", &state])
            .map(str::to_owned)
            .collect()
    }

    fn bring(&self, token: &str) {
        fs::write(self.file("join.token"), token).unwrap();
    }

    fn join(&mut self) {
        let line = self.line(North::CONTROL, "controlplane");
        self.mesh.beside(&line.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// What is said on another machine that may not join.
    async fn refused(&self, token: &str) -> String {
        self.bring(token);
        let line = self.line(North::ELSEWHERE, "elsewhere");
        let output = self.mesh.try_weft(&line.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }

    /// Runs `weft` with its own control plane.
    async fn weft(&self, args: &[&str]) -> Result<String, String> {
        let (api, token) =
            (format!("http://{}:15080", North::CONTROL), self.file("controlplane/admin.token"));
        let whose = ["--api", &api, "--token-file", token.to_str().unwrap()];
        let output = self.mesh.try_weft(&[&whose, args].concat()).await;
        let said = if output.status.success() { &output.stdout } else { &output.stderr };
        let said = String::from_utf8_lossy(said).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// As it knows the mesh itself.
    async fn status(&self) -> Result<Status, String> {
        let text = self.weft(&["status", "--output", "json"]).await?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// Waits until the primary tells that it is there and obeys; gives what is told.
    async fn is_up(&self) -> ClusterStatus {
        let told = eventually("the primary hears north", SOON, async || {
            let status = self.mesh.status("east").await;
            let north = status.clusters.into_iter().find(|one| one.name.as_str() == "north");
            let north = north.ok_or("north is not told")?;
            let is_well = north.away_since.is_none() && north.effective && north.commit == status.commit;
            if is_well { Ok(north) } else { Err(format!("{north:?}")) }
        })
        .await;
        let text = self.mesh.weft(&["status"]).await;
        let row = text.lines().find(|line| line.trim_start().starts_with("north "));
        assert!(row.is_some_and(|row| row.contains("remote") && row.contains(" up ")), "{text}");
        told
    }

    /// Starts its gateway, a version of the reviews, and a front that calls by its sidecar.
    async fn live(&mut self) {
        let gateway = format!("{}:15443", North::GATEWAY);
        let settings = json!({ "role": "east-west", "listen": gateway, "publicAddress": gateway });
        self.proxy("eastwest", "weft-system", "east-west", North::GATEWAY, settings).await;

        let app = format!("{}:8080", North::REVIEWS);
        let outbound = format!("http://{}:15001", North::REVIEWS);
        let reviews = ["sample-service", "--name", "reviews", "--cluster", "north"];
        let places = ["--listen", &app, "--proxy", &outbound];
        self.mesh.beside(&[&reviews[..], &places].concat());
        let apps = json!([{ "port": 8080, "address": app }]);
        self.proxy("reviews-1", "shop", "reviews", North::REVIEWS, sidecar(North::REVIEWS, apps)).await;
        self.proxy("front-1", "shop", "front", North::FRONT, sidecar(North::FRONT, json!([]))).await;
    }

    /// Starts a proxy with a token of its own control plane, and waits until it is ready. What stands in the file at first is
    /// what another one has used.
    async fn proxy(&mut self, name: &str, namespace: &str, account: &str, ip: &str, settings: Value) {
        let id = format!("north-{name}");
        let app = format!("app={account}");
        let what = ["token", &id, "--namespace", namespace, "--service-account", account];
        let labels = ["--label", &app, "--label", "version=v1"];
        let token = self.weft(&[&what[..], &labels].concat()).await.unwrap();
        let dir = self.file(&id);
        fs::create_dir_all(&dir).unwrap();
        let used = self.used.replace(token.clone());
        fs::write(dir.join("token"), used.as_ref().unwrap_or(&token)).unwrap();
        let mut config = json!({
            "workload": id, "stateDir": dir, "tokenFile": dir.join("token"), "source": ip, "zone": "a",
            "controlPlanes": [format!("{}:15012", North::CONTROL)], "admin": format!("{ip}:15000"),
            "accessLog": { "path": dir.join("access.log") }, "drainSeconds": 2,
        });
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        self.mesh.proxy_beside(&dir.join("config.json"));
        let admin = Client::new(&format!("{ip}:15000"));
        eventually(&format!("{id} tries"), SOON, async || admin.get("/ready").await).await;
        fs::write(dir.join("token"), token).unwrap();
        eventually(&format!("{id} is ready"), SOON, async || match admin.get("/ready").await?.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
    }

    /// What its front is answered.
    async fn reviews(&self) -> Result<Answer, String> {
        let outbound = Client::new(&format!("{}:15001", North::FRONT));
        outbound.send(request("GET", "http://reviews:8080/reviews", &[]), true).await
    }
}

fn sidecar(ip: &str, apps: Value) -> Value {
    let (inbound, outbound) = (format!("{ip}:15006"), format!("{ip}:15001"));
    json!({ "role": "sidecar", "inbound": inbound, "outbound": outbound, "apps": apps })
}
