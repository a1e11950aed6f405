//! Tales of what is over a limit.

use super::*;

impl Shop {
    /// Obeys these limits of connections, requests and what waits.
    fn limit(&self, connections: u32, requests: u32, pending: u32) {
        let mut caller = sidecar("front").calling("reviews", endpoints(&self.reviews));
        let traffic = caller.services[0].0.traffic.as_mut().unwrap();
        traffic.limit_connections = connections;
        traffic.limit_requests = requests;
        traffic.limit_pending = pending;
        // The time that a request waits for a connection, and nothing else here.
        traffic.timeouts.as_mut().unwrap().first_byte_ms = 3000;
        self.front.obey(&caller);
    }

    async fn until_asked(&self, requests: usize) {
        until(&format!("{requests} are asked for"), async || self.requests() >= requests).await;
    }

    /// How many requests wait for a connection.
    async fn until_pending(&self, count: u32) {
        let mut load = None;
        self.front.proxy.each_load(|_, one| load = Some(one.clone()));
        let load = load.unwrap();
        until(&format!("{count} wait"), async || load.count(crate::limit::Kind::Pending) == count).await;
    }
}

fn reason(answer: &(u16, String)) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(&answer.1).unwrap_or_default();
    (answer.0, body["reason"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_under_way_until_its_answer_has_ended() {
    let shop = Shop::open(2).await;
    shop.limit(0, 2, 0);
    let stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    let executor = TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // Two streams of one connection are two requests.
    let mut stream = async || {
        let request = Request::get("http://reviews/stream").body(Full::<Bytes>::default()).unwrap();
        sender.send_request(request).await.unwrap()
    };
    let (first, second) = (stream().await, stream().await);
    assert_eq!([first.status(), second.status()], [200, 200]);
    assert_eq!(reason(&shop.get("/").await), (503, "limit-requests".into()));
    assert_eq!(shop.requests(), 2, "nobody else is asked");
    let metrics = shop.front.registry.text().unwrap();
    assert!(metrics.contains("weft_flag=\"limit-requests\""), "{metrics}");
    drop(first);
    until("its place is free", async || shop.get("/").await.0 == 200).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_connection_a_request_waits_for_one() {
    let shop = Shop::open(2).await;
    shop.limit(1, 0, 1);
    let hanging = {
        let address = shop.front.outbound;
        tokio::spawn(async move { ask(address, Request::post("http://reviews/hang")).await })
    };
    shop.until_asked(1).await;
    let waiting = async {
        shop.until_pending(1).await;
        assert_eq!(reason(&shop.get("/").await), (503, "limit-pending".into()), "at once");
        hanging.abort();
    };
    let (served, ()) = tokio::join!(shop.get("/"), waiting);
    assert_eq!(served.0, 200, "by the connection that came free");
    assert_eq!(shop.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_idles_makes_room_for_one_elsewhere() {
    let shop = Shop::open(3).await;
    shop.limit(1, 0, 0);
    for _ in 0..20 {
        assert_eq!(shop.get("/").await.0, 200);
    }
    assert!(shop.apps.iter().all(|app| app.requests() > 0), "one connection, to each in turn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_bytes_waits_for_no_connection() {
    let mut serving = sidecar("reviews-0").serving(echo().await, MtlsMode::Strict);
    serving.ports[0].protocol = api::wire::Protocol::Tcp as i32;
    let reviews = serving.start().await;
    let near = endpoint("east", "reviews-0", "reviews", reviews.inbound);
    let mut caller = sidecar("front").calling("reviews", vec![near]);
    caller.services[0].0.traffic.as_mut().unwrap().limit_connections = 1;
    let front = caller.start().await;
    let (first, head) = tunnelled(front.outbound, "reviews:80").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (_, head) = tunnelled(front.outbound, "reviews:80").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    drop(first);
    until("its place is free", async || {
        !tunnelled(front.outbound, "reviews:80").await.1.starts_with("HTTP/1.1 503 ")
    })
    .await;
}
