use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::super::{Context, Ids};
use super::*;

const LONG: Duration = Duration::from_secs(30);

/// Refuses spans named `bad`.
struct Receiver(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, tonic::Status> {
        let request = request.into_inner();
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        let rejected_spans = spans.iter().filter(|span| span.name == "bad").count() as i64;
        self.0.send(request).unwrap();
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, ..Default::default() });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

async fn receiver() -> (SocketAddr, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, received) = mpsc::unbounded_channel();
    let service = TraceServiceServer::new(Receiver(requests));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
    (address, received)
}

fn collector(address: SocketAddr) -> Collector {
    Collector {
        endpoint: format!("http://{address}"),
        source: None,
        service: "reviews".into(),
        namespace: "shop".into(),
        instance: "reviews-v1-1".into(),
        cluster: "east".into(),
    }
}

fn span(ids: &mut Ids) -> Span {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    Span::begin(&Context::root(ids, true), None, Kind::Internal, "work", start).unwrap()
}

#[tokio::test]
async fn a_collector_receives_the_whole_span() {
    let (address, mut received) = receiver().await;
    let shutdown = Shutdown::new();
    let exporter = Exporter::start(&collector(address), &shutdown).unwrap();
    let mut ids = Ids::seeded(1);
    let parent = Context::root(&mut ids, true);
    let context = parent.child(&mut ids);
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let mut span = Span::begin(&context, Some(parent.span), Kind::Server, "GET", start).unwrap();
    span.set("http.request.method", "GET");
    span.set("http.response.status_code", 503);
    span.fail("no endpoint");
    span.end(start + Duration::from_nanos(5));
    exporter.record(span);

    let request = received.recv().await.unwrap();
    let spans = &request.resource_spans[0];
    let resource = &spans.resource.as_ref().unwrap().attributes;
    assert!(resource.contains(&attribute("service.name", "reviews".into())));
    assert!(resource.contains(&attribute("service.namespace", "shop".into())));
    assert!(resource.contains(&attribute("service.instance.id", "reviews-v1-1".into())));
    assert!(resource.contains(&attribute("weft.cluster", "east".into())));
    let expect = otlp::Span {
        trace_id: parent.trace.bytes().into(),
        span_id: context.span.bytes().into(),
        parent_span_id: parent.span.bytes().into(),
        flags: 3,
        name: "GET".into(),
        kind: 2,
        start_time_unix_nano: 7_000_000_000,
        end_time_unix_nano: 7_000_000_005,
        attributes: vec![
            attribute("http.request.method", "GET".into()),
            attribute("http.response.status_code", 503.into()),
        ],
        status: Some(otlp::Status { message: "no endpoint".into(), code: 2 }),
        ..Default::default()
    };
    assert_eq!(spans.scope_spans[0].spans, [expect]);
}

#[tokio::test]
async fn the_end_sends_what_is_left_in_bounded_calls() {
    let (address, mut received) = receiver().await;
    let shutdown = Shutdown::new();
    let exporter = Exporter::start(&collector(address), &shutdown).unwrap();
    let registry = Registry::new();
    exporter.register(&registry);
    let mut ids = Ids::seeded(1);
    (0..QUEUE_SPANS + 3).for_each(|_| exporter.record(span(&mut ids)));
    shutdown.drain(LONG).await.unwrap();
    let mut sizes = Vec::new();
    while let Ok(request) = received.try_recv() {
        sizes.push(request.resource_spans[0].scope_spans[0].spans.len());
    }
    assert_eq!(sizes, [BATCH_SPANS; QUEUE_SPANS / BATCH_SPANS]);
    assert_eq!(exporter.dropped(), 3);
    let text = registry.text().unwrap();
    assert!(
        text.contains("weft_spans_exported_total 2048\n") && text.contains("weft_spans_dropped_total 3\n")
    );
}

#[tokio::test]
async fn refused_spans_are_counted() {
    let (address, _received) = receiver().await;
    let shutdown = Shutdown::new();
    let exporter = Exporter::start(&collector(address), &shutdown).unwrap();
    let mut ids = Ids::seeded(1);
    for name in ["bad", "good"] {
        exporter.record(Span { name: name.into(), ..span(&mut ids) });
    }
    shutdown.drain(LONG).await.unwrap();
    assert_eq!(exporter.dropped(), 1);
}

#[tokio::test]
async fn spans_for_a_collector_that_is_away_are_dropped_and_counted() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let shutdown = Shutdown::new();
    let exporter = Exporter::start(&collector(gone), &shutdown).unwrap();
    exporter.record(span(&mut Ids::seeded(1)));
    shutdown.drain(LONG).await.unwrap();
    assert_eq!(exporter.dropped(), 1);
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = Shutdown::new();
    let exporter = Exporter::start(&collector(silent.local_addr().unwrap()), &shutdown).unwrap();
    let mut ids = Ids::seeded(1);
    (0..BATCH_SPANS + 1).for_each(|_| exporter.record(span(&mut ids)));
    shutdown.drain(3 * CALL_TIMEOUT).await.unwrap();
    assert_eq!(exporter.dropped(), BATCH_SPANS as u64 + 1);
}

#[tokio::test]
async fn an_endpoint_must_be_plain_http() {
    for bad in ["", "127.0.0.1:4317", "https://127.0.0.1:4317", "unix:///tmp/x"] {
        let mut collector = collector(([127, 0, 0, 1], 4317).into());
        collector.endpoint = bad.into();
        assert!(Exporter::start(&collector, &Shutdown::new()).is_err(), "{bad}");
    }
}
