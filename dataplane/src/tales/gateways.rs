//! Tales of calls through a gateway of another cluster.

use super::*;

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
