//! `weft explain` held against what really happens: the same generated requests are explained and sent, and the
//! proxies' access logs have to tell the story that was foretold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use api::admin::{ExplainAnswer, ExplainRequest};
use serde_json::Value;

use super::{Client, Mesh, client, eventually, logs};

/// A request of the generated kind.
#[derive(Debug, Clone)]
pub struct Asked {
    cluster: &'static str,
    /// A workload's id, or `ingress`.
    source: String,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    canary: bool,
}

/// Asks for `count` requests what would happen, sends them, and compares. Gives how many of each status there were.
///
/// # Panics
/// When one differs, or they are too few to tell anything: some have to be allowed where they arrive, and some denied.
pub async fn hold(mesh: &Mesh, count: u64) -> BTreeMap<u16, u32> {
    let mut statuses = BTreeMap::new();
    // What was foretold where a callee was reached.
    let mut judged = BTreeSet::new();
    for n in 0..count {
        let asked = generate(n);
        let (foretold, seen) = (explain(mesh, &asked).await, send(mesh, &asked, n).await);
        compare(mesh, &asked, &foretold, &seen);
        *statuses.entry(foretold.status).or_default() += 1;
        judged.extend(seen.callee.map(|_| foretold.status));
    }
    assert!(judged.is_superset(&[200, 403].into()), "callees were compared for {judged:?} alone");
    statuses
}

/// The n-th of a fixed sequence that mixes everything with everything (a linear congruential generator).
fn generate(n: u64) -> Asked {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66;
    let mut pick = |from: &[&'static str]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(state >> 33) as usize % from.len()]
    };
    let cluster = pick(&["east", "west"]);
    let role = pick(&["front-1", "front-2", "reviews-v2-1", "catalogue-1", "ratings-2", "ingress"]);
    let method = pick(&["GET", "GET", "GET", "POST", "DELETE"]);
    let canary = pick(&["yes", "no", "no"]) == "yes";
    if role == "ingress" {
        let path = pick(&["/", "/catalogue", "/reviews", "/ratings"]);
        return Asked { cluster, source: role.to_owned(), method: "GET", host: "shop.example", path, canary };
    }
    let (host, path) = match pick(&["reviews", "reviews", "catalogue", "ratings", "front", "v1", "no port"]) {
        "reviews" => {
            (pick(&["reviews:8080", "reviews.shop:8080", "reviews.shop.svc.cluster.local:8080"]), "/reviews")
        }
        "catalogue" => ("catalogue:8080", pick(&["/catalogue", "/catalogue/weaving?full=1"])),
        "ratings" => ("ratings:8080", pick(&["/ratings", "/stars"])),
        "front" => ("front:8080", "/"),
        "v1" => ("reviews-v1:8080", "/reviews"),
        _ => ("ratings:9090", "/ratings"),
    };
    Asked { cluster, source: format!("{cluster}-{role}"), method, host, path, canary }
}

async fn explain(mesh: &Mesh, asked: &Asked) -> ExplainAnswer {
    let headers = if asked.canary { vec![("x-canary".to_owned(), "true".to_owned())] } else { Vec::new() };
    let request = ExplainRequest {
        cluster: None,
        source: asked.source.clone(),
        method: asked.method.to_owned(),
        host: asked.host.to_owned(),
        path: asked.path.to_owned(),
        headers: headers.into_iter().collect(),
    };
    mesh.ask(asked.cluster, "/explain", &request).await
}

/// What the caller's proxy wrote, and what the first workload called wrote if it was reached.
struct Seen {
    caller: logs::Line,
    callee: Option<logs::Line>,
}

async fn send(mesh: &Mesh, asked: &Asked, n: u64) -> Seen {
    let id = format!("explained-{}-{n}", asked.cluster);
    let mut headers = vec![("x-request-id", id.as_str())];
    if asked.canary {
        headers.push(("x-canary", "true"));
    }
    let (client, uri, proxy) = if asked.source == "ingress" {
        headers.push(("host", asked.host));
        (mesh.ingress(asked.cluster), asked.path.to_owned(), mesh.dir().join(asked.cluster).join("ingress"))
    } else {
        let workload = mesh.workload(&asked.source);
        let uri = format!("http://{}{}", asked.host, asked.path);
        (Client::new(&workload.outbound), uri, workload.dir.join("sidecar"))
    };
    client.send(client::request(asked.method, &uri, &headers), true).await.expect("an answer");
    let direction = if asked.source == "ingress" { "ingress" } else { "outbound" };
    let wanted = |line: &logs::Line, direction: &str| {
        line.get("requestId") == id
            && line.get("direction") == direction
            && line.get("path") == path_of(asked)
    };
    let caller = eventually("the caller's proxy logs the request", Duration::from_secs(5), async || {
        let lines = logs::access(&proxy);
        lines.into_iter().rev().find(|line| wanted(line, direction)).ok_or(format!("{asked:?}"))
    })
    .await;
    let endpoint = caller.get("endpoint");
    if endpoint.is_empty() {
        return Seen { caller, callee: None };
    }
    let sidecar = mesh.workload(&endpoint).dir.join("sidecar");
    let callee = eventually("the callee's proxy logs the request", Duration::from_secs(5), async || {
        let lines = logs::access(&sidecar);
        lines.into_iter().rev().find(|line| wanted(line, "inbound")).ok_or(format!("{asked:?} at {endpoint}"))
    })
    .await;
    Seen { caller, callee: Some(callee) }
}

fn path_of(asked: &Asked) -> &str {
    asked.path.split('?').next().unwrap_or_default()
}

fn compare(mesh: &Mesh, asked: &Asked, foretold: &ExplainAnswer, seen: &Seen) {
    let context =
        || format!("{asked:?}\nforetold {foretold:#?}\ncaller {}\ncallee {:?}", seen.caller.0, seen.callee);
    let equal =
        |what: &str, foretold: &str, seen: &str| assert_eq!(foretold, seen, "{what} of {}", context());
    equal("status", &foretold.status.to_string(), &seen.caller.get("status"));
    equal("commit", foretold.commit.as_deref().unwrap_or_default(), &seen.caller.get("commit"));
    let route = foretold.route.as_ref();
    equal("route", route.map_or("", |route| &route.route), &seen.caller.get("route"));
    equal("rule of the route", route.map_or("", |route| &route.rule), &seen.caller.get("rule"));
    equal("commit of the route", route.map_or("", |route| &route.commit), &seen.caller.get("routeCommit"));
    if let Some(route) = route {
        let name = route.route.rsplit('/').next().unwrap_or_default();
        assert!(
            stands(mesh, &route.file, route.line, name, &route.rule),
            "place of the route: {}",
            context()
        );
    }
    let endpoint = seen.caller.get("endpoint");
    if !endpoint.is_empty() {
        let priorities = foretold.backends.iter().flat_map(|backend| &backend.priorities);
        let levels: Vec<_> = priorities
            .filter(|level| level.endpoints.iter().any(|one| one.workload == endpoint))
            .map(|level| level.priority.to_string())
            .collect();
        assert!(levels.contains(&seen.caller.get("priority")), "priority of {}", context());
    }
    let Some(callee) = &seen.callee else { return };
    // A caller of the mesh is judged where it arrives.
    let verdict = foretold.authorization.iter().rfind(|verdict| verdict.at != "ingress");
    let policy = callee.get("policy");
    let verdict = verdict.unwrap_or_else(|| panic!("no verdict was foretold: {}", context()));
    equal("policy", &verdict.policy, &policy);
    assert_eq!(verdict.allowed, callee.get("status") != "403", "verdict of {}", context());
    let rule = if verdict.rule == "no rule matched" { "" } else { &verdict.rule };
    equal("rule of the policy", rule, &callee.get("policyRule"));
    equal("commit of the policy", &verdict.commit, &callee.get("policyCommit"));
    let name = policy.rsplit('/').next().unwrap_or_default();
    assert!(stands(mesh, &verdict.file, verdict.line, name, rule), "place of the policy: {}", context());
}

/// Whether this line holds the rule, and its document the object of this name. `rule` is empty when none is meant.
fn stands(mesh: &Mesh, file: &str, line: u32, name: &str, rule: &str) -> bool {
    let text = fs::read_to_string(mesh.repository().path().join(file)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = (line as usize).checked_sub(1).filter(|at| *at < lines.len()) else { return false };
    let begin = lines[..at].iter().rposition(|line| *line == "---").unwrap_or(0);
    let end = lines[at..].iter().position(|line| *line == "---").map_or(lines.len(), |n| at + n);
    let called = |line: &str, name: &str| {
        ["", ",", " }"].iter().any(|after| line.trim_end().ends_with(&format!("name: {name}{after}")))
            || line.contains(&format!("name: {name},"))
    };
    let document = lines[begin..end].iter().any(|line| called(line, name));
    document && (rule.is_empty() || called(lines[at], rule))
}

/// For reports.
pub fn told(statuses: &BTreeMap<u16, u32>) -> Value {
    serde_json::to_value(statuses).unwrap_or_default()
}
