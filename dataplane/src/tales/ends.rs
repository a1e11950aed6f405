//! Tales of how things end: what was not to end is told from what was, to whoever is at the other end and in the log.

use std::io::ErrorKind::ConnectionReset;

use super::*;

const UPGRADE: &str =
    "GET /socket HTTP/1.1\r\nhost: reviews\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// A stream on which this was written.
async fn written(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// What comes up to the end of a head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The end of what comes: how much it was, and whether it was a proper end.
async fn rest(stream: &mut TcpStream) -> (Vec<u8>, std::io::Result<usize>) {
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest).await;
    (rest, end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_is_denied_and_timed_out_as_well() {
    let app = App::start("reviews-0").await;
    let open = sidecar("reviews-0").serving(app.address, MtlsMode::Permissive);
    let reviews = open.clone().start().await;
    let mut caller = written(reviews.inbound, "GET /flood HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
    head(&mut caller).await;
    reviews.obey(&open.denying(r#"request.path == "/flood""#));
    let line = reviews.told(|line| line["path"] == "/flood").await;
    assert_eq!((&line["flag"], &line["status"]), (&"revoked".into(), &200.into()), "{line}");
    assert!(!rest(&mut caller).await.0.ends_with(b"0\r\n\r\n"), "that is no end of a body");

    let shop = Shop::open(1).await;
    let mut front = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    let traffic = front.services[0].0.traffic.as_mut().unwrap();
    traffic.timeouts.as_mut().unwrap().request_ms = 300;
    traffic.limit_requests = 1;
    shop.front.obey(&front);
    let mut caller = written(shop.front.outbound, "GET /flood HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
    head(&mut caller).await;
    let line = shop.front.told(|line| line["path"] == "/flood").await;
    assert_eq!((&line["flag"], &line["status"]), (&"request-timeout".into(), &200.into()), "{line}");
    assert_eq!(shop.get("/").await.0, 200, "its place is free");
    assert!(!rest(&mut caller).await.0.ends_with(b"0\r\n\r\n"), "that is no end of a body");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_in_the_middle_is_told_from_one_that_has_it_all() {
    let shop = Shop::open(1).await;
    let mut caller = written(shop.front.outbound, "GET /stream HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
    head(&mut caller).await;
    drop(caller);
    let line = shop.front.told(|line| line["path"] == "/stream").await;
    assert_eq!((&line["flag"], &line["status"]), (&"client-gone".into(), &200.into()), "{line}");
    let line = shop.reviews[0].told(|line| line["path"] == "/stream").await;
    assert_eq!(line["flag"], "client-gone", "{line}");

    let own =
        |method: &str, path: &str| Request::builder().method(method).uri(format!("http://reviews{path}"));
    for request in [own("HEAD", "/"), own("GET", "/"), own("POST", "/echo").version(http::Version::HTTP_11)] {
        let path = request.uri_ref().unwrap().path().to_owned();
        let method = request.method_ref().unwrap().to_string();
        assert_eq!(ask(shop.front.outbound, request).await.0, 200);
        let line = shop.front.told(|line| line["method"] == *method && line["path"] == *path).await;
        assert_eq!(line["flag"], "", "{line}");
    }
    let head = Request::head("http://nobody.invalid/").header("host", "nobody.invalid");
    ask(shop.front.outbound, head).await;
    let line = shop.front.told(|line| line["host"] == "nobody.invalid").await;
    assert!(line["flag"] != "client-gone" && line["status"] == 502, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_request_that_was_given_up_is_counted() {
    let shop = Shop::open(1).await;
    let mut front = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    front.services[0].0.traffic.as_mut().unwrap().timeouts.as_mut().unwrap().request_ms = 300;
    shop.front.obey(&front);
    let request = Request::post("http://reviews/hang").header("host", "reviews");
    let status = send(shop.front.outbound, request.body(Full::from("five!")).unwrap()).await.status();
    let line = shop.front.told(|line| line["path"] == "/hang").await;
    assert_eq!(
        (status.as_u16(), &line["flag"], &line["bytesIn"]),
        (504, &"request-timeout".into(), &5.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_as_its_ends_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let reviews = sidecar("reviews-0").serving(app, MtlsMode::Strict).start().await;
    let reviews = [reviews];
    let front = sidecar("front").calling("reviews", endpoints(&reviews)).start().await;
    let opened = async || {
        let mut caller = written(front.outbound, UPGRADE).await;
        let mut above = listener.accept().await.unwrap().0;
        head(&mut above).await;
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
        above.write_all(switched.as_bytes()).await.unwrap();
        head(&mut caller).await;
        (caller, above)
    };
    let reset = |end: TcpStream| crate::tcp::reset(&end);
    let is_reset = |end: std::io::Result<usize>| end.is_err_and(|error| error.kind() == ConnectionReset);

    let (mut caller, above) = opened().await;
    drop(above);
    assert!(matches!(rest(&mut caller).await, (said, Ok(5)) if said == b"hello"));
    drop(caller);
    let line = front.told(|line| line["path"] == "/socket").await;
    assert_eq!((&line["flag"], &line["status"]), (&"".into(), &101.into()), "{line}");

    let (mut caller, above) = opened().await;
    caller.read_exact(&mut [0; 5]).await.unwrap();
    reset(above);
    assert!(is_reset(rest(&mut caller).await.1), "the application broke off");
    let line = front.told(|line| line["flag"] == "broken-off").await;
    assert_eq!(line["path"], "/socket");

    let (caller, mut above) = opened().await;
    reset(caller);
    assert!(is_reset(rest(&mut above).await.1), "the caller broke off");
}

/// The way to `target`, until it is cut.
async fn relay(target: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let carrying = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        loop {
            let (mut below, _) = listener.accept().await.unwrap();
            let mut above = TcpStream::connect(target).await.unwrap();
            all.spawn(async move { tokio::io::copy_bidirectional(&mut below, &mut above).await });
        }
    });
    (address, carrying)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_under_many_requests_has_broken_once() {
    let shop = Shop::open(2).await;
    let (way, carrying) = relay(shop.reviews[0].inbound).await;
    let mut both = endpoints(&shop.reviews);
    both[0].address = way.to_string();
    shop.front.obey(&sidecar("front").calling("reviews", both));
    let sender = over_h2(shop.front.outbound).await;
    let asked = |method: &str, path: &str| {
        let mut sender = sender.clone();
        let request = Request::builder().method(method).uri(format!("http://reviews{path}"));
        async move { sender.send_request(request.body(Full::default()).unwrap()).await.unwrap() }
    };
    // Without a head they may not be sent again; with one, their ends tell of their endpoint likewise.
    let waiting: Vec<_> = (0..24).map(|_| tokio::spawn(asked("POST", "/hang"))).collect();
    let mut open = Vec::new();
    for _ in 0..24 {
        open.push(asked("GET", "/stream").await);
    }
    until("all are under way", async || shop.requests() >= 48).await;
    let over_it = shop.apps[0].requests();
    assert!(over_it >= 12, "each of them more than costs an endpoint its place: {over_it}");
    carrying.abort();

    let mut broken = 0;
    for mut waiting in waiting {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await {
            assert_eq!(answer.unwrap().status(), 503);
            broken += 1;
        }
        waiting.abort();
    }
    assert!(broken >= 5, "{broken}");
    let told = shop.front.told(|line| line["path"] == "/stream" && line["flag"] == "broken-off").await;
    assert_eq!(told["status"], 200, "{told}");
    let mut states = Vec::new();
    let now = shop.front.proxy.now();
    shop.front.proxy.each_balancer(|_, balancer| {
        states.extend(balancer.report(now).into_iter().map(|one| one.state));
    });
    assert!(!states.contains(&"ejected"), "{states:?}");
}
