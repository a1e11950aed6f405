//! Whole connections over loopback sockets.

use std::{io, sync::atomic::Ordering::Relaxed, time::Instant};

use api::endpoint::{EndpointId, GATEWAY_NAME, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

mod flows;

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
    check("the gateway itself", client_hello(GATEWAY_NAME, None), &alert(112)).await;
    check("no handshake", vec![22, 3, 1, 0, 1, 9], &alert(50)).await;
    check("too long", [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 20_000]].concat(), &alert(50)).await;
    check("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"").await;

    let text = tale.registry.text().unwrap();
    for line in [
        "weft_eastwest_connections_total{result=\"Unknown\"} 4",
        "weft_eastwest_connections_total{result=\"Asked\"} 1",
        "weft_eastwest_connections_total{result=\"Unreachable\"} 1",
        "weft_eastwest_connections_total{result=\"Malformed\"} 2",
        "weft_eastwest_connections_total{result=\"NotTls\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn the_slow_are_closed_and_hold_nobody_up() {
    let hello = client_hello(&id("a").sni(), None);
    let almost = &hello[..hello.len() - 1];
    let tale = Tale::new(Settings::default(), &[("a", echo().await)]).await;
    let _slow = tale.say(almost).await;
    tale.flow(&id("a").sni()).await;

    let settings = Settings { hello: Duration::from_millis(50), ..Settings::default() };
    let hasty = Tale::new(settings, &[("a", echo().await)]).await;
    let began = Instant::now();
    assert_eq!(hasty.answer(almost).await, b"");
    assert!(began.elapsed() < Duration::from_secs(4), "long before the usual limit");
}

#[tokio::test]
async fn the_silent_take_their_places_from_each_other() {
    let settings = Settings { max_flows: 8, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let flow = tale.flow(&id("a").sni()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tale.connect().await);
    }
    let last = [silent.pop().unwrap(), silent.pop().unwrap()];
    for mut one in silent {
        let end = timeout(Duration::from_secs(30), one.read(&mut [0])).await.expect("it is ended");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    tale.flow(&id("a").sni()).await;
    drop((flow, last));
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
async fn a_flow_outlives_the_offer_of_its_endpoint_for_a_while() {
    let server = echo().await;
    let tale = Tale::new(Settings::default(), &[("a", server)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    tale.update(&[("b", server)]);
    assert_eq!(tale.answer(&client_hello(&id("a").sni(), None)).await, alert(112), "for new ones it is gone");
    flow.write_all(b"still here").await.unwrap();
    assert_eq!(hear(&mut flow, 10).await, b"still here");

    let settings = Settings { withdrawn: Duration::from_millis(300), ..Settings::default() };
    let hasty = Tale::new(settings, &[("a", server)]).await;
    let mut flow = hasty.flow(&id("a").sni()).await;
    let began = Instant::now();
    hasty.update(&[("b", server)]);
    hasty.update(&[("b", server), ("c", server)]);
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
