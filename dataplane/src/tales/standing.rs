//! Tales of what stands while what it was allowed by, or whom it trusts, changes.

use super::*;

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
