//! What a rule changes on the way: headers, host, path; or a redirect instead of an answer.

use api::wire;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::compile::{Fault, port};

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

impl Filters {
    pub(super) fn compile(filters: &[wire::Filter]) -> Result<Self, Fault> {
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

pub(super) fn header_name(name: &str) -> Result<HeaderName, Fault> {
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
                said => Some(port(said)?),
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
