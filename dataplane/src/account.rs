//! What is told of each request: one observation in a histogram, one line in the access log, spans.
//!
//! An [`Exchange`] begins with the head of a request and is closed when it is dropped: at the end of the response's
//! body, or wherever the exchange breaks off before. So nothing that was accepted goes untold.

mod line;
mod meter;

use std::{
    borrow::Cow,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::name::ServiceName;
use bytes::Bytes;
use http::{HeaderValue, Method, Uri};
use http_body::Frame;
use policies::{By, Judgement, Verdict};
use process::{
    access_log::AccessLog,
    trace::{Context, Exporter, Span, SpanId},
};
use runtime::{Runtime, route::Rule};

pub use meter::{Handles, Meters};

use crate::{
    balance::{Endpoint, Outcome, Picked},
    body::{BodyError, Replayable},
    caller::{Caller, Side},
    failure::Failure,
    limit::Place,
    pool::Lease,
    worker::Worker,
};

/// Where telemetry goes.
pub struct Telemetry {
    /// Histograms.
    pub meters: Meters,
    /// The access log, and the share of good requests that it tells of.
    pub log: Option<(AccessLog, f64)>,
    /// Spans.
    pub spans: Exporter,
    /// The share of traces that begin here and are kept.
    pub trace_share: f64,
}

/// One request, from its head to the end of its response.
pub struct Exchange {
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    started: Instant,
    time: SystemTime,
    method: Method,
    uri: Uri,
    /// The decision's id.
    pub decision: HeaderValue,
    /// The request's id.
    pub request_id: HeaderValue,
    /// The authority that was asked for.
    pub host: HeaderValue,
    /// What it obeys.
    pub runtime: Option<Arc<Runtime>>,
    /// The trace, with this hop's span where it has one.
    pub trace: Option<Trace>,
    /// The status that the caller sees; 0 when it went before it saw one.
    pub status: u16,
    /// Why it is not what the application answered.
    pub flag: &'static str,
    /// The reason in words.
    pub reason: Cow<'static, str>,
    /// `HTTPRoute ns/name`, its rule, its commit.
    pub route: Option<[Arc<str>; 3]>,
    /// What the policies said.
    pub by: Option<By>,
    /// What would have been denied, or was only noted.
    pub noted: Vec<By>,
    /// The service that was called.
    pub service: Option<ServiceName>,
    /// The endpoint that answered, or was tried last.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The gateway it was reached through.
    pub gateway: Option<SocketAddr>,
    /// Whether the upstream connection was mTLS.
    pub upstream_mtls: bool,
    /// How often it was sent.
    pub tries: u32,
    /// Until the head of the response.
    pub upstream: Option<Duration>,
    /// The request's body.
    pub body: Option<Replayable>,
    /// Its place among what its service may have at once.
    pub place: Option<Place>,
    /// Of a connection that is no request: what came from the caller.
    bytes_in: u64,
    bytes_out: u64,
    /// Whether it is a whole connection, without a request.
    connection: bool,
    complete: bool,
    lease: Option<Lease>,
    picked: Option<(Picked, Outcome)>,
    span: Option<Span>,
}

/// The trace of a request.
pub struct Trace {
    /// As it goes on from here.
    pub context: Context,
    /// This hop's own server span, when it has one that is kept.
    pub server: Option<Span>,
    /// The parent of the spans of tries.
    pub parent: Option<SpanId>,
}

impl Exchange {
    /// Begins with the head of a request.
    pub fn begin(worker: &Rc<Worker>, caller: &Rc<Caller>, method: Method, uri: Uri) -> Box<Self> {
        caller.open.begin();
        Box::new(Exchange {
            decision: worker.decision(),
            worker: worker.clone(),
            caller: caller.clone(),
            started: Instant::now(),
            time: SystemTime::now(),
            method,
            uri,
            request_id: HeaderValue::from_static("-"),
            host: HeaderValue::from_static(""),
            runtime: None,
            trace: None,
            status: 0,
            flag: "",
            reason: Cow::Borrowed(""),
            route: None,
            by: None,
            noted: Vec::new(),
            service: None,
            endpoint: None,
            gateway: None,
            upstream_mtls: false,
            tries: 0,
            upstream: None,
            body: None,
            place: None,
            bytes_in: 0,
            bytes_out: 0,
            connection: false,
            complete: false,
            lease: None,
            picked: None,
            span: None,
        })
    }

    /// Begins with a connection to `address` that carries bytes.
    pub fn connection(worker: &Rc<Worker>, caller: &Rc<Caller>, address: SocketAddr) -> Box<Self> {
        let mut exchange = Exchange::begin(worker, caller, Method::CONNECT, Uri::default());
        exchange.connection = true;
        exchange.host = HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static(""));
        exchange
    }

    /// It obeys this.
    pub fn obeys(&mut self, runtime: &Arc<Runtime>) {
        self.runtime = Some(runtime.clone());
    }

    /// When its head was there.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The same, by the wall clock.
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// The method it came with.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Which rule of a route it follows.
    pub fn follows(&mut self, rule: Option<&Rule>) {
        self.route = rule.map(|rule| [rule.route.clone(), rule.name.clone(), rule.commit.clone()]);
    }

    /// What the policies said.
    pub fn judged(&mut self, judgement: Option<Judgement>) {
        let Some(Judgement { verdict, audits, dry_runs }) = judgement else { return };
        self.by = match verdict {
            Verdict::Allow(By::Default) => None,
            Verdict::Allow(by) | Verdict::Deny(by) => Some(by),
        };
        self.noted = audits;
        self.noted.extend(dry_runs);
    }

    /// It ends here with this status.
    pub fn refused(&mut self, status: u16, flag: &'static str, reason: impl Into<Cow<'static, str>>) {
        self.status = status;
        self.flag = flag;
        self.reason = reason.into();
    }

    /// The response that is passed on; its connection and its endpoint are let go at its end.
    pub fn answered(
        &mut self,
        status: u16,
        lease: Lease,
        picked: Option<(Picked, Outcome)>,
        span: Option<Span>,
    ) {
        if let Some(body) = &self.body {
            body.settle();
        }
        self.status = status;
        self.gateway = lease.facts.gateway.as_ref().map(|gateway| gateway.address);
        self.upstream_mtls = lease.facts.peer.is_some();
        self.lease = Some(lease);
        self.picked = picked;
        self.span = span;
    }

    /// A part of the response's body goes down.
    pub fn sent(&mut self, frame: &Frame<Bytes>) {
        self.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
    }

    /// The response's body is there whole.
    pub fn ended(&mut self) {
        self.complete = true;
    }

    /// Whether it has come to its own end.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The response's body broke off.
    pub fn broken(&mut self, error: &BodyError) {
        self.flag = "broken-off";
        let client_failed = self.body.as_ref().is_some_and(Replayable::client_failed);
        let (Some((_, outcome)), Some(lease)) = (&mut self.picked, &self.lease) else { return };
        let told = matches!(error, BodyError::Http(error) if lease.broke(error, self.worker.proxy.now()));
        *outcome = if told && !client_failed { Outcome::GatewayError } else { Outcome::Cancelled };
    }

    /// The time for the whole exchange ended before the response's body.
    pub fn overdue(&mut self) {
        self.flag = "request-timeout";
        self.reason = "the time of the whole request is over".into();
    }

    /// It came to nothing.
    pub fn failed_with(&mut self, failure: Failure) {
        let flag = failure.flag();
        self.refused(0, flag, failure.into_reason());
    }

    /// A connection stands at both ends.
    pub fn connected(&mut self) {
        self.upstream = Some(self.started.elapsed());
    }

    /// A connection or a tunnel has ended, after so many bytes from the caller and to it.
    pub fn carried(&mut self, up: u64, down: u64) {
        (self.bytes_in, self.bytes_out) = (up, down);
    }

    /// It was ended, since what allowed it does so no more.
    pub fn revoked(&mut self, reason: &str) {
        self.flag = "revoked";
        self.reason = reason.to_owned().into();
    }

    /// It was ended for another reason than a policy.
    pub fn revoked_as(&mut self, flag: &'static str, reason: &'static str) {
        self.flag = flag;
        self.reason = reason.into();
    }

    /// One of its ends broke off, where nobody knows what that ended: it may be how the two of them part.
    pub fn cut(&mut self) {
        self.revoked_as("broken-off", "one of its ends broke off");
    }

    /// A try of a tunnel: let go when that ends.
    pub fn holds(&mut self, status: u16, picked: Option<Picked>) {
        self.status = status;
        self.picked = picked.map(|picked| (picked, Outcome::Success));
    }

    /// What is left of it cannot be told to the caller but by the end of its connection, unless others share that.
    pub fn hang_up(&self) {
        self.caller.hang_up.notify_one();
    }

    /// Whether something is wrong with it that an operator wants to see whatever the share is.
    fn failed(&self) -> bool {
        self.status >= 500 || (self.status == 0 && !self.connection) || !self.flag.is_empty()
    }

    fn let_go(&mut self, now: Instant) {
        if let Some((picked, outcome)) = self.picked.take() {
            picked.finished(outcome, self.worker.proxy.moment(now));
        }
        if let Some(lease) = self.lease.take_if(|_| self.complete) {
            lease.end(now);
        }
        self.lease = None;
    }

    fn end_spans(&mut self, ended: SystemTime) {
        let telemetry = &self.worker.proxy.telemetry;
        let server = self.trace.as_mut().and_then(|trace| trace.server.take());
        for mut span in server.into_iter().chain(self.span.take()) {
            span.set("http.response.status_code", i64::from(self.status));
            if self.failed() {
                span.fail(if self.flag.is_empty() { "server error" } else { self.flag });
            }
            span.end(ended);
            telemetry.spans.record(span);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        self.caller.open.end(now);
        if self.status == 0 && !self.connection {
            self.refused(499, "client-gone", "the caller went before there was an answer");
        }
        if !self.complete && self.flag.is_empty() {
            self.flag = "client-gone";
            self.reason = "the caller went before the end of the answer".into();
        }
        self.let_go(now);
        let took = now.saturating_duration_since(self.started);
        match self.connection {
            true => meter::observe_connection(self),
            false => meter::observe(self, took),
        }
        if self.trace.as_ref().is_some_and(|trace| trace.server.is_some()) || self.span.is_some() {
            self.end_spans(self.time + took);
        }
        if let Some((log, share)) = &self.worker.proxy.telemetry.log
            && (self.failed() || !self.noted.is_empty() || self.worker.chosen(*share))
        {
            line::write(log, self, took);
        }
    }
}
