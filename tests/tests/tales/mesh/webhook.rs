//! A server says by a webhook that somebody has pushed, and a moment later both clusters obey.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use weft_tests::harness::{
    Mesh, Prober, eventually,
    git::{HttpBackend, Origin},
    prober::last_otherwise,
    shop::{CLOSED, closed_to},
    webhook::{self, Kind},
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);
/// From the return of `git push` until no probe is judged by the commit before.
const EFFECTIVE_WITHIN: Duration = Duration::from_secs(1);
/// Of each kind of webhook.
const PUSHES: usize = 3;
const PROBES_PER_SECOND: u32 = 100;
/// Probes of each cluster in a row that have to agree before the next push.
const AGREEING: usize = 5;
/// Longer than the test: nobody looks after the server by the clock.
const POLL_SECONDS: u32 = 3600;
const GIT: &str = "127.113.0.1";
const SECRET: &str = "between the server and the primary";

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_in_force_in_both_clusters_within_a_second_of_its_webhook() {
    let pushed = Pushed::up().await;
    let probers = ["east", "west"]
        .map(|cluster| Prober::start(cluster, &pushed.mesh.cluster(cluster).ingress, PROBES_PER_SECOND));
    let mut slowest = Duration::ZERO;
    for n in 0..PUSHES * Kind::ALL.len() {
        let (who, status) = [("front", 403), ("nobody", 200)][n % 2];
        let returned = pushed.push(who).await;
        assert_eq!(pushed.webhook(Kind::ALL[n % Kind::ALL.len()], SECRET).await, 202);
        for prober in &probers {
            agree(prober, status, returned).await;
            slowest = slowest.max(last_otherwise(&prober.probes(), returned, status));
        }
    }
    println!("effective: the last old decision was begun {slowest:?} after `git push` returned");
    assert!(slowest < EFFECTIVE_WITHIN, "a probe was judged by the old commit after {slowest:?}");

    // The last one closed it. Neither a push alone nor a webhook of somebody else's is heard.
    let returned = pushed.push("nobody").await;
    for kind in Kind::ALL {
        assert_eq!(pushed.webhook(kind, "of somebody else").await, 401, "{kind:?}");
    }
    for prober in &probers {
        for probe in prober.after(returned, 2 * PROBES_PER_SECOND as usize).await {
            assert_eq!(probe.status, 403, "nobody has told of it: {probe:?}");
        }
    }
    pushed.webhook(Kind::GitHub, SECRET).await;
    for prober in &probers {
        agree(prober, 200, Instant::now()).await;
    }
    pushed.mesh.weft(&["wait", "HEAD", "--timeout", "10s"]).await;
}

/// A mesh that is ruled from a server.
struct Pushed {
    mesh: Mesh,
    server: HttpBackend,
    _holder: TempDir,
}

impl Pushed {
    /// The shop's repository moves to a server, which the primary asks when it is told to, and hardly ever else.
    async fn up() -> Self {
        let (mesh, holder) = (Mesh::up(&BLOCKS, &[]).await, tempfile::tempdir().unwrap());
        let origin = Origin::below(holder.path());
        origin.make("config", &[]);
        let server = HttpBackend::start(GIT, &origin.root, None).await;
        let pushed = Pushed { mesh, server, _holder: holder };
        pushed.push("nobody").await;

        let mesh = &pushed.mesh;
        let secret = mesh.dir().join("webhook.secret");
        fs::write(&secret, SECRET).unwrap();
        mesh.weft(&["controlplane", "stop", "east"]).await;
        let file = mesh.dir().join("east/controlplane/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["source"] = json!({
            "repository": pushed.server.url("config"), "pollSeconds": POLL_SECONDS, "webhookSecretFile": secret,
        });
        fs::write(&file, config.to_string()).unwrap();
        mesh.weft(&["controlplane", "start", "east"]).await;
        mesh.weft(&["wait", "HEAD", "--timeout", "40s"]).await;
        pushed
    }

    /// Closes the reviews to somebody, as a person would: by a commit and `git push`. Gives when that returned.
    async fn push(&self, closed_to_whom: &str) -> Instant {
        let (repository, url) = (self.mesh.repository(), self.server.url("config"));
        repository.write(CLOSED, &closed_to(closed_to_whom));
        repository.commit(&format!("reviews: closed to {closed_to_whom}")).await;
        let push = move || repository.git(&["push", "--quiet", &url, "HEAD:main"]);
        tokio::task::spawn_blocking(push).await.expect("git is installed");
        Instant::now()
    }

    async fn webhook(&self, kind: Kind, secret: &str) -> u16 {
        webhook::post(kind, &format!("127.{}.0.1:15017", self.mesh.block()), secret).await
    }
}

/// Waits until the last probes that were begun after `from` all had this answer.
async fn agree(prober: &Prober, status: u16, from: Instant) {
    eventually(&format!("the reviews answer with {status}"), SOON, async || {
        let probes: Vec<_> = prober.probes().into_iter().filter(|probe| probe.began > from).collect();
        let last: Vec<_> = probes.iter().rev().take(AGREEING).map(|probe| probe.status).collect();
        if last == [status; AGREEING] { Ok(()) } else { Err(format!("{last:?}")) }
    })
    .await;
}
