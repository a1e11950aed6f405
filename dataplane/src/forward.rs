//! Sends a request to an endpoint, and to another one when that may and must be.
//!
//! [`attempt`] is one try, [`verdict`] the table of what its end means; here they are strung together.

pub mod address;
mod attempt;
pub mod stream;
mod verdict;

use std::{
    rc::Rc,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use api::{
    endpoint::EndpointId,
    wire::{Retry, RetryOn, TrafficPolicy},
};
use http::Response;
use hyper::body::Incoming;
use process::trace::Span;
use runtime::{Service, route::Rule};
use socket2::TcpKeepalive;

use self::verdict::{Again, May};
use crate::{
    account::Exchange,
    balance::{Ask, Moment, NoEndpoint, Outcome, Pick, Picked, Tried, backoff},
    body::Replayable,
    failure::Failure,
    limit::Wait,
    message::Outgoing,
    pool::Lease,
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

/// One request to one service.
pub struct Call<'a> {
    /// This thread.
    pub worker: &'a Rc<Worker>,
    /// The service.
    pub service: &'a Service,
    /// How its port is called.
    pub traffic: &'a TrafficPolicy,
    /// Who balances it.
    pub callee: &'a Arc<Callee>,
    /// The one endpoint that was asked for.
    pub only: Option<&'a EndpointId>,
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
        let mut now = self.worker.proxy.now();
        self.callee.budget.request(self.retry(), now);
        let mut wait = Wait::new(&self.callee.load, self.traffic);
        let mut tried = Tried::default();
        let mut retries = 0;
        let mut last = None;
        loop {
            let picked = self.pick(&tried, now).map_err(|reason| nowhere(reason, last.take()))?;
            let endpoint = picked.endpoint().clone();
            exchange.endpoint = Some(endpoint.clone());
            let Some(attempt) = self.attempt(exchange, picked, self.may(retries), &mut wait, now).await
            else {
                wait.room().await?;
                now = self.worker.proxy.now();
                continue;
            };
            let end = attempt.end;
            let again = end.again(May { limited: attempt.is_limited(), ..self.may(retries) });
            if again == Again::Never {
                return attempt.close(self.worker);
            }
            end.note(&mut tried, &endpoint);
            let paid = match again {
                Again::Budget => attempt.paid || self.pay(),
                Again::Free | Again::Never => tried.may_connect(),
                Again::Try => true,
            };
            if !paid {
                return attempt.close(self.worker);
            }
            self.body.supersede();
            last = Some(attempt.give_up(self.worker));
            if again != Again::Free {
                retries += 1;
                tokio::time::sleep(self.pause(retries)).await;
            }
            now = self.worker.proxy.now();
        }
    }

    fn pick(&self, tried: &Tried, now: Moment) -> Result<Picked, NoEndpoint> {
        let ask = Ask { now, chance: self.worker.chance(), tried, may_repeat: self.may_leave(self.may(0)) };
        let balancer = &self.callee.balancer;
        match self.only.map_or_else(|| balancer.pick(&ask), |only| balancer.pick_only(only, &ask)) {
            Pick::Endpoint(picked) => Ok(picked),
            Pick::None(reason) => Err(reason),
        }
    }

    fn may(&self, retries: u32) -> May {
        let own = self.rule.and_then(|rule| rule.retry.as_ref()).and_then(|own| own.attempts);
        let attempts = own.unwrap_or(self.retry().attempts);
        May {
            whole: self.body.is_whole(),
            // One that was asked for itself is nobody's to go elsewhere from.
            tries: self.only.is_none() && retries < attempts,
            idempotent: self.outgoing.idempotent,
            on_refused: self.on(RetryOn::Refused),
            on_reset: self.on(RetryOn::Reset),
            limited: false,
        }
    }

    /// Whether it may be waited for elsewhere, however far its body has gone by then.
    fn may_leave(&self, may: May) -> bool {
        may.repeat() && self.body.stays_whole()
    }

    /// A retry is paid for, if there is still budget.
    fn pay(&self) -> bool {
        self.callee.budget.take(self.retry(), self.worker.proxy.now())
    }

    fn on(&self, what: RetryOn) -> bool {
        self.retry().on.contains(&(what as i32))
    }

    fn retry(&self) -> &Retry {
        static NONE: LazyLock<Retry> = LazyLock::new(Retry::default);
        self.traffic.retry.as_ref().unwrap_or(&NONE)
    }

    /// How long to wait before the next try: at least as long as the route says (GEP-1731), with jitter in any case.
    fn pause(&self, retries: u32) -> Duration {
        let own = self.rule.and_then(|rule| rule.retry.as_ref()).and_then(|own| own.backoff_ms);
        Duration::from_millis(own.unwrap_or(0)) + backoff(self.retry(), retries, self.worker.chance())
    }
}

/// There is no endpoint to go to: said by what was met on the way, if anything was.
fn nowhere(reason: NoEndpoint, last: Option<Failure>) -> Failure {
    let last = last.filter(|_| reason == NoEndpoint::Exhausted);
    last.unwrap_or_else(|| Failure::upstream(503, "no-endpoints", reason.to_string()))
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

/// The time that is over at `limit` after `started`.
pub fn deadline(started: Instant, limit: Option<Duration>) -> Option<tokio::time::Instant> {
    limit.map(|limit| tokio::time::Instant::from_std(started + limit))
}
