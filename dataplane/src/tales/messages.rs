//! Tales of how a request is read and passed on: its host, its body, and what may be made of its end.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// The answer to what is written word for word, up to the end of the connection.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_denied_however_it_is_spelt() {
    let app = App::start("reviews-0").await;
    let denying = |when: &str| sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).denying(when);
    let running = denying(r#"request.host == "admin.example""#).start().await;
    let asks = async |target: &str, host: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        raw(running.inbound, &request).await[9..12].to_owned()
    };
    for host in
        ["admin.example", "ADMIN.example", "admin.example:80", "Admin.Example.", "admin.example.:8080"]
    {
        assert_eq!(asks("/", host).await, "403", "{host}");
    }
    assert_eq!(asks("http://Admin.example/", "public.example").await, "403", "the target counts");
    assert_eq!(asks("/", "public.example").await, "200");
    running.obey(&denying(r#"request.headers["host"] == "secret.example""#));
    assert_eq!(asks("http://secret.example/", "public.example").await, "403", "it is what is forwarded");
    assert_eq!(asks("http://public.example/", "secret.example").await, "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_may_have_a_body() {
    let shop = Shop::open(1).await;
    let request = "GET /echo HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\n\r\n";
    let answer = raw(shop.front.outbound, request).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("hello"), "{answer}");
}

/// Answers `lines` to one request after the other, each at its own turn; then the connection and the listener go.
/// Gives how many connections there were.
async fn scripted(lines: &'static [&'static str]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = connections.clone();
    tokio::spawn(async move {
        let mut lines = lines.iter();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, SeqCst);
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    let Some(line) = lines.next() else { return };
                    stream.write_all(line.as_bytes()).await.unwrap();
                    head.clear();
                }
            }
        }
    });
    (address, connections)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_body_leaves_its_connection() {
    let (address, connections) = scripted(&["HTTP/1.1 204 No Content\r\n\r\n"; 9]).await;
    let running = sidecar("reviews-0").serving(address, MtlsMode::Permissive).start().await;
    // One connection below too, so that there is one worker, whose pool it is.
    let stream = TcpStream::connect(running.inbound).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..5 {
        sender.ready().await.unwrap();
        let request = Request::get("/").header("host", "reviews").body(Full::<Bytes>::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 204);
    }
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_broke_one_application_is_not_said_to_be_unread() {
    let (address, _) = scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let running = sidecar("reviews-0").serving(address, MtlsMode::Permissive).start().await;
    let stream = TcpStream::connect(running.inbound).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut asked = async || {
        sender.ready().await.unwrap();
        let request = Request::get("/").header("host", "reviews").body(Full::<Bytes>::default()).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        (head.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    assert_eq!(asked().await.0, 200);
    // Read over the connection that stands; then nobody is there any more.
    let (status, body) = asked().await;
    assert!(status == 503 && body.contains("reset") && !body.contains("refused"), "{status} {body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_elsewhere_is_served_while_a_sidecar_drains() {
    let app = App::start("reviews-0").await;
    let running = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).start().await;
    running.proxy.draining.store(true, Relaxed);
    assert_eq!(ask(running.inbound, Request::get("/")).await.0, 200, "this caller has no sidecar");
    let shop = Shop::open(1).await;
    shop.reviews[0].proxy.draining.store(true, Relaxed);
    let put = |bytes: usize| {
        let body = Full::new(Bytes::from(vec![b'x'; bytes]));
        Request::put("http://reviews/echo").header("host", "reviews").body(body).unwrap()
    };
    assert_eq!(send(shop.front.outbound, put(1_000)).await.status(), 503, "it could be sent elsewhere");
    let large = send(shop.front.outbound, put(100_000)).await;
    assert_eq!((large.status().as_u16(), large.body().len()), (200, 100_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_is_given_up_takes_nothing_from_the_next() {
    let shop = Shop::open(2).await;
    let mut caller = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    let retry = caller.services[0].0.traffic.as_mut().unwrap().retry.as_mut().unwrap();
    (retry.statuses, retry.backoff_base_ms, retry.backoff_max_ms) = (vec![503], 200, 200);
    shop.front.obey(&caller);
    let stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (frames, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(8);
    let request = Request::put("http://reviews/early-then-echo").header("host", "reviews");
    let request = request.body(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(body))).unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    let part = || Ok(Frame::data(Bytes::from(vec![b'x'; 20_000])));
    frames.send(part()).await.unwrap();
    until("the first one is asked", async || shop.requests() > 0).await;
    // The first one has said 503; until the second one is asked, the rest comes.
    for _ in 0..9 {
        frames.send(part()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(frames);
    let (head, body) = answer.await.unwrap().unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!((head.status.as_u16(), body.len(), shop.requests()), (200, 200_000, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_answered_before_all_was_sent_reads_the_answer() {
    let app = App::start("reviews-0").await;
    let denying = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).denying("true");
    let running = denying.start().await;
    let body = vec![b'x'; 8 << 20];
    let head = format!("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(running.inbound).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_of_http2_costs_no_connection() {
    let shop = Shop::open(1).await;
    let get = |more: &str| {
        format!(
            "GET / HTTP/1.1\r\nhost: reviews\r\nconnection: {more}Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
             http2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        )
    };
    let answer = raw(shop.front.outbound, &(get("") + &get("") + &get("close, "))).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 3, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_is_overruled_does_not_go_on() {
    let (address, _) =
        scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
                                   5\r\nhello\r\n0\r\n\r\n"])
        .await;
    let running = sidecar("reviews-0").serving(address, MtlsMode::Permissive).start().await;
    let answer = raw(running.inbound, "GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("hello") && !answer.contains("content-length"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_needs_no_host() {
    let app = App::start("reviews-0").await;
    let running = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive).start().await;
    assert!(raw(running.inbound, "GET / HTTP/1.0\r\n\r\n").await.contains(" 200 "));
    assert!(raw(running.inbound, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.contains(" 400 "));
}
