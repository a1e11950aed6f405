//! Where a plan leads: the application, a service of the mesh, a host outside it.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use api::identity::UnixTime;
use http::Response;
use runtime::{Plan, Service, ServicePort, Target};

use super::{Answer, Ways};
use crate::{
    account::Exchange,
    body::{Body, Replayable},
    caller::Side,
    dial::{self, Dialled, Route},
    failure::{Failure, Word},
    forward::{
        Call, Reply,
        address::{AddressError, CONNECT, CONNECT_OUTSIDE, to_address},
        stream,
    },
    headers,
    limit::{Kind, Over, Place},
    message::Outgoing,
    proxy::{Callee, State},
    tunnel::Above,
    worker::Worker,
};

/// The most addresses of a host outside the mesh that are tried.
const ADDRESSES_MAX: usize = 4;

pub(super) async fn send(
    ways: &Ways<'_>,
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    outgoing: &Outgoing,
) -> Result<Reply, Failure> {
    // The account keeps it, too: this may be given up at any time.
    let body = exchange.body.clone().unwrap_or_else(Replayable::none);
    match &plan.target {
        Target::Application(inbound) => {
            let http = match speaks_h2(inbound.protocol) {
                true => Http::Two,
                false if outgoing.h2 && outgoing.grpc => Http::TwoPerhaps,
                false => Http::One,
            };
            to_application(ways.worker, exchange, inbound.address, http, outgoing, &body).await
        }
        Target::Service { service, port, endpoint } => {
            exchange.service = Some(service.name.clone());
            let callee = callee(ways.state, service, port)?;
            let place = Place::take(&callee.load, Kind::Request, port.traffic.limit_requests);
            exchange.place = Some(place.ok_or(Over::Requests)?);
            let call = Call {
                worker: ways.worker,
                service,
                traffic: &port.traffic,
                callee,
                only: *endpoint,
                speaks_h2: speaks_h2(port.protocol),
                rule: plan.rule,
                backend_timeout: plan.backend_timeout,
                outgoing,
                body: &body,
            };
            call.run(exchange).await
        }
        Target::Direct { host, port } => {
            // What comes as HTTP/2 from a captured connection was meant for a server that speaks it.
            let h2 = outgoing.h2 && (outgoing.grpc || ways.caller.original.is_some());
            to_host(ways.worker, exchange, (host, *port, h2), outgoing, &body).await
        }
    }
}

fn speaks_h2(protocol: api::wire::Protocol) -> bool {
    use api::wire::Protocol;
    match protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Unspecified | Protocol::Http | Protocol::Tcp => false,
    }
}

/// What an application speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Http {
    One,
    Two,
    /// Nobody says so, but what comes is gRPC; so says the caller.
    TwoPerhaps,
}

async fn to_application(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    address: SocketAddr,
    http: Http,
    outgoing: &Outgoing,
    body: &Replayable,
) -> Result<Reply, Failure> {
    exchange.tries = 1;
    let sent = to_address(worker, (address, CONNECT), http != Http::One, outgoing, body).await;
    exchange.upstream = Some(exchange.started().elapsed());
    sent.map_err(|error| match error {
        AddressError::Connect(error) => Failure::refused("application", error.to_string()),
        // Callers choose this by a header: it must not tell against the endpoint.
        AddressError::Broken(_) if http == Http::TwoPerhaps && !worker.pool.plain(address).spoke_h2() => {
            Failure::client(415, "bad-request", "the application does not speak HTTP/2, in which gRPC comes")
        }
        AddressError::Broken(reason) => {
            Failure::Upstream { status: 503, flag: "reset", reason: reason.into(), word: Some(Word::Reset) }
        }
        AddressError::Client => Failure::client(400, "client-body", "the request's body broke off"),
    })
}

async fn to_host(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    (host, port, h2): (&str, u16, bool),
    outgoing: &Outgoing,
    body: &Replayable,
) -> Result<Reply, Failure> {
    let mut last = Failure::upstream(502, "no-such-host", "the host has no address");
    for address in addresses(worker, host, port).await? {
        exchange.tries += 1;
        match to_address(worker, (address, CONNECT_OUTSIDE), h2, outgoing, body).await {
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

/// A stream of bytes to a host that the application names; only where applications call out.
pub(super) async fn connect(
    ways: Ways<'_>,
    exchange: &mut Exchange,
    plan: Plan<'_>,
) -> Result<Answer, Failure> {
    let asked = ways.caller.side == Side::Outbound && ways.caller.original.is_none();
    let Some(below) = ways.tunnel.filter(|_| asked) else {
        return Err(Failure::client(
            405,
            "connect",
            "CONNECT is for applications that ask their sidecar, over HTTP/1.1",
        ));
    };
    exchange.follows(plan.rule);
    let (dialled, picked) = match &plan.target {
        Target::Service { service, port, endpoint } => {
            exchange.service = Some(service.name.clone());
            let callee = callee(ways.state, service, port)?;
            let (dialled, picked) =
                stream::open(ways.worker, service, port, callee, *endpoint, exchange).await?;
            (dialled, Some(picked))
        }
        Target::Direct { host, port } => (dial_host(ways.worker, host, *port).await?, None),
        Target::Application(_) => return Err(Failure::client(405, "connect", "CONNECT is for other hosts")),
    };
    let upstream = dialled.peer.map(|peer| (peer, UnixTime::now()));
    exchange.holds(200, picked);
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(headers::DECISION, exchange.decision.clone());
    Ok((response, Some(below.onto(Above::Stream(Box::new(dialled.stream)), upstream))))
}

async fn dial_host(worker: &Rc<Worker>, host: &str, port: u16) -> Result<Dialled, Failure> {
    let mut last = Failure::upstream(502, "no-such-host", "the host has no address");
    for address in addresses(worker, host, port).await? {
        let route = Route::plain(address, CONNECT_OUTSIDE);
        match dial::dial(worker, &route).await {
            Ok(dialled) => return Ok(dialled),
            Err(error) => last = Failure::upstream(502, "connect-failed", error.to_string()),
        }
    }
    Err(last)
}

/// What a name means outside the mesh; only so many of its addresses are tried. What leads back to where applications call
/// out is none: such a request would go round until nothing is left.
async fn addresses(worker: &Worker, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let missing = |reason: String| Failure::upstream(502, "no-such-host", reason);
    let mut found = worker.names.addresses(host, port).await.map_err(missing)?;
    found.retain(|to| !worker.proxy.config.leads_back(*to));
    found.truncate(ADDRESSES_MAX);
    match found.is_empty() {
        true => Err(missing("it leads back to this proxy, or has no address".into())),
        false => Ok(found),
    }
}

fn callee<'a>(state: &'a State, service: &Service, port: &ServicePort) -> Result<&'a Arc<Callee>, Failure> {
    let missing =
        || Failure::Ours { flag: "no-balancer", reason: "the service's port is not balanced".into() };
    state.callee(service, port).ok_or_else(missing)
}
