//! Several sources: each rules its own namespaces, and one that is refused or away holds up nobody.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use api::admin::{CommitState, SourceStatus, Status};
use serde_json::json;
use weft_tests::harness::{
    Mesh, Prober, Repository, eventually,
    git::{HttpBackend, Origin},
    logs,
    prober::Probe,
    shop::{CLOSED, closed_to},
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);
const PROBES_PER_SECOND: u32 = 50;
/// Probes that have to agree.
const AGREEING: usize = 5;
const GIT: &str = "127.112.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_split_and_each_half_rules_its_own() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let prober = Prober::start("east", &mesh.cluster("east").ingress, PROBES_PER_SECOND);
    mesh.repository().write(CLOSED, &closed_to("front"));
    mesh.commit("reviews: closed").await;
    let closed = Instant::now();

    // The shop's half moves to a server, which is away when the control plane first asks it.
    let holder = tempfile::tempdir().unwrap();
    let origin = Origin::below(holder.path());
    origin.make("shop", &[]);
    let moved = move_shop(&mesh.repository(), &origin);
    let mut server = HttpBackend::start(GIT, &origin.root, None).await;
    server.stop().await;
    mesh.weft(&["controlplane", "stop", "east"]).await;
    follow_both(&mesh, &server.url("shop"));
    let platform = mesh.repository().commit("the shop speaks for itself").await;
    mesh.weft(&["controlplane", "start", "east"]).await;
    mesh.weft(&["wait", "HEAD", "--timeout", "40s"]).await;
    let status = mesh.status("east").await;
    assert_eq!(source(&status, "platform").commit.as_deref(), Some(platform.id.as_str()));
    shop_is_away_at(&mesh, None).await;
    all_are(403, &prober.after(Instant::now(), AGREEING).await, "what is in force of the shop stays");

    the_platform_may_not_speak_for_the_shop(&mesh).await;

    server.start_again().await;
    mesh.weft(&["wait", &moved, "--timeout", "40s"]).await;
    let text = mesh.weft(&["status"]).await;
    let title = format!("source shop (owns shop), with {} in force", &moved[..7]);
    assert!(text.contains(&title) && text.contains("source platform (owns the rest), with "), "{text}");

    a_mistake_of_the_shop_holds_up_nobody(&mesh, &origin).await;
    all_are(403, &prober.after(Instant::now(), AGREEING).await, "the shop's last good commit stays");

    what_the_shop_relies_on_stays_until_it_lets_go(&mesh, &origin).await;

    let closed_again = closed_while_a_primary_dies(&mesh, &origin, &mut server).await;
    all_are(403, &prober.after(Instant::now(), AGREEING).await, "in force by the stored head");
    eventually("the log names the source and its commit", SOON, async || {
        let reviews = mesh.workloads("east", "reviews");
        let lines = reviews.iter().flat_map(|one| logs::access(&one.dir.join("sidecar")));
        let commits: Vec<_> = lines
            .filter(|line| line.get("policy") == "shop/closed")
            .map(|line| line.get("policyCommit"))
            .collect();
        let named = commits.iter().any(|one| *one == format!("shop@{closed_again}"));
        if named { Ok(()) } else { Err(format!("{:?}", commits.last())) }
    })
    .await;
    let explained = mesh.weft(&["explain", "--from", "shop/front", "GET", "reviews:8080", "/reviews"]).await;
    assert!(explained.contains(&format!("shop@{}", &closed_again[..7])), "{explained}");

    let opening = Instant::now();
    let opened = origin.push("shop", CLOSED, &closed_to("nobody"));
    mesh.weft(&["wait", &opened, "--timeout", "30s"]).await;
    all_are(200, &prober.after(Instant::now(), AGREEING).await, "the shop has opened");
    let shut: Vec<_> =
        prober.probes().into_iter().filter(|probe| (closed..opening).contains(&probe.began)).collect();
    all_are(403, &shut, "nothing opened a door before");
}

fn all_are(status: u16, probes: &[Probe], why: &str) {
    assert!(!probes.is_empty());
    for probe in probes {
        assert_eq!(probe.status, status, "{why}: {probe:?}");
    }
}

fn source<'a>(status: &'a Status, name: &str) -> &'a SourceStatus {
    status.sources.iter().find(|one| one.name.as_str() == name).expect("it is followed")
}

/// Takes what is said in namespace `shop` out of the repository, and pushes it to one of its own; gives the commit.
fn move_shop(repository: &Repository, origin: &Origin) -> String {
    let shop = Repository::at(&origin.root.join("shop"));
    for file in repository.git(&["ls-files", "*.yaml"]).lines() {
        let text = repository.read(file);
        let (own, rest): (Vec<_>, Vec<_>) =
            text.split("\n---\n").partition(|document| document.contains("namespace: shop"));
        if !own.is_empty() {
            shop.write(file, &own.join("\n---\n"));
            repository.write(file, &rest.join("\n---\n"));
        }
    }
    origin.push("shop", CLOSED, &closed_to("front"))
}

/// Tells the primary to follow both repositories.
fn follow_both(mesh: &Mesh, shop: &str) {
    let path = mesh.dir().join("east/controlplane/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("source");
    config["sources"] = json!([
        { "name": "platform", "repository": mesh.repository().path() },
        { "name": "shop", "repository": shop, "namespaces": ["shop"], "pollSeconds": 1 },
    ]);
    fs::write(Path::new(&path), config.to_string()).unwrap();
}

async fn the_platform_may_not_speak_for_the_shop(mesh: &Mesh) {
    mesh.repository().write("more.yaml", &closed_to("nobody"));
    mesh.repository().commit("reviews: open, says the platform").await;
    let waited = mesh.try_weft(&["wait", "HEAD", "--timeout", "20s"]).await;
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(!waited.status.success(), "{said}");
    assert!(said.contains("more.yaml:3:38: namespace `shop` is owned by source `shop`"), "{said}");
    fs::remove_file(mesh.repository().path().join("more.yaml")).unwrap();
    mesh.commit("and takes it back").await;
}

async fn a_mistake_of_the_shop_holds_up_nobody(mesh: &Mesh, origin: &Origin) {
    let good = source(&mesh.status("east").await, "shop").commit.clone();
    let bad = origin.push("shop", CLOSED, &closed_to("front").replace("serviceAccount", "serviceAcount"));
    let waited = mesh.try_weft(&["wait", &bad, "--timeout", "20s"]).await;
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(!waited.status.success() && said.contains(&format!("{CLOSED}:9:")), "{said}");

    mesh.repository().edit("mesh.yaml", "leaf: 24h", "leaf: 12h");
    let platform = mesh.commit("shorter leaves").await;
    let status = mesh.status("east").await;
    assert_eq!(source(&status, "platform").commit.as_deref(), Some(platform.id.as_str()));
    let shop = source(&status, "shop");
    assert_eq!(shop.commit, good);
    let refused = shop.commits.iter().find(|one| one.commit == bad).expect("the refused commit is told");
    assert_eq!((refused.state, refused.errors[0].line), (CommitState::Refused, 9), "{refused:?}");
    assert!(
        status.commit.is_some_and(|all| all == format!("platform@{} shop@{}", platform.id, good.unwrap()))
    );
    let healed = origin.push("shop", CLOSED, &closed_to("front"));
    mesh.weft(&["wait", &healed, "--timeout", "30s"]).await;
}

async fn what_the_shop_relies_on_stays_until_it_lets_go(mesh: &Mesh, origin: &Origin) {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: other }}\n\
             spec: {{ selector: {{ app: {name} }}, ports: [{{ name: http, port: 8080 }}] }}\n"
        )
    };
    let relies_on = |name: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: calm, namespace: shop }}\n\
             spec:\n  targetRefs: [{{ group: \"\", kind: Service, name: {name}, namespace: other }}]\n"
        )
    };
    mesh.repository().write("other.yaml", &format!("{}---\n{}", service("old"), service("new")));
    mesh.commit("two services of another namespace").await;
    let relying = origin.push("shop", "traffic/other.yaml", &relies_on("old"));
    mesh.weft(&["wait", &relying, "--timeout", "30s"]).await;

    mesh.repository().write("other.yaml", &service("new"));
    let taken_away = mesh.repository().commit("the old one goes").await;
    let waited = mesh.try_weft(&["wait", "HEAD", "--timeout", "20s"]).await;
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(!waited.status.success(), "{said}");
    assert!(said.contains("source shop: traffic/other.yaml:5:50: there is no Service `other/old`"), "{said}");

    // Nobody pushes it again.
    let lets_go = origin.push("shop", "traffic/other.yaml", &relies_on("new"));
    mesh.weft(&["wait", &lets_go, "--timeout", "30s"]).await;
    mesh.status_tells("east", "what was refused is in force", SOON, |status| {
        let platform = source(status, "platform");
        let is_so = platform.commit.as_ref() == Some(&taken_away.id);
        if is_so { Ok(()) } else { Err(format!("{platform:?}")) }
    })
    .await;
}

/// The shop says the same in another commit. Then its server is away and the primary is killed: both commits stay in
/// force, and the platform's next one comes to be.
async fn closed_while_a_primary_dies(mesh: &Mesh, origin: &Origin, server: &mut HttpBackend) -> String {
    let closed = origin.push("shop", CLOSED, &closed_to("front").replace("to-callers", "to-all"));
    mesh.weft(&["wait", &closed, "--timeout", "30s"]).await;
    server.stop().await;
    mesh.kill(mesh.cluster("east").controlplane_pid);
    mesh.repository().edit("mesh.yaml", "leaf: 12h", "leaf: 24h");
    mesh.repository().commit("while the primary is dead").await;
    mesh.weft(&["controlplane", "start", "east"]).await;
    mesh.weft(&["wait", "HEAD", "--timeout", "40s"]).await;
    mesh.weft(&["wait", &closed, "--timeout", "30s"]).await;
    shop_is_away_at(mesh, Some(&closed)).await;
    server.start_again().await;
    closed
}

/// Waits until the shop's source is told to be away, with this commit in force.
async fn shop_is_away_at(mesh: &Mesh, commit: Option<&str>) {
    mesh.status_tells("east", "the shop's source is away", SOON, |status| {
        let shop = source(status, "shop");
        let is_so = shop.commit.as_deref() == commit && shop.trouble_since.is_some();
        if is_so { Ok(()) } else { Err(format!("{shop:?}")) }
    })
    .await;
}
