//! What is known about a request or a connection when it is judged.
//!
//! Everything is borrowed: building [`Facts`] copies a few pointers. Nothing here is a claim of the peer's about
//! itself: [`Peer`] comes from a verified chain, [`Guarded`] from the configuration.

use std::{borrow::Cow, net::SocketAddr, time::SystemTime};

use api::name::{ClusterName, Namespace, ServiceAccount, ServiceName, TrustDomain};

/// All that a decision may look at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Who asks.
    pub source: Source<'a>,
    /// What is asked.
    pub destination: Destination<'a>,
    /// The request; absent on a connection whose protocol is not HTTP.
    pub request: Option<Request<'a>>,
    /// What carries it.
    pub connection: Connection<'a>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The verified identity; absent without mTLS.
    pub peer: Option<&'a Peer>,
    /// Its address; behind a passthrough gateway the gateway's.
    pub address: SocketAddr,
}

/// An identity read from a verified certificate chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The trust domain whose bundle the chain was verified against.
    pub trust_domain: TrustDomain,
    /// The namespace of the SPIFFE id.
    pub namespace: Namespace,
    /// The service account of the SPIFFE id.
    pub service_account: ServiceAccount,
    /// The cluster named by the issuing intermediate of the verified path.
    pub cluster: ClusterName,
    /// The whole SPIFFE id.
    pub principal: String,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The workload that is guarded, never taken from `Host`.
    pub guarded: &'a Guarded,
    /// The address that was connected to.
    pub address: SocketAddr,
}

/// A workload as its policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The services that select it. An expression sees their names; all lie in `namespace`.
    pub services: Vec<ServiceName>,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub workload: String,
    /// The cluster it runs in.
    pub cluster: ClusterName,
}

/// An HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, ...
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority asked for, [canonical](canonical_authority): with its port, where it names one.
    pub host: &'a str,
    /// The normalised path, the same that is routed and forwarded.
    pub path: &'a str,
    /// The path as it came.
    pub raw_path: &'a str,
    /// The query as it came, without `?`.
    pub query: &'a str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// The request id, kept or made.
    pub id: &'a str,
    /// The headers as they came.
    pub headers: &'a http::HeaderMap,
    /// When its head was complete.
    pub time: SystemTime,
}

/// An authority as it is routed and judged: its host in lower case and without a trailing dot, since all spellings of a
/// host mean the same (RFC 9110, 4.2.3).
pub fn canonical_authority(authority: &str) -> Cow<'_, str> {
    let (host, port) = split(authority);
    let plain = host.trim_end_matches('.');
    if plain.len() == host.len() && !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Borrowed(authority);
    }
    Cow::Owned(format!("{}{port}", plain.to_ascii_lowercase()))
}

/// The host, and the port with its colon if there is one. IPv6 keeps its brackets.
fn split(authority: &str) -> (&str, &str) {
    match authority.rfind(':') {
        Some(at) if !authority.ends_with(']') => authority.split_at(at),
        _ => (authority, ""),
    }
}

impl<'a> Request<'a> {
    /// The host that was asked for, without its port: `destination.port` says which one that is.
    pub fn host_name(&self) -> &'a str {
        split(self.host).0
    }

    /// The length that `Content-Length` announces, else -1.
    pub fn size(&self) -> i64 {
        let length = self.headers.get(http::header::CONTENT_LENGTH);
        length.and_then(|value| value.to_str().ok()?.parse().ok()).filter(|size| *size >= 0).unwrap_or(-1)
    }

    /// The gRPC service and method, both `""` unless the content type is `application/grpc` or one of its kin.
    pub fn grpc(&self) -> (&'a str, &'a str) {
        let kind = self.headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        const GRPC: &[u8] = b"application/grpc";
        let is_grpc = kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
            && matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' '));
        let named = self.path.strip_prefix('/').and_then(|path| path.rsplit_once('/'));
        if is_grpc { named.unwrap_or_default() } else { ("", "") }
    }
}

/// What carries the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connection<'a> {
    /// Whether both sides showed a verified certificate.
    pub mtls: bool,
    /// The server name asked for, or `""`.
    pub sni: &'a str,
    /// The protocol agreed on or detected: `h2`, `http/1.1`, `tcp`, ...
    pub protocol: &'a str,
    /// `TLSv1.3`, ..., or `""` in plaintext.
    pub tls_version: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_spelling() {
        for (said, meant) in [
            ("shop.example", "shop.example"),
            ("SHOP.example.", "shop.example"),
            ("Shop.Example.:80", "shop.example:80"),
            ("[FD00::1]:80", "[fd00::1]:80"),
            ("[fd00::1]", "[fd00::1]"),
            ("", ""),
            (":80", ":80"),
        ] {
            assert_eq!(canonical_authority(said), meant, "{said}");
        }
    }
}
