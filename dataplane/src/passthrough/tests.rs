//! Whole connections over loopback sockets.

use std::{io, sync::atomic::Ordering::Relaxed, time::Instant};

use api::{
    digest::Hash,
    endpoint::{EndpointId, ServerName},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{flow::Flow, *};

/// What rustls says first, in records of at most `fragment` bytes.
pub(super) fn client_hello(name: &str, fragment: Option<usize>) -> Vec<u8> {
    let mut config = client_config(RootCertStore::empty());
    config.max_fragment_size = fragment;
    let name = name.to_owned().try_into().unwrap();
    let mut bytes = Vec::new();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn id(name: &str) -> EndpointId {
    EndpointId::new(&"west".parse().unwrap(), &name.parse().unwrap(), 8080)
}

/// A gateway that listens.
struct Tale {
    gateway: Arc<Passthrough>,
    address: SocketAddr,
    registry: Registry,
    shutdown: Shutdown,
    running: JoinHandle<()>,
}

impl Tale {
    /// In front of `endpoints`, which are all of the service `80.reviews.shop`.
    async fn new(settings: Settings, endpoints: &[(&str, SocketAddr)]) -> Self {
        let registry = Registry::new();
        let gateway = Passthrough::new(settings, &registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(listener, gateway.clone(), shutdown.clone()));
        let tale = Tale { gateway, address, registry, shutdown, running };
        tale.update(endpoints);
        tale
    }

    fn update(&self, endpoints: &[(&str, SocketAddr)]) {
        let endpoint = |(name, address): &(&str, SocketAddr)| wire::PassthroughEndpoint {
            id: id(name).to_string(),
            address: address.to_string(),
            services: vec!["80.reviews.shop".into()],
        };
        let bad =
            self.gateway.update(&wire::Passthrough { endpoints: endpoints.iter().map(endpoint).collect() });
        assert!(bad.is_empty(), "{bad:?}");
    }

    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A connection that has said `bytes`.
    async fn say(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// A flow to an echo that has come about.
    async fn flow(&self, server_name: &str) -> TcpStream {
        let hello = client_hello(server_name, None);
        let mut stream = self.say(&hello).await;
        assert_eq!(hear(&mut stream, hello.len()).await, hello);
        stream
    }

    /// All that a connection hears that says `bytes`.
    async fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        rest(self.say(bytes).await).await
    }
}

async fn hear(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Echoes what it hears on every connection.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

const fn alert(code: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, code]
}

#[tokio::test]
async fn tls_passes_end_to_end() {
    let name = id("a").sni();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec![name.clone()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
        stream.shutdown().await.unwrap();
    });

    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(roots)));
    let mut stream = connector.connect(name.try_into().unwrap(), tale.connect().await).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"hello");
}

#[tokio::test]
async fn a_hello_may_come_byte_by_byte_and_record_by_record() {
    let tale = Tale::new(Settings::default(), &[("a", echo().await)]).await;
    let hello = client_hello(&id("a").sni(), Some(32));
    let mut stream = tale.connect().await;
    for byte in &hello {
        stream.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(hear(&mut stream, hello.len()).await, hello);
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_at_once() {
    let tale = Tale::new(Settings::default(), &[("a", nobody().await)]).await;
    let check = async |what: &str, hello: Vec<u8>, expect: &[u8]| {
        assert_eq!(tale.answer(&hello).await, expect, "{what}");
    };
    check("unreachable", client_hello(&id("a").sni(), None), &alert(80)).await;
    check("gone", client_hello(&id("b").sni(), None), &alert(112)).await;
    check("not exported", client_hello("80.cart.shop.svc.weft.internal", None), &alert(112)).await;
    check("not of the mesh", client_hello("www.example", None), &alert(112)).await;
    check("no name", client_hello("127.0.0.1", None), &alert(112)).await;
    check("no handshake", vec![22, 3, 1, 0, 1, 9], &alert(50)).await;
    check("too long", [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 20_000]].concat(), &alert(50)).await;
    check("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"").await;

    let text = tale.registry.text().unwrap();
    for line in [
        "weft_eastwest_connections_total{result=\"Unknown\"} 4",
        "weft_eastwest_connections_total{result=\"Unreachable\"} 1",
        "weft_eastwest_connections_total{result=\"Malformed\"} 2",
        "weft_eastwest_connections_total{result=\"NotTls\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn the_slow_are_closed_and_hold_nobody_up() {
    let settings = Settings { hello: Duration::from_millis(50), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let hello = client_hello(&id("a").sni(), None);
    let slow = tale.say(&hello[..hello.len() - 1]).await;
    tale.flow(&id("a").sni()).await;
    let began = Instant::now();
    assert_eq!(rest(slow).await, b"");
    assert!(began.elapsed() < Duration::from_secs(4), "long before the usual limit");
}

#[tokio::test]
async fn a_half_closed_flow_goes_on_in_the_other_direction() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let mut client = tale.say(&hello).await;
    client.write_all(b"the last word").await.unwrap();
    client.shutdown().await.unwrap();

    let (mut server, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, [&hello[..], b"the last word"].concat());
    server.write_all(b"the very last").await.unwrap();
    drop(server);
    assert_eq!(rest(client).await, b"the very last");
}

#[tokio::test]
async fn a_reader_that_waits_holds_the_writer_and_nothing_is_lost() {
    const BULK: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;

    // Nobody reads yet: what is written must stop long before all of it is taken in.
    let bulk: Vec<u8> = (0..BULK).map(|i| (i / 251) as u8).collect();
    let mut written = 0;
    while let Ok(done) = timeout(Duration::from_millis(200), server.write(&bulk[written..])).await {
        written += done.unwrap();
    }
    assert!(written < BULK, "no back-pressure");
    let sent = bulk.clone();
    tokio::spawn(async move {
        server.write_all(&sent[written..]).await.unwrap();
    });
    assert!(rest(client).await == bulk);
    assert!(tale.gateway.metrics.spliced.get() > BULK as u64 / 2, "{}", tale.gateway.metrics.spliced.get());
    let line = format!("weft_eastwest_bytes_total{{direction=\"ToClient\"}} {BULK}");
    let text = tale.registry.text().unwrap();
    assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
}

#[tokio::test]
async fn a_broken_side_breaks_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let mut client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_is_passed_on_to_a_reader_that_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;
    while let Ok(written) = timeout(Duration::from_millis(200), server.write(&[7; 65536])).await {
        written.unwrap();
    }
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let reset = timeout(Duration::from_secs(10), client.ready(Interest::ERROR)).await;
    assert!(reset.expect("it was not passed on").unwrap().is_error());
}

/// Sends `total` bytes in chunks of all sizes, and their hash in the end.
async fn send_random(stream: &mut (impl AsyncWriteExt + Unpin), seed: u64, total: usize) -> Hash {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut all = vec![0; total];
    random.fill(&mut all[..]);
    let mut rest = &all[..];
    while !rest.is_empty() {
        let most = [1, 100, 20_000, 300_000, 2_000_000][random.random_range(0..5)];
        let (chunk, more) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        stream.write_all(chunk).await.unwrap();
        rest = more;
    }
    Hash::of(&all)
}

/// Reads to the end, at all speeds.
async fn hash_slowly(stream: &mut (impl AsyncReadExt + Unpin), seed: u64) -> Hash {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut all, mut buffer) = (Vec::new(), vec![0; 500_000]);
    loop {
        let most = [10, 10_000, 500_000][random.random_range(0..3)];
        let size = random.random_range(1..=most);
        match stream.read(&mut buffer[..size]).await.unwrap() {
            0 => return Hash::of(&all),
            count => all.extend(&buffer[..count]),
        }
        for _ in 0..random.random_range(0..3) {
            tokio::task::yield_now().await;
        }
    }
}

/// Random bytes both ways at once through `client`, which are heard whole by `server`, and the other way round.
async fn both_ways(mut client: TcpStream, mut server: TcpStream, total: usize) {
    let (mut from_client, mut into_client) = client.split();
    let (mut from_server, mut into_server) = server.split();
    let up = async {
        let sent = send_random(&mut into_client, 1, total).await;
        into_client.shutdown().await.unwrap();
        sent
    };
    let down = async {
        let sent = send_random(&mut into_server, 2, total).await;
        into_server.shutdown().await.unwrap();
        sent
    };
    let (up, down, above, below) =
        tokio::join!(up, down, hash_slowly(&mut from_server, 3), hash_slowly(&mut from_client, 4));
    assert!(up == above, "what the server heard is not what the client said");
    assert!(down == below, "what the client heard is not what the server said");
}

#[tokio::test]
async fn bulk_comes_whole_in_both_directions_whatever_its_chunks() {
    const TOTAL: usize = 24 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    assert_eq!(hear(&mut server, hello.len()).await, hello);
    both_ways(client, server, TOTAL).await;
    let metrics = &tale.gateway.metrics;
    assert_eq!(metrics.to_client.get(), TOTAL as u64);
    assert_eq!(metrics.to_endpoint.get(), (TOTAL + hello.len()) as u64);
    assert!(metrics.spliced.get() > TOTAL as u64 / 4, "{} were spliced", metrics.spliced.get());
    assert!(metrics.spliced.get() < 2 * TOTAL as u64, "the beginning is copied");
}

#[tokio::test]
async fn without_a_pipe_bulk_is_copied() {
    let pipes = Pipes::default();
    let _all: Vec<_> = std::iter::from_fn(|| pipes.lend()).collect();
    let gateway = Passthrough::new(Settings::default(), &Registry::new());
    let connect = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    };
    let ((far_client, client), (server, far_server)) = (connect().await, connect().await);
    let open = table::Target::open_for_test(id("a"));
    let flow = Flow { client, server, first: Vec::new(), open };
    let (ended, ()) = tokio::join!(flow.run(&gateway, &pipes), both_ways(far_client, far_server, 8 << 20));
    ended.unwrap();
    assert_eq!((gateway.metrics.spliced.get(), pipes.count()), (0, (pipes::MOST, 0)));
}

#[tokio::test]
async fn a_flow_takes_little_memory_and_no_buffer_while_idle() {
    let (gateway, pipes) = (Passthrough::new(Settings::default(), &Registry::new()), Pipes::default());
    let client = TcpStream::connect(echo().await).await.unwrap();
    let peer = client.peer_addr().unwrap();
    let size = size_of_val(&serve(&gateway, &pipes, client, peer));
    assert!(size <= 2048, "{size} bytes; 10,000 of them are to be cheap");
}

#[tokio::test]
async fn one_source_cannot_take_all() {
    let settings = Settings { max_flows_per_source: 2, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let flows = [tale.flow(&id("a").sni()).await, tale.flow(&id("a").sni()).await];
    let third = tale.connect().await.read(&mut [0]).await;
    assert_eq!(third.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(tale.address).await.unwrap();
    let hello = client_hello(&id("a").sni(), None);
    other.write_all(&hello).await.unwrap();
    assert_eq!(hear(&mut other, hello.len()).await, hello, "another source has its own share");

    // A flow has ended when its gateway has closed it.
    let [mut first, _second] = flows;
    first.shutdown().await.unwrap();
    assert_eq!(rest(first).await, b"");
    let text = tale.registry.text().unwrap();
    assert!(text.contains("weft_eastwest_connections_total{result=\"Crowded\"} 1"), "{text}");
}

#[test]
fn flows_are_as_many_as_open_files_allow() {
    let within = |files, workers| {
        let settings = Settings::default().within(files, workers);
        (settings.max_flows, settings.max_flows_per_source)
    };
    assert_eq!(within(u64::MAX, 1), (16 * 1024, 8 * 1024));
    assert_eq!(within(20_000, 1), (9808, 4904));
    assert_eq!(within(20_000, 4), (9424, 4712));
    assert_eq!(within(100, 1), (2, 1), "too few for anything, but it starts");
}

#[tokio::test]
async fn a_flow_does_not_last_for_ever() {
    let settings = Settings { total: Duration::from_millis(300), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    loop {
        if let Err(error) = flow.write_all(b".").await.and(flow.read_exact(&mut [0]).await.map(drop)) {
            return assert!(matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ));
        }
    }
}

#[tokio::test]
async fn a_flow_outlives_the_offer_of_its_endpoint_for_a_while() {
    let server = echo().await;
    let settings = Settings { withdrawn: Duration::from_millis(300), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", server)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    let began = Instant::now();
    tale.update(&[("b", server)]);
    assert_eq!(tale.answer(&client_hello(&id("a").sni(), None)).await, alert(112), "for new ones it is gone");
    flow.write_all(b"still here").await.unwrap();
    assert_eq!(hear(&mut flow, 10).await, b"still here");
    tale.update(&[("b", server), ("c", server)]);
    assert_eq!(flow.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(began.elapsed() >= Duration::from_millis(300), "not before its time");
}

#[tokio::test]
async fn an_endpoint_that_is_offered_again_keeps_its_flows() {
    const GRACE: Duration = Duration::from_millis(300);
    let server = echo().await;
    let settings = Settings { withdrawn: GRACE, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", server)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    tale.update(&[]);
    tale.update(&[]);
    tale.update(&[("a", server)]);
    assert!(timeout(2 * GRACE, flow.read(&mut [0])).await.is_err(), "nothing happens to it");
    flow.write_all(b"still here").await.unwrap();
    assert_eq!(hear(&mut flow, 10).await, b"still here");
    let table = tale.gateway.table.load_full();
    assert_eq!(table.find(&ServerName::Endpoint(id("a")))[0].connections.load(Relaxed), 1);
}

#[tokio::test]
async fn a_service_goes_to_the_one_with_fewest_connections_that_answers() {
    let (a, b) = (echo().await, echo().await);
    let tale = Tale::new(Settings::default(), &[("a", a), ("b", b)]).await;
    let service = "80.reviews.shop.svc.weft.internal";
    let flows = [tale.flow(service).await, tale.flow(service).await, tale.flow(service).await];
    let table = tale.gateway.table.load_full();
    let open = |name| table.find(&ServerName::Endpoint(id(name)))[0].connections.load(Relaxed);
    assert_eq!((open("a").min(open("b")), open("a").max(open("b"))), (1, 2));
    drop(flows);

    tale.update(&[("a", nobody().await), ("b", b)]);
    tale.flow(service).await;
    tale.flow(service).await;
}

#[tokio::test]
async fn connections_come_from_the_source_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = "127.0.0.9".parse().unwrap();
    let settings = Settings { source: Some(source), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", listener.local_addr().unwrap())]).await;
    let _client = tale.say(&client_hello(&id("a").sni(), None)).await;
    assert_eq!(listener.accept().await.unwrap().1.ip(), source);
}

#[tokio::test]
async fn a_silent_flow_is_closed() {
    let settings = Settings { idle: Duration::from_millis(50), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    assert_eq!(flow.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn every_byte_breaks_the_silence() {
    const IDLE: Duration = Duration::from_millis(300);
    let settings = Settings { idle: IDLE, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(IDLE / 6);
    while began.elapsed() < 2 * IDLE {
        ticks.tick().await;
        flow.write_all(b".").await.unwrap();
        hear(&mut flow, 1).await;
    }
}

#[tokio::test]
async fn at_the_end_no_one_new_comes_and_flows_may_finish() {
    let tale = Tale::new(Settings::default(), &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    tale.shutdown.cancel();
    tale.running.await.unwrap();
    assert!(TcpStream::connect(tale.address).await.is_err(), "the listener is closed");
    flow.write_all(b"one more").await.unwrap();
    assert_eq!(hear(&mut flow, 8).await, b"one more");
    drop(flow);
    tale.shutdown.drain(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_flow_that_outlasts_the_drain_is_closed() {
    let settings = Settings { drain: Duration::from_millis(50), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let flow = tale.flow(&id("a").sni()).await;
    tale.shutdown.drain(Duration::from_secs(5)).await.unwrap();
    assert_eq!(rest(flow).await, b"");
}

#[tokio::test]
async fn beyond_its_limit_connections_wait() {
    let settings = Settings { max_flows: 1, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let first = tale.flow(&id("a").sni()).await;
    let hello = client_hello(&id("a").sni(), None);
    let mut second = tale.say(&hello).await;
    assert!(timeout(Duration::from_millis(50), second.readable()).await.is_err(), "it waits");
    drop(first);
    assert_eq!(hear(&mut second, hello.len()).await, hello);
}
