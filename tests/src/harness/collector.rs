//! An OpenTelemetry collector on loopback that keeps the spans it receives.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A running collector.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    task: JoinHandle<()>,
}

/// What of a span the tests look at.
#[derive(Debug, Clone)]
pub struct Span {
    /// Lower-case hex.
    pub trace: String,
    /// Lower-case hex.
    pub id: String,
    /// Lower-case hex; empty at the root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// OpenTelemetry's number: 2 server, 3 client.
    pub kind: i32,
    /// `service.instance.id` of its resource.
    pub workload: String,
    /// `weft.cluster` of its resource.
    pub cluster: String,
}

struct Receiver(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Listens on a port of its own.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let service = TraceServiceServer::new(Receiver(spans.clone()));
        let serving = tonic::transport::Server::builder()
            .serve_with_incoming(service, TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.expect("a collector that serves") });
        Collector { address, spans, task }
    }

    /// Where spans are sent.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of one trace that have come by now.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in request.into_inner().resource_spans {
            let attributes = part.resource.map(|resource| resource.attributes).unwrap_or_default();
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    workload: text(&attributes, "service.instance.id"),
                    cluster: text(&attributes, "weft.cluster"),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value =
        attributes.iter().find(|one| one.key == key).and_then(|one| one.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
