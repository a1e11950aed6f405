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
mod limits;
mod messages;
mod outside;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_becomes_a_tunnel() {
    let shop = Shop::open(1).await;
    let mut stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    let head = "GET /socket HTTP/1.1\r\nhost: reviews\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"HELLO");

    // A view that still allows it leaves it alone; one that denies it ends it.
    shop.reviews[0].obey(&shop.apps[0].sidecar().denying(r#"request.path == "/elsewhere""#));
    stream.write_all(b"again").await.unwrap();
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"AGAIN");
    shop.reviews[0].obey(&shop.apps[0].sidecar().denying(r#"request.headers["upgrade"] == "websocket""#));
    assert!(ends(&mut stream).await, "closed under it");
    let request = Request::get("http://reviews/socket").header("connection", "upgrade");
    assert_eq!(ask(shop.front.outbound, request.header("upgrade", "websocket")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ambiguous_is_answered_with_400_and_closed() {
    let shop = Shop::open(1).await;
    for bad in [
        "POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nconnection: close\r\nhost: reviews\r\nhost: other\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: reviews\r\na: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: reviews\r\na : b\r\n\r\n",
        "GET / HTTP/1.1\nhost: reviews\n\n",
    ] {
        let mut stream = TcpStream::connect(shop.front.outbound).await.unwrap();
        stream.write_all(bad.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{bad:?}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(shop.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_passes_with_its_trailers() {
    let shop = Shop::open(1).await;
    let stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    let executor = TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames =
        [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let request = Request::post("http://reviews/echo")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "hello");
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
async fn a_long_head_comes_over_either_protocol() {
    let shop = Shop::open(1).await;
    let get = || Request::get("http://reviews/long-head").body(Full::default()).unwrap();
    let over_h1 = send(shop.front.outbound, get()).await;
    let over_h2 = over_h2(shop.front.outbound).await.send_request(get()).await.unwrap();
    let length = |headers: &HeaderMap| headers.get("x-long").map_or(0, HeaderValue::len);
    assert_eq!([length(over_h1.headers()), length(over_h2.headers())], [40 << 10; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_hold_up_nobody_else() {
    let shop = Shop::open(1).await;
    let get = |path: &str| Request::get(format!("http://reviews{path}")).body(Full::default()).unwrap();
    // Each over a connection of its own, all over one from sidecar to sidecar.
    let mut floods = Vec::new();
    for _ in 0..8 {
        let mut sender = over_h2(shop.front.outbound).await;
        let flood = sender.send_request(get("/flood")).await.unwrap();
        floods.push((sender, flood));
    }
    let mut other = over_h2(shop.front.outbound).await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answer =
            async { other.send_request(get("/")).await.unwrap().into_body().collect().await.unwrap() };
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await.expect("it is not held up");
        assert_eq!(answer.to_bytes(), "reviews-0");
    }
    assert_eq!(floods.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_calls_grpc_tells_nothing_against_an_application_that_does_not_speak_it() {
    // It speaks HTTP/1.1, and closes on anything else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(whole("one"))));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let reviews = sidecar("reviews-0").serving(address, MtlsMode::Permissive).start().await;
    let mut sender = over_h2(reviews.inbound).await;
    let grpc = Request::post("http://reviews/").header(header::CONTENT_TYPE, "application/grpc");
    let answer = sender.send_request(grpc.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 415);
    assert!(!answer.headers().contains_key("weft-reset"));
    let plain = sender.send_request(Request::post("http://reviews/").body(Full::default()).unwrap()).await;
    assert_eq!(plain.unwrap().status(), 200);
}

/// An application's sidecar in west, the gateway before it, and the endpoint as east knows it.
async fn behind_a_gateway(app: &App) -> (Running, Running, api::wire::Endpoint) {
    let west = sidecar(&app.name).in_cluster("west").serving(app.address, MtlsMode::Strict).start().await;
    let far = endpoint("west", &app.name, "reviews", west.inbound);
    let mut gateway = sidecar("gateway").in_cluster("west");
    gateway.passthrough = vec![api::wire::PassthroughEndpoint {
        id: far.id.clone(),
        address: far.address.clone(),
        services: vec!["shop/reviews".into()],
    }];
    let listen = free();
    let gateway = gateway.start_as(Role::EastWest { listen, public: listen }).await;
    (west, gateway, far)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn east_reaches_west_through_its_gateway_and_fails_over() {
    let (here, there) = (App::start("reviews-here").await, App::start("reviews-there").await);
    let east = here.sidecar().start().await;
    let near = endpoint("east", "reviews-here", "reviews", east.inbound);
    let (_west, gateway, far) = behind_a_gateway(&there).await;
    let mut caller = sidecar("front").calling("reviews", vec![near, far]);
    caller.gateways.push(("west".into(), gateway.inbound.to_string()));
    let front = caller.start().await;
    for _ in 0..10 {
        assert_eq!(ask(front.outbound, Request::get("http://reviews/")).await, (200, "reviews-here".into()));
    }
    drop(here);
    for _ in 0..20 {
        assert_eq!(ask(front.outbound, Request::get("http://reviews/")).await, (200, "reviews-there".into()));
        assert_eq!(
            ask(front.outbound, Request::post("http://reviews/")).await,
            (200, "reviews-there".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_hangs_is_found_out_and_asked_until_it_answers() {
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = endpoint("west", "reviews-there", "reviews", free());
    let mut caller = sidecar("front").calling("reviews", vec![far]);
    caller.gateways.push(("west".into(), hung.local_addr().unwrap().to_string()));
    let front = caller.start().await;
    let west = front.proxy.gateways.network("west");
    assert_ne!(ask(front.outbound, Request::get("http://reviews/")).await.0, 200);
    until("it is found out", async || !west.reachable()).await;
    let _answering = tokio::spawn(async move {
        loop {
            drop(hung.accept().await);
        }
    });
    until("it is heard", async || west.reachable()).await;
}

/// A listener whose queue is full, so that its kernel drops who comes.
async fn silent() -> (TcpListener, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let mut queue = Vec::new();
    let fill = async {
        loop {
            queue.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        }
    };
    let _: Result<(), _> = tokio::time::timeout(Duration::from_millis(200), fill).await;
    (listener, queue)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sibling_of_a_silent_gateway_is_tried_long_before_its_time_is_over() {
    let app = App::start("reviews-there").await;
    let (_west, gateway, far) = behind_a_gateway(&app).await;
    let (silent, _queue) = silent().await;
    let mut caller = sidecar("front").calling("reviews", vec![far]);
    for address in [silent.local_addr().unwrap(), gateway.inbound] {
        caller.gateways.push(("west".into(), address.to_string()));
    }
    let timeouts = caller.services[0].0.traffic.as_mut().unwrap().timeouts.as_mut().unwrap();
    timeouts.connect_remote_ms = 16_000;
    // Which one is tried first is chance.
    let fronts = futures_util::future::join_all((0..8).map(|_| caller.clone().start())).await;
    let asked = fronts.iter().map(|front| ask(front.outbound, Request::post("http://reviews/")));
    let answers = tokio::time::timeout(Duration::from_secs(6), futures_util::future::join_all(asked)).await;
    for answer in answers.expect("who is silent holds nobody up for half of the time") {
        assert_eq!(answer, (200, "reviews-there".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_may_be_sent_twice_leaves_a_gateway_that_is_lost() {
    let app = App::start("reviews-there").await;
    let (_west, gateway, far) = behind_a_gateway(&app).await;
    let mut caller = sidecar("front").calling("reviews", vec![far]);
    caller.gateways.push(("west".into(), gateway.inbound.to_string()));
    caller.services[0].0.traffic.as_mut().unwrap().timeouts.as_mut().unwrap().first_byte_ms = 0;
    let front = caller.start().await;
    let ask_hung = |request| tokio::spawn(ask(front.outbound, request));
    let get = ask_hung(Request::get("http://reviews/hang"));
    let post = ask_hung(Request::post("http://reviews/hang"));
    until("both hang", async || app.requests() >= 2).await;
    let network = front.proxy.gateways.network("west");
    network.choose(0, &[]).unwrap().lost(front.proxy.now());
    until("one is sent again", async || app.requests() >= 3).await;
    assert!(
        !get.is_finished() && !post.is_finished(),
        "only its answer can tell whether an order was executed"
    );
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_ends_when_a_policy_denies_it() {
    let shop = Shop::open(1).await;
    let stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://reviews/stream").header("host", "reviews").header("x-mine", "1");
    let mut body =
        sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    let guarded = |when| shop.reviews[0].obey(&shop.apps[0].sidecar().denying(when));
    guarded(r#"request.path != "/stream" || "x-forwarded-client-cert" in request.headers"#);
    let more = tokio::time::timeout(Duration::from_millis(300), body.frame()).await;
    assert!(more.is_err(), "it is still allowed");
    guarded(r#"request.headers["x-mine"] == "1" && request.host == "reviews""#);
    let end = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap();
    assert!(end.is_some_and(|frame| frame.is_err()), "no proper end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_ends_what_its_policies_deny_under_way() {
    let shop = Shop::open(1).await;
    let address = free();
    let removing = api::wire::HeaderChange { remove: vec!["x-mine".into()], ..Default::default() };
    let filter = api::wire::Filter { filter: Some(api::wire::filter::Filter::RequestHeaders(removing)) };
    let to = |name: &str| api::wire::Backend {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
        weight: 1,
        ..Default::default()
    };
    let backends = vec![to("reviews")];
    let rule = api::wire::Rule { backends, filters: vec![filter], ..Default::default() };
    let host = api::wire::VirtualHost { rules: vec![rule], ..Default::default() };
    let mut gateway = sidecar("gateway").calling("reviews", endpoints(&shop.reviews));
    let table = api::wire::RouteTable { hosts: vec![host], ..Default::default() };
    gateway.listener = Some((address.port(), table));
    let running = gateway.clone().start_as(Role::Ingress { listen: address.ip() }).await;
    until("its listeners have come with its view", async || TcpStream::connect(address).await.is_ok()).await;
    let told = ask(address, Request::get("/headers").header("x-mine", "1")).await;
    assert!(told.0 == 200 && !told.1.contains("x-mine"), "{told:?}");

    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/stream").header("host", "any").header("x-mine", "1");
    let mut body =
        sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    let guarded = |when: &str| {
        let mut gateway = gateway.clone().denying(when);
        gateway.listener.as_mut().unwrap().1.policies.push("policy/shop/deny".into());
        running.obey(&gateway);
    };
    guarded(r#"request.path != "/stream""#);
    let more = tokio::time::timeout(Duration::from_millis(300), body.frame()).await;
    assert!(more.is_err(), "it is still allowed");
    guarded(r#"request.path == "/hang" || request.headers["x-mine"] == "1""#);
    let end = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap();
    assert!(end.is_some_and(|frame| frame.is_err()), "judged by what came, not by what was made of it");

    running.obey(&gateway);
    let asked = shop.requests();
    let denied = async {
        until("it waits", async || shop.requests() > asked).await;
        guarded(r#"request.path == "/hang""#);
    };
    let ((status, _), ()) = tokio::join!(ask(address, Request::post("/hang")), denied);
    assert_eq!(status, 403, "and what still waits for its answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_still_waits_for_its_answer_is_denied_under_way() {
    let shop = Shop::open(1).await;
    let denied = async {
        until("it waits", async || shop.requests() > 0).await;
        shop.reviews[0].obey(&shop.apps[0].sidecar().denying(r#"request.path == "/hang""#));
    };
    let both = async { tokio::join!(shop.post("/hang"), denied) };
    let ((status, _), ()) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(status, 403);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_when_the_cluster_at_either_end_is_trusted_no_more() {
    for caller_learns in [true, false] {
        let mut serving = sidecar("reviews-0").in_cluster("west").serving(echo().await, MtlsMode::Strict);
        serving.ports[0].protocol = api::wire::Protocol::Tcp as i32;
        let reviews = serving.clone().start().await;
        let mut near = endpoint("west", "reviews-0", "reviews", reviews.inbound);
        near.network = "east".into();
        let mut calling = sidecar("front").calling("reviews", vec![near]);
        let front = calling.clone().start().await;
        let (mut stream, head) = tunnelled(front.outbound, "reviews:80").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        if caller_learns {
            calling.expelled = Some("west");
            front.obey(&calling);
        } else {
            serving.expelled = Some("east");
            reviews.obey(&serving);
        }
        assert!(ends(&mut stream).await, "the caller learns: {caller_learns}");
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_carries_bytes_to_a_port_that_speaks_tcp() {
    let application = echo().await;
    let mut serving = sidecar("reviews-0").serving(application, MtlsMode::Strict);
    serving.ports[0].protocol = api::wire::Protocol::Tcp as i32;
    let reviews = serving.clone().start().await;
    let near = endpoint("east", "reviews-0", "reviews", reviews.inbound);
    let front = sidecar("front").calling("reviews", vec![near]).start().await;
    let (mut stream, head) = tunnelled(front.outbound, "reviews:80").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream.write_all(b"bytes \r\n\n").await.unwrap();
    let mut bytes = [0; 9];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"bytes \r\n\n");

    reviews.obey(&serving.denying("destination.port == 8080"));
    assert!(ends(&mut stream).await, "what stands is closed");
    let (mut stream, _) = tunnelled(front.outbound, "reviews:80").await;
    assert!(ends(&mut stream).await, "closed without a byte");
}
