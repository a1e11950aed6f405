//! Sends spans to a collector, by OTLP over gRPC.
//!
//! Invariant: recording never waits. Spans that do not fit the queue, or that the collector does not take,
//! are dropped and counted; nothing is sent twice.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

use super::{Kind, Span, Status, Value};
use crate::logs::{Limit, causes};
use crate::metrics::{Counter, Registry};
use crate::queue::Queue;
use crate::shutdown::Shutdown;

/// Some 2 MB when full of spans with a dozen attributes.
const QUEUE_SPANS: usize = 2048;

/// The most spans of one call, so that it stays far below gRPC's common limit of 4 MiB.
const BATCH_SPANS: usize = 512;

/// How long a span waits for others.
const LINGER: Duration = Duration::from_millis(250);

/// One call to the collector, connecting included; so a collector that hangs holds up the end by two of them.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

static FAILURES: Limit = Limit::new(1);

/// Where the spans go, and who sends them.
#[derive(Debug, Clone)]
pub struct Collector {
    /// `http://host:port` of the OTLP/gRPC receiver.
    pub endpoint: String,
    /// The local address to connect from.
    pub source: Option<IpAddr>,
    /// `service.name`.
    pub service: String,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.instance.id`.
    pub instance: String,
    /// `weft.cluster`.
    pub cluster: String,
}

/// An endpoint that cannot be used.
#[derive(Debug, Error)]
#[error("the tracing endpoint `{0}` must be `http://HOST:PORT`")]
pub struct CollectorError(String);

/// Takes spans. Clones feed the same queue.
#[derive(Clone)]
pub struct Exporter(Option<Arc<Feed>>);

struct Feed {
    spans: Queue<Span>,
    dropped: Counter,
    exported: Counter,
}

impl Exporter {
    /// Throws all spans away.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Starts sending, in a task of `shutdown` on the present runtime. When that is cancelled the task sends
    /// what is there and ends, so it must be a handle that is drained after those that still record.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(collector: &Collector, shutdown: &Shutdown) -> Result<Self, CollectorError> {
        let endpoint = endpoint(collector).ok_or_else(|| CollectorError(collector.endpoint.clone()))?;
        let spans = Queue::new(QUEUE_SPANS);
        let feed = Arc::new(Feed { spans, dropped: Counter::default(), exported: Counter::default() });
        let sender = Sender {
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            resource: resource(collector),
            feed: feed.clone(),
        };
        shutdown.spawn("span exporter", sender.run(shutdown.clone()));
        Ok(Self(Some(feed)))
    }

    /// Takes a span that has ended.
    pub fn record(&self, span: Span) {
        if let Some(feed) = &self.0
            && !feed.spans.offer(1, |spans| spans.push(span))
        {
            feed.dropped.inc();
        }
    }

    /// Whether spans are sent anywhere.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// How many spans were lost.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |feed| feed.dropped.get())
    }

    /// Shows `weft_spans_exported_total` and `weft_spans_dropped_total`.
    pub fn register(&self, registry: &Registry) {
        if let Some(feed) = &self.0 {
            registry.register("weft_spans_exported", "Spans that the collector took", feed.exported.clone());
            let help = "Spans lost: the queue was full, or the collector away or unwilling";
            registry.register("weft_spans_dropped", help, feed.dropped.clone());
        }
    }
}

fn endpoint(collector: &Collector) -> Option<Endpoint> {
    let uri: http::Uri = collector.endpoint.parse().ok()?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return None;
    }
    let endpoint = Endpoint::from(uri).connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT);
    Some(endpoint.local_address(collector.source))
}

fn resource(collector: &Collector) -> Resource {
    let attributes = [
        ("service.name", &collector.service),
        ("service.namespace", &collector.namespace),
        ("service.instance.id", &collector.instance),
        ("weft.cluster", &collector.cluster),
    ];
    let attributes = attributes.map(|(key, value)| attribute(key, Value::from(value.clone())));
    Resource { attributes: attributes.into(), ..Resource::default() }
}

struct Sender {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    feed: Arc<Feed>,
}

impl Sender {
    async fn run(mut self, shutdown: Shutdown) {
        let feed = self.feed.clone();
        loop {
            let spans = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                spans = feed.spans.batch(LINGER) => spans,
            };
            self.send(spans).await;
        }
        self.send(feed.spans.close()).await;
    }

    /// A collector that fails once is not asked for the rest, so that a queue full of spans for one that
    /// hangs is done with after one call.
    async fn send(&mut self, spans: Vec<Span>) {
        let mut left = spans.len() as u64;
        let mut spans = spans.into_iter().map(wire);
        while left > 0 {
            let batch: Vec<_> = spans.by_ref().take(BATCH_SPANS).collect();
            let count = batch.len() as u64;
            let (refused, why) = match self.call(batch).await {
                Ok(refused) if refused.rejected_spans <= 0 => (0, String::new()),
                Ok(refused) => (count.min(refused.rejected_spans as u64), refused.error_message),
                Err(why) => (left, why),
            };
            let done = count.max(refused);
            left -= done;
            self.feed.exported.inc_by(done - refused);
            self.feed.dropped.inc_by(refused);
            if refused > 0 && FAILURES.pass(Instant::now()).is_some() {
                tracing::warn!(error = why, "the collector does not take spans; they are dropped");
            }
        }
    }

    async fn call(&mut self, spans: Vec<otlp::Span>) -> Result<ExportTracePartialSuccess, String> {
        let scope = InstrumentationScope { name: "weft".into(), ..Default::default() };
        let scope_spans = otlp::ScopeSpans { scope: Some(scope), spans, ..Default::default() };
        let resource = Some(self.resource.clone());
        let spans = otlp::ResourceSpans { resource, scope_spans: vec![scope_spans], ..Default::default() };
        let request = ExportTraceServiceRequest { resource_spans: vec![spans] };
        // The channel's own timeout begins when it is connected.
        match tokio::time::timeout(CALL_TIMEOUT, self.client.export(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().partial_success.unwrap_or_default()),
            Ok(Err(status)) => Err(causes(&status)),
            Err(_) => Err(format!("no answer within {CALL_TIMEOUT:?}")),
        }
    }
}

fn wire(span: Span) -> otlp::Span {
    otlp::Span {
        trace_id: span.context.trace.bytes().into(),
        span_id: span.context.span.bytes().into(),
        trace_state: span.context.tracestate().unwrap_or_default().into(),
        parent_span_id: span.parent.map(|id| id.bytes().into()).unwrap_or_default(),
        flags: span.context.flags().into(),
        name: span.name.into_owned(),
        kind: kind(span.kind).into(),
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        dropped_attributes_count: span.dropped_attributes,
        status: match span.status {
            Status::Unset => None,
            Status::Error(message) => Some(otlp::Status {
                message: message.into_owned(),
                code: otlp::status::StatusCode::Error.into(),
            }),
        },
        ..Default::default()
    }
}

fn kind(kind: Kind) -> otlp::span::SpanKind {
    match kind {
        Kind::Server => otlp::span::SpanKind::Server,
        Kind::Client => otlp::span::SpanKind::Client,
        Kind::Internal => otlp::span::SpanKind::Internal,
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Int(number) => any_value::Value::IntValue(number),
        Value::Bool(truth) => any_value::Value::BoolValue(truth),
    };
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests;
