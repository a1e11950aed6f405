//! What a request says, read once, before and for its decision.

use std::{borrow::Cow, time::SystemTime};

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method, Version, request::Parts};
use policies::facts::{self, Facts};
use process::trace::{Context, Kind, Span, with_ids};
use runtime::{Runtime, path, split_authority};

use crate::{
    account::{Exchange, Trace},
    caller::{Caller, Side},
    failure::Failure,
    headers,
    worker::Worker,
};

/// What a request asks for, read once.
pub(crate) struct Asked<'a> {
    pub authority: HeaderValue,
    pub path: Cow<'a, str>,
    pub query: &'a str,
}

/// The path that is judged and sent on. A CONNECT has none (RFC 9110, 9.3.6).
pub(super) fn judged_path<'a>(
    method: &Method,
    raw: &'a str,
    runtime: &Runtime,
) -> Result<Cow<'a, str>, Failure> {
    if *method == Method::CONNECT {
        return Ok(Cow::Borrowed("/"));
    }
    let bad = |error: path::BadPath| Failure::client(400, "bad-path", error.to_string());
    path::normalise(raw, runtime.mesh.paths).map_err(bad)
}

pub(crate) fn read_facts<'a>(
    caller: &'a Caller,
    port: u16,
    runtime: &'a Runtime,
    (id, time): (&'a HeaderValue, SystemTime),
    parts: &'a Parts,
    asked: &'a Asked<'a>,
) -> Facts<'a> {
    let text = |value: &'a HeaderValue| value.to_str().unwrap_or_default();
    Facts {
        source: facts::Source {
            peer: caller.peer.as_ref().map(|identified| &*identified.peer),
            address: caller.remote,
        },
        destination: facts::Destination {
            guarded: &runtime.workload.guarded,
            address: caller.destination(port),
        },
        request: Some(facts::Request {
            method: parts.method.as_str(),
            scheme: "http",
            host: text(&asked.authority),
            path: &asked.path,
            raw_path: parts.uri.path(),
            query: asked.query,
            protocol: if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            id: text(id),
            headers: &parts.headers,
            time,
        }),
        connection: facts::Connection {
            mtls: caller.peer.is_some(),
            sni: &caller.sni,
            protocol: caller.protocol,
            tls_version: if caller.peer.is_some() { "TLSv1.3" } else { "" },
        },
    }
}

/// The application's port that an inbound request is for: what TLS named, or the only one, or that of its host.
pub(super) fn application_port(
    caller: &Caller,
    runtime: &Runtime,
    authority: &HeaderValue,
) -> Result<u16, Failure> {
    match caller.side {
        Side::Inbound { port: Some(port) } => Ok(port),
        Side::Inbound { port: None } => {
            let named = authority.to_str().ok().and_then(split_authority).and_then(|(_, port)| port);
            let found = match runtime.inbound() {
                [only] => Some(only),
                all => all.iter().find(|one| Some(one.port) == named),
            };
            let found =
                found.ok_or_else(|| Failure::client(404, "no-route", "no port of this workload is meant"));
            Ok(found?.port)
        }
        Side::Outbound | Side::Ingress { .. } => Ok(0),
    }
}

pub(super) fn request_id(worker: &Worker, map: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = map.get(headers::REQUEST_ID) {
        return id.clone();
    }
    let chance = [worker.chance().to_be_bytes(), worker.chance().to_be_bytes()];
    let id = HeaderValue::try_from(HEXLOWER.encode(chance.as_flattened()))
        .unwrap_or(HeaderValue::from_static("-"));
    map.insert(headers::REQUEST_ID, id.clone());
    id
}

/// The trace that the request belongs to, and this hop's server span. Without a trace one begins here; at the edge
/// it is decided anew whether it is kept.
pub(super) fn trace(
    worker: &Worker,
    caller: &Caller,
    exchange: &Exchange,
    map: &mut HeaderMap,
    asked: &Asked<'_>,
) -> Option<Trace> {
    let share = worker.proxy.telemetry.trace_share;
    let state = map.get(headers::TRACESTATE).map(HeaderValue::as_bytes);
    let came = map.get(headers::TRACEPARENT).and_then(|value| Context::parse(value.as_bytes(), state));
    let edge = matches!(caller.side, Side::Ingress { .. });
    let (mut context, parent) = match came {
        Some(mut context) => {
            if edge {
                context.sampled = process::trace::sampled(context.trace, share);
            }
            let parent = context.span;
            (context, Some(parent))
        }
        None => (with_ids(|ids| Context::root_sampled(ids, share)), None),
    };
    let serves = caller.side != Side::Outbound;
    let mut server = None;
    let mut above = parent;
    if serves && context.sampled {
        if parent.is_some() {
            context = with_ids(|ids| context.child(ids));
        }
        server = Span::begin(&context, parent, Kind::Server, exchange.method().to_string(), exchange.time());
        above = Some(context.span);
    }
    if let Some(span) = &mut server {
        span.set("http.request.method", exchange.method().to_string());
        span.set("url.path", asked.path.to_string());
        span.set("server.address", String::from_utf8_lossy(asked.authority.as_bytes()).into_owned());
        span.set("network.peer.address", caller.remote.ip().to_string());
        span.set("weft.decision", String::from_utf8_lossy(exchange.decision.as_bytes()).into_owned());
        if let Some(identified) = &caller.peer {
            span.set("weft.peer.cluster", identified.peer.cluster.to_string());
            span.set("weft.peer.principal", identified.peer.principal.clone());
        }
    }
    if (parent.is_none() || server.is_some() || edge)
        && let Ok(value) = HeaderValue::try_from(context.traceparent())
    {
        map.insert(headers::TRACEPARENT, value);
    }
    Some(Trace { context, server, parent: above })
}
