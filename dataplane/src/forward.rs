//! Sends a request to an endpoint, and to another one when that may and must be.
//!
//! What may be sent again is decided in one place ([`Ending`]): what was not processed may go elsewhere whatever it
//! is; what broke off or came late may when it is idempotent and can be replayed; a gRPC call may when its whole answer
//! is a status that says so. Nothing else ever is.

pub mod address;
pub mod stream;

use std::{
    borrow::Cow,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use api::wire::{Retry, RetryOn, TrafficPolicy};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use process::trace::{Kind, Span, with_ids};
use runtime::{Service, route::Rule};
use socket2::TcpKeepalive;

use crate::{
    account::Exchange,
    balance::{Ask, Endpoint, NoEndpoint, Outcome, Pick, Picked, Tried, backoff},
    body::Replayable,
    dial::{self, DialError, Route},
    failure::Failure,
    headers,
    message::Outgoing,
    pool::{Lease, Slot, Unsent},
    proxy::Callee,
    worker::Worker,
};

/// What a response is made from.
pub struct Reply {
    /// The head and the body as they come.
    pub response: Response<Incoming>,
    /// Its connection.
    pub lease: Lease,
    /// Its endpoint, and how it did.
    pub picked: Option<(Picked, Outcome)>,
    /// The span of the try.
    pub span: Option<Span>,
}

/// How one try ended.
enum Ending {
    /// With a head.
    Answered(Response<Incoming>),
    /// Before it was processed.
    NotProcessed(String),
    /// After it may have been processed, before a head.
    Broken(String),
    /// No head came in time.
    Late,
    /// The caller broke off.
    Client,
}

/// One request to one service.
pub struct Call<'a> {
    /// This thread.
    pub worker: &'a Rc<Worker>,
    /// The service.
    pub service: &'a Service,
    /// Who balances it.
    pub callee: &'a Arc<Callee>,
    /// Whether the service's port speaks HTTP/2 in plaintext too.
    pub speaks_h2: bool,
    /// What the route says of retries.
    pub rule: Option<&'a Rule>,
    /// The limit of one try.
    pub backend_timeout: Option<Duration>,
    /// What is sent.
    pub outgoing: &'a Outgoing,
    /// Its body.
    pub body: &'a Replayable,
}

impl Call<'_> {
    /// Sends it until it is answered, or may not be sent again.
    pub async fn run(&self, exchange: &mut Exchange) -> Result<Reply, Failure> {
        let mut tried = Tried::default();
        let mut retries = 0;
        let mut last = None;
        self.callee.budget.request(&self.retry(), self.worker.proxy.now());
        loop {
            let mut picked = match self.pick(&tried) {
                Ok(picked) => picked,
                Err(NoEndpoint::Empty) => {
                    return Err(Failure::upstream(503, "no-endpoints", NoEndpoint::Empty.to_string()));
                }
                Err(NoEndpoint::Exhausted) => {
                    return Err(last.unwrap_or_else(|| {
                        Failure::upstream(503, "no-endpoints", NoEndpoint::Exhausted.to_string())
                    }));
                }
            };
            let endpoint = picked.endpoint().clone();
            exchange.endpoint = Some(endpoint.clone());
            let leased = self.lease(&endpoint, &mut picked).await;
            let mut lease = match leased.and_then(|lease| self.meant(&endpoint, lease)) {
                Ok(lease) => lease,
                Err(error) => {
                    picked.finished(error.outcome(), self.worker.proxy.now());
                    error.note(&mut tried, &endpoint);
                    let failure = Failure::upstream(503, "connect-failed", error.to_string());
                    self.may_connect_again(&tried, failure, &mut last)?;
                    continue;
                }
            };
            exchange.tries += 1;
            let more = self.may_repeat(retries);
            let (ending, span) = self.once(exchange, &mut picked, &mut lease, more).await;
            exchange.upstream = Some(exchange.started().elapsed());
            let now = self.worker.proxy.now();
            let (outcome, failure, again) = match ending {
                Ending::Answered(response) => match self.judge(response, &lease, more) {
                    Verdict::Pass(response, outcome) => {
                        picked.head(now);
                        return Ok(Reply { response, lease, picked: Some((picked, outcome)), span });
                    }
                    Verdict::NotProcessed(reason) => {
                        picked.head(now);
                        picked.finished(Outcome::ConnectFailure, now);
                        tried.connect_failed(&endpoint);
                        failed_span(self.worker, span, "refused");
                        self.may_connect_again(&tried, Failure::upstream(503, "refused", reason), &mut last)?;
                        continue;
                    }
                    Verdict::Again(response, outcome) => {
                        picked.head(now);
                        if !self.has_tries(retries) || !self.budget() {
                            return Ok(Reply { response, lease, picked: Some((picked, outcome)), span });
                        }
                        let failure =
                            Failure::upstream(503, "upstream-status", "the status is to be retried");
                        (outcome, failure, true)
                    }
                    Verdict::Reset => {
                        let failure = Failure::upstream(503, "reset", "the application broke off");
                        (Outcome::GatewayError, failure, self.budget())
                    }
                },
                Ending::NotProcessed(reason) => {
                    picked.finished(Outcome::ConnectFailure, now);
                    tried.connect_failed(&endpoint);
                    failed_span(self.worker, span, "refused");
                    self.may_connect_again(&tried, Failure::upstream(503, "refused", reason), &mut last)?;
                    continue;
                }
                Ending::Broken(reason) => {
                    let again =
                        more && self.on(RetryOn::Reset) && self.body.is_whole() && self.may_leave(&picked);
                    (Outcome::GatewayError, Failure::upstream(503, "reset", reason), again)
                }
                Ending::Late => {
                    let failure = Failure::upstream(504, "late", "no response head came in time");
                    let again = more && self.body.is_whole() && self.may_leave(&picked);
                    (Outcome::Late { connected: true }, failure, again)
                }
                Ending::Client => {
                    return Err(Failure::client(400, "client-body", "the request's body broke off"));
                }
            };
            failed_span(self.worker, span, failure.flag());
            picked.finished(outcome, now);
            tried.failed(&endpoint);
            drop(lease);
            if !again {
                return Err(failure);
            }
            retries += 1;
            last = Some(failure);
            tokio::time::sleep(backoff(&self.retry(), retries, self.worker.chance())).await;
        }
    }

    fn pick(&self, tried: &Tried) -> Result<Picked, NoEndpoint> {
        let ask = Ask {
            now: self.worker.proxy.now(),
            chance: self.worker.chance(),
            tried,
            may_repeat: self.may_repeat(0),
        };
        match self.callee.balancer.pick(&ask) {
            Pick::Endpoint(picked) => Ok(picked),
            Pick::None(reason) => Err(reason),
        }
    }

    /// After a connect in vain: on to the next endpoint, or the end.
    fn may_connect_again(
        &self,
        tried: &Tried,
        failure: Failure,
        last: &mut Option<Failure>,
    ) -> Result<(), Failure> {
        let on = self.on(RetryOn::Refused);
        if on && tried.may_connect() && self.body.is_whole() {
            *last = Some(failure);
            return Ok(());
        }
        Err(failure)
    }

    /// What the service says of retries, with the back-off of the route where that says one.
    fn retry(&self) -> Cow<'_, Retry> {
        let Some(retry) = &self.service.traffic.retry else { return Cow::Owned(Retry::default()) };
        match self.rule.and_then(|rule| rule.retry.as_ref()).and_then(|own| own.backoff_ms) {
            None => Cow::Borrowed(retry),
            Some(base) => Cow::Owned(Retry {
                backoff_base_ms: base,
                backoff_max_ms: retry.backoff_max_ms.max(base),
                ..retry.clone()
            }),
        }
    }

    fn on(&self, what: RetryOn) -> bool {
        self.service.traffic.retry.as_ref().is_some_and(|retry| retry.on.contains(&(what as i32)))
    }

    /// Whether another try may follow this one, should it break off or be late: nobody knows what has become of it.
    fn may_repeat(&self, retries: u32) -> bool {
        self.outgoing.idempotent && self.has_tries(retries)
    }

    /// Whether another try is left, and can have all of the body.
    fn has_tries(&self, retries: u32) -> bool {
        let own = self.rule.and_then(|rule| rule.retry.as_ref()).and_then(|own| own.attempts);
        let attempts = own.or(self.service.traffic.retry.as_ref().map(|retry| retry.attempts)).unwrap_or(0);
        retries < attempts && self.body.is_whole()
    }

    /// Whether the budget bears another try after one at `picked`. A probe is the proxy's own choice and at most one
    /// a second at each endpoint: the request that it was made with does not pay for going on, least of all when a
    /// hang has just used the budget up.
    fn may_leave(&self, picked: &Picked) -> bool {
        picked.probe.is_some() || self.budget()
    }

    fn budget(&self) -> bool {
        self.callee.budget.take(&self.retry(), self.worker.proxy.now())
    }

    /// One try, over a connection that stands.
    async fn once(
        &self,
        exchange: &mut Exchange,
        picked: &mut Picked,
        lease: &mut Lease,
        more: bool,
    ) -> (Ending, Option<Span>) {
        let mut span = None;
        let mut traceparent = None;
        if let Some(trace) = &exchange.trace
            && trace.context.sampled
        {
            let context = with_ids(|ids| trace.context.child(ids));
            traceparent = HeaderValue::try_from(context.traceparent()).ok();
            span = Span::begin(
                &context,
                trace.parent,
                Kind::Client,
                exchange.method().to_string(),
                std::time::SystemTime::now(),
            );
            if let Some(span) = &mut span {
                self.describe(span, picked.endpoint(), lease, exchange.tries);
            }
        }
        let request = self.outgoing.request(self.body.body(), lease.is_h2(), traceparent);
        picked.sent(self.worker.proxy.now());
        let limit = self.limit(picked, more);
        let sent = match limit {
            None => lease.send(request).await,
            Some(limit) => match tokio::time::timeout(limit, lease.send(request)).await {
                Ok(sent) => sent,
                Err(_) => return (Ending::Late, span),
            },
        };
        (self.ending(sent, lease), span)
    }

    fn ending(&self, sent: Result<Response<Incoming>, Unsent>, lease: &Lease) -> Ending {
        let Unsent { error, returned } = match sent {
            Ok(response) => return Ending::Answered(response),
            Err(unsent) => unsent,
        };
        let reason = process::logs::causes(&error);
        let alert = !lease.facts.proven.get() && dial::is_refusal(&error);
        if self.body.client_failed() {
            Ending::Client
        } else if returned || alert || is_unprocessed(&error) {
            Ending::NotProcessed(reason)
        } else {
            Ending::Broken(reason)
        }
    }

    fn limit(&self, picked: &Picked, more: bool) -> Option<Duration> {
        let positive = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let timeouts = self.service.traffic.timeouts.as_ref();
        let first_byte = timeouts.and_then(|timeouts| positive(timeouts.first_byte_ms));
        let first_byte = first_byte.filter(|_| more && self.on(RetryOn::FirstByte));
        [first_byte, picked.probe.filter(|_| more), self.backend_timeout].into_iter().flatten().min()
    }

    /// A connection to the endpoint: one that stands, or a new one. A probe may take no longer to connect than to be
    /// answered.
    async fn lease(&self, endpoint: &Arc<Endpoint>, picked: &mut Picked) -> Result<Lease, DialError> {
        let slot = self.worker.pool.endpoint(endpoint);
        limit(&slot, &self.service.traffic);
        let remote = endpoint.gateway.is_some();
        let h2 = match (endpoint.wire.mtls, self.outgoing.upgrade.is_some()) {
            (_, true) => false,
            (true, false) => remote || self.outgoing.h2,
            (false, false) => self.speaks_h2,
        };
        if let Some(lease) = slot.take(h2) {
            return Ok(lease);
        }
        let tls = match endpoint.wire.mtls {
            true => Some(slot.tls(h2, || {
                dial::tls_config(
                    self.worker,
                    endpoint,
                    &self.service.identities,
                    if h2 { &["h2"] } else { &["http/1.1"] },
                )
            })?),
            false => None,
        };
        let timeout = connect_limit(&self.service.traffic, remote);
        let keep_alive = keep_alive(&self.service.traffic);
        let route = Route { address: endpoint.address, endpoint: Some(endpoint), tls, timeout, keep_alive };
        if !remote {
            picked.connecting(self.worker.proxy.now());
        }
        let connecting = slot.connect(self.worker, route, h2);
        let Some(limit) = picked.probe else { return connecting.await };
        let connected = tokio::time::timeout(limit, connecting).await;
        connected.unwrap_or(Err(DialError::Slow(endpoint.address, limit)))
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

    fn judge(&self, response: Response<Incoming>, lease: &Lease, more: bool) -> Verdict {
        let map = response.headers();
        if lease.facts.peer.is_some() {
            if let Some(reason) = map.get(headers::REFUSED) {
                return Verdict::NotProcessed(format!(
                    "refused: {}",
                    String::from_utf8_lossy(reason.as_bytes())
                ));
            }
            if map.contains_key(headers::RESET) && more && self.on(RetryOn::Reset) && self.body.is_whole() {
                return Verdict::Reset;
            }
        }
        let outcome = outcome(response.status(), map);
        if self.is_retried(&response) {
            Verdict::Again(response, outcome)
        } else {
            Verdict::Pass(response, outcome)
        }
    }

    fn is_retried(&self, response: &Response<Incoming>) -> bool {
        let Some(retry) = &self.service.traffic.retry else { return false };
        let code = u32::from(response.status().as_u16());
        let own = self.rule.and_then(|rule| rule.retry.as_ref());
        let listed = own.map_or(&retry.statuses, |own| &own.codes).contains(&code);
        // With its status in the head and no body, a call has had no message for an answer.
        let bare = self.outgoing.grpc && response.body().is_end_stream();
        let grpc = bare.then(|| response.headers().get("grpc-status")).flatten();
        let grpc = grpc.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        (listed && self.outgoing.idempotent)
            || grpc.is_some_and(|status| retry.grpc_statuses.contains(&status))
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
        if let Some(gateway) = lease.facts.gateway {
            span.set("weft.gateway", gateway.to_string());
        }
        if tries > 1 {
            span.set("http.request.resend_count", i64::from(tries - 1));
        }
    }
}

enum Verdict {
    Pass(Response<Incoming>, Outcome),
    Again(Response<Incoming>, Outcome),
    NotProcessed(String),
    Reset,
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

fn failed_span(worker: &Worker, span: Option<Span>, flag: &'static str) {
    if let Some(mut span) = span {
        span.fail(flag);
        span.end(std::time::SystemTime::now());
        worker.proxy.telemetry.spans.record(span);
    }
}

/// Whether HTTP/2 says that the stream was not processed (RFC 9113, 8.7): REFUSED_STREAM, or above a GOAWAY that
/// tells of no error.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        let reason = error.reason();
        reason == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR))
    })
}

fn connect_limit(traffic: &TrafficPolicy, remote: bool) -> Duration {
    let timeouts = traffic.timeouts.as_ref();
    let millis = timeouts.map_or(0, |t| if remote { t.connect_remote_ms } else { t.connect_ms });
    if millis > 0 { Duration::from_millis(millis) } else { address::CONNECT }
}

/// The kernel's probes of an idle connection, as the policy says.
fn keep_alive(traffic: &TrafficPolicy) -> Option<TcpKeepalive> {
    let (time, interval) = (traffic.tcp_keepalive_time_ms, traffic.tcp_keepalive_interval_ms);
    let seconds = |millis: u64| Duration::from_secs(millis.div_ceil(1000).max(1)); // what the kernel counts in
    (time > 0).then(|| {
        TcpKeepalive::new()
            .with_time(seconds(time))
            .with_interval(seconds(interval))
            .with_retries(traffic.tcp_keepalive_probes.max(1))
    })
}

fn limit(slot: &Slot, traffic: &TrafficPolicy) {
    let idle = traffic.timeouts.as_ref().map_or(0, |timeouts| timeouts.idle_ms);
    slot.limit(traffic.max_idle_per_endpoint, Duration::from_millis(idle));
}

/// The time that is over at `limit` after `started`.
pub fn deadline(started: Instant, limit: Option<Duration>) -> Option<tokio::time::Instant> {
    limit.map(|limit| tokio::time::Instant::from_std(started + limit))
}
