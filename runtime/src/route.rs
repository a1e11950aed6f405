//! Routes compiled: matches in the order of the Gateway API's precedence, filters ready to be applied.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use api::{name::ServiceName, wire};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use policies::Authorizer;
use regex::Regex;

use crate::compile::{Fault, positive};

/// Rules in the order in which they are tried, for the hosts that they are for.
#[derive(Debug)]
pub struct Table {
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Host {
    patterns: Vec<String>,
    rules: Vec<Rule>,
    /// Each match of each rule, with the rule's place. Invariant: sorted by precedence.
    candidates: Vec<(Match, usize)>,
}

/// What is done with the requests that match.
#[derive(Debug)]
pub struct Rule {
    /// `HTTPRoute ns/name`.
    pub route: Arc<str>,
    /// Its name or index.
    pub name: Arc<str>,
    /// The commit that last changed the route.
    pub commit: Arc<str>,
    /// Changes that hold for every backend.
    pub filters: Filters,
    /// Who answers, by weight.
    pub split: Split,
    /// For the whole exchange.
    pub request_timeout: Option<Duration>,
    /// For one try.
    pub backend_timeout: Option<Duration>,
    /// What differs from the service's retry.
    pub retry: Option<wire::RouteRetry>,
    /// Names of the policies attached to the route.
    pub policies: Vec<String>,
    /// The judge of the policies attached to the route or its listener; filled in by the runtime.
    pub(crate) authorizer: Option<Arc<Authorizer>>,
    ports: Vec<u16>,
}

/// Backends with their weights. Invariant: `total` is the sum of the weights.
#[derive(Debug, Default)]
pub struct Split {
    backends: Vec<Backend>,
    total: u64,
}

/// One backend of a rule.
#[derive(Debug)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Changes for this backend alone.
    pub filters: Filters,
    /// Why it cannot be reached by configuration: 500 for its share.
    pub unresolved: Option<String>,
    /// Its weight.
    pub weight: u32,
}

/// What is changed on the way.
#[derive(Debug, Default, Clone)]
pub struct Filters {
    /// On the request.
    pub request_headers: Vec<HeaderChange>,
    /// On the response.
    pub response_headers: Vec<HeaderChange>,
    /// Answered at once.
    pub redirect: Option<Redirect>,
    /// Host and path towards the backend.
    pub rewrite: Option<Rewrite>,
}

/// One step in changing headers.
#[derive(Debug, Clone)]
pub enum HeaderChange {
    /// Replaces all values.
    Set(HeaderName, HeaderValue),
    /// Adds to those there.
    Add(HeaderName, HeaderValue),
    /// Takes all away.
    Remove(HeaderName),
}

impl HeaderChange {
    /// Does it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            HeaderChange::Set(name, value) => drop(headers.insert(name, value.clone())),
            HeaderChange::Add(name, value) => drop(headers.append(name, value.clone())),
            HeaderChange::Remove(name) => drop(headers.remove(name)),
        }
    }
}

/// How a path changes.
#[derive(Debug, Clone)]
pub enum PathChange {
    /// To this one.
    Full(String),
    /// The prefix that matched becomes this.
    Prefix(String),
}

impl PathChange {
    /// The path after the change; `matched` is the prefix that the rule matched by.
    pub fn apply(&self, path: &str, matched: Option<&str>) -> String {
        match self {
            PathChange::Full(full) => full.clone(),
            PathChange::Prefix(new) => {
                let rest = matched.and_then(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
                let joined = format!("{}/{}", new.trim_end_matches('/'), rest.trim_start_matches('/'));
                // `/foo` replaced by `/bar` keeps `/foo` → `/bar`, not `/bar/` (GEP-726).
                if rest.is_empty() && joined.len() > 1 {
                    joined.trim_end_matches('/').to_owned()
                } else {
                    joined
                }
            }
        }
    }
}

/// A redirect, with what is not said left as the request has it.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
    /// The port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What the backend sees instead.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// The host.
    pub hostname: Option<HeaderValue>,
    /// The path.
    pub path: Option<PathChange>,
}

/// What of a request a route may look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// In lower case, without port.
    pub host: &'a str,
    /// The port of the service that was addressed (mesh), or of the listener (gateway).
    pub port: u16,
    /// The method.
    pub method: &'a str,
    /// Normalised.
    pub path: &'a str,
    /// Without `?`.
    pub query: &'a str,
    /// All of them.
    pub headers: &'a HeaderMap,
}

impl Table {
    /// Reads a table, sorted by precedence.
    pub(crate) fn compile(table: wire::RouteTable) -> Result<Self, Fault> {
        let hosts = table.hosts.into_iter().map(Host::compile).collect::<Result<_, _>>()?;
        Ok(Table { hosts })
    }

    /// Every service that its rules may call.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.rules().flat_map(|rule| rule.split.backends.iter())
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.hosts.iter().flat_map(|host| &host.rules)
    }

    /// Gives each rule its judge.
    pub(crate) fn authorize(
        &mut self,
        mut judge: impl FnMut(&[String]) -> Result<Option<Arc<Authorizer>>, Fault>,
    ) -> Result<(), Fault> {
        for rule in self.hosts.iter_mut().flat_map(|host| &mut host.rules) {
            rule.authorizer = judge(&rule.policies)?;
        }
        Ok(())
    }

    /// The rule for a request and the prefix that it matched by; `None` when nothing matches.
    pub fn find(&self, subject: &Subject<'_>) -> Option<(&Rule, Option<&str>)> {
        self.hosts
            .iter()
            .filter_map(|host| host.specificity(subject.host).map(|rank| (rank, host)))
            .filter_map(|(rank, host)| host.find(subject).map(|found| (rank, found)))
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, found)| found)
    }
}

impl Host {
    fn compile(host: wire::VirtualHost) -> Result<Self, Fault> {
        let rules = host.rules.iter().map(Rule::compile).collect::<Result<_, _>>()?;
        let mut candidates = Vec::new();
        for (place, rule) in host.rules.into_iter().enumerate() {
            let everything = rule.matches.is_empty().then(wire::Match::default);
            for one in rule.matches.into_iter().chain(everything) {
                candidates.push((Match::compile(one)?, place));
            }
        }
        // Stable: ties keep the order in which the control plane sent them.
        candidates.sort_by_key(|(one, _)| one.precedence());
        Ok(Host { patterns: host.hosts, rules, candidates })
    }

    /// How closely this host's patterns fit: `None` when not at all, exact above any wildcard.
    fn specificity(&self, host: &str) -> Option<usize> {
        if self.patterns.is_empty() {
            return Some(0);
        }
        self.patterns.iter().filter_map(|pattern| fits(pattern, host)).max()
    }

    fn find(&self, subject: &Subject<'_>) -> Option<(&Rule, Option<&str>)> {
        self.candidates.iter().find_map(|(one, place)| {
            let rule = &self.rules[*place];
            let holds = (rule.ports.is_empty() || rule.ports.contains(&subject.port)) && one.holds(subject);
            holds.then(|| (rule, one.prefix()))
        })
    }
}

fn fits(pattern: &str, host: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        None if pattern == host => Some(usize::MAX),
        None => None,
        // `*.example` stands for at least one label more (Gateway API, Hostname).
        Some(suffix) if host.len() > suffix.len() && host.ends_with(suffix) => Some(pattern.len()),
        Some(_) => None,
    }
}

impl Rule {
    fn compile(rule: &wire::Rule) -> Result<Self, Fault> {
        Ok(Rule {
            route: rule.route.as_str().into(),
            name: rule.rule.as_str().into(),
            commit: rule.commit.as_str().into(),
            filters: Filters::compile(&rule.filters)?,
            split: Split::compile(&rule.backends)?,
            request_timeout: positive(rule.request_timeout_ms),
            backend_timeout: positive(rule.backend_timeout_ms),
            retry: rule.retry.clone(),
            policies: rule.policies.clone(),
            authorizer: None,
            ports: rule.ports.iter().map(|port| crate::compile::port(*port)).collect::<Result<_, _>>()?,
        })
    }
}

impl Split {
    fn compile(backends: &[wire::Backend]) -> Result<Self, Fault> {
        let backends = backends.iter().map(Backend::compile).collect::<Result<Vec<_>, _>>()?;
        let total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        Ok(Split { backends, total })
    }

    /// The backend for this chance; `None` when there is none, or all weigh nothing.
    pub fn choose(&self, chance: u64) -> Option<&Backend> {
        let mut at = chance.checked_rem(self.total)?;
        self.backends.iter().find(|backend| match at.checked_sub(u64::from(backend.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }

    /// All of them with their share in percent.
    pub fn shares(&self) -> impl Iterator<Item = (&Backend, f64)> {
        let total = self.total.max(1) as f64;
        self.backends.iter().map(move |backend| (backend, f64::from(backend.weight) * 100.0 / total))
    }
}

impl Backend {
    fn compile(backend: &wire::Backend) -> Result<Self, Fault> {
        let unresolved = Some(backend.unresolved.clone()).filter(|reason| !reason.is_empty());
        let port = if unresolved.is_some() { 0 } else { crate::compile::port(backend.port)? };
        Ok(Backend {
            service: format!("{}/{}", backend.namespace, backend.name).parse().map_err(Fault::new)?,
            port,
            filters: Filters::compile(&backend.filters)?,
            unresolved,
            weight: backend.weight,
        })
    }
}

impl Filters {
    fn compile(filters: &[wire::Filter]) -> Result<Self, Fault> {
        use wire::filter::Filter;
        let mut all = Filters::default();
        for filter in filters {
            match filter.filter.as_ref().ok_or_else(|| Fault::new("a filter of a kind unknown here"))? {
                Filter::RequestHeaders(change) => all.request_headers.extend(changes(change)?),
                Filter::ResponseHeaders(change) => all.response_headers.extend(changes(change)?),
                Filter::Redirect(redirect) => all.redirect = Some(Redirect::compile(redirect)?),
                Filter::Rewrite(rewrite) => all.rewrite = Some(Rewrite::compile(rewrite)?),
            }
        }
        Ok(all)
    }
}

fn changes(change: &wire::HeaderChange) -> Result<Vec<HeaderChange>, Fault> {
    let pair = |header: &wire::Header| -> Result<_, Fault> {
        Ok((header_name(&header.name)?, HeaderValue::from_str(&header.value).map_err(Fault::new)?))
    };
    let set = change.set.iter().map(|h| pair(h).map(|(name, value)| HeaderChange::Set(name, value)));
    let add = change.add.iter().map(|h| pair(h).map(|(name, value)| HeaderChange::Add(name, value)));
    let remove = change.remove.iter().map(|name| header_name(name).map(HeaderChange::Remove));
    set.chain(add).chain(remove).collect()
}

fn header_name(name: &str) -> Result<HeaderName, Fault> {
    HeaderName::from_bytes(name.as_bytes()).map_err(Fault::new)
}

impl Redirect {
    fn compile(redirect: &wire::Redirect) -> Result<Self, Fault> {
        let said = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Ok(Redirect {
            scheme: said(&redirect.scheme),
            hostname: said(&redirect.hostname),
            path: redirect.path.as_ref().map(PathChange::compile).transpose()?,
            port: match redirect.port {
                0 => None,
                port => Some(crate::compile::port(port)?),
            },
            status: match redirect.status {
                0 => 302,
                status @ (301 | 302 | 303 | 307 | 308) => status as u16,
                other => return Err(Fault::new(format!("{other} is no status of a redirect"))),
            },
        })
    }
}

impl Rewrite {
    fn compile(rewrite: &wire::Rewrite) -> Result<Self, Fault> {
        let hostname = match rewrite.hostname.as_str() {
            "" => None,
            host => Some(HeaderValue::from_str(host).map_err(Fault::new)?),
        };
        Ok(Rewrite { hostname, path: rewrite.path.as_ref().map(PathChange::compile).transpose()? })
    }
}

impl PathChange {
    fn compile(change: &wire::PathChange) -> Result<Self, Fault> {
        match change.change.as_ref().ok_or_else(|| Fault::new("a path change without a change"))? {
            wire::path_change::Change::Full(path) => Ok(PathChange::Full(path.clone())),
            wire::path_change::Change::Prefix(path) => Ok(PathChange::Prefix(path.clone())),
        }
    }
}

/// A match, all of whose parts must hold.
#[derive(Debug)]
struct Match {
    path: PathMatch,
    method: Option<Method>,
    headers: Vec<(HeaderName, ValueMatch)>,
    query: Vec<(String, ValueMatch)>,
}

#[derive(Debug)]
enum PathMatch {
    Exact(String),
    /// Without its trailing slash: `/foo` and `/foo/` mean the same (Gateway API, PathPrefix).
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum ValueMatch {
    Exact(String),
    Regex(Regex),
}

/// Sorted ascending, so that the first that holds wins (Gateway API, HTTPRouteRule.matches).
type Precedence = (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

impl Match {
    fn compile(one: wire::Match) -> Result<Self, Fault> {
        let path = match one.path {
            None => PathMatch::Prefix(String::new()),
            Some(wire::r#match::Path::Exact(path)) => PathMatch::Exact(path),
            Some(wire::r#match::Path::Prefix(path)) => {
                PathMatch::Prefix(path.trim_end_matches('/').to_owned())
            }
            Some(wire::r#match::Path::Regex(regex)) => PathMatch::Regex(anchored(&regex)?),
        };
        let method = match one.method.as_str() {
            "" => None,
            method => Some(Method::from_bytes(method.as_bytes()).map_err(Fault::new)?),
        };
        let headers = one.headers.iter().map(|h| Ok((header_name(&h.name)?, ValueMatch::compile(h)?)));
        let query = one.query.iter().map(|q| Ok((q.name.clone(), ValueMatch::compile(q)?)));
        Ok(Match {
            path,
            method,
            headers: headers.collect::<Result<_, Fault>>()?,
            query: query.collect::<Result<_, Fault>>()?,
        })
    }

    fn precedence(&self) -> Precedence {
        let (kind, length) = match &self.path {
            PathMatch::Exact(path) => (0, path.len()),
            PathMatch::Prefix(path) => (1, path.len()),
            PathMatch::Regex(_) => (2, 0),
        };
        // A prefix of everything comes after any regular expression that says something.
        let kind = if kind == 1 && length == 0 { 3 } else { kind };
        let (headers, query) = (self.headers.len(), self.query.len());
        (kind, Reverse(length), self.method.is_none(), Reverse(headers), Reverse(query))
    }

    fn prefix(&self) -> Option<&str> {
        match &self.path {
            PathMatch::Prefix(path) => Some(path),
            PathMatch::Exact(_) | PathMatch::Regex(_) => None,
        }
    }

    fn holds(&self, subject: &Subject<'_>) -> bool {
        self.path.holds(subject.path)
            && self.method.as_ref().is_none_or(|method| method.as_str() == subject.method)
            && self.headers.iter().all(|(name, value)| value.holds_header(subject.headers, name))
            && self.query.iter().all(|(name, value)| value.holds_query(subject.query, name))
    }
}

impl PathMatch {
    fn holds(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => path == exact,
            PathMatch::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathMatch::Regex(regex) => regex.is_match(path),
        }
    }
}

impl ValueMatch {
    fn compile(key: &wire::KeyMatch) -> Result<Self, Fault> {
        match key.value.as_ref().ok_or_else(|| Fault::new("a match without a value"))? {
            wire::key_match::Value::Exact(exact) => Ok(ValueMatch::Exact(exact.clone())),
            wire::key_match::Value::Regex(regex) => Ok(ValueMatch::Regex(anchored(regex)?)),
        }
    }

    fn holds(&self, value: &str) -> bool {
        match self {
            ValueMatch::Exact(exact) => value == exact,
            ValueMatch::Regex(regex) => regex.is_match(value),
        }
    }

    /// Repeated headers are judged as one value joined by `,` (RFC 9110, 5.3).
    fn holds_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut values = headers.get_all(name).iter().map(|value| value.to_str());
        match (values.next(), values.next()) {
            (None, _) | (Some(Err(_)), _) => false,
            (Some(Ok(only)), None) => self.holds(only),
            (Some(Ok(_)), Some(_)) => {
                let all: Result<Vec<_>, _> =
                    headers.get_all(name).iter().map(|value| value.to_str()).collect();
                all.is_ok_and(|all| self.holds(&all.join(",")))
            }
        }
    }

    /// The first value of a repeated parameter counts (Gateway API, HTTPQueryParamMatch).
    fn holds_query(&self, query: &str, name: &str) -> bool {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(key, _)| crate::query::decode(key) == name)
            .is_some_and(|(_, value)| self.holds(&crate::query::decode(value)))
    }
}

fn anchored(pattern: &str) -> Result<Regex, Fault> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().map_err(Fault::new)
}

#[cfg(test)]
mod tests {
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
            hosts: vec![wire::VirtualHost { hosts: vec![], rules }],
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
}
