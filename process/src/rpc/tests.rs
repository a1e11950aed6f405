use std::pin::Pin;
use std::sync::Mutex;

use api::wire;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::stub::control_client::ControlClient;
use super::stub::control_server::{Control, ControlServer};
use super::*;
use crate::world::Machine;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

fn world() -> SharedWorld {
    Arc::new(Machine)
}

const LONG: Duration = Duration::from_secs(30);
const NAME: &str = "control.weft.internal";

/// A root of its own, by its name and its key.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([NAME.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder(self.roots()).allow_unauthenticated().build().unwrap();
        let (chain, key) = self.leaf();
        ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap()
            .into()
    }

    fn client(&self, identity: Option<&Authority>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots());
        match identity.map(Authority::leaf) {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap().into(),
            None => builder.with_no_client_auth().into(),
        }
    }
}

/// Answers with what it knows of the peer; `Follow` repeats each heartbeat as an empty frame.
struct Echo {
    shutdown: Shutdown,
    seen: Arc<Mutex<Vec<PeerInfo>>>,
}

#[tonic::async_trait]
impl Control for Echo {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::SignedChain>, Status> {
        let peer = request.extensions().get::<PeerInfo>().expect("each request knows its peer").clone();
        let chain = peer.chain.iter().flat_map(|chain| chain.iter()).map(|der| der.to_vec()).collect();
        self.seen.lock().unwrap().push(peer);
        Ok(Response::new(wire::SignedChain { chain, ..Default::default() }))
    }

    async fn renew(&self, _: Request<wire::RenewRequest>) -> Result<Response<wire::SignedChain>, Status> {
        Err(Status::unauthenticated("no certificate"))
    }

    async fn turn(&self, _: Request<wire::TurnRequest>) -> Result<Response<wire::TurnAnswer>, Status> {
        Err(Status::unauthenticated("no certificate"))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::ToProxy, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromProxy>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let frames = request.into_inner().map(|message| message.map(|_| wire::ToProxy::default()));
        let (ends, ended) = tokio::sync::mpsc::channel(1);
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn("follow", async move {
            let mut frames = frames;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    Some(frame) = frames.next() => drop(ends.send(frame).await),
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(ended))))
    }
}

struct Mesh {
    authority: Authority,
    address: SocketAddr,
    shutdown: Shutdown,
    seen: Arc<Mutex<Vec<PeerInfo>>>,
}

impl Mesh {
    async fn start() -> Self {
        Self::within(Limits::USUAL).await
    }

    async fn within(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (authority, address) = (Authority::new("root"), listener.local_addr().unwrap());
        let (shutdown, seen) = (Shutdown::new(), Arc::default());
        let echo = Arc::new(Echo { shutdown: shutdown.clone(), seen: Arc::clone(&seen) });
        let service = |bytes| ControlServer::from_arc(echo.clone()).max_decoding_message_size(bytes);
        let gate = Gate { open: service(MAX_OPEN_BYTES), members: service(8 * MAX_OPEN_BYTES) };
        let serving =
            serve_within(world(), limits, Box::new(listener), authority.server(), gate, shutdown.clone());
        shutdown.spawn("rpc", async move { serving.await.unwrap() });
        Self { authority, address, shutdown, seen }
    }

    async fn connect(&self, tls: Arc<ClientConfig>) -> Result<ControlClient<Channel>, ConnectError> {
        let source = Some("127.0.0.9".parse().unwrap());
        connect(&world(), self.address, source, tls, NAME.into()).await.map(ControlClient::new)
    }
}

#[tokio::test]
async fn a_request_knows_its_peer() {
    let mesh = Mesh::start().await;
    let mut with = mesh.connect(mesh.authority.client(Some(&mesh.authority))).await.unwrap();
    let mut without = mesh.connect(mesh.authority.client(None)).await.unwrap();
    assert_eq!(with.enrol(wire::EnrolRequest::default()).await.unwrap().into_inner().chain.len(), 1);
    assert_eq!(without.enrol(wire::EnrolRequest::default()).await.unwrap().into_inner().chain.len(), 0);
    let seen = mesh.seen.lock().unwrap().clone();
    assert_eq!(seen[0].address.ip().to_string(), "127.0.0.9", "it came from its source address");
    assert_eq!((seen[0].chain.is_some(), seen[1].chain.is_some()), (true, false));
}

#[tokio::test]
async fn streams_flow_until_the_end_and_do_not_hold_it_up() {
    let mesh = Mesh::start().await;
    let mut client = mesh.connect(mesh.authority.client(Some(&mesh.authority))).await.unwrap();
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut frames = client.follow(outgoing).await.unwrap().into_inner();
    for _ in 0..3 {
        send.send(wire::FromProxy::default()).await.unwrap();
        assert_eq!(frames.message().await.unwrap(), Some(wire::ToProxy::default()));
    }
    mesh.shutdown.drain(LONG).await.unwrap();
    assert_eq!(frames.message().await.unwrap_or(None), None);
    let refused = mesh.connect(mesh.authority.client(None)).await.unwrap_err();
    assert!(refused.to_string().contains("Connection refused"), "{refused}");
}

#[tokio::test]
async fn a_stranger_gets_no_call_through() {
    let mesh = Mesh::start().await;
    let stranger = Authority::new("stranger");
    // A client that does not know the server's root learns it at once.
    let error = mesh.connect(stranger.client(None)).await.err().unwrap().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    // A client of another root learns it with its first call, for in TLS 1.3 its own handshake ends first.
    let called = match mesh.connect(mesh.authority.client(Some(&stranger))).await {
        Ok(mut client) => client.enrol(wire::EnrolRequest::default()).await.is_ok(),
        Err(_) => false,
    };
    assert!(!called && mesh.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_a_certificate_nothing_but_a_small_call_to_enrol_is_possible() {
    let mesh = Mesh::start().await;
    let mut stranger = mesh.connect(mesh.authority.client(None)).await.unwrap();
    let mut member = mesh.connect(mesh.authority.client(Some(&mesh.authority))).await.unwrap();
    let renewal = |bytes| wire::RenewRequest { csr: vec![0; bytes] };
    let enrolment = |bytes| wire::EnrolRequest { csr: vec![0; bytes], ..Default::default() };
    let code = |status: Status| status.code();

    let refused = stranger.renew(renewal(1)).await.unwrap_err();
    assert!(refused.message().contains("needs a certificate of the mesh"), "{refused}");
    let frames = tokio_stream::iter([wire::FromProxy::default()]);
    assert_eq!(code(stranger.follow(frames).await.unwrap_err()), tonic::Code::Unauthenticated);
    stranger.enrol(enrolment(MAX_OPEN_BYTES - 8)).await.unwrap();
    for client in [&mut stranger, &mut member] {
        let refused = client.enrol(enrolment(MAX_OPEN_BYTES + 1)).await.map_err(code).map(drop);
        assert_eq!(refused, Err(tonic::Code::OutOfRange), "what enrols is small, whoever sends it");
    }
    // The service's own answer: the message came whole.
    let heard = member.renew(renewal(7 * MAX_OPEN_BYTES)).await.unwrap_err();
    assert_eq!(heard.message(), "no certificate");
}

#[tokio::test]
async fn strangers_have_few_places_and_members_keep_theirs() {
    let mesh = Mesh::within(Limits { strangers: 3, of_a_source: 2, ..Limits::USUAL }).await;
    let from = async |source: &str, tls| {
        let client = connect(&world(), mesh.address, Some(source.parse().unwrap()), tls, NAME.into()).await;
        ControlClient::new(client.ok()?).enrol(wire::EnrolRequest::default()).await.ok()
    };
    // Connections that stay: one source has two at most, all together three.
    let mut silent = Vec::new();
    for source in ["127.0.0.3", "127.0.0.3"] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
        silent.push(socket.connect(mesh.address).await.unwrap());
    }
    assert!(from("127.0.0.3", mesh.authority.client(None)).await.is_none());
    assert!(from("127.0.0.4", mesh.authority.client(None)).await.is_some());
    let mut members = Vec::new();
    for _ in 0..8 {
        let mut member = mesh.connect(mesh.authority.client(Some(&mesh.authority))).await.unwrap();
        member.enrol(wire::EnrolRequest::default()).await.unwrap();
        members.push(member);
    }
}

#[tokio::test]
async fn a_stranger_is_gone_after_a_while_and_a_member_is_not() {
    let mesh = Mesh::within(Limits { life: Duration::from_secs(1), ..Limits::USUAL }).await;
    let tls = |identity| {
        let mut tls = ClientConfig::clone(&mesh.authority.client(identity));
        tls.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(tls))
    };
    let raw = async |identity| {
        let stream = TcpStream::connect(mesh.address).await.unwrap();
        let mut stream = tls(identity).connect(NAME.try_into().unwrap(), stream).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream
    };
    let mut member = raw(Some(&mesh.authority)).await;
    let mut stranger = raw(None).await;
    let mut heard = Vec::new();
    let ended = timeout(LONG, stranger.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "the stranger is still there");
    // It came before the stranger did: the server's settings come, an end does not.
    let mut settings = [0; 9];
    member.read_exact(&mut settings).await.unwrap();
    let lived = timeout(Duration::from_millis(400), member.read_to_end(&mut Vec::new())).await;
    assert!(lived.is_err(), "the member was sent away");
}

#[tokio::test]
async fn a_silent_or_talkative_stranger_holds_up_nobody() {
    let mesh = Mesh::start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(mesh.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(mesh.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut client = mesh.connect(mesh.authority.client(None)).await.unwrap();
    client.enrol(wire::EnrolRequest::default()).await.unwrap();
    let mut alert = Vec::new();
    let _ = plain.read_to_end(&mut alert).await;
    assert_eq!(alert.first(), Some(&21), "a TLS alert, then the end");
    drop(client);
    mesh.shutdown.drain(LONG).await.unwrap();
}

#[tokio::test]
async fn a_server_that_never_shakes_hands_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let tls = Authority::new("root").client(None);
    let error = connect(&world(), address, None, tls.clone(), NAME.into()).await.unwrap_err().to_string();
    assert_eq!(error, format!("cannot connect to {address}: no connection within 2s"));
    assert!(matches!(connect(&world(), address, None, tls, "a b".into()).await, Err(ConnectError::Name(_))));
}
