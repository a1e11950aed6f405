//! Tales of whole requests through real proxies, over real sockets and mTLS.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use api::wire::MtlsMode;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    config::Role,
    fixture::{Running, Sidecar, endpoint, free, sidecar, until},
};

mod ends;
mod gateways;
mod limits;
mod messages;
mod outside;
mod protocols;
mod standing;
mod tries;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// How often anybody was asked for `/early-then-echo`: once an early answer is enough.
static EARLY: AtomicUsize = AtomicUsize::new(0);

/// An application: it says who it is, and does what the path says.
struct App {
    address: SocketAddr,
    name: String,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn whole(text: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(text.into()).boxed()
}

async fn behave(
    name: String,
    requests: Arc<AtomicUsize>,
    mut request: Request<Incoming>,
) -> Result<Answer, std::io::Error> {
    requests.fetch_add(1, SeqCst);
    match request.uri().path() {
        "/reset" => Err(std::io::Error::other("as asked")),
        "/hang" => std::future::pending().await,
        "/headers" => {
            let lines: Vec<_> =
                request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
            Ok(Response::new(whole(format!("{}\n{}", request.uri(), lines.join("\n")))))
        }
        "/slow" => {
            // Longer than a first byte may take.
            tokio::time::sleep(Duration::from_millis(800)).await;
            Ok(Response::new(whole(name)))
        }
        "/version" => Ok(Response::new(whole(format!("{:?}", request.version())))),
        "/fails" => Ok(Response::builder().status(500).body(whole("as asked")).unwrap()),
        "/unavailable" => Ok(Response::builder().header("grpc-status", "14").body(whole("")).unwrap()),
        "/unavailable-after-a-message" => {
            Ok(Response::builder().header("grpc-status", "14").body(whole("message")).unwrap())
        }
        "/stream" => {
            let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
            let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            Ok(Response::new(StreamBody::new(body).boxed()))
        }
        "/flood" => {
            let frames =
                futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10]))));
            Ok(Response::new(StreamBody::new(frames).boxed()))
        }
        "/long-head" => {
            Ok(Response::builder().header("x-long", "x".repeat(40 << 10)).body(whole("")).unwrap())
        }
        "/lies" => {
            Ok(Response::builder().status(503).header("weft-refused", "application").body(whole("")).unwrap())
        }
        "/early-then-echo" if EARLY.fetch_add(1, SeqCst) == 0 => {
            Ok(Response::builder().status(503).body(whole("")).unwrap())
        }
        "/echo" | "/early-then-echo" => {
            let body = request.into_body().collect().await.map_err(std::io::Error::other)?;
            let trailers = body.trailers().cloned();
            let frames = [Some(Frame::data(body.to_bytes())), trailers.map(Frame::trailers)];
            let frames = frames.into_iter().flatten().map(Ok);
            let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
            Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        }
        "/socket" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 5];
                while stream.read_exact(&mut bytes).await.is_ok() {
                    stream.write_all(&bytes.map(|b| b.to_ascii_uppercase())).await.unwrap();
                }
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket");
            Ok(response.body(whole("")).unwrap())
        }
        _ => Ok(Response::new(whole(name))),
    }
}

impl App {
    async fn start(name: &str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (said, counted) = (name.to_owned(), requests.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (said, counted) = (said.clone(), counted.clone());
                let service = service_fn(move |request| behave(said.clone(), counted.clone(), request));
                connections.spawn(async move {
                    let mut preface = [0; 4];
                    stream.peek(&mut preface).await.unwrap();
                    if preface == *b"PRI " {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                    }
                });
            }
        });
        App { address, name: name.to_owned(), requests, task }
    }

    fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// Its sidecar, STRICT.
    fn sidecar(&self) -> Sidecar {
        sidecar(&self.name).serving(self.address, MtlsMode::Strict)
    }
}

/// A service `reviews` of some endpoints, each an application with its sidecar, and a caller.
struct Shop {
    apps: Vec<App>,
    reviews: Vec<Running>,
    front: Running,
}

fn endpoints(sidecars: &[Running]) -> Vec<api::wire::Endpoint> {
    let one = |(index, running): (usize, &Running)| {
        endpoint("east", &format!("reviews-{index}"), "reviews", running.inbound)
    };
    sidecars.iter().enumerate().map(one).collect()
}

impl Shop {
    async fn open(count: usize) -> Self {
        let mut apps = Vec::new();
        let mut reviews = Vec::new();
        for index in 0..count {
            let app = App::start(&format!("reviews-{index}")).await;
            reviews.push(app.sidecar().start().await);
            apps.push(app);
        }
        let front = sidecar("front").calling("reviews", endpoints(&reviews)).start().await;
        Shop { apps, reviews, front }
    }

    fn requests(&self) -> usize {
        self.apps.iter().map(App::requests).sum()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        ask(self.front.outbound, Request::get(format!("http://reviews{path}"))).await
    }

    async fn post(&self, path: &str) -> (u16, String) {
        ask(self.front.outbound, Request::post(format!("http://reviews{path}"))).await
    }
}

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

async fn ask(address: SocketAddr, request: http::request::Builder) -> (u16, String) {
    let response = send(address, request.header("host", "ignored").body(Full::default()).unwrap()).await;
    (response.status().as_u16(), String::from_utf8(response.into_body().to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_leads_back_is_none() {
    let front = sidecar("front").start().await;
    let mut back = endpoint("east", "reviews-0", "reviews", front.outbound);
    back.mtls = false;
    front.obey(&sidecar("front").calling("reviews", vec![back]));
    let (status, told) = ask(front.outbound, Request::get("http://reviews/")).await;
    assert!(status == 503 && told.contains("no-endpoints"), "{status} {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_from_sidecar_to_sidecar() {
    let shop = Shop::open(1).await;
    assert_eq!(shop.get("/").await, (200, "reviews-0".into()));
    let (status, told) = shop.get("/headers?a=b").await;
    assert_eq!(status, 200);
    for line in [
        "/headers?a=b\n",
        "host: reviews",
        "x-request-id: ",
        "traceparent: 00-",
        "URI=spiffe://test.example/ns/shop/sa/front",
        "By=spiffe://test.example/ns/shop/sa/reviews",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    assert_eq!(shop.get("/a/%2e%2e/../headers").await.0, 400, "it climbs above its root");
    assert!(shop.get("/x//y/../headers").await.1 == "reviews-0", "normalised to /x/headers");
    let metrics = shop.reviews[0].registry.text().unwrap();
    let count = "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_response_status_code=\"200\"";
    let line = metrics.lines().find(|line| line.starts_with(count)).expect("a server histogram");
    for label in [
        "source_workload=\"front\"",
        "destination_workload=\"reviews-0\"",
        "weft_mtls=\"true\"",
        "source_cluster=\"east\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_denies_and_the_answer_shows_only_its_id() {
    let shop = Shop::open(1).await;
    let denying =
        shop.apps[0].sidecar().denying(r#"source.serviceAccount == "front" && request.method == "GET""#);
    shop.reviews[0].obey(&denying);
    let response =
        send(shop.front.outbound, Request::get("http://reviews/").body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let decision = response.headers()["weft-decision"].to_str().unwrap().to_owned();
    let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((&body["error"], &body["decision"]), (&"denied by policy".into(), &decision.into()));
    assert_eq!(shop.requests(), 0);
    assert_eq!(shop.post("/").await.0, 200);
    shop.reviews[0].obey(&shop.apps[0].sidecar().denying("destination.port == 8080"));
    assert_eq!(shop.post("/").await.0, 403, "the application's port, not the sidecar's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_is_gone_around() {
    let mut shop = Shop::open(3).await;
    for _ in 0..10 {
        assert_eq!(shop.get("/").await.0, 200);
    }
    // An application dies: its sidecar refuses, and any request goes elsewhere.
    shop.apps.remove(0);
    for _ in 0..30 {
        assert_eq!(shop.get("/").await.0, 200);
        assert_eq!(shop.post("/").await.0, 200);
    }
    // A sidecar goes: it drains, then nothing listens there.
    shop.reviews[1].drain().await;
    for _ in 0..30 {
        assert_eq!(shop.get("/").await.0, 200);
        assert_eq!(shop.post("/").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_never_sent_twice_and_a_get_is() {
    let shop = Shop::open(3).await;
    assert_eq!(shop.post("/reset").await.0, 503);
    assert_eq!(shop.requests(), 1);
    let response =
        send(shop.front.outbound, Request::get("http://reviews/reset").body(Full::default()).unwrap()).await;
    assert_eq!((response.status().as_u16(), shop.requests()), (503, 4), "three tries, each elsewhere");
    assert!(!response.headers().contains_key("weft-reset"), "one that gave up says neither word");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_is_sent_twice_only_for_a_bare_status_that_says_so() {
    let shop = Shop::open(3).await;
    let call = async |path: &str| {
        let before = shop.requests();
        let request =
            Request::post(format!("http://reviews{path}")).header("content-type", "application/grpc");
        let asked = ask(shop.front.outbound, request);
        let answer = tokio::time::timeout(Duration::from_millis(1200), asked).await;
        (answer.map_or(0, |(status, _)| status), shop.requests() - before)
    };
    assert_eq!(call("/reset").await, (503, 1), "it may have been processed");
    assert_eq!(call("/unavailable-after-a-message").await, (200, 1));
    assert_eq!(call("/unavailable").await, (200, 3), "three tries, each elsewhere");
    assert_eq!(call("/hang").await, (0, 1), "lateness says nothing of what was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_retried_only_where_the_policy_says_so() {
    let shop = Shop::open(2).await;
    let mut caller = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    let traffic = caller.services[0].0.traffic.as_mut().unwrap();
    traffic.retry.as_mut().unwrap().on = vec![api::wire::RetryOn::Refused as i32];
    shop.front.obey(&caller);
    assert_eq!((shop.get("/reset").await.0, shop.requests()), (503, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_cannot_speak_as_a_proxy() {
    let shop = Shop::open(2).await;
    let response =
        send(shop.front.outbound, Request::get("http://reviews/lies").body(Full::default()).unwrap()).await;
    assert_eq!((response.status().as_u16(), shop.requests()), (503, 1));
    assert!(!response.headers().contains_key("weft-refused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_application_costs_the_time_of_a_first_byte() {
    let shop = Shop::open(2).await;
    let started = Instant::now();
    let third = async {
        until("two are given up", async || shop.requests() == 3).await;
        started.elapsed()
    };
    let hang = tokio::time::timeout(Duration::from_secs(3), shop.get("/hang"));
    let (answered, third) = tokio::join!(hang, third);
    assert!(answered.is_err(), "the last try has no limit");
    assert!(third >= Duration::from_secs(1), "each of the two has 500 ms: {third:?}");
    assert_eq!(shop.requests(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_costs_a_request_no_failure_though_the_budget_is_spent() {
    let app = App::start("reviews-0").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // the kernel accepts for it
    let hung = sidecar("reviews-1").serving(silent.local_addr().unwrap(), MtlsMode::Strict);
    let reviews = [app.sidecar().start().await, hung.start().await];
    let mut caller = sidecar("front").calling("reviews", endpoints(&reviews));
    let traffic = caller.services[0].0.traffic.as_mut().unwrap();
    traffic.timeouts.as_mut().unwrap().first_byte_ms = 1500; // longer than it takes to be suspected
    let retry = traffic.retry.as_mut().unwrap();
    (retry.budget_percent, retry.budget_min_per_second) = (0, 0);
    let front = caller.start().await;
    let get = async || {
        let begun = Instant::now();
        (ask(front.outbound, Request::get("http://reviews/")).await.0, begun.elapsed())
    };
    until("one hangs, and its endpoint is suspected for that", async || {
        tokio::time::timeout(Duration::from_secs(3), get()).await.is_err()
    })
    .await;
    let mut probes = 0;
    until("two have probed it", async || {
        let (status, took) = get().await;
        assert_eq!(status, 200, "after {took:?} and {probes} probes");
        probes += usize::from(took >= Duration::from_millis(100));
        probes == 2
    })
    .await;
}

/// A connection to a proxy that speaks HTTP/2.
async fn over_h2(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.max_header_list_size(1 << 20).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_passes_only_where_it_may() {
    let app = App::start("reviews-0").await;
    let strict = app.sidecar().start().await;
    let mut stream = TcpStream::connect(strict.inbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "closed without a word");

    let permissive = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).start().await;
    assert_eq!(ask(permissive.inbound, Request::get("/")).await, (200, "reviews-0".into()));
    let (_, told) = ask(
        permissive.inbound,
        Request::get("/headers")
            .header("x-forwarded-client-cert", "URI=spiffe://forged")
            .header("x-forwarded-for", "9.9.9.9"),
    )
    .await;
    assert!(!told.contains("forged") && told.contains("x-forwarded-for: 127.0.0.1"), "{told}");
    let (_, told) = ask(
        permissive.inbound,
        Request::get("/headers")
            .header("connection", "x-forwarded-for, x-request-id, traceparent, x-secret")
            .header("x-secret", "1"),
    )
    .await;
    for written in ["x-forwarded-for: 127.0.0.1", "x-request-id: ", "traceparent: "] {
        assert!(told.contains(written), "{written} in {told}");
    }
    assert!(!told.contains("x-secret"), "{told}");
    let denying = r#""x-secret" in request.headers"#;
    let hiding = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).denying(denying);
    permissive.obey(&hiding);
    assert_eq!(ask(permissive.inbound, Request::get("/").header("x-secret", "1")).await.0, 403);
    let hidden = Request::get("/").header("x-secret", "1").header("connection", "x-secret");
    assert_eq!(ask(permissive.inbound, hidden).await.0, 200, "what is judged is what is forwarded");
    assert_eq!(app.requests(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_another_identity_gets_no_request() {
    let app = App::start("ratings-0").await;
    let other = sidecar("ratings-0").serving(app.address, MtlsMode::Strict).start().await;
    // The view says that this is `reviews`; the certificate says `ratings`.
    let mut lied = endpoint("east", "ratings-0", "reviews", other.inbound);
    let front = sidecar("front").calling("reviews", vec![lied.clone()]).start().await;
    assert_eq!(ask(front.outbound, Request::get("http://reviews/")).await.0, 503);
    lied.identity = crate::fixture::spiffe("ratings");
    lied.cluster = "west".into();
    let front = sidecar("front").calling("ratings", vec![lied]).start().await;
    assert_eq!(ask(front.outbound, Request::get("http://ratings/")).await.0, 503, "the wrong cluster");
    assert_eq!(app.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_an_endpoint_are_not_those_to_another_of_its_id() {
    let (victim, thief) = (App::start("reviews-0").await, App::start("ratings-0").await);
    let reviews = victim.sidecar().start().await;
    let near = endpoint("east", "reviews-0", "reviews", reviews.inbound);
    let mut serving = thief.sidecar().in_cluster("west");
    serving.ports[0].endpoint_id = near.id.clone();
    let ratings = serving.start().await;
    let mut copied = endpoint("east", "reviews-0", "ratings", ratings.inbound);
    copied.cluster = "west".into();
    let calling =
        |ratings| sidecar("front").calling("reviews", vec![near.clone()]).calling("ratings", ratings);
    let front = calling(vec![copied.clone()]).start().await;
    for _ in 0..2 {
        assert_eq!(ask(front.outbound, Request::get("http://ratings/")).await, (200, "ratings-0".into()));
        assert_eq!(ask(front.outbound, Request::get("http://reviews/")).await, (200, "reviews-0".into()));
    }
    // Nor is a connection that stands a way to an identity that the service has not.
    front.obey(&calling(vec![near.clone()]));
    assert_eq!(ask(front.outbound, Request::get("http://ratings/")).await.0, 503);
}

/// Whether nothing comes but the end.
async fn ends(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
    read.is_ok_and(|read| read.is_err())
}

/// An application that says back what it is told.
async fn echo() -> SocketAddr {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    application
}

async fn tunnelled(address: SocketAddr, authority: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}
