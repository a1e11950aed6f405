//! A request as it is sent on: made once, sent as often as it must be.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;

use crate::{body::Body, failure::Failure, headers};

/// What is sent upstream.
pub struct Outgoing {
    method: Method,
    path: PathAndQuery,
    authority: HeaderValue,
    headers: HeaderMap,
    /// Whether the caller spoke HTTP/2.
    pub h2: bool,
    /// The protocol that the request wants to change to.
    pub upgrade: Option<HeaderValue>,
    /// Whether sending it twice is as sending it once (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Whether it is gRPC.
    pub grpc: bool,
}

/// The authority of a request: of its target if that has one, which then overrules `Host` (RFC 9112, 3.2.2).
///
/// Holding it proves that it is a host, perhaps with a port: every policy and every route takes it for one.
pub fn authority(uri: &Uri, map: &HeaderMap) -> Result<HeaderValue, Failure> {
    let bad = |reason: &'static str| Failure::client(400, "bad-request", reason);
    let mut hosts = map.get_all(header::HOST).iter();
    let said = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, _) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the authority is malformed"))?
        }
        (None, Some(host), None) if !host.is_empty() => host.clone(),
        (None, Some(_), None) | (None, None, _) => return Err(bad("the request has no host")),
        (None, Some(_), Some(_)) => return Err(bad("the request has two hosts")),
    };
    match said.to_str().ok().and_then(runtime::split_authority) {
        Some(_) => Ok(said),
        None => Err(bad("the host is neither a name nor an address, with a port or without")),
    }
}

impl Outgoing {
    /// From the head of a request as it was judged, with `path` perhaps rewritten.
    pub fn new(
        parts: http::request::Parts,
        path: &str,
        authority: HeaderValue,
        upgrade: Option<HeaderValue>,
    ) -> Result<Self, Failure> {
        let http::request::Parts { method, uri, headers, version, .. } = parts;
        let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| is_grpc(kind.as_bytes()));
        Ok(Outgoing {
            idempotent: method.is_idempotent(),
            path: path_and_query(&uri, path)?,
            h2: version == Version::HTTP_2,
            method,
            authority,
            headers,
            upgrade,
            grpc,
        })
    }

    /// The headers, to be changed on the way.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The path that is sent.
    pub fn path(&self) -> &str {
        self.path.path()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The headers, once it is sent.
    pub fn into_headers(self) -> HeaderMap {
        self.headers
    }

    /// The request of one try.
    pub fn request(&self, body: Body, h2: bool, traceparent: Option<HeaderValue>) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let mut map = self.headers.clone();
        if let Some(traceparent) = traceparent {
            map.insert(headers::TRACEPARENT, traceparent);
        }
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(self.path.clone());
        let named = || Authority::try_from(self.authority.as_bytes()).ok();
        if h2 && let Some(authority) = named() {
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(authority);
            map.remove(header::HOST);
            *request.version_mut() = Version::HTTP_2;
        } else {
            map.insert(header::HOST, self.authority.clone());
            // Of a GET that has a body hyper sends it only where its end is announced.
            if !request.body().is_end_stream() && !map.contains_key(header::CONTENT_LENGTH) {
                map.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        if let Some(protocol) = &self.upgrade {
            headers::set_upgrade(&mut map, protocol);
        }
        *request.headers_mut() = map;
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request
    }
}

/// Of gRPC's own types, to which gRPC-Web's do not belong.
fn is_grpc(kind: &[u8]) -> bool {
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What is forwarded is the path that was judged.
fn path_and_query(uri: &Uri, path: &str) -> Result<PathAndQuery, Failure> {
    if let Some(own) = uri.path_and_query()
        && own.path() == path
    {
        return Ok(own.clone());
    }
    let text = match uri.query() {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => Cow::Borrowed(path),
    };
    let malformed = |_| Failure::client(400, "bad-request", "the path cannot be sent on");
    PathAndQuery::try_from(&*text).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address() {
        let authority = |host: &'static str| {
            let map = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            authority(&Uri::from_static("/"), &map).ok()
        };
        for host in ["shop.example", "Shop.example.:80", "a_b-c", "10.0.0.1:80", "[fd00::1]", "[fd00::1]:80"]
        {
            assert_eq!(authority(host).unwrap(), host);
        }
        for host in
            ["", "x@a.example", "a b", "a/b", "a,b", "*.a", ".", "a:", "a:b:80", "a:+80", "fd00::1", "[a]"]
        {
            assert!(authority(host).is_none(), "{host}");
        }
    }

    #[test]
    fn nor_is_that_of_a_target_believed_when_it_is_none() {
        let map = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("shop.example"))]);
        assert!(authority(&Uri::from_static("http://x@admin.example/"), &map).is_err());
        assert!(authority(&Uri::from_static("http://admin.example/"), &map).is_ok());
    }
}
