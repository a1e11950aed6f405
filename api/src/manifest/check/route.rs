//! The rules inside one HTTPRoute: those that its CRD states beyond types, and what a regular expression must be.

use super::unique;
use crate::{
    manifest::{Code, report::Report},
    name::Hostname,
    pattern,
    resource::{
        HttpRoute,
        route::{
            HeaderModifier, HttpFilter, HttpMatch, HttpRule, PathMatch, PathMatchType, PathModifier,
            ValueMatchType,
        },
    },
};

/// All rules of a route together (Gateway API).
const MAX_MATCHES: usize = 128;

pub(super) fn route(route: &HttpRoute, report: &mut Report) {
    for (i, parent) in route.parent_refs.iter().enumerate() {
        if parent.group != parent.kind.group() {
            let pointer = format!("/spec/parentRefs/{i}");
            let help = format!("write `group: {:?}`", parent.kind.group());
            let message =
                format!("`{:?}` is of group `{}`, not `{}`", parent.kind, parent.kind.group(), parent.group);
            report.add(
                &pointer,
                report.positions.at(&format!("{pointer}/kind")),
                Code::BadValue,
                message,
                Some(help),
            );
        }
    }
    unique(
        route.parent_refs.iter().enumerate().map(|(i, own)| (own, format!("/spec/parentRefs/{i}"))),
        "this parent",
        report,
    );
    unique(
        route
            .rules
            .iter()
            .enumerate()
            .filter_map(|(i, rule)| Some((rule.name.as_ref()?, format!("/spec/rules/{i}/name")))),
        "this name",
        report,
    );
    let matches: usize = route.rules.iter().map(|rule| rule.matches.len()).sum();
    if matches > MAX_MATCHES {
        report.value(
            "/spec/rules",
            Code::Limit,
            format!("at most {MAX_MATCHES} matches in one route, these are {matches}"),
        );
    }
    route
        .rules
        .iter()
        .enumerate()
        .for_each(|(i, rule)| self::rule(&format!("/spec/rules/{i}"), rule, report));
}

fn rule(at: &str, rule: &HttpRule, report: &mut Report) {
    rule.matches.iter().enumerate().for_each(|(i, own)| condition(&format!("{at}/matches/{i}"), own, report));
    filters(at, rule, report);
    for (i, backend) in rule.backend_refs.iter().enumerate() {
        let pointer = format!("{at}/backendRefs/{i}");
        if (backend.group.as_str(), backend.kind.as_str()) != ("", "Service") {
            let message =
                format!("a backend of kind `{}` is not yet supported: only Service is", backend.kind);
            report.value(&format!("{pointer}/kind"), Code::NotYetSupported, message);
        } else if backend.port.is_none() {
            let place = report.positions.at(&pointer);
            report.add(
                &format!("{pointer}/port"),
                place,
                Code::MissingField,
                "`port` is missing: needed for a Service".into(),
                None,
            );
        }
    }
    let zero_is_none = |limit: Option<crate::resource::Duration>| limit.and_then(|limit| limit.non_zero());
    if let Some(timeouts) = &rule.timeouts {
        let (whole, one) = (zero_is_none(timeouts.request), zero_is_none(timeouts.backend_request));
        if one.zip(whole).is_some_and(|(one, whole)| one > whole) {
            report.value(
                &format!("{at}/timeouts/backendRequest"),
                Code::BadValue,
                "must not be longer than `request`",
            );
        }
    }
}

fn condition(at: &str, own: &HttpMatch, report: &mut Report) {
    path(&format!("{at}/path"), &own.path, report);
    for (i, header) in own.headers.iter().enumerate() {
        value(&format!("{at}/headers/{i}/value"), header.type_, &header.value, report);
    }
    for (i, param) in own.query_params.iter().enumerate() {
        value(&format!("{at}/queryParams/{i}/value"), param.type_, &param.value, report);
    }
    unique(
        own.headers.iter().enumerate().map(|(i, own)| (&own.name, format!("{at}/headers/{i}/name"))),
        "this header",
        report,
    );
    unique(
        own.query_params.iter().enumerate().map(|(i, own)| (&own.name, format!("{at}/queryParams/{i}/name"))),
        "this parameter",
        report,
    );
}

fn path(at: &str, path: &PathMatch, report: &mut Report) {
    let at = format!("{at}/value");
    match path.type_ {
        PathMatchType::RegularExpression => expression(&at, &path.value, report),
        PathMatchType::Exact | PathMatchType::PathPrefix => literal(&at, &path.value, report),
    }
}

/// Tells what is wrong with a path that is no expression. Requests are normalised before they are compared with it, and
/// it is not: written in another way it would match none.
fn literal(at: &str, path: &str, report: &mut Report) {
    if let Some(complaint) = path_complaint(path) {
        report.value(at, Code::BadValue, complaint);
        return;
    }
    let (message, help) = match with_normal_escapes(path) {
        Some(normal) if normal == path => return,
        Some(normal) => {
            (format!("`{path}` is not how requests say it once normalised"), format!("write `{normal}`"))
        }
        None => (
            "a `%` must be followed by two hexadecimal digits".to_owned(),
            "a percent sign itself is `%25`".to_owned(),
        ),
    };
    report.add(at, report.positions.at(at), Code::BadValue, message, Some(help));
}

/// The path with digits of escapes in upper case, and none for what needs none (RFC 3986, 6.2.2). `None` when one is no
/// escape.
fn with_normal_escapes(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
        out += &part[2..];
    }
    Some(out)
}

/// What the CRD of HTTPRoute asks of a path: absolute, and already normal.
fn path_complaint(path: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-/._~!$&'()*+,;=:@%".contains(c);
    if !path.starts_with('/') {
        return Some(format!("`{path}` must begin with `/`"));
    }
    if let Some(bad) = ["//", "/./", "/../", "%2f", "%2F", "#"].iter().find(|bad| path.contains(**bad)) {
        return Some(format!("must not contain `{bad}`"));
    }
    if let Some(bad) = ["/..", "/."].iter().find(|bad| path.ends_with(**bad)) {
        return Some(format!("must not end with `{bad}`"));
    }
    let bad = path.chars().find(|c| !is_plain(*c))?;
    Some(format!("must not contain `{}`: write it percent-encoded", bad.escape_debug()))
}

fn value(at: &str, type_: ValueMatchType, value: &str, report: &mut Report) {
    if type_ == ValueMatchType::RegularExpression {
        expression(at, value, report);
    }
}

fn expression(at: &str, text: &str, report: &mut Report) {
    if report.pattern_bytes > pattern::ALL_BYTES_MAX {
        let message = format!(
            "with the patterns before it, it takes more than {} bytes: repeat less",
            pattern::ALL_BYTES_MAX
        );
        return report.value(at, Code::Limit, message);
    }
    match pattern::weigh_whole(text) {
        Ok(bytes) => report.pattern_bytes += bytes,
        Err(reason) => report.value(at, Code::BadValue, format!("not a regular expression: {reason}")),
    }
}

fn filters(at: &str, rule: &HttpRule, report: &mut Report) {
    let name = |filter: &HttpFilter| match filter {
        HttpFilter::RequestHeaderModifier { .. } => "RequestHeaderModifier",
        HttpFilter::ResponseHeaderModifier { .. } => "ResponseHeaderModifier",
        HttpFilter::RequestRedirect { .. } => "RequestRedirect",
        HttpFilter::UrlRewrite { .. } => "URLRewrite",
    };
    unique(
        rule.filters.iter().enumerate().map(|(i, own)| (name(own), format!("{at}/filters/{i}/type"))),
        "this filter",
        report,
    );
    for (i, filter) in rule.filters.iter().enumerate() {
        let at_filter = format!("{at}/filters/{i}");
        match filter {
            HttpFilter::RequestHeaderModifier { request_header_modifier: own } => {
                headers(&format!("{at_filter}/requestHeaderModifier"), own, report)
            }
            HttpFilter::ResponseHeaderModifier { response_header_modifier: own } => {
                headers(&format!("{at_filter}/responseHeaderModifier"), own, report)
            }
            HttpFilter::RequestRedirect { request_redirect: own } => {
                hostname(&format!("{at_filter}/requestRedirect/hostname"), own.hostname.as_ref(), report);
                modifier(&format!("{at_filter}/requestRedirect/path"), own.path.as_ref(), rule, report);
                if !rule.backend_refs.is_empty() {
                    report.value(
                        &format!("{at_filter}/type"),
                        Code::Conflict,
                        "a rule that redirects has no `backendRefs`: keep one",
                    );
                }
                if rule.filters.iter().any(|other| matches!(other, HttpFilter::UrlRewrite { .. })) {
                    report.value(
                        &format!("{at_filter}/type"),
                        Code::Conflict,
                        "RequestRedirect and URLRewrite exclude each other: keep one",
                    );
                }
            }
            HttpFilter::UrlRewrite { url_rewrite: own } => {
                hostname(&format!("{at_filter}/urlRewrite/hostname"), own.hostname.as_ref(), report);
                modifier(&format!("{at_filter}/urlRewrite/path"), own.path.as_ref(), rule, report);
            }
        }
    }
}

fn headers(at: &str, own: &HeaderModifier, report: &mut Report) {
    let named = |field: &str, i: usize| format!("{at}/{field}/{i}/name");
    unique(own.set.iter().enumerate().map(|(i, own)| (&own.name, named("set", i))), "this header", report);
    unique(own.add.iter().enumerate().map(|(i, own)| (&own.name, named("add", i))), "this header", report);
    unique(
        own.remove.iter().enumerate().map(|(i, own)| (own, format!("{at}/remove/{i}"))),
        "this header",
        report,
    );
}

fn modifier(at: &str, modifier: Option<&PathModifier>, rule: &HttpRule, report: &mut Report) {
    let prefixed = || rule.matches.iter().all(|own| own.path.type_ == PathMatchType::PathPrefix);
    match modifier {
        Some(PathModifier::ReplacePrefixMatch { replace_prefix_match: path }) => {
            if rule.matches.len() != 1 || !prefixed() {
                let message = "ReplacePrefixMatch needs exactly one match in the rule, of type PathPrefix";
                report.value(&format!("{at}/type"), Code::Conflict, message);
            }
            // Empty, it takes the prefix away.
            if !path.is_empty() {
                literal(&format!("{at}/replacePrefixMatch"), path, report);
            }
        }
        Some(PathModifier::ReplaceFullPath { replace_full_path: path }) => {
            literal(&format!("{at}/replaceFullPath"), path, report);
        }
        None => {}
    }
}

/// A request has one host, whereas a name with `*.` is a pattern of many.
fn hostname(at: &str, name: Option<&Hostname>, report: &mut Report) {
    if let Some(name) = name.filter(|name| name.as_str().starts_with('*')) {
        report.value(at, Code::BadValue, format!("`{name}` stands for many hosts: one is needed here"));
    }
}
