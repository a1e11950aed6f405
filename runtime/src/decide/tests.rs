//! What becomes of a request, one line a case.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use api::{delta::View, wire, wire::resource::Body};
use expect_test::{Expect, expect};
use http::HeaderMap;
use policies::facts::{Connection, Destination, Facts, Peer, Request, Source, canonical_authority};

use super::*;

/// A view with two services, a route, a gateway and two policies.
fn view(registry_only: bool, mtls: wire::MtlsMode) -> View {
    let mut view = View::default();
    let mut add = |name: &str, body: Body| view.insert(name, &wire::Resource { body: Some(body) });
    let bundle = br#"{"trust_domain":"shop.example","sequence":1,"roots":[],"clusters":{}}"#.to_vec();
    add("trust", Body::Trust(wire::Trust { bundle }));
    add(
        "mesh",
        Body::Mesh(wire::Mesh { trust_domain: "shop.example".into(), registry_only, ..Default::default() }),
    );
    add(
        "workload",
        Body::Workload(wire::Workload {
            id: "front-1".into(),
            namespace: "shop".into(),
            service_account: "front".into(),
            cluster: "east".into(),
            network: "east".into(),
            workload: "front-1".into(),
            trust_domain: "shop.example".into(),
            ports: vec![wire::InboundPort {
                port: 8080,
                address: "127.0.0.1:8080".into(),
                mtls: mtls.into(),
                policies: vec!["policy/shop/readers".into()],
                ..Default::default()
            }],
            ..Default::default()
        }),
    );
    add(
        "policy/shop/readers",
        Body::Policy(policy("readers", wire::Action::Allow, r#"request.method == "GET""#)),
    );
    add(
        "policy/shop/no-admin",
        Body::Policy(policy("no-admin", wire::Action::Deny, r#"request.path.startsWith("/admin")"#)),
    );
    for name in ["reviews", "reviews-v1"] {
        add(&format!("service/shop/{name}"), Body::Service(service(name)));
    }
    let endpoint = wire::Endpoint {
        id: "a".repeat(26),
        address: "10.0.0.7:15006".into(),
        port: 8080,
        network: "east".into(),
        ..Default::default()
    };
    add("endpoints/shop/reviews", Body::Endpoints(wire::Endpoints { endpoints: vec![endpoint] }));
    add(
        "routes/shop/reviews",
        Body::Routes(table(vec![
            rule("v1", "/v1", vec![backend("reviews-v1", "")]),
            rule("gone", "/gone", vec![backend("ghost", "Service shop/ghost does not exist")]),
            wire::Rule {
                filters: vec![to_root()],
                ..rule("stripped", "/strip", vec![backend("reviews", "")])
            },
            wire::Rule { filters: vec![redirect()], ..rule("moved", "/moved", vec![]) },
            rule("nobody", "/nobody", vec![]),
        ])),
    );
    add(
        "listener/weft-system/ingress/80",
        Body::Routes(wire::RouteTable {
            policies: vec!["policy/shop/no-admin".into()],
            ..table(vec![rule("all", "/", vec![backend("reviews", "")])])
        }),
    );
    view
}

fn policy(name: &str, action: wire::Action, when: &str) -> wire::Policy {
    let rules = vec![wire::PolicyRule { name: "only".into(), when: when.into() }];
    wire::Policy {
        namespace: "shop".into(),
        name: name.into(),
        action: action.into(),
        rules,
        commit: "c0ffee".into(),
        dry_run: false,
    }
}

fn service(name: &str) -> wire::Service {
    wire::Service {
        namespace: "shop".into(),
        name: name.into(),
        hosts: match name {
            "reviews" => [name, "reviews.shop.svc.cluster.local", "10.96.0.5", "[fd00:96::5]"]
                .map(str::to_owned)
                .into(),
            _ => vec![name.into(), format!("{name}.shop.svc.cluster.local")],
        },
        ports: vec![wire::ServicePort { port: 80, target: 8080, ..Default::default() }],
        traffic: Some(wire::TrafficPolicy::default()),
        ..Default::default()
    }
}

fn table(rules: Vec<wire::Rule>) -> wire::RouteTable {
    wire::RouteTable { hosts: vec![wire::VirtualHost { rules, ..Default::default() }], ..Default::default() }
}

fn rule(name: &str, prefix: &str, backends: Vec<wire::Backend>) -> wire::Rule {
    let matches =
        vec![wire::Match { path: Some(wire::r#match::Path::Prefix(prefix.into())), ..Default::default() }];
    wire::Rule {
        route: "HTTPRoute shop/r".into(),
        rule: name.into(),
        matches,
        backends,
        ..Default::default()
    }
}

fn backend(name: &str, unresolved: &str) -> wire::Backend {
    let unresolved = unresolved.to_owned();
    wire::Backend {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
        weight: 1,
        unresolved,
        filters: vec![],
    }
}

fn to_root() -> wire::Filter {
    let path = Some(wire::PathChange { change: Some(wire::path_change::Change::Prefix("/".into())) });
    let rewrite = wire::Rewrite { hostname: "inner.example".into(), path };
    wire::Filter { filter: Some(wire::filter::Filter::Rewrite(rewrite)) }
}

fn redirect() -> wire::Filter {
    let redirect = wire::Redirect { scheme: "https".into(), status: 301, ..Default::default() };
    wire::Filter { filter: Some(wire::filter::Filter::Redirect(redirect)) }
}

struct Case<'a> {
    at: At,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    peer: bool,
    /// Of a connection without a request: where it goes.
    address: Option<&'a str>,
}

const OUT: At = At::Outbound { known_absent: false };

fn asks<'a>(at: At, host: &'a str, path: &'a str) -> Case<'a> {
    Case { at, method: "GET", host, path, peer: true, address: None }
}

fn connects<'a>(at: At, address: &'a str) -> Case<'a> {
    Case { address: Some(address), ..asks(at, "", "") }
}

#[track_caller]
fn check(view: &View, case: Case<'_>, want: Expect) {
    want.assert_eq(&decided(view, case, told));
}

/// What `read` takes from what becomes of the request.
fn decided<T>(view: &View, case: Case<'_>, read: impl FnOnce(&Decision<'_>) -> T) -> T {
    let runtime = Runtime::compile(view, "c0ffee", None).expect("the fixture compiles");
    let headers = HeaderMap::new();
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let peer = Peer {
        trust_domain: "shop.example".parse().unwrap(),
        namespace: "shop".parse().unwrap(),
        service_account: "front".parse().unwrap(),
        cluster: "east".parse().unwrap(),
        principal: "spiffe://shop.example/ns/shop/sa/front".into(),
    };
    let host = canonical_authority(case.host);
    let facts = Facts {
        source: Source { peer: case.peer.then_some(&peer), address: nowhere },
        destination: Destination {
            guarded: &runtime.workload.guarded,
            address: case.address.map_or(nowhere, |address| address.parse().unwrap()),
        },
        request: case.address.is_none().then_some(Request {
            method: case.method,
            scheme: "http",
            host: &host,
            path: case.path,
            raw_path: case.path,
            query: "",
            protocol: "HTTP/1.1",
            id: "",
            headers: &headers,
            time: SystemTime::UNIX_EPOCH,
        }),
        connection: Connection::default(),
    };
    read(&runtime.decide(case.at, &facts, 0))
}

fn told(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Unknown { host } => format!("ask for {host}"),
        Decision::Answer { redirect, location, .. } => format!("{} {location}", redirect.status),
        Decision::Refuse(refusal) => {
            format!("{} {}: {}", refusal.status, refusal.flag.as_str(), refusal.reason)
        }
        Decision::Forward(plan) => {
            let target = match &plan.target {
                Target::Application(inbound) => format!("application {}", inbound.address),
                Target::Service { service, port, endpoint } => {
                    let only = endpoint.map(|only| format!(" at {only}")).unwrap_or_default();
                    format!("{} port {}{only}", service.name, port.target)
                }
                Target::Direct { host, port } => format!("direct {host}:{port}"),
            };
            let rule = plan.rule.map(|rule| format!(" by {}", rule.name)).unwrap_or_default();
            let path = plan.path.as_ref().map(|path| format!(" as {path}")).unwrap_or_default();
            let host = plan.host.map(|host| format!(" at {}", host.to_str().unwrap())).unwrap_or_default();
            format!("{target}{rule}{path}{host}")
        }
    }
}

#[test]
fn on_the_way_out() {
    let view = view(false, wire::MtlsMode::Strict);
    let absent = At::Outbound { known_absent: true };
    check(&view, asks(OUT, "reviews-v1", "/"), expect!["shop/reviews-v1 port 8080"]);
    check(&view, asks(OUT, "REVIEWS-v1:80", "/"), expect!["shop/reviews-v1 port 8080"]);
    check(&view, asks(OUT, "reviews-v1.shop.svc.cluster.local.", "/"), expect!["shop/reviews-v1 port 8080"]);
    check(&view, asks(OUT, "reviews-v1:81", "/"), expect!["502 no-backend: shop/reviews-v1 has no port 81"]);
    check(&view, asks(OUT, "nobody", "/"), expect!["ask for nobody"]);
    check(&view, asks(absent, "Example.org:8443", "/"), expect!["direct example.org:8443"]);
    check(&view, asks(OUT, "", "/"), expect!["400 bad-request: the request names no usable host"]);
    for host in ["reviews:x", "x@reviews", "reviews/x", "[reviews]", "reviews:80:80"] {
        check(&view, asks(OUT, host, "/"), expect!["400 bad-request: the request names no usable host"]);
    }
}

#[test]
fn by_the_address_alone() {
    let view = view(false, wire::MtlsMode::Strict);
    let absent = At::Outbound { known_absent: true };
    check(&view, connects(OUT, "10.96.0.5:80"), expect!["shop/reviews port 8080"]);
    check(&view, connects(OUT, "[fd00:96::5]:80"), expect!["shop/reviews port 8080"]);
    check(&view, connects(OUT, "10.96.0.5:81"), expect!["502 no-backend: shop/reviews has no port 81"]);
    check(
        &view,
        connects(OUT, "10.0.0.7:8080"),
        expect!["shop/reviews port 8080 at aaaaaaaaaaaaaaaaaaaaaaaaaa"],
    );
    // A known host's other ports are nobody's: there is nothing to ask for.
    check(&view, connects(OUT, "10.0.0.7:9000"), expect!["direct 10.0.0.7:9000"]);
    check(&view, connects(OUT, "10.0.0.8:8080"), expect!["ask for 10.0.0.8"]);
    check(&view, connects(absent, "10.0.0.8:8080"), expect!["direct 10.0.0.8:8080"]);
    check(&view, asks(OUT, "10.96.0.5", "/v1/x"), expect!["shop/reviews-v1 port 8080 by v1"]);
    check(
        &view,
        asks(OUT, "10.0.0.7:8080", "/v1/x"),
        expect!["shop/reviews port 8080 at aaaaaaaaaaaaaaaaaaaaaaaaaa"],
    );
}

#[test]
fn where_only_the_known_may_be_called() {
    let view = view(true, wire::MtlsMode::Strict);
    let absent = At::Outbound { known_absent: true };
    check(
        &view,
        asks(absent, "example.org", "/"),
        expect!["502 unknown-host: nobody in the mesh knows this host"],
    );
}

#[test]
fn by_the_routes_of_a_service() {
    let view = view(false, wire::MtlsMode::Strict);
    check(&view, asks(OUT, "reviews", "/v1/x"), expect!["shop/reviews-v1 port 8080 by v1"]);
    check(
        &view,
        asks(OUT, "reviews", "/strip/a"),
        expect!["shop/reviews port 8080 by stripped as /a at inner.example"],
    );
    check(&view, asks(OUT, "reviews", "/moved/b"), expect!["301 https://reviews/moved/b"]);
    check(&view, asks(OUT, "reviews", "/gone"), expect!["500 no-backend: Service shop/ghost does not exist"]);
    check(
        &view,
        asks(OUT, "reviews", "/nobody"),
        expect!["500 no-backend: the rule has no backend with weight"],
    );
    check(&view, asks(OUT, "reviews", "/"), expect!["404 no-route: no rule of the service's routes matches"]);
}

#[test]
fn a_port_that_no_route_is_attached_to_is_called_as_it_is() {
    let mut view = view(false, wire::MtlsMode::Strict);
    let two = wire::Service {
        ports: [80, 81].map(|port| wire::ServicePort { port, target: 8080, ..Default::default() }).into(),
        ..service("reviews")
    };
    view.insert("service/shop/reviews", &wire::Resource { body: Some(Body::Service(two)) });
    let only = wire::Rule { ports: vec![80], ..rule("v1", "/v1", vec![backend("reviews-v1", "")]) };
    view.insert("routes/shop/reviews", &wire::Resource { body: Some(Body::Routes(table(vec![only]))) });
    check(&view, asks(OUT, "reviews", "/v1/x"), expect!["shop/reviews-v1 port 8080 by v1"]);
    check(&view, asks(OUT, "reviews", "/"), expect!["404 no-route: no rule of the service's routes matches"]);
    check(&view, asks(OUT, "reviews:81", "/v1/x"), expect!["shop/reviews port 8080"]);
}

#[test]
fn on_the_way_in() {
    let strict = view(false, wire::MtlsMode::Strict);
    let at = At::Inbound { port: 8080 };
    check(&strict, asks(at, "front", "/"), expect!["application 127.0.0.1:8080"]);
    check(
        &strict,
        Case { method: "PUT", ..asks(at, "front", "/") },
        expect!["403 denied: deny by no rule of shop/readers"],
    );
    check(
        &strict,
        Case { peer: false, ..asks(at, "front", "/") },
        expect!["403 mtls-required: mTLS is STRICT here and the caller showed no certificate"],
    );
    check(
        &strict,
        asks(At::Inbound { port: 81 }, "front", "/"),
        expect!["404 no-route: this workload serves no such port"],
    );
    // DISABLE takes nothing away: who shows a certificate is heard, and known by it.
    for mode in [wire::MtlsMode::Permissive, wire::MtlsMode::Disable] {
        let open = view(false, mode);
        for peer in [false, true] {
            check(&open, Case { peer, ..asks(at, "front", "/") }, expect!["application 127.0.0.1:8080"]);
        }
    }
    // A mode that nobody said is the strict one.
    let unsaid = view(false, wire::MtlsMode::MtlsUnspecified);
    check(
        &unsaid,
        Case { peer: false, ..asks(at, "front", "/") },
        expect!["403 mtls-required: mTLS is STRICT here and the caller showed no certificate"],
    );
}

#[test]
fn at_a_gateway() {
    let view = view(false, wire::MtlsMode::Strict);
    let at = At::Gateway { port: 80 };
    check(&view, asks(at, "shop.example", "/x"), expect!["shop/reviews port 8080 by all"]);
    check(&view, asks(at, "shop.example", "/admin"), expect!["403 denied: deny by shop/no-admin rule only"]);
    check(
        &view,
        asks(At::Gateway { port: 81 }, "shop.example", "/"),
        expect!["404 no-route: the gateway has no listener at this port"],
    );
}

fn put(view: &mut View, name: &str, body: Body) {
    view.insert(name, &wire::Resource { body: Some(body) });
}

#[test]
fn nobody_takes_a_workloads_address() {
    let mut view = view(false, wire::MtlsMode::Strict);
    let endpoint = |id: String, address: &str, mtls| wire::Endpoint {
        id,
        address: address.into(),
        port: 8080,
        network: "east".into(),
        mtls,
        ..Default::default()
    };
    let slice = endpoint(format!("{}a", "b".repeat(25)), "10.0.0.7:8080", false);
    put(&mut view, "endpoints/shop/a-slice", Body::Endpoints(wire::Endpoints { endpoints: vec![slice] }));
    put(&mut view, "service/shop/a-slice", Body::Service(service("a-slice")));
    let claimed = wire::Service { hosts: vec!["10.0.0.7".into()], ..service("virtual") };
    put(&mut view, "service/shop/virtual", Body::Service(claimed));
    check(&view, connects(OUT, "10.0.0.7:80"), expect!["shop/virtual port 8080"]);

    let own = endpoint("a".repeat(26), "10.0.0.7:15006", true);
    put(&mut view, "endpoints/shop/reviews", Body::Endpoints(wire::Endpoints { endpoints: vec![own] }));
    let reviews = || expect!["shop/reviews port 8080 at aaaaaaaaaaaaaaaaaaaaaaaaaa"];
    check(&view, connects(OUT, "10.0.0.7:8080"), reviews());
    check(&view, asks(OUT, "10.0.0.7:8080", "/"), reviews());
    check(&view, connects(OUT, "10.0.0.7:80"), expect!["direct 10.0.0.7:80"]);
}

#[test]
fn a_timeout_of_zero_switches_the_services_off() {
    let mut view = view(false, wire::MtlsMode::Strict);
    let timeouts = Some(wire::Timeouts { request_ms: 1000, ..Default::default() });
    let traffic = Some(wire::TrafficPolicy { timeouts, ..Default::default() });
    put(&mut view, "service/shop/reviews", Body::Service(wire::Service { traffic, ..service("reviews") }));
    let mut times = |request_timeout_ms, backend_timeout_ms| {
        let rule = wire::Rule {
            request_timeout_ms,
            backend_timeout_ms,
            ..rule("all", "/", vec![backend("reviews", "")])
        };
        put(&mut view, "routes/shop/reviews", Body::Routes(table(vec![rule])));
        decided(&view, asks(OUT, "reviews", "/"), |decision| match decision {
            Decision::Forward(plan) => (plan.request_timeout, plan.backend_timeout),
            other => panic!("{other:?}"),
        })
    };
    let ms = |ms| Some(Duration::from_millis(ms));
    assert_eq!(times(None, None), (ms(1000), None));
    assert_eq!(times(Some(0), Some(0)), (None, None));
    assert_eq!(times(Some(2000), Some(5)), (ms(2000), ms(5)));
}

/// A gateway with these policies at its listener and at its only route.
fn guarded(default_deny: bool, listener: &[&str], route: &[&str]) -> View {
    let mut view = view(false, wire::MtlsMode::Strict);
    let mesh = wire::Mesh { trust_domain: "shop.example".into(), default_deny, ..Default::default() };
    put(&mut view, "mesh", Body::Mesh(mesh));
    let writers = policy("writers", wire::Action::Allow, r#"request.method == "PUT""#);
    put(&mut view, "policy/shop/writers", Body::Policy(writers));
    put(&mut view, "policy/shop/seen", Body::Policy(policy("seen", wire::Action::Audit, "")));
    let trial = wire::Policy { dry_run: true, ..policy("trial", wire::Action::Deny, "") };
    put(&mut view, "policy/shop/trial", Body::Policy(trial));
    let policies =
        |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("policy/shop/{name}")).collect() };
    let mut rules = vec![
        rule("shop", "/shop", vec![backend("reviews", "")]),
        rule("ghost", "/shop/ghost", vec![backend("ghost", "Service shop/ghost does not exist")]),
        wire::Rule { filters: vec![redirect()], ..rule("moved", "/shop/moved", vec![]) },
    ];
    rules.iter_mut().for_each(|rule| rule.policies = policies(route));
    let table = wire::RouteTable { policies: policies(listener), ..table(rules) };
    put(&mut view, "listener/weft-system/ingress/80", Body::Routes(table));
    view
}

#[test]
fn a_route_and_its_listener_are_guarded_as_one() {
    let at = At::Gateway { port: 80 };
    let asks = |method, path| Case { method, ..asks(at, "shop.example", path) };
    let open = || expect!["shop/reviews port 8080 by shop"];

    let by_route = guarded(true, &[], &["readers"]);
    check(&by_route, asks("GET", "/shop"), open());
    check(&by_route, asks("PUT", "/shop"), expect!["403 denied: deny by no rule of shop/readers"]);
    check(&by_route, asks("GET", "/"), expect!["403 denied: deny by default"]);

    let by_both = guarded(true, &["readers", "no-admin"], &["writers"]);
    check(&by_both, asks("GET", "/shop"), open());
    check(&by_both, asks("PUT", "/shop"), open());
    check(
        &by_both,
        asks("POST", "/shop"),
        expect!["403 denied: deny by no rule of shop/readers, shop/writers"],
    );
    check(&by_both, asks("GET", "/admin"), expect!["403 denied: deny by shop/no-admin rule only"]);
    check(&by_both, asks("PUT", "/"), expect!["403 denied: deny by no rule of shop/readers"]);
    check(&by_both, asks("GET", "/"), expect!["404 no-route: no route of this gateway matches"]);
}

#[test]
fn what_is_noted_at_a_gateway_is_told_whatever_becomes_of_the_request() {
    let noted = |listener: &[&str], route: &[&str], path| {
        let view = guarded(false, listener, route);
        decided(&view, asks(At::Gateway { port: 80 }, "shop.example", path), |decision| {
            let judgement = match decision {
                Decision::Forward(plan) => plan.judgement.as_ref(),
                Decision::Answer { judgement, .. } => judgement.as_ref(),
                Decision::Refuse(refusal) => refusal.judgement.as_ref(),
                Decision::Unknown { .. } => None,
            };
            let judgement = judgement.expect("a gateway judges");
            let all = judgement.audits.iter().chain(&judgement.dry_runs).map(ToString::to_string);
            all.collect::<Vec<_>>().join(", ")
        })
    };
    for path in ["/shop", "/shop/ghost", "/shop/moved"] {
        let both = "shop/seen rule only, shop/trial rule only";
        assert_eq!(noted(&["seen"], &["trial"], path), both, "{path}");
        assert_eq!(noted(&["trial"], &["seen"], path), both, "{path}");
        assert_eq!(noted(&["seen", "trial"], &["readers"], path), both, "{path}");
    }
    assert_eq!(noted(&["seen"], &["trial"], "/"), "shop/seen rule only");
}

#[test]
fn a_redirect_leads_to_the_listeners_port() {
    let mut view = view(false, wire::MtlsMode::Strict);
    let moved = |scheme: &str, port| {
        let redirect = wire::Redirect { scheme: scheme.into(), port, status: 301, ..Default::default() };
        let filter = wire::Filter { filter: Some(wire::filter::Filter::Redirect(redirect)) };
        table(vec![wire::Rule { filters: vec![filter], ..rule("moved", "/", vec![]) }])
    };
    let mut at = |listener: u16, scheme: &str, said: u32, want: Expect| {
        let name = format!("listener/weft-system/ingress/{listener}");
        put(&mut view, &name, Body::Routes(moved(scheme, said)));
        check(&view, asks(At::Gateway { port: listener }, "shop.example:31000", "/x"), want);
    };
    at(80, "", 0, expect!["301 http://shop.example/x"]);
    at(8080, "", 0, expect!["301 http://shop.example:8080/x"]);
    at(8080, "https", 0, expect!["301 https://shop.example/x"]);
    at(8080, "", 9000, expect!["301 http://shop.example:9000/x"]);
}

#[test]
fn a_view_that_does_not_hold_is_refused_whole_with_every_reason() {
    let compile = |change: &dyn Fn(&mut View)| {
        let mut view = view(false, wire::MtlsMode::Strict);
        change(&mut view);
        let reasons = Runtime::compile(&view, "c0ffee", None).expect_err("it must not compile");
        reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    expect!["workload: `policy/shop/readers` guards it and is missing from the view"]
        .assert_eq(&compile(&|view| drop(view.items.remove("policy/shop/readers"))));
    expect!["mesh: missing from the view"].assert_eq(&compile(&|view| drop(view.items.remove("mesh"))));
    expect!["policy/shop/a: unknown name `nope`; policy/shop/b: a policy without an action"].assert_eq(
        &compile(&|view| {
            let bad = policy("a", wire::Action::Allow, "nope");
            view.insert("policy/shop/a", &wire::Resource { body: Some(Body::Policy(bad)) });
            let none = policy("b", wire::Action::Unspecified, "");
            view.insert("policy/shop/b", &wire::Resource { body: Some(Body::Policy(none)) });
        }),
    );
    expect!["mesh: needs level 2, this proxy understands 1: upgrade the proxy"].assert_eq(&compile(
        &|view| {
            let mut items: BTreeMap<_, _> = std::mem::take(&mut view.items);
            items.get_mut("mesh").unwrap().level = wire::LEVEL + 1;
            view.items = items;
        },
    ));
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let before = Runtime::compile(&view(false, wire::MtlsMode::Strict), "one", None).unwrap();
    let after = Runtime::compile(&view(true, wire::MtlsMode::Strict), "two", Some(&before)).unwrap();
    let name = "shop/reviews".parse().unwrap();
    assert!(std::sync::Arc::ptr_eq(before.service(&name).unwrap(), after.service(&name).unwrap()));
    assert!(after.mesh.registry_only);
}
