//! Tales of what is tried, how long, and what is held against whom.

use super::*;

fn put(path: &str, bytes: usize) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(vec![b'x'; bytes]));
    Request::put(format!("http://reviews{path}")).header("host", "reviews").body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_elsewhere_is_waited_for() {
    let shop = Shop::open(2).await;
    assert_eq!(send(shop.front.outbound, put("/slow", 1_000)).await.status(), 200);
    assert_eq!(shop.requests(), 3, "it went on twice, and the last try has no limit");
    assert_eq!(send(shop.front.outbound, put("/slow", 200_000)).await.status(), 200);
    assert_eq!(shop.requests(), 4, "so long a body is not kept for another try");
    let mut caller = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    let retry = caller.services[0].0.traffic.as_mut().unwrap().retry.as_mut().unwrap();
    (retry.budget_percent, retry.budget_min_per_second) = (0, 0);
    shop.front.obey(&caller);
    assert_eq!((shop.get("/slow").await.0, shop.requests()), (200, 5), "nor can another one be paid for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_asked_for_itself_is_not_gone_around() {
    let shop = Shop::open(1).await;
    let mut caller = sidecar("front").calling("reviews", endpoints(&shop.reviews));
    caller.services[0].0.traffic.as_mut().unwrap().retry.as_mut().unwrap().statuses = vec![500];
    shop.front.obey(&caller);
    let asked = async |path: &str| {
        let request = Request::get(format!("http://{}:8080{path}", shop.reviews[0].inbound.ip()));
        (ask(shop.front.outbound, request).await, shop.requests())
    };
    assert_eq!(asked("/fails").await, ((500, "as asked".into()), 1), "its own word");
    assert_eq!(asked("/slow").await, ((200, "reviews-0".into()), 2), "and in its own time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_that_fails_is_one_failure_however_many_wait_for_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = endpoint("east", "reviews-1", "reviews", silent.local_addr().unwrap());
    let app = App::start("reviews-0").await;
    let serving = sidecar("reviews-0").in_cluster("west").serving(app.address, MtlsMode::Strict);
    let reviews = serving.start().await;
    let mut far = endpoint("west", "reviews-0", "reviews", reviews.inbound);
    far.network = "east".into();
    let front = sidecar("front").calling("reviews", vec![near, far]).start().await;
    let sender = over_h2(front.outbound).await;
    let all = async |count: usize| {
        // Whoever connects is shown the door once all are there to see it.
        let door = async {
            let (stream, _) = silent.accept().await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.set_zero_linger().unwrap();
        };
        let request = || Request::post("http://reviews/").body(Full::default()).unwrap();
        let asked = (0..count).map(|_| sender.clone().send_request(request()));
        let (answers, ()) = tokio::join!(futures_util::future::join_all(asked), door);
        answers.iter().for_each(|answer| assert_eq!(answer.as_ref().unwrap().status(), 200));
        front.proxy.ejected().len()
    };
    assert_eq!([all(5).await, all(5).await], [0, 0]);
    assert_eq!(all(1).await, 1, "three in a row are three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_share_a_connection_than_its_server_takes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request| behave("reviews-0".into(), Arc::default(), request));
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(2);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut serving = sidecar("reviews-0").serving(application, MtlsMode::Permissive);
    serving.ports[0].protocol = api::wire::Protocol::Grpc as i32;
    let running = serving.start().await;
    let get = |path: &str| Request::get(format!("http://reviews{path}")).body(Full::default()).unwrap();
    assert_eq!(send(running.inbound, get("/")).await.status(), 200, "by then it has said how many");
    let sender = over_h2(running.inbound).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let answer = sender.clone().send_request(get("/stream"));
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        streams.push(answer.expect("nobody waits for another's end").unwrap());
    }
    assert!(streams.iter().all(|answer| answer.status() == 200));
}

/// Servers of gRPC close connections that are pinged more often than they like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_is_sent_no_pings() {
    const PING: u8 = 6;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut serving = sidecar("reviews-0").serving(listener.local_addr().unwrap(), MtlsMode::Permissive);
    serving.ports[0].protocol = api::wire::Protocol::Grpc as i32;
    let running = serving.start().await;
    let asked = ask(running.inbound, Request::get("http://reviews/"));
    let heard = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // SETTINGS
        let mut kinds = Vec::new();
        let frames = async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                kinds.push(head[3]);
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                stream.read_exact(&mut vec![0; length]).await.unwrap();
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(7), frames).await;
        kinds
    };
    let kinds = tokio::select! {
        answer = asked => panic!("nobody answers: {answer:?}"),
        kinds = heard => kinds,
    };
    assert!(kinds.contains(&1) && !kinds.contains(&PING), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_when_the_cluster_that_gives_it_is_trusted_no_more() {
    let app = App::start("reviews-0").await;
    let serving = sidecar("reviews-0").in_cluster("west").serving(app.address, MtlsMode::Strict);
    let reviews = serving.start().await;
    let mut near = endpoint("west", "reviews-0", "reviews", reviews.inbound);
    near.network = "east".into();
    let mut calling = sidecar("front").calling("reviews", vec![near]);
    let front = calling.clone().start().await;
    let mut over_h1 = {
        let stream = TcpStream::connect(front.outbound).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    };
    let mut over_h2 = over_h2(front.outbound).await;
    let get = || Request::get("http://reviews/stream").body(Full::<Bytes>::default()).unwrap();
    let mut answers =
        [over_h1.send_request(get()).await.unwrap(), over_h2.send_request(get()).await.unwrap()];
    for answer in &mut answers {
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    }
    calling.expelled = Some("west");
    front.obey(&calling);
    for answer in &mut answers {
        let end = tokio::time::timeout(Duration::from_secs(5), answer.frame()).await.unwrap();
        assert!(end.is_some_and(|frame| frame.is_err()), "no proper end");
    }
}
