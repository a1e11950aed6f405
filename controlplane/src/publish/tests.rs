//! What the publisher promises, one source's word after the other.

use api::admin::Severity;
use tempfile::TempDir;

use super::*;
use crate::{
    config::Duty,
    git::{Checkout, File},
    plane::fixture,
    store::{Embedded, Store},
};

const MESH: &str = "apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: shop.example }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: east }
spec: { network: east, namespaces: [shop] }
";

/// The publisher of a primary whose sources are `platform`, which owns the rest, and `shop`.
struct Desk {
    publisher: Publisher,
    plane: Arc<Plane>,
    accepted: Arc<Accepted>,
    election: Election,
    _home: TempDir,
}

impl Desk {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (plane, _) = fixture::primary(home.path(), false).await;
        let Duty::Primary { ownership, .. } = &plane.config.duty else { unreachable!("it is a primary") };
        let accepted = Arc::<Accepted>::default();
        Desk {
            publisher: Publisher::new(plane.clone(), ownership.clone(), accepted.clone()),
            accepted,
            election: plane.store.campaign().await.unwrap(),
            plane,
            _home: home,
        }
    }

    /// One with a mesh in force, by commit 1 of `platform`, that says this too.
    async fn with_mesh(more: &str) -> Self {
        let mut desk = Desk::new().await;
        desk.hears("platform", '1', &format!("{MESH}{more}"));
        desk.publishes().await;
        desk
    }

    /// A source is at the commit whose name is this digit, over and over, and says this.
    fn hears(&mut self, source: &str, digit: char, text: &str) {
        self.publisher.hear(Tree::read(&Checkout {
            source: source.parse().unwrap(),
            commit: String::from_iter([digit; 40]).parse().unwrap(),
            files: vec![File { path: "a.yaml".into(), text: Arc::from(text) }],
            refusals: vec![],
            author: "Ada <ada@shop.example>".into(),
            time: 0,
            subject: "a change".into(),
            rewrote: false,
        }));
    }

    async fn publishes(&mut self) {
        self.publisher.publish(&self.election).await.unwrap();
    }

    /// What the control plane obeys: the digit of each source's commit, and how many objects there are.
    fn in_force(&self) -> (String, usize) {
        let configuration = self.plane.configuration.borrow();
        let known = self.plane.commits.borrow();
        let digits = known.published.last().map(|last| last.commits.clone()).unwrap_or_default();
        let digit = |(source, commit): &(SourceName, CommitId)| format!("{source}@{}", &commit.as_str()[..1]);
        let commits: Vec<_> = digits.iter().map(digit).collect();
        (commits.join(" "), configuration.objects.len())
    }

    /// The newest commit of a source, its state, and all that is wrong with it.
    fn newest(&self, source: &str) -> (char, CommitState, Vec<Problem>) {
        let known = self.plane.commits.borrow();
        let last = known.sources[source].commits.back().unwrap();
        let problems = last.errors.iter().chain(&last.warnings).cloned().collect();
        (last.commit.chars().next().unwrap(), last.state, problems)
    }

    /// All that was told so far.
    fn told(&self) -> Vec<String> {
        self.plane.events.list().into_iter().map(|event| event.message).collect()
    }

    async fn head(&self) -> Option<Seq> {
        self.plane.store.head().await.unwrap().map(|head| head.head().seq())
    }
}

/// A Service of the shop's.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ selector: {{ app: {name} }}, ports: [{{ port: 80 }}] }}\n---\n"
    )
}

/// A policy of platform's at it.
fn traffic(service: &str) -> String {
    format!(
        "---\napiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: calm, namespace: weft-system }}\n\
         spec:\n  targetRefs: [{{ group: \"\", kind: Service, name: {service}, namespace: shop }}]\n"
    )
}

#[tokio::test]
async fn nothing_is_in_force_before_there_is_a_mesh() {
    let mut desk = Desk::new().await;
    desk.hears("shop", '1', &service("reviews"));
    desk.publishes().await;
    assert_eq!((desk.in_force(), desk.head().await), ((String::new(), 0), None));
    assert_eq!(desk.newest("shop").1, CommitState::Refused);
    // It is judged again as soon as there is one, and comes into force with it.
    desk.hears("platform", '1', MESH);
    desk.publishes().await;
    assert_eq!(desk.in_force(), ("platform@1 shop@1".into(), 3));
    assert_eq!(desk.newest("shop").1, CommitState::Rolling);
}

#[tokio::test]
async fn a_source_that_is_refused_keeps_its_last_good_tree_and_holds_up_nobody() {
    let mut desk = Desk::with_mesh("").await;
    desk.hears("shop", '1', &service("reviews"));
    desk.publishes().await;
    desk.hears("shop", '2', &service("reviews").replace("port: 80", "port: many"));
    desk.hears("platform", '2', &MESH.replace("namespaces: [shop]", "namespaces: [shop, till]"));
    desk.publishes().await;
    assert_eq!(desk.in_force(), ("platform@2 shop@1".into(), 3));
    let (digit, state, problems) = desk.newest("shop");
    assert_eq!((digit, state, problems.len()), ('2', CommitState::Refused, 1));
    // It is told once, however often all is brought again.
    let told = desk.told();
    assert!(told.last().unwrap().starts_with("refused: a.yaml:4:"), "{told:?}");
    desk.publisher.begin();
    desk.publishes().await;
    assert_eq!(desk.told(), told);
}

#[tokio::test]
async fn what_two_sources_say_of_each_other_comes_into_force_at_once() {
    let mut desk = Desk::with_mesh("").await;
    desk.hears("shop", '1', &service("reviews"));
    desk.publishes().await;
    let before = desk.head().await.unwrap();
    desk.hears("platform", '2', &format!("{MESH}{}", traffic("ratings")));
    desk.hears("shop", '2', &format!("{}{}", service("reviews"), service("ratings")));
    desk.publishes().await;
    assert_eq!(desk.in_force(), ("platform@2 shop@2".into(), 5));
    assert_eq!(desk.head().await.unwrap().n, before.n + 1, "by one step of the head");
    // What the other relies on now cannot be taken from it.
    desk.hears("shop", '3', &service("reviews"));
    desk.publishes().await;
    assert_eq!(
        (desk.in_force().0.as_str(), desk.newest("shop").1),
        ("platform@2 shop@2", CommitState::Refused)
    );
}

#[tokio::test]
async fn a_commit_that_removes_most_of_its_source_waits_for_an_operator() {
    let mut desk = Desk::with_mesh("").await;
    let services: String = (0..LARGE).map(|n| service(&format!("s{n}"))).collect();
    desk.hears("shop", '1', &services);
    desk.publishes().await;
    desk.hears("shop", '2', &service("s0"));
    desk.publishes().await;
    assert_eq!((desk.in_force().1, desk.newest("shop").1), (2 + LARGE, CommitState::Held));
    desk.accepted.accept("2".repeat(40));
    desk.publishes().await;
    assert_eq!((desk.in_force().1, desk.newest("shop").1), (3, CommitState::Rolling));
}

#[tokio::test]
async fn what_a_commit_is_warned_of_stands_beside_it_and_is_told_once() {
    let lenient = MESH.replace("shop.example }", "shop.example, unresolvedReferences: REPORT }");
    let mut desk = Desk::new().await;
    desk.hears("shop", '1', &service("reviews"));
    desk.hears("platform", '1', &lenient);
    desk.publishes().await;
    let quiet = desk.told().len();
    desk.hears("platform", '2', &format!("{lenient}{}", traffic("review")));
    desk.publishes().await;
    assert_eq!(desk.in_force().0, "platform@2 shop@1");
    let (digit, state, problems) = desk.newest("platform");
    assert_eq!((digit, state), ('2', CommitState::Rolling));
    let told: Vec<_> = problems.iter().map(|one| (one.severity, one.message.as_str())).collect();
    assert_eq!(told, [(Severity::Warning, "there is no Service `shop/review`")]);
    let told = desk.told();
    assert_eq!(
        told[quiet..],
        ["taken with warnings: a.yaml:15:50: warning: there is no Service `shop/review`"]
    );
    desk.publisher.begin();
    desk.publishes().await;
    assert_eq!(desk.told(), told);
    assert_eq!(desk.newest("platform").2, problems);
}

#[tokio::test]
async fn the_trust_domain_and_the_roots_life_stay_what_they_were() {
    let mut desk = Desk::with_mesh("").await;
    for (change, line) in [
        ("trustDomain: bank.example }", "the trust domain is `shop.example`"),
        ("trustDomain: shop.example, certificates: { root: 8760h } }", "the root was made to live 87600h"),
    ] {
        desk.hears("platform", '2', &MESH.replace("trustDomain: shop.example }", change));
        desk.publishes().await;
        let (_, state, problems) = desk.newest("platform");
        assert_eq!(state, CommitState::Refused);
        assert!(problems[0].message.starts_with(line), "{problems:?}");
        assert_eq!(desk.in_force().0, "platform@1");
    }
}

#[tokio::test]
async fn what_was_accepted_and_could_not_be_published_is_brought_again() {
    let mut desk = Desk::with_mesh("").await;
    desk.hears("shop", '1', &service("reviews"));
    // The second leadership of another store, where this one is in its first.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Embedded::open(elsewhere.path()).unwrap();
    drop(other.campaign().await.unwrap());
    let stale = other.campaign().await.unwrap();
    let failed = desk.publisher.publish(&stale).await.unwrap_err();
    assert!(failed.starts_with("accepted, and not yet in force: "), "{failed}");
    assert_eq!(desk.in_force(), ("platform@1".into(), 2));
    desk.publishes().await;
    assert_eq!(desk.in_force(), ("platform@1 shop@1".into(), 3));
}

#[tokio::test]
async fn a_commit_that_changes_nothing_moves_no_head_and_one_that_is_returned_to_is_in_force_again() {
    let mut desk = Desk::with_mesh("").await;
    let first = desk.head().await;
    desk.publishes().await;
    desk.publisher.begin();
    desk.publishes().await;
    assert_eq!(desk.head().await, first);
    desk.hears("platform", '2', &MESH.replace("namespaces: [shop]", "namespaces: [shop, till]"));
    desk.publishes().await;
    let second = desk.head().await;
    assert!(second > first);
    desk.hears("platform", '1', MESH);
    desk.publishes().await;
    assert!(desk.head().await > second);
    assert_eq!((desk.in_force().0.as_str(), desk.newest("platform").0), ("platform@1", '1'));
}

#[test]
fn an_epoch_is_new_wherever_the_clock_is() {
    let known = Some(Seq { epoch: 1_000, n: 7 });
    assert_eq!(new_epoch(2.0, None), 2_000);
    assert_eq!(new_epoch(2.0, known), 2_000);
    for now in [0.0, 0.999, 1.0] {
        assert_eq!(new_epoch(now, known), 1_001);
    }
}
