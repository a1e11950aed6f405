//! Precedence, hosts, weights and prefixes, as tables.

use http::HeaderName;
use wire::r#match::Path;

use super::*;

fn rule(name: &str, matches: Vec<wire::Match>) -> wire::Rule {
    wire::Rule { route: "HTTPRoute a/b".into(), rule: name.into(), matches, ..Default::default() }
}

fn path(path: Path) -> wire::Match {
    wire::Match { path: Some(path), ..Default::default() }
}

fn exact(name: &str, value: &str) -> wire::KeyMatch {
    wire::KeyMatch { name: name.into(), value: Some(wire::key_match::Value::Exact(value.into())) }
}

#[track_caller]
fn check(table: &Table, host: &str, target: &str, headers: &[(&'static str, &str)], want: Option<&str>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: HeaderMap =
        headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect();
    let subject = Subject { host, port: 80, method: "GET", path, query, headers: &headers };
    assert_eq!(table.find(&subject).map(|(rule, _)| &*rule.name), want, "{host}{target}");
}

#[test]
fn precedence_is_that_of_the_gateway_api() {
    let rules = vec![
        rule("any", vec![]),
        rule("prefix", vec![path(Path::Prefix("/a".into()))]),
        rule("long", vec![path(Path::Prefix("/a/b".into()))]),
        rule("exact", vec![path(Path::Exact("/a/b/c".into()))]),
        rule(
            "header",
            vec![wire::Match { headers: vec![exact("x-user", "jo")], ..path(Path::Prefix("/a".into())) }],
        ),
        rule(
            "query",
            vec![wire::Match { query: vec![exact("v", "2 3")], ..path(Path::Prefix("/a".into())) }],
        ),
    ];
    let table = wire::RouteTable {
        hosts: vec![wire::VirtualHost { rules, ..Default::default() }],
        ..Default::default()
    };
    let table = Table::compile(table).unwrap();
    check(&table, "h", "/", &[], Some("any"));
    check(&table, "h", "/ab", &[], Some("any"));
    check(&table, "h", "/a", &[], Some("prefix"));
    check(&table, "h", "/a/b/x", &[], Some("long"));
    check(&table, "h", "/a/b/c", &[], Some("exact"));
    check(&table, "h", "/a", &[("x-user", "jo")], Some("header"));
    check(&table, "h", "/a?v=2+3&v=4", &[], Some("query"));
    check(&table, "h", "/a?w=2", &[], Some("prefix"));
}

#[test]
fn the_closest_host_wins() {
    let host = |pattern: &str, name: &str| wire::VirtualHost {
        hosts: if pattern.is_empty() { vec![] } else { vec![pattern.into()] },
        rules: vec![rule(name, vec![])],
        ..Default::default()
    };
    let hosts = vec![
        host("", "any"),
        host("*.example", "wild"),
        host("*.shop.example", "closer"),
        host("a.shop.example", "exact"),
    ];
    let table = Table::compile(wire::RouteTable { hosts, ..Default::default() }).unwrap();
    check(&table, "other", "/", &[], Some("any"));
    check(&table, "x.example", "/", &[], Some("wild"));
    check(&table, "example", "/", &[], Some("any"));
    check(&table, "b.shop.example", "/", &[], Some("closer"));
    check(&table, "a.shop.example", "/", &[], Some("exact"));
}

#[test]
fn the_closest_listener_takes_a_request_and_none_but_its_routes() {
    let host = |listener: &str, pattern: &str, rules| wire::VirtualHost {
        listener: listener.into(),
        hosts: vec![pattern.into()],
        rules,
    };
    let only = |name: &str, prefix: &str| vec![rule(name, vec![path(Path::Prefix(prefix.into()))])];
    let hosts = vec![
        host("a.example", "a.example", only("own", "/own")),
        host("*.shop.example", "*.shop.example", vec![]),
        host("", "a.example", only("rest", "/")),
        host("", "b.shop.example", only("rest", "/")),
        host("", "b.example", only("rest", "/")),
    ];
    let table = Table::compile(wire::RouteTable { hosts, ..Default::default() }).unwrap();
    check(&table, "a.example", "/own", &[], Some("own"));
    check(&table, "a.example", "/x", &[], None);
    check(&table, "b.shop.example", "/x", &[], None);
    check(&table, "b.example", "/x", &[], Some("rest"));
}

#[test]
fn weights_split_and_prefixes_are_replaced() {
    let backend = |name: &str, weight| wire::Backend {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
        weight,
        ..Default::default()
    };
    let split = Split::compile(&[backend("v1", 9), backend("v2", 0), backend("v3", 1)]).unwrap();
    let taken =
        |name: &str| (0..100).filter(|c| split.choose(*c).unwrap().service.name.as_str() == name).count();
    assert_eq!([taken("v1"), taken("v2"), taken("v3")], [90, 0, 10]);
    assert!(Split::default().choose(7).is_none());

    let prefix = PathChange::Prefix("/bar".into());
    assert_eq!(prefix.apply("/foo/x", Some("/foo")), "/bar/x");
    assert_eq!(prefix.apply("/foo", Some("/foo")), "/bar");
    assert_eq!(PathChange::Prefix("/".into()).apply("/foo", Some("/foo")), "/");
    assert_eq!(PathChange::Prefix("/".into()).apply("/foo/x", Some("/foo")), "/x");
}
