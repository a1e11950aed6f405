//! A link between two clusters on which one of them is heard no more: each goes on with what it has, and says so.

use std::time::Duration;

use api::admin::ClusterStatus;
use weft_tests::{
    harness::eventually,
    lab::{
        Host, Mesh, SOON, answers,
        mesh::{CLUSTERS, Workload, control, name_yourself},
    },
};

/// Until a side that hears nothing holds the other one to be away: the keep-alive of the link, and what it takes to say it.
const NOTICED: Duration = Duration::from_secs(30);
/// Requests that have to agree on what rules.
const REQUESTS: usize = 20;

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
kind: AuthorizationPolicy
metadata: { name: closed, namespace: shop }
spec:
  targetRefs: [{ group: \"\", kind: Service, name: echo }]
  action: DENY
  rules: [{ name: to-callers, when: 'source.serviceAccount == \"nobody\"' }]
";

#[tokio::test]
async fn a_link_on_which_one_side_is_unheard_changes_nothing_until_it_heals() {
    let mut mesh = Mesh::up(SHOP).await;
    for cluster in CLUSTERS {
        let echo = Workload::of("echo").serving(8080);
        mesh.workload(cluster, &echo, |host| name_yourself(host, 8080)).await;
        let front = mesh.workload(cluster, &Workload::of("front"), |_| {}).await;
        answers(&format!("{cluster}-echo-1"), async || ask(&mesh.lab[&front]).await).await;
    }
    let fronts = CLUSTERS.map(|cluster| &mesh.lab[&format!("{cluster}-front-1")]);
    let (east, west) = (control("east"), control("west"));

    // First the remote does not hear the primary, then the primary does not hear the remote.
    for (unheard, before, after) in [("primary", "nobody", "front"), ("remote", "front", "nobody")] {
        let cut = mesh.lab.partition(&east, &west);
        let cut = if unheard == "primary" { cut.one_way().drop() } else { cut.other_way().drop() };
        tells(&mesh, "east", "west is away", |west| west.away_since.is_some()).await;
        tells(&mesh, "west", "its primary is away", |west| west.primary_away_since.is_some()).await;
        let text = mesh.weft(&["status"]).await;
        let row = text.lines().find(|line| line.trim_start().starts_with("west "));
        assert!(row.is_some_and(|row| row.contains("away for")), "{unheard} is unheard: {text}");

        // A commit rules where it arrives. The other one is told to lag, and goes on by the one before.
        mesh.repository().edit("shop.yaml", &format!("\"{before}\""), &format!("\"{after}\""));
        mesh.repository().commit(&format!("Close it to {after}")).await;
        let lagging = mesh.try_weft(&["wait", "HEAD", "--timeout", "5s"]).await.unwrap_err();
        let west = lagging.lines().find(|line| line.trim_start().starts_with("west"));
        assert!(west.is_some_and(|line| line.contains("partitioned")), "{lagging}");
        assert!(!lagging.lines().any(|line| line.trim_start().starts_with("east")), "{lagging}");
        rules(fronts[0], after).await;
        rules(fronts[1], before).await;

        cut.heal();
        tells(&mesh, "east", "west is back", |west| west.away_since.is_none()).await;
        tells(&mesh, "west", "its primary is back", |west| west.primary_away_since.is_none()).await;
        mesh.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
        for front in fronts {
            rules(front, after).await;
        }
    }
}

async fn ask(front: &Host) -> Result<String, String> {
    front.call("http://echo.shop.svc.clusterset.local:8080/").await
}

/// What a front is answered by its own cluster, which is closed to the front or to nobody.
async fn rules(front: &Host, closed_to: &str) {
    let own = front.name().replace("front", "echo");
    for _ in 0..REQUESTS {
        match ask(front).await {
            Ok(who) => assert_eq!((who, closed_to), (own.clone(), "nobody")),
            Err(why) => assert!(closed_to == "front" && why.starts_with("403"), "{}: {why}", front.name()),
        }
    }
}

/// Waits until a cluster's control plane says so of west.
async fn tells(mesh: &Mesh, cluster: &str, what: &str, wished: impl Fn(&ClusterStatus) -> bool) {
    eventually(&format!("{cluster} says that {what}"), NOTICED.max(SOON), async || {
        let status = mesh.status(cluster).await?;
        let west = status.clusters.into_iter().find(|one| one.name.as_str() == "west").ok_or("no west")?;
        if wished(&west) {
            Ok(())
        } else {
            Err(format!("{:?}, {:?}", west.away_since, west.primary_away_since))
        }
    })
    .await;
}
