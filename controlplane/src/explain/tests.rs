//! The sample configuration, explained.

use api::admin::{ExplainAnswer, ExplainRequest};

use super::explain;
use crate::snapshot::{
    Inputs, Role, build,
    fixture::{gateway, inputs, inputs_beside, knowing, living, workload},
};

/// East under `inputs`: callers of the ratings live there, and as many of their own as are named.
fn east(inputs: Inputs, ratings: &[&str]) -> Inputs {
    let callers = [workload("front-1", "front", "v1", 11), workload("reviews-1", "reviews", "v1", 12)];
    let own = ratings.iter().zip(20..).map(|(id, host)| workload(id, "ratings", "v1", host));
    let west = [workload("west-ratings-1", "ratings", "v1", 24), gateway("west-ew", Role::EastWest, 22)];
    let west = build(&living(crate::snapshot::fixture::inputs("west"), west)).catalogue();
    knowing(living(inputs, callers.into_iter().chain(own)), west)
}

fn ask(inputs: &Inputs, source: &str, path: &str) -> ExplainAnswer {
    let asked = ExplainRequest {
        source: source.into(),
        method: "GET".into(),
        host: "ratings:8080".into(),
        path: path.into(),
        ..ExplainRequest::default()
    };
    explain(&build(inputs), &asked).unwrap()
}

/// Each verdict in words.
fn verdicts(answer: &ExplainAnswer) -> Vec<String> {
    let said = answer.authorization.iter().map(|one| {
        let word = if one.allowed { "allow" } else { "deny" };
        format!("{word} at {} by {} {}", one.at, one.policy, one.rule)
    });
    said.collect()
}

/// Each priority: its share, and who is in it.
fn shares(answer: &ExplainAnswer) -> Vec<String> {
    let priorities = answer.backends.iter().flat_map(|backend| &backend.priorities);
    let told = priorities.map(|one| {
        let who: Vec<_> = one.endpoints.iter().map(|endpoint| endpoint.workload.as_str()).collect();
        format!("{}: {} % to {}", one.priority, one.load_percent, who.join(" "))
    });
    told.collect()
}

#[test]
fn what_another_cluster_alone_serves_is_judged_by_the_policies_there() {
    let alone = east(inputs("east"), &[]);
    let allowed = ask(&alone, "reviews-1", "/ratings");
    assert_eq!(shares(&allowed), ["0: 100 % to west-ratings-1"]);
    assert_eq!(allowed.backends[0].priorities[0].endpoints[0].via, ["127.1.0.22:15443"]);
    assert_eq!(verdicts(&allowed), ["allow at shop/ratings by shop/ratings-readers reviews-reads"]);
    let denied = ask(&alone, "front-1", "/stars");
    assert_eq!(
        (denied.status, verdicts(&denied)),
        (403, vec!["deny at shop/ratings by shop/ratings-readers no rule matched".to_owned()])
    );
}

/// A policy that denies all, in one cluster.
fn closed(cluster: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: closed, namespace: shop, labels: {{ weft.mesh/clusters: {cluster} }} }}\n\
         spec: {{ targetRefs: [{{ kind: Service, name: ratings }}], action: DENY, rules: [{{ name: all }}] }}\n"
    )
}

#[test]
fn a_policy_counts_where_it_is_placed() {
    let there = ask(&east(inputs_beside("east", &closed("west")), &[]), "reviews-1", "/ratings");
    assert_eq!(
        (there.status, verdicts(&there)),
        (403, vec!["deny at shop/ratings by shop/closed all".to_owned()])
    );
    let here = ask(&east(inputs_beside("east", &closed("east")), &[]), "reviews-1", "/ratings");
    assert_eq!((here.status, here.reason), (200, None));
}

fn distributed(east: u32, west: u32) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: spread, namespace: shop }}\n\
         spec:\n  targetRefs: [{{ kind: Service, name: ratings }}]\n  \
         locality: {{ distribute: [{{ from: eu-east, to: {{ eu-east: {east}, eu-west: {west} }} }}] }}\n"
    )
}

#[test]
fn a_distribution_shares_the_load_as_it_says() {
    let own = ["ratings-1", "ratings-2"];
    let plain = ask(&east(inputs("east"), &own), "reviews-1", "/ratings");
    assert_eq!(shares(&plain), ["0: 100 % to ratings-1 ratings-2", "1: 0 % to west-ratings-1"]);
    let spread = east(inputs_beside("east", &distributed(30, 70)), &own);
    assert_eq!(
        shares(&ask(&spread, "reviews-1", "/ratings")),
        ["0: 70 % to west-ratings-1", "1: 30 % to ratings-1 ratings-2"]
    );
    let even = east(inputs_beside("east", &distributed(50, 50)), &own);
    assert_eq!(
        shares(&ask(&even, "reviews-1", "/ratings")),
        ["0: 100 % to ratings-1 ratings-2 west-ratings-1"]
    );
}

#[test]
fn a_share_goes_to_the_others_when_nobody_there_is_healthy() {
    let mut spread = east(inputs_beside("east", &distributed(30, 70)), &["ratings-1"]);
    let mut workloads = (*spread.workloads).clone();
    for one in workloads.values_mut().filter(|one| one.workload.as_str() == "ratings-1") {
        one.app_ready = false;
    }
    spread.workloads = workloads.into();
    assert_eq!(
        shares(&ask(&spread, "reviews-1", "/ratings")),
        ["0: 100 % to west-ratings-1", "1: 0 % to ratings-1"]
    );
}

#[test]
fn what_a_policy_reads_and_nobody_said_is_told() {
    let policy = "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
                  metadata: { name: near, namespace: shop }\nspec:\n  action: DENY\n  \
                  targetRefs: [{ group: '', kind: Service, name: ratings }]\n  \
                  rules: [{ when: 'source.ip == \"10.0.0.1\" && request.method == \"PUT\"' }]\n";
    let asked = |inputs| ask(&east(inputs, &["ratings-1"]), "reviews-1", "/ratings").unknown;
    assert_eq!(asked(inputs("east")), Vec::<String>::new());
    assert_eq!(asked(inputs_beside("east", policy)), ["source.ip"]);
}

/// What is in force of this name, and who says it.
fn setting<'a>(answer: &'a ExplainAnswer, name: &str) -> (&'a str, &'a str) {
    let setting = &answer.settings[name];
    (&setting.value, &setting.origin)
}

#[test]
fn every_value_in_force_has_its_origin() {
    let more = "apiVersion: weft.mesh/v1alpha1
kind: PeerAuthentication
metadata: { name: scraped, namespace: shop }
spec: { selector: { matchLabels: { app: ratings } }, ports: [{ port: 8080, mtls: PERMISSIVE }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: ratings, namespace: shop }
spec:
  parentRefs: [{ group: '', kind: Service, name: ratings }]
  rules:
    - { name: short, timeouts: { request: 3s }, backendRefs: [{ name: ratings, port: 8080 }] }
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: ratings, namespace: shop }
spec: { targetRefs: [{ group: '', kind: Service, name: ratings }], limits: { requests: 9 } }
";
    let answer = ask(&east(inputs_beside("east", more), &["ratings-1"]), "reviews-1", "/ratings");
    assert_eq!(setting(&answer, "mtls"), ("PERMISSIVE", "PeerAuthentication shop/scraped, more.yaml:1"));
    let (timeouts, origin) = setting(&answer, "rule.timeouts");
    assert_eq!((timeouts, origin), (r#"{"request":"3s"}"#, "HTTPRoute shop/ratings, more.yaml:6"));
    assert_eq!(setting(&answer, "rule.retry"), ("none of its own", "default"));
    let (limits, origin) = setting(&answer, "limits");
    assert_eq!(origin, "TrafficPolicy shop/ratings, more.yaml:14");
    assert!(limits.contains(r#""requests":9"#), "{limits}");
    assert_eq!(setting(&answer, "defaultAuthorization"), ("ALLOW", "default"));
    assert_eq!(setting(&answer, "outbound"), ("ALLOW_ANY", "default"));
    assert_eq!(setting(&answer, "keepAlive").1, "default");
    assert!(setting(&answer, "loadBalancing").1.starts_with("TrafficPolicy shop/defaults, "));
    for name in ["certificates", "clusterLocalFailover", "pathNormalization", "unresolvedReferences", "retry"]
    {
        assert!(answer.settings.contains_key(name), "{name}");
    }
}

#[test]
fn backends_that_are_called_in_another_way_say_so() {
    let more = "apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: v2, namespace: shop }
spec: { targetRefs: [{ group: '', kind: Service, name: reviews-v2, sectionName: http }], limits: { requests: 9 } }
";
    let asked = ExplainRequest {
        source: "front-1".into(),
        method: "GET".into(),
        host: "reviews:8080".into(),
        path: "/reviews".into(),
        ..ExplainRequest::default()
    };
    let answer = explain(&build(&east(inputs_beside("east", more), &[])), &asked).unwrap();
    let limits: Vec<_> = answer.settings.keys().filter(|name| name.starts_with("limits")).collect();
    assert_eq!(limits, ["limits", "limits at shop/reviews-v2:8080"]);
}

#[test]
fn what_is_shown_stands_where_it_applies() {
    let routes = ["east", "west"].map(|cluster| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{ name: ratings, namespace: shop, labels: {{ weft.mesh/clusters: {cluster} }} }}\n\
             spec:\n  parentRefs: [{{ group: '', kind: Service, name: ratings }}]\n  \
             rules: [{{ name: {cluster}, backendRefs: [{{ name: ratings, port: 8080 }}] }}]\n"
        )
    });
    let west = inputs_beside("west", &routes.join("---\n"));
    let west =
        living(west, [workload("front-1", "front", "v1", 11), workload("ratings-1", "ratings", "v1", 20)]);
    let route = ask(&west, "front-1", "/ratings").route.unwrap();
    assert_eq!((route.rule.as_str(), route.line), ("west", 8));
}
