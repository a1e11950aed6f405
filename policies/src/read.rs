//! Reading attributes from facts. What is merely absent reads as `""`.

use std::{borrow::Cow, net::SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::{
    attribute::{Int, Text},
    facts::{Facts, Peer, Request},
    form::Fault,
    query,
};

/// A string attribute; borrowed unless it must be written out (addresses).
pub(crate) fn text<'e>(facts: &'e Facts<'_>, attribute: Text) -> Result<Cow<'e, str>, Fault> {
    let peer = |part: fn(&Peer) -> &str| facts.source.peer.map_or("", part);
    let guarded = facts.destination.guarded;
    Ok(Cow::Borrowed(match attribute {
        Text::SourceIp => return Ok(ip(facts.source.address)),
        Text::DestinationIp => return Ok(ip(facts.destination.address)),
        Text::SourcePrincipal => peer(|peer| &peer.principal),
        Text::SourceTrustDomain => peer(|peer| peer.trust_domain.as_str()),
        Text::SourceNamespace => peer(|peer| peer.namespace.as_str()),
        Text::SourceServiceAccount => peer(|peer| peer.service_account.as_str()),
        Text::SourceCluster => peer(|peer| peer.cluster.as_str()),
        Text::DestinationNamespace => guarded.namespace.as_str(),
        Text::DestinationWorkload => &guarded.workload,
        Text::DestinationCluster => guarded.cluster.as_str(),
        Text::Method => request(facts)?.method,
        Text::Scheme => request(facts)?.scheme,
        Text::Host => request(facts)?.host_name(),
        Text::Path => request(facts)?.path,
        Text::RawPath => request(facts)?.raw_path,
        Text::Query => request(facts)?.query,
        Text::Protocol => request(facts)?.protocol,
        Text::Id => request(facts)?.id,
        Text::GrpcService => request(facts)?.grpc().0,
        Text::GrpcMethod => request(facts)?.grpc().1,
        Text::Sni => facts.connection.sni,
        Text::ConnectionProtocol => facts.connection.protocol,
        Text::TlsVersion => facts.connection.tls_version,
    }))
}

/// An int attribute.
pub(crate) fn int(facts: &Facts<'_>, attribute: Int) -> Result<i64, Fault> {
    Ok(match attribute {
        Int::SourcePort => facts.source.address.port().into(),
        Int::DestinationPort => facts.destination.address.port().into(),
        Int::Size => request(facts)?.size(),
    })
}

/// The request, or a fault where there is none: what reads it cannot judge a connection that is not HTTP.
pub(crate) fn request<'e>(facts: &'e Facts<'_>) -> Result<&'e Request<'e>, Fault> {
    facts.request.as_ref().ok_or(Fault::NoRequest)
}

/// The values of a header joined by `,`. Bytes that are not UTF-8 read as U+FFFD.
pub(crate) fn header<'e>(headers: &'e HeaderMap, name: &HeaderName) -> Cow<'e, str> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.reduce(|joined, value| joined + "," + value).unwrap_or_default()
}

/// The decoded values of a query parameter joined by `,`.
pub(crate) fn param<'e>(query: &'e str, name: &str) -> Option<Cow<'e, str>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let values = pairs.filter(|(key, _)| query::decode(key) == name).map(|(_, value)| query::decode(value));
    values.reduce(|joined, value| joined + "," + value)
}

/// An IPv4 address that came over an IPv6 socket is written as the IPv4 address it is.
fn ip(address: SocketAddr) -> Cow<'static, str> {
    Cow::Owned(address.ip().to_canonical().to_string())
}
