//! Tales of what is spoken: HTTP/1.1 and its ambiguities, HTTP/2, gRPC, WebSocket.

use super::*;

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
