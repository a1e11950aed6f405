//! What is taken from and added to the headers of a message on its way (RFC 9110, 7.6).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Why a sidecar turned a request away before its application saw it.
pub const REFUSED: HeaderName = HeaderName::from_static("weft-refused");
/// That an application broke off before the first byte of an answer.
pub const RESET: HeaderName = HeaderName::from_static("weft-reset");
/// The decision's id.
pub const DECISION: HeaderName = HeaderName::from_static("weft-decision");
/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-client-cert`.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// `traceparent`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const OURS: &str = "weft-";

/// Takes away what is meant for one hop alone, the names in `Connection` too. `te: trailers` stays.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(is_of_one_hop) {
        return;
    }
    remove_named(headers);
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    let trailers = headers.get_all(header::TE).iter().any(|value| lists(value, "trailers"));
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Looked for first, since most messages have none of them.
fn is_of_one_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "te"
    )
}

fn remove_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        // What is said most of all names no header that is left.
        .filter(|name| !["keep-alive", "close"].contains(name))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // Who names these in `Connection` would take away what frames or addresses the message.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TE].contains(name))
        .collect();
    headers.remove(header::CONNECTION);
    for name in named {
        headers.remove(name);
    }
}

/// Whether a comma-separated value lists `token`.
pub fn lists(value: &HeaderValue, token: &str) -> bool {
    let text = value.to_str().unwrap_or_default();
    text.split(',').any(|item| item.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(token))
}

/// The protocol that a request wants to change to, when it does so properly; h2c is none of them.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asked = headers.get_all(header::CONNECTION).iter().any(|value| lists(value, "upgrade"));
    (asked && !lists(protocol, "h2c")).then(|| protocol.clone())
}

/// Asks to change to `protocol`.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol.clone());
}

/// Makes one field of the cookies that HTTP/2 lets a caller send one by one (RFC 9113, 8.2.3): whoever reads HTTP/1.1, and
/// every rule, takes them for one.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.nth(1).is_none() {
        return;
    }
    let all: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Says who the caller is, where the caller itself may have said so; also in a name that many applications, reading
/// variables of CGI, take for the same.
pub fn set_client_cert(headers: &mut HeaderMap, value: HeaderValue) {
    remove_aliases(headers, &[CLIENT_CERT]);
    headers.insert(CLIENT_CERT, value);
}

/// Takes away what is written as one of `of`, but with `_` for `-`.
fn remove_aliases(headers: &mut HeaderMap, of: &[HeaderName]) {
    let is_alias = |name: &&HeaderName| {
        name.as_str().contains('_') && of.iter().any(|one| *one == *name.as_str().replace('_', "-"))
    };
    let aliases: Vec<_> = headers.keys().filter(is_alias).cloned().collect();
    for name in aliases {
        headers.remove(name);
    }
}

/// Takes away everything that only a proxy of the mesh may say.
pub fn remove_ours(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().starts_with(OURS)) {
        return;
    }
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Says where a request from outside the mesh came from, instead of what it says itself.
pub fn forwarded_from_outside(headers: &mut HeaderMap, caller: HeaderValue) {
    headers.remove(header::FORWARDED);
    headers.remove(CLIENT_CERT);
    remove_aliases(headers, &[CLIENT_CERT, FORWARDED_FOR, FORWARDED_PROTO]);
    headers.insert(FORWARDED_FOR, caller);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn one_hop_alone() {
        let mut map = headers(&[
            ("connection", "close, x-secret, host, te"),
            ("x-secret", "1"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip;q=1, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "a"), ("x-kept", "1"), ("te", "trailers")]));
    }

    #[test]
    fn nobody_outside_says_where_it_comes_from_however_it_is_written() {
        let mut map = headers(&[
            ("x_forwarded_client_cert", "URI=spiffe://a/ns/b/sa/admin"),
            ("x-forwarded_client-cert", "URI=spiffe://a/ns/b/sa/admin"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x_forwarded_proto", "https"),
            ("x_kept", "1"),
        ]);
        forwarded_from_outside(&mut map, HeaderValue::from_static("192.0.2.1"));
        let said = [("x_kept", "1"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "http")];
        assert_eq!(map, headers(&said));
    }

    #[test]
    fn cookies_are_one_field() {
        let mut map = headers(&[("x", "1"), ("cookie", "a=b"), ("cookie", "c=d"), ("cookie", "e=f")]);
        join_cookies(&mut map);
        assert_eq!(map, headers(&[("x", "1"), ("cookie", "a=b; c=d; e=f")]));
        join_cookies(&mut map);
        assert_eq!(map, headers(&[("x", "1"), ("cookie", "a=b; c=d; e=f")]));
    }

    #[test]
    fn a_websocket_is_an_upgrade_and_h2c_is_not() {
        let upgrades = |lines: &[(&'static str, &'static str)]| upgrade(&headers(lines)).is_some();
        assert!(upgrades(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!upgrades(&[("upgrade", "websocket")]));
        assert!(!upgrades(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]));
    }

    #[test]
    fn a_caller_cannot_say_who_it_is() {
        let mut map = headers(&[
            ("x-forwarded-client-cert", "me"),
            ("x_forwarded_client_cert", "me"),
            ("x-forwarded_client-cert", "me"),
            ("x_forwarded_client_name", "kept"),
        ]);
        set_client_cert(&mut map, HeaderValue::from_static("them"));
        assert_eq!(map, headers(&[("x-forwarded-client-cert", "them"), ("x_forwarded_client_name", "kept")]));
    }

    #[test]
    fn what_comes_from_outside_is_not_believed() {
        let mut map = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-client-cert", "URI=spiffe://me"),
            ("weft-refused", "me"),
        ]);
        forwarded_from_outside(&mut map, HeaderValue::from_static("127.0.0.9"));
        remove_ours(&mut map);
        assert_eq!(map, headers(&[("x-forwarded-for", "127.0.0.9"), ("x-forwarded-proto", "http")]));
    }
}
