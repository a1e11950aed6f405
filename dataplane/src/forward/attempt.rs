//! One try: a connection to the endpoint that was picked, the request over it, and how that ended.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use api::wire::{RetryOn, TrafficPolicy};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use process::trace::{Kind, Span, with_ids};

use super::{
    Call, Reply, connect_limit, is_unprocessed, keep_alive,
    verdict::{End, May, Told, Word},
};
use crate::{
    account::Exchange,
    balance::{Endpoint, Gateway, Limits, Moment, Outcome, Picked},
    body::Body,
    dial::{self, DialError, Route},
    failure::Failure,
    headers,
    limit::{Over, Wait},
    pool::{Lease, Room, Slot, Unsent},
    worker::Worker,
};

/// When there was no budget for going elsewhere, there may be some after this time.
const POORER: Duration = Duration::from_millis(100);

/// A try that is over.
pub(super) struct Attempt {
    pub end: End,
    /// Whether budget was taken for the next one.
    pub paid: bool,
    picked: Picked,
    span: Option<Span>,
    got: Result<(Response<Incoming>, Lease), Failure>,
}

impl Attempt {
    /// Whether it had less time than the policy gives: going elsewhere is then no retry that must be paid for.
    pub fn is_limited(&self) -> bool {
        self.picked.limits.is_some()
    }

    /// What it brought is what the request gets.
    pub fn close(mut self, worker: &Worker) -> Result<Reply, Failure> {
        match self.got {
            Ok((response, lease)) => {
                let picked = Some((self.picked, self.end.outcome()));
                Ok(Reply { response, lease, picked, span: self.span })
            }
            Err(failure) => {
                fail(worker, self.span.take(), failure.flag());
                self.picked.finished(self.end.outcome(), worker.proxy.now());
                Err(failure)
            }
        }
    }

    /// Another try follows it.
    pub fn give_up(mut self, worker: &Worker) -> Failure {
        let status = || Failure::upstream(503, "upstream-status", "the status is to be retried");
        let failure = self.got.err().unwrap_or_else(status);
        fail(worker, self.span.take(), failure.flag());
        self.picked.finished(self.end.outcome(), worker.proxy.now());
        failure
    }
}

fn fail(worker: &Worker, span: Option<Span>, flag: &'static str) {
    if let Some(mut span) = span {
        span.fail(flag);
        span.end(std::time::SystemTime::now());
        worker.proxy.telemetry.spans.record(span);
    }
}

/// Why there is no connection.
enum NoLease {
    Dial(DialError),
    Over(Over),
}

impl From<DialError> for NoLease {
    fn from(error: DialError) -> Self {
        NoLease::Dial(error)
    }
}

impl Call<'_> {
    /// One try at `picked`, which was picked `now`; none when a connection must come free before.
    pub(super) async fn attempt(
        &self,
        exchange: &mut Exchange,
        mut picked: Picked,
        may: May,
        wait: &mut Wait<'_>,
        now: Moment,
    ) -> Option<Attempt> {
        let mut lease = match self.lease(&mut picked, wait).await {
            Ok(lease) => lease,
            Err(NoLease::Dial(DialError::Full)) => return None,
            Err(NoLease::Dial(error)) => {
                let failure = Failure::upstream(503, "connect-failed", error.to_string());
                let end = End::Unconnected(error.outcome());
                return Some(Attempt { end, paid: false, picked, span: None, got: Err(failure) });
            }
            Err(NoLease::Over(over)) => {
                let got = Err(over.into());
                return Some(Attempt { end: End::Over, paid: false, picked, span: None, got });
            }
        };
        wait.end();
        exchange.tries += 1;
        let (request, span) = self.request(exchange, &picked, &lease);
        picked.sent(if lease.reused { now } else { self.worker.proxy.now() });
        let mut paid = false;
        let gateway = lease.facts.gateway.clone();
        let sent = tokio::select! {
            biased;
            sent = lease.send(request) => Some(sent),
            () = self.late(&picked, may, gateway.as_deref(), &mut paid) => None,
        };
        let instant = Instant::now();
        exchange.upstream = Some(instant.saturating_duration_since(exchange.started()));
        let now = self.worker.proxy.moment(instant);
        let (end, got) = match sent {
            Some(Ok(response)) => {
                picked.head(now);
                self.answered(response, lease)
            }
            Some(Err(unsent)) => self.unsent(unsent, &lease, now),
            None => {
                if let Some(gateway) = &lease.facts.gateway {
                    gateway.doubt(now);
                }
                (End::Late, Err(Failure::upstream(504, "late", "no response head came in time")))
            }
        };
        Some(Attempt { end, paid, picked, span, got })
    }

    /// A connection to the endpoint: one that stands, or a new one.
    async fn lease(&self, picked: &mut Picked, wait: &mut Wait<'_>) -> Result<Lease, NoLease> {
        let endpoint = picked.endpoint();
        let slot = self.worker.pool.endpoint(endpoint);
        keep(&slot, self.traffic, endpoint.wire.mtls);
        let remote = endpoint.gateway.is_some();
        let h2 = match (endpoint.wire.mtls, self.outgoing.upgrade.is_some()) {
            (_, true) => false,
            (true, false) => remote || self.outgoing.h2,
            // gRPC has no other way to be spoken.
            (false, false) => self.speaks_h2 || self.outgoing.h2 && self.outgoing.grpc,
        };
        if let Some(lease) = slot.take(h2) {
            return Ok(self.meant(endpoint, lease)?);
        }
        let endpoint = endpoint.clone();
        wait.begin().map_err(NoLease::Over)?;
        let alpn: &[&str] = if h2 { &["h2"] } else { &["http/1.1"] };
        let identities = &self.service.identities;
        let tls = match endpoint.wire.mtls {
            true => Some(slot.tls(h2, || dial::tls_config(self.worker, &endpoint, identities, alpn))?),
            false => None,
        };
        let timeout = connect_limit(self.traffic, remote);
        let keep_alive = keep_alive(self.traffic);
        let route = Route { address: endpoint.address, endpoint: Some(&endpoint), tls, timeout, keep_alive };
        if !remote {
            picked.connecting(self.worker.proxy.now());
        }
        let room = Room { load: &self.callee.load, limit: self.traffic.limit_connections };
        let connecting = slot.connect(self.worker, route, h2, room);
        let lease = match picked.limits {
            None => connecting.await?,
            Some(Limits { connect, .. }) => tokio::time::timeout(connect, connecting)
                .await
                .unwrap_or(Err(DialError::Slow(endpoint.address, connect)))?,
        };
        Ok(self.meant(&endpoint, lease)?)
    }

    /// A connection that other services share is to one of this service only if its configuration says so too.
    fn meant(&self, endpoint: &Endpoint, lease: Lease) -> Result<Lease, DialError> {
        match &lease.facts.peer {
            Some(peer) if !self.service.identities.contains(&peer.id) => {
                Err(DialError::Identity(endpoint.address, endpoint.wire.identity.clone()))
            }
            _ => Ok(lease),
        }
    }

    /// What is sent in this try, and the span that tells of it.
    fn request(&self, exchange: &Exchange, picked: &Picked, lease: &Lease) -> (Request<Body>, Option<Span>) {
        let mut span = None;
        let mut traceparent = None;
        if let Some(trace) = &exchange.trace
            && trace.context.sampled
        {
            let context = with_ids(|ids| trace.context.child(ids));
            traceparent = HeaderValue::try_from(context.traceparent()).ok();
            let (method, now) = (exchange.method().to_string(), std::time::SystemTime::now());
            span = Span::begin(&context, trace.parent, Kind::Client, method, now);
            if let Some(span) = &mut span {
                self.describe(span, picked.endpoint(), lease, exchange.tries);
            }
        }
        (self.outgoing.request(self.body.body(), lease.is_h2(), traceparent), span)
    }

    /// Ends when a response head is not to be waited for any longer: its time is over, or the gateway is lost that it would
    /// come through, and the request can go elsewhere; or the route gives no try as long. What cannot go elsewhere, or
    /// not yet, goes on waiting here.
    async fn late(&self, picked: &Picked, may: May, gateway: Option<&Gateway>, paid: &mut bool) {
        let leaves = self.may_leave(may);
        let mut gateway = gateway.filter(|_| leaves);
        let begun = tokio::time::Instant::now();
        let last = self.backend_timeout.map(|limit| begun + limit);
        let mut due = self.patience(picked).filter(|_| leaves).map(|patience| begun + patience);
        loop {
            let next = [due, last].into_iter().flatten().min();
            tokio::select! {
                () = until(next) => {}
                () = gone(gateway) => gateway = None,
            }
            let now = tokio::time::Instant::now();
            if last.is_some_and(|last| last <= now) {
                return;
            }
            let free = picked.limits.is_some();
            if self.body.is_whole() && (free || self.pay()) {
                *paid = !free;
                return;
            }
            due = Some(now + POORER);
        }
    }

    /// How long a response head may take, where it may be waited for elsewhere.
    fn patience(&self, picked: &Picked) -> Option<Duration> {
        let positive = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let timeouts = self.traffic.timeouts.as_ref();
        let first_byte = timeouts.and_then(|timeouts| positive(timeouts.first_byte_ms));
        let first_byte = first_byte.filter(|_| self.on(RetryOn::FirstByte));
        [first_byte, picked.limits.map(|limits| limits.head)].into_iter().flatten().min()
    }

    fn answered(
        &self,
        response: Response<Incoming>,
        lease: Lease,
    ) -> (End, Result<(Response<Incoming>, Lease), Failure>) {
        let map = response.headers();
        let believed = lease.facts.peer.is_some();
        if let Some(reason) = map.get(headers::REFUSED).filter(|_| believed) {
            let reason = format!("refused: {}", String::from_utf8_lossy(reason.as_bytes()));
            return (End::Unprocessed(Told::First), Err(Failure::upstream(503, "refused", reason)));
        }
        let word = match believed && map.contains_key(headers::RESET) && self.on(RetryOn::Reset) {
            true => Word::Reset,
            false => self.word(&response),
        };
        (End::Answered(outcome(response.status(), map), word), Ok((response, lease)))
    }

    fn word(&self, response: &Response<Incoming>) -> Word {
        let retry = self.retry();
        let code = u32::from(response.status().as_u16());
        let own = self.rule.and_then(|rule| rule.retry.as_ref());
        // With its status in the head and no body, a call has had no message for an answer.
        let bare = self.outgoing.grpc && response.body().is_end_stream();
        let grpc = bare.then(|| response.headers().get("grpc-status")).flatten();
        let grpc = grpc.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        if grpc.is_some_and(|status| retry.grpc_statuses.contains(&status)) {
            Word::GrpcStatus
        } else if own.map_or(&retry.statuses, |own| &own.codes).contains(&code) {
            Word::Status
        } else {
            Word::None
        }
    }

    fn unsent<T>(&self, unsent: Unsent, lease: &Lease, now: Moment) -> (End, Result<T, Failure>) {
        let Unsent { error, returned } = unsent;
        let reason = process::logs::causes(&error);
        let alert = !lease.facts.proven.get() && dial::is_refusal(&error);
        if self.body.client_failed() {
            return (End::Client, Err(Failure::client(400, "client-body", "the request's body broke off")));
        }
        if returned && lease.reused {
            return (End::Closed, Err(Failure::upstream(503, "refused", reason)));
        }
        let told = if lease.broke(&error, now) { Told::First } else { Told::Again };
        if returned || alert || is_unprocessed(&error) {
            (End::Unprocessed(told), Err(Failure::upstream(503, "refused", reason)))
        } else {
            (End::Broken(told), Err(Failure::upstream(503, "reset", reason)))
        }
    }

    fn describe(&self, span: &mut Span, endpoint: &Endpoint, lease: &Lease, tries: u32) {
        span.set("server.address", endpoint.address.ip().to_string());
        span.set("server.port", i64::from(endpoint.address.port()));
        span.set("http.request.method", self.outgoing.method().to_string());
        span.set("url.path", self.outgoing.path().to_owned());
        span.set("weft.service", self.service.name.to_string());
        span.set("weft.peer.cluster", endpoint.wire.cluster.clone());
        span.set("weft.peer.workload", endpoint.wire.workload.clone());
        span.set("weft.locality.priority", i64::from(endpoint.priority));
        if let Some(gateway) = &lease.facts.gateway {
            span.set("weft.gateway", gateway.address.to_string());
        }
        if tries > 1 {
            span.set("http.request.resend_count", i64::from(tries - 1));
        }
    }
}

async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

async fn gone(gateway: Option<&Gateway>) {
    match gateway {
        Some(gateway) => gateway.gone().await,
        None => pending().await,
    }
}

/// How the policy wants connections kept.
fn keep(slot: &Slot, traffic: &TrafficPolicy, member: bool) {
    let idle = traffic.timeouts.as_ref().map_or(0, |timeouts| timeouts.idle_ms);
    slot.limit(traffic.max_idle_per_endpoint, Duration::from_millis(idle), member);
}

/// What a response tells of its endpoint.
fn outcome(status: StatusCode, map: &HeaderMap) -> Outcome {
    match status.as_u16() {
        502..=504 => Outcome::GatewayError,
        429 => Outcome::Busy,
        500.. => Outcome::ServerError,
        _ if map.get("grpc-status").is_some_and(|status| status == "8") => Outcome::Busy,
        _ => Outcome::Success,
    }
}
