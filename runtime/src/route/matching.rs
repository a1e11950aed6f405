//! Matches, and their order: the precedence of the Gateway API.

use std::cmp::Reverse;

use api::{pattern, wire};
use http::{HeaderMap, HeaderName, Method};
use policies::query;
use regex::Regex;

use super::{Subject, filter::header_name};
use crate::compile::Fault;

/// A match, all of whose parts must hold.
#[derive(Debug)]
pub(super) struct Match {
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
pub(super) type Precedence = (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

impl Match {
    pub(super) fn compile(one: wire::Match) -> Result<Self, Fault> {
        let path = match one.path {
            None => PathMatch::Prefix(String::new()),
            Some(wire::r#match::Path::Exact(path)) => PathMatch::Exact(path),
            Some(wire::r#match::Path::Prefix(path)) => {
                PathMatch::Prefix(path.trim_end_matches('/').to_owned())
            }
            Some(wire::r#match::Path::Regex(regex)) => PathMatch::Regex(whole(&regex)?),
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

    pub(super) fn precedence(&self) -> Precedence {
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

    pub(super) fn prefix(&self) -> Option<&str> {
        match &self.path {
            PathMatch::Prefix(path) => Some(path),
            PathMatch::Exact(_) | PathMatch::Regex(_) => None,
        }
    }

    pub(super) fn holds(&self, subject: &Subject<'_>) -> bool {
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
            wire::key_match::Value::Regex(regex) => Ok(ValueMatch::Regex(whole(regex)?)),
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
            .find(|(key, _)| query::decode(key) == name)
            .is_some_and(|(_, value)| self.holds(&query::decode(value)))
    }
}

/// The gate compiles by the same function, so what it has taken is no fault here.
fn whole(text: &str) -> Result<Regex, Fault> {
    pattern::compile_whole(text).map_err(Fault::new)
}
