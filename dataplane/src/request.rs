//! The life of a request: facts → decide → forward → account. One function, read from top to bottom.
//!
//! Invariant: a request loads what it obeys once and keeps it. What is forwarded is the path that was judged.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use policies::facts::{self, Facts};
use process::trace::{Context, Kind, Span, with_ids};
use runtime::{
    Decision, Plan, Refusal, Runtime, Service, ServicePort, Target, path, route::HeaderChange,
    split_authority,
};

use crate::{
    account::{Exchange, Trace},
    body::{Body, Replayable},
    caller::{Caller, Side},
    control::hosts::WAIT,
    dial::{self, Route, Stream},
    failure::{Failure, Word},
    forward::{self, AddressError, Call, Reply},
    headers, http1,
    message::{self, Outgoing},
    proxy::{Callee, State},
    tunnel::{self, Above},
    worker::Worker,
};

/// The most addresses of a host outside the mesh that are tried.
const ADDRESSES_MAX: usize = 4;

/// Answers one request.
pub async fn serve(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut exchange = Exchange::begin(&worker, &caller, request.method().clone(), request.uri().clone());
    let last = caller.protocol != "h2" && http1::is_last(request.method(), request.headers());
    let tunnel = last.then(|| hyper::upgrade::on(&mut request));
    let (mut response, tunnel) = match answer(&worker, &caller, &mut exchange, request, tunnel).await {
        Ok(answer) => answer,
        Err(failure) => (failure.response(&mut exchange), None),
    };
    let switched = tunnel.is_some();
    if (last && !switched) || (worker.proxy.is_draining() && caller.protocol != "h2" && !switched) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    match tunnel {
        Some(ends) => {
            tunnel::start(&worker, ends, exchange);
            Ok(response)
        }
        None => Ok(response.map(|body| body.accounted(exchange))),
    }
}

/// What a request asks for, read once.
struct Asked<'a> {
    authority: HeaderValue,
    path: Cow<'a, str>,
    query: &'a str,
}

type Answer = (Response<Body>, Option<tunnel::Ends>);

async fn answer(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    exchange: &mut Exchange,
    request: Request<Incoming>,
    tunnel: Option<OnUpgrade>,
) -> Result<Answer, Failure> {
    let mut state = worker
        .proxy
        .state()
        .ok_or(Failure::Ours { flag: "not-ready", reason: "no view has come yet".into() })?;
    let (mut parts, body) = request.into_parts();
    obey(exchange, &state);
    let inbound = matches!(caller.side, Side::Inbound { .. });
    if inbound && worker.proxy.is_draining() {
        return Err(Failure::refused("draining", "this workload is on its way out"));
    }

    // What the request says of itself, before anything of it is judged.
    let uri = parts.uri.clone();
    let asked = Asked {
        authority: message::authority(&uri, &parts.headers)?,
        path: judged_path(&parts.method, uri.path(), &state.runtime)?,
        query: uri.query().unwrap_or_default(),
    };
    exchange.host = asked.authority.clone();
    if caller.peer.is_none() && caller.side != Side::Outbound {
        headers::forwarded_from_outside(&mut parts.headers, caller.remote.ip());
    }
    exchange.request_id = request_id(worker, &mut parts.headers);
    exchange.trace = trace(worker, caller, exchange, &mut parts.headers, &asked);
    let replayable = Replayable::new(body);

    // Decide; an unknown host is asked for once.
    let port = application_port(caller, &state.runtime, &asked.authority)?;
    let chance = worker.chance();
    let mut absent = false;
    loop {
        let facts = read_facts(caller, &state.runtime, exchange, &parts, &asked);
        let host = match state.runtime.decide(caller.side.at(absent, port), &facts, chance) {
            Decision::Unknown { host } => host,
            Decision::Forward(plan) => {
                let ways = Ways { worker, caller, state: &state, tunnel };
                if parts.method == Method::CONNECT {
                    return connect(ways, exchange, plan).await;
                }
                return forward(ways, exchange, plan, parts, &asked, replayable).await;
            }
            Decision::Answer { redirect, location, rule } => {
                exchange.follows(Some(rule));
                exchange.status = redirect.status;
                return Ok((redirected(redirect.status, &location, exchange), None));
            }
            Decision::Refuse(refusal) => return Err(refused(exchange, refusal)),
        };
        absent = worker.proxy.hosts.is_absent(&host, Instant::now())
            || !worker.proxy.hosts.ask(&host, WAIT, || knows(worker, &host)).await;
        if let Some(newer) = worker.proxy.state().filter(|_| !absent) {
            state = newer;
            obey(exchange, &state);
        }
    }
}

/// The path that is judged and sent on. A CONNECT has none (RFC 9110, 9.3.6).
fn judged_path<'a>(method: &Method, raw: &'a str, runtime: &Runtime) -> Result<Cow<'a, str>, Failure> {
    if *method == Method::CONNECT {
        return Ok(Cow::Borrowed("/"));
    }
    let bad = |error: path::BadPath| Failure::client(400, "bad-path", error.to_string());
    path::normalise(raw, runtime.mesh.paths).map_err(bad)
}

fn knows(worker: &Worker, host: &str) -> bool {
    worker.proxy.state().is_some_and(|state| state.runtime.service_at(host).is_some())
}

fn obey(exchange: &mut Exchange, state: &State) {
    exchange.revision = Some(state.runtime.revision.clone());
    exchange.runtime = Some(state.runtime.clone());
}

fn read_facts<'a>(
    caller: &'a Caller,
    runtime: &'a Runtime,
    exchange: &'a Exchange,
    parts: &'a Parts,
    asked: &'a Asked<'a>,
) -> Facts<'a> {
    let text = |value: &'a HeaderValue| value.to_str().unwrap_or_default();
    Facts {
        source: facts::Source {
            peer: caller.peer.as_ref().map(|identified| &*identified.peer),
            address: caller.remote,
        },
        destination: facts::Destination { guarded: &runtime.workload.guarded, address: caller.local },
        request: Some(facts::Request {
            method: parts.method.as_str(),
            scheme: "http",
            host: text(&asked.authority),
            path: &asked.path,
            raw_path: parts.uri.path(),
            query: asked.query,
            protocol: if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            id: text(&exchange.request_id),
            headers: &parts.headers,
            time: exchange.time(),
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
fn application_port(caller: &Caller, runtime: &Runtime, authority: &HeaderValue) -> Result<u16, Failure> {
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

fn request_id(worker: &Worker, map: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = map.get(headers::REQUEST_ID) {
        return id.clone();
    }
    let id = format!("{:016x}{:016x}", worker.chance(), worker.chance());
    let id = HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"));
    map.insert(headers::REQUEST_ID, id.clone());
    id
}

/// The trace that the request belongs to, and this hop's server span. Without a trace one begins here; at the edge
/// it is decided anew whether it is kept.
fn trace(
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

fn refused(exchange: &mut Exchange, refusal: Refusal<'_>) -> Failure {
    exchange.follows(refusal.rule);
    exchange.judged(refusal.judgement);
    let (status, flag) = (refusal.status, refusal.flag.as_str());
    if status >= 500 {
        Failure::upstream(status, flag, refusal.reason)
    } else {
        Failure::client(status, flag, refusal.reason)
    }
}

fn redirected(status: u16, location: &str, exchange: &Exchange) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response.headers_mut().insert(headers::DECISION, exchange.decision.clone());
    response
}

/// What forwarding needs beside the request.
struct Ways<'a> {
    worker: &'a Rc<Worker>,
    caller: &'a Rc<Caller>,
    state: &'a Arc<State>,
    tunnel: Option<OnUpgrade>,
}

async fn forward(
    ways: Ways<'_>,
    exchange: &mut Exchange,
    mut plan: Plan<'_>,
    parts: Parts,
    asked: &Asked<'_>,
    body: Replayable,
) -> Result<Answer, Failure> {
    exchange.follows(plan.rule);
    exchange.judged(plan.judgement.take());
    let path = plan.path.as_deref().unwrap_or(&asked.path);
    let authority = plan.host.cloned().unwrap_or_else(|| asked.authority.clone());
    let mut outgoing = Outgoing::new(parts, path, authority)?;
    change(outgoing.headers_mut(), plan.filters().flat_map(|filters| &filters.request_headers));
    if let (Side::Inbound { .. }, Some(identified)) = (ways.caller.side, &ways.caller.peer) {
        outgoing.headers_mut().insert(headers::CLIENT_CERT, identified.header.clone());
    }
    let deadline = forward::deadline(exchange.started(), plan.request_timeout);
    exchange.body = Some(body);
    let replied = {
        let sent = send(&ways, exchange, &plan, &outgoing);
        match deadline {
            None => sent.await,
            Some(at) => tokio::time::timeout_at(at, sent).await.unwrap_or_else(|_| {
                Err(Failure::upstream(504, "request-timeout", "the time of the whole request is over"))
            }),
        }
    };
    let mut reply = replied?;
    let switching = reply.response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let above = switching.then(|| hyper::upgrade::on(&mut reply.response));
    let (mut head, incoming) = reply.response.into_parts();
    let upgrade = head.headers.get(header::UPGRADE).cloned();
    let believed = reply.lease.facts.peer.is_some();
    headers::remove_hop_by_hop(&mut head.headers);
    clean(&mut head.headers, believed, exchange);
    change(&mut head.headers, plan.filters().flat_map(|filters| &filters.response_headers));
    head.version = Version::HTTP_11;
    exchange.answered(head.status.as_u16(), reply.lease, reply.picked, reply.span);
    let ends = match (ways.tunnel, above) {
        (Some(below), Some(above)) => {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.extend(upgrade.map(|protocol| (header::UPGRADE, protocol)));
            return Ok((
                Response::from_parts(head, Body::default()),
                Some(tunnel::Ends { below, above: Above::Upgrade(above) }),
            ));
        }
        (None, Some(_)) => {
            return Err(Failure::upstream(502, "bad-upgrade", "it switched protocols without being asked"));
        }
        (_, None) => None,
    };
    Ok((Response::from_parts(head, Body::incoming(incoming).until(deadline)), ends))
}

/// A stream of bytes to a host that the application names; only where applications call out.
async fn connect(ways: Ways<'_>, exchange: &mut Exchange, plan: Plan<'_>) -> Result<Answer, Failure> {
    let Some(below) = ways.tunnel.filter(|_| ways.caller.side == Side::Outbound) else {
        return Err(Failure::client(405, "connect", "CONNECT is for applications, over HTTP/1.1"));
    };
    exchange.follows(plan.rule);
    let (stream, picked) = match &plan.target {
        Target::Service { service, port } => {
            exchange.service = Some(service.name.clone());
            let callee = callee(ways.state, service, port)?;
            let (stream, picked) = forward::stream(ways.worker, service, callee, exchange).await?;
            (stream, Some(picked))
        }
        Target::Direct { host, port } => (to_host_stream(ways.worker, host, *port).await?, None),
        Target::Application(_) => return Err(Failure::client(405, "connect", "CONNECT is for other hosts")),
    };
    exchange.holds(200, picked);
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(headers::DECISION, exchange.decision.clone());
    Ok((response, Some(tunnel::Ends { below, above: Above::Stream(Box::new(stream)) })))
}

async fn to_host_stream(worker: &Rc<Worker>, host: &str, port: u16) -> Result<Stream, Failure> {
    let mut last = Failure::upstream(502, "no-such-host", "the host has no address");
    for address in addresses(host, port).await? {
        let route = Route { address, endpoint: None, tls: None, timeout: forward::CONNECT };
        match dial::dial(worker, &route).await {
            Ok(dialled) => return Ok(dialled.stream),
            Err(error) => last = Failure::upstream(502, "connect-failed", error.to_string()),
        }
    }
    Err(last)
}

/// What a name means outside the mesh; only so many of its addresses are tried.
async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| Failure::upstream(502, "no-such-host", error.to_string()))?;
    Ok(found.take(ADDRESSES_MAX).collect())
}

fn callee<'a>(state: &'a State, service: &Service, port: &ServicePort) -> Result<&'a Arc<Callee>, Failure> {
    let missing =
        || Failure::Ours { flag: "no-balancer", reason: "the service's port is not balanced".into() };
    state.callee(service, port).ok_or_else(missing)
}

/// Takes away what only a proxy may say, unless a proxy said it, and adds the decision's id.
fn clean(map: &mut HeaderMap, believed: bool, exchange: &Exchange) {
    let decision = believed.then(|| map.get(headers::DECISION).cloned()).flatten();
    headers::remove_ours(map);
    map.insert(headers::DECISION, decision.unwrap_or_else(|| exchange.decision.clone()));
}

fn change<'a>(map: &mut HeaderMap, changes: impl Iterator<Item = &'a HeaderChange>) {
    changes.for_each(|change| change.apply(map));
}

async fn send(
    ways: &Ways<'_>,
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    outgoing: &Outgoing,
) -> Result<Reply, Failure> {
    let body = exchange.body.take().unwrap_or_else(Replayable::none);
    let sent = match &plan.target {
        Target::Application(inbound) => {
            let speaks_h2 = speaks_h2(inbound.protocol) || (outgoing.h2 && outgoing.grpc);
            to_application(ways.worker, exchange, inbound.address, speaks_h2, outgoing, &body).await
        }
        Target::Service { service, port } => {
            exchange.service = Some(service.name.clone());
            let callee = callee(ways.state, service, port)?;
            let _place = Place::take(callee, service.traffic.limit_requests)?;
            let call = Call {
                worker: ways.worker,
                service,
                callee,
                speaks_h2: speaks_h2(port.protocol),
                rule: plan.rule,
                backend_timeout: plan.backend_timeout,
                outgoing,
                body: &body,
            };
            call.run(exchange).await
        }
        Target::Direct { host, port } => to_host(ways.worker, exchange, host, *port, outgoing, &body).await,
    };
    exchange.body = Some(body);
    sent
}

fn speaks_h2(protocol: api::wire::Protocol) -> bool {
    use api::wire::Protocol;
    match protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Unspecified | Protocol::Http | Protocol::Tcp => false,
    }
}

/// A place among the requests that a service may have at once (`limits.requests`; 0: as many as there are).
struct Place<'a>(&'a Callee);

impl<'a> Place<'a> {
    fn take(callee: &'a Callee, limit: u32) -> Result<Self, Failure> {
        let place = Place(callee);
        if callee.requests.fetch_add(1, Relaxed) >= limit && limit > 0 {
            return Err(Failure::upstream(
                503,
                "limit",
                "as many requests are under way as `limits.requests` allows",
            ));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

async fn to_application(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    address: SocketAddr,
    h2: bool,
    outgoing: &Outgoing,
    body: &Replayable,
) -> Result<Reply, Failure> {
    exchange.tries = 1;
    let sent = forward::to_address(worker, address, h2, outgoing, body).await;
    exchange.upstream = Some(exchange.started().elapsed());
    sent.map_err(|error| match error {
        AddressError::Connect(error) => Failure::refused("application", error.to_string()),
        AddressError::Broken(reason) => {
            Failure::Upstream { status: 503, flag: "reset", reason: reason.into(), word: Some(Word::Reset) }
        }
        AddressError::Client => Failure::client(400, "client-body", "the request's body broke off"),
    })
}

async fn to_host(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    host: &str,
    port: u16,
    outgoing: &Outgoing,
    body: &Replayable,
) -> Result<Reply, Failure> {
    let mut last = Failure::upstream(502, "no-such-host", "the host has no address");
    for address in addresses(host, port).await? {
        exchange.tries += 1;
        match forward::to_address(worker, address, false, outgoing, body).await {
            Ok(reply) => return Ok(reply),
            Err(AddressError::Connect(error)) => {
                last = Failure::upstream(502, "connect-failed", error.to_string())
            }
            Err(AddressError::Broken(reason)) => return Err(Failure::upstream(502, "reset", reason)),
            Err(AddressError::Client) => {
                return Err(Failure::client(400, "client-body", "the request's body broke off"));
            }
        }
    }
    Err(last)
}
