//! The life of a request: facts → decide → forward → account. One function, read from top to bottom.
//!
//! Invariant: a request loads what it obeys once and keeps it. What is forwarded is the path that was judged.

pub(crate) mod read;
mod target;

use std::{
    borrow::Cow,
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
};

use api::endpoint;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts,
    uri::Scheme,
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use runtime::{Decision, Plan, Refusal, Runtime, route::HeaderChange};

use self::read::Asked;
use crate::{
    account::Exchange,
    body::{Body, Limits, REPLAY_BYTES, Replayable},
    caller::{Caller, Side},
    control::hosts::{WAIT, Word},
    failure::Failure,
    forward::{self, Reply},
    headers, http1,
    message::{self, Outgoing},
    proxy::State,
    review::{self, Terms},
    tunnel::{self, Above, Below},
    worker::Worker,
};

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
            tunnel::start(&worker, &caller, ends, exchange);
            Ok(response)
        }
        None => Ok(response.map(|body| body.accounted(exchange))),
    }
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
    // First of all, so that nobody can take away by `Connection` what is written here, and what is judged is what is
    // forwarded.
    let upgrade = headers::upgrade(&parts.headers).filter(|_| parts.version != Version::HTTP_2);
    headers::remove_hop_by_hop(&mut parts.headers);
    if parts.version == Version::HTTP_2 {
        headers::join_cookies(&mut parts.headers);
    }
    if let Some(protocol) = &upgrade {
        headers::set_upgrade(&mut parts.headers, protocol);
    }
    obey(exchange, &state);
    let inbound = matches!(caller.side, Side::Inbound { .. });
    // Whoever can send it elsewhere does; what nobody could send again is served to the end.
    let movable =
        caller.peer.is_some() && body.size_hint().upper().is_some_and(|most| most <= REPLAY_BYTES as u64);
    if inbound && movable && worker.proxy.is_draining() {
        return Err(Failure::refused("draining", "this workload is on its way out"));
    }

    // What the request says of itself, before anything of it is judged.
    let uri = parts.uri.clone();
    if caller.side == Side::Outbound && caller.protocol != "h2" && uri.scheme() == Some(&Scheme::HTTPS) {
        return Err(Failure::client(
            400,
            "bad-request",
            "https is asked for by CONNECT: nothing here would encrypt it",
        ));
    }
    let authority = authority(caller, &parts)?;
    // What is judged as the host is what is forwarded as the host, whatever the request says elsewhere.
    let judged = canonical(&authority);
    parts.headers.insert(header::HOST, judged.clone());
    let mut asked = Asked {
        authority: judged,
        path: read::judged_path(&parts.method, uri.path(), &state.runtime)?,
        query: uri.query().unwrap_or_default(),
    };
    exchange.host = authority;
    if caller.peer.is_none() && caller.side != Side::Outbound {
        headers::forwarded_from_outside(&mut parts.headers, caller.address());
    }
    exchange.request_id = read::request_id(worker, &mut parts.headers);
    exchange.trace = read::trace(worker, caller, exchange, &mut parts.headers, &asked);
    let replayable = Replayable::new(body);

    // Decide; an unknown host is asked for once.
    let port = read::application_port(caller, &state.runtime, &asked.authority)?;
    let chance = worker.chance();
    let mut absent = false;
    loop {
        let facts = read::read_facts(
            caller,
            port,
            &state.runtime,
            (&exchange.request_id, exchange.time()),
            &parts,
            &asked,
        );
        let host = match state.runtime.decide(caller.side.at(absent, port), &facts, chance) {
            Decision::Unknown { host } => host,
            Decision::Forward(plan) => {
                let terms = |parts| {
                    Box::new(Terms {
                        judged_by: state.runtime.clone(),
                        parts,
                        authority: asked.authority.clone(),
                        path: asked.path.to_string(),
                        id: exchange.request_id.clone(),
                        time: exchange.time(),
                        port,
                        absent,
                        upstream: None,
                    })
                };
                let tunnel = tunnel.map(|upgrade| Below { upgrade, terms: terms(parts.clone()) });
                // A caller's own sidecar guards nothing: no policies come to it, since whom they are meant for could go
                // around it. Those of the callee are judged there.
                let guards = caller.side != Side::Outbound;
                let terms = guards.then(|| terms(bare(&parts)));
                let mut ways = Ways { worker, caller, state: &state, tunnel, terms, upgrade };
                if parts.method == Method::CONNECT {
                    // Boxed, so that the many others are not as large.
                    return Box::pin(target::connect(ways, exchange, plan)).await;
                }
                return forward(&mut ways, exchange, plan, parts, &asked, replayable).await;
            }
            Decision::Answer { redirect, location, rule, judgement } => {
                exchange.follows(Some(rule));
                exchange.judged(judgement);
                exchange.status = redirect.status;
                return Ok((redirected(redirect.status, &location, exchange), None));
            }
            Decision::Refuse(refusal) => return Err(refused(exchange, refusal)),
        };
        let word = worker.proxy.hosts.ask(&host, WAIT, || knows(worker, &host)).await;
        absent = word != Word::Known;
        // Nobody has said that it is not of the mesh, and outside it goes as it is: in plaintext, by nobody's name.
        if word == Word::None && state.runtime.is_named_like_a_service(&host) {
            let reason = format!("the control plane has not said yet who `{host}` is");
            return Err(Failure::upstream(503, "unheard", reason));
        }
        if absent && let Some(address) = destination(caller).filter(|address| *address != asked.authority) {
            // Nobody knows the host by its name: where the connection was going, it may be known.
            (asked.authority, absent) = (address, false);
        }
        if let Some(newer) = worker.proxy.state().filter(|_| !absent) {
            state = newer;
            obey(exchange, &state);
        }
    }
}

/// What the request names as its host; of a captured connection that may be nothing.
fn authority(caller: &Caller, parts: &Parts) -> Result<HeaderValue, Failure> {
    message::authority(&parts.uri, &parts.headers).or_else(|failure| {
        // HTTP/1.0 knows no hosts: it is for whoever was called.
        let old = parts.version == Version::HTTP_10 && !parts.headers.contains_key(header::HOST);
        destination(caller).or_else(|| old.then(|| written(caller.destination(0))).flatten()).ok_or(failure)
    })
}

/// The authority as it is routed and judged.
fn canonical(authority: &HeaderValue) -> HeaderValue {
    match authority.to_str().map(policies::facts::canonical_authority) {
        Ok(Cow::Owned(canonical)) => HeaderValue::try_from(canonical).unwrap_or_else(|_| authority.clone()),
        Ok(Cow::Borrowed(_)) | Err(_) => authority.clone(),
    }
}

/// Where a captured connection was going, as an authority.
fn destination(caller: &Caller) -> Option<HeaderValue> {
    written(caller.original.filter(|_| caller.side == Side::Outbound)?)
}

fn written(address: SocketAddr) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{}:{}", endpoint::host(address.ip()), address.port())).ok()
}

/// The head without its headers, which go on with the request.
fn bare(parts: &Parts) -> Parts {
    let (mut bare, ()) = Request::new(()).into_parts();
    (bare.method, bare.uri, bare.version) = (parts.method.clone(), parts.uri.clone(), parts.version);
    bare
}

fn knows(worker: &Worker, host: &str) -> bool {
    worker.proxy.state().is_some_and(|state| state.runtime.knows(host))
}

fn obey(exchange: &mut Exchange, state: &State) {
    exchange.obeys(&state.runtime);
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
    tunnel: Option<Below>,
    /// Where policies guard: what a long answer is allowed by, still without headers.
    terms: Option<Box<Terms>>,
    /// The protocol that the request wants to change to.
    upgrade: Option<HeaderValue>,
}

async fn forward(
    ways: &mut Ways<'_>,
    exchange: &mut Exchange,
    mut plan: Plan<'_>,
    parts: Parts,
    asked: &Asked<'_>,
    body: Replayable,
) -> Result<Answer, Failure> {
    exchange.follows(plan.rule);
    exchange.judged(plan.judgement.take());
    let path = plan.path.as_deref().unwrap_or(&asked.path);
    let authority = plan.host.cloned().unwrap_or_else(|| exchange.host.clone());
    let mut outgoing = Outgoing::new(parts, path, authority, ways.upgrade.take())?;
    let claimed = outgoing.headers().get(headers::CLIENT_CERT).cloned();
    let changes = || plan.filters().flat_map(|filters| &filters.request_headers);
    // What it was judged by, where a route makes something else of it.
    let judged = (ways.terms.is_some() && changes().next().is_some()).then(|| outgoing.headers().clone());
    change(outgoing.headers_mut(), changes());
    if let (Side::Inbound { .. }, Some(identified)) = (ways.caller.side, &ways.caller.peer) {
        headers::set_client_cert(outgoing.headers_mut(), identified.header.clone());
    }
    let deadline = forward::deadline(exchange.started(), plan.request_timeout);
    exchange.body = Some(body);
    let replied = {
        let said = (judged.as_ref().unwrap_or(outgoing.headers()), &claimed);
        let sent = pin!(target::send(ways, exchange, &plan, &outgoing));
        let allowed = while_allowed(ways, said, sent);
        match deadline {
            None => allowed.await,
            Some(at) => tokio::time::timeout_at(at, allowed).await.unwrap_or_else(|_| {
                Err(Failure::upstream(504, "request-timeout", "the time of the whole request is over"))
            }),
        }
    };
    let mut reply = replied?;
    let switching = reply.response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let above = switching.then(|| hyper::upgrade::on(&mut reply.response));
    let (mut head, incoming) = reply.response.into_parts();
    let upgrade = head.headers.get(header::UPGRADE).cloned();
    let facts = &reply.lease.facts;
    let upstream = facts.peer.clone().map(|peer| (peer, facts.verified_at));
    let believed = upstream.is_some();
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // It overrules a length, which must not go on (RFC 9112, 6.3).
        head.headers.remove(header::CONTENT_LENGTH);
    }
    headers::remove_hop_by_hop(&mut head.headers);
    clean(&mut head.headers, believed, exchange);
    change(&mut head.headers, plan.filters().flat_map(|filters| &filters.response_headers));
    head.version = Version::HTTP_11;
    exchange.answered(head.status.as_u16(), reply.lease, reply.picked, reply.span);
    let ends = match (ways.tunnel.take(), above) {
        (Some(below), Some(above)) => {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.extend(upgrade.map(|protocol| (header::UPGRADE, protocol)));
            return Ok((
                Response::from_parts(head, Body::default()),
                Some(below.onto(Above::Upgrade(above), upstream)),
            ));
        }
        (None, Some(_)) => {
            return Err(Failure::upstream(502, "bad-upgrade", "it switched protocols without being asked"));
        }
        (_, None) => None,
    };
    let revoked = ways.terms.take_if(|_| !incoming.is_end_stream()).map(|terms| {
        let terms = terms.sent_with(judged.unwrap_or_else(|| outgoing.into_headers()), claimed);
        Box::pin(terms.revoked(ways.worker.clone(), ways.caller.clone())) as _
    });
    let body = Body::incoming(incoming).within(Limits::new(deadline, revoked));
    Ok((Response::from_parts(head, body), ends))
}

/// Waits for the head of an answer, unless the request, which said this, is denied meanwhile: its body may be long, too.
async fn while_allowed(
    ways: &Ways<'_>,
    (headers, claimed): (&HeaderMap, &Option<HeaderValue>),
    sent: Pin<&mut impl Future<Output = Result<Reply, Failure>>>,
) -> Result<Reply, Failure> {
    let Some(terms) = &ways.terms else { return sent.await };
    let judge = |runtime: &Runtime| {
        let terms = terms.clone().sent_with(headers.clone(), claimed.clone());
        terms.judge(ways.caller, runtime)
    };
    tokio::select! {
        biased;
        sent = sent => sent,
        reason = review::revoked(ways.worker, ways.caller, Some(terms.judged_by.clone()), judge) => {
            Err(Failure::client(403, "revoked", reason))
        }
    }
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
