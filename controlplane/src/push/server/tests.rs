//! Who is signed for, and as what a proxy is registered.

use federation::token::TokenId;
use process::tls::Key;
use tempfile::TempDir;

use super::*;
use crate::plane::fixture::{self, BEGIN, Still};

struct East {
    plane: Arc<Plane>,
    world: Arc<Still>,
    server: Server,
    _home: TempDir,
}

impl East {
    async fn new() -> Self {
        let home = TempDir::new().unwrap();
        let (plane, world) = fixture::primary(home.path(), false).await;
        let server = Server::new(plane.clone(), Shutdown::new());
        East { plane, world, server, _home: home }
    }

    fn token(&self, cluster: &str) -> String {
        self.plane.authority.issue(&WorkloadToken {
            id: TokenId::random().unwrap(),
            cluster: cluster.parse().unwrap(),
            namespace: "shop".parse().unwrap(),
            service_account: "front".parse().unwrap(),
            labels: [("app".into(), "front".into())].into(),
            workload: "front-1".parse().unwrap(),
            root: self.plane.authority.root_hash().unwrap(),
            control_planes: vec![],
            expires: BEGIN as u64 + 600,
        })
    }

    async fn enrol(&self, token: &str) -> Result<wire::SignedChain, Status> {
        let csr = Key::generate().unwrap().request().unwrap();
        let answer = self.server.enrol(Request::new(wire::EnrolRequest { token: token.into(), csr })).await?;
        Ok(answer.into_inner())
    }

    /// Asks for another leaf, over a connection whose other end has shown `chain`.
    async fn renew(&self, chain: Option<&wire::SignedChain>) -> Result<wire::SignedChain, Status> {
        let csr = Key::generate().unwrap().request().unwrap();
        let mut request = Request::new(wire::RenewRequest { csr });
        let chain = chain.map(|chain| certificates(chain).into());
        request.extensions_mut().insert(PeerInfo { address: ([127, 1, 0, 3], 40_000).into(), chain });
        Ok(self.server.renew(request).await?.into_inner())
    }
}

fn certificates(chain: &wire::SignedChain) -> Vec<CertificateDer<'static>> {
    chain.chain.iter().cloned().map(CertificateDer::from).collect()
}

/// Until when the leaf of a chain is valid, seconds after the beginning.
fn lives(chain: &wire::SignedChain) -> u64 {
    api::identity::validity(&certificates(chain)[0]).unwrap().end().as_secs() - BEGIN as u64
}

fn leaf(chain: &wire::SignedChain) -> Hash {
    Hash::of(&chain.chain[0])
}

#[tokio::test]
async fn a_token_makes_a_workload_what_it_says_and_its_leaf_renews_it() {
    let east = East::new().await;
    let token = east.token("east");
    let first = east.enrol(&token).await.unwrap();
    assert_eq!((&*first.spiffe_id, &*first.cluster), ("spiffe://shop.example/ns/shop/sa/front", "east"));
    assert_eq!(lives(&first), 24 * 60 * 60);
    assert_eq!(first.bundle, serde_json::to_vec(&**east.plane.bundle.borrow()).unwrap());
    let known = east.plane.registry.enrolments.by_leaf(&leaf(&first)).unwrap();
    assert_eq!((known.workload.as_str(), &known.labels["app"][..]), ("front-1", "front"));
    assert_eq!(east.enrol(&token).await.unwrap_err().code(), tonic::Code::PermissionDenied);

    // The mesh may say how long a leaf lives.
    let mesh = "apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: shop.example, certificates: { leaf: 10m } }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: east }
spec: { network: east, namespaces: [shop] }
";
    let inputs = crate::snapshot::fixture::with_files("east", &[("mesh.yaml".into(), mesh.into())]);
    east.plane.configuration.send_replace(inputs.configuration);
    let members =
        [("east".parse().unwrap(), api::identity::Vouch { namespaces: api::resource::mesh::Vouched::All })];
    let bundle = east.plane.authority.with_members(members.into(), 0).unwrap();
    east.plane.authority.trust(bundle).unwrap();
    let second = east.renew(Some(&first)).await.unwrap();
    assert_eq!((second.spiffe_id.as_str(), lives(&second)), (first.spiffe_id.as_str(), 600));
    let known = east.plane.registry.enrolments.by_leaf(&leaf(&second)).unwrap();
    assert_eq!(known.leaves, [leaf(&first), leaf(&second)]);
}

#[tokio::test]
async fn nobody_is_signed_for_without_a_token_of_this_cluster_or_a_leaf_that_one_led_to() {
    let east = East::new().await;
    let code = |answer: Result<wire::SignedChain, Status>| answer.unwrap_err().code();
    assert_eq!(code(east.enrol("no token").await), tonic::Code::PermissionDenied);
    assert_eq!(code(east.enrol(&east.token("west")).await), tonic::Code::PermissionDenied);
    assert_eq!(code(east.renew(None).await), tonic::Code::Unauthenticated);

    let members = ["east", "west"].map(|name| {
        (name.parse().unwrap(), api::identity::Vouch { namespaces: api::resource::mesh::Vouched::All })
    });
    let bundle = east.plane.authority.with_members(members.into(), 0).unwrap();
    east.plane.authority.trust(bundle).unwrap();
    let first = east.enrol(&east.token("east")).await.unwrap();
    let stranger = Key::generate().unwrap().request().unwrap();
    let id = first.spiffe_id.parse().unwrap();
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    let chain = east.plane.authority.sign_leaf(&stranger, &id, day, east.plane.world.unix()).unwrap();
    let chain =
        wire::SignedChain { chain: chain.iter().map(|der| der.to_vec()).collect(), ..Default::default() };
    assert_eq!(code(east.renew(Some(&chain)).await), tonic::Code::PermissionDenied, "no token led to it");

    let key = federation::authority::IntermediateKey::generate().unwrap();
    let west = "west".parse().unwrap();
    let signed =
        east.plane.authority.sign_intermediate(&key.request().unwrap(), &west, day, east.plane.world.unix());
    let west = key.certified(signed.unwrap()).unwrap();
    let foreign = west.sign_leaf(&stranger, &id, day / 2, east.plane.world.unix()).unwrap();
    let foreign =
        wire::SignedChain { chain: foreign.iter().map(|der| der.to_vec()).collect(), ..Default::default() };
    let refused = east.renew(Some(&foreign)).await.unwrap_err();
    assert!(refused.message().contains("its own cluster"), "{refused}");

    east.world.set(2.0 * 24.0 * 60.0 * 60.0);
    assert_eq!(code(east.renew(Some(&first)).await), tonic::Code::Unauthenticated, "its leaf has expired");
}

fn enrolled(namespace: &str) -> Enrolled {
    Enrolled {
        workload: "front-1".parse().unwrap(),
        namespace: namespace.parse().unwrap(),
        service_account: "front".parse().unwrap(),
        labels: [("app".into(), "front".into())].into(),
        leaves: vec![],
        lifetime: 0,
    }
}

fn hello(role: wire::Role) -> wire::Hello {
    wire::Hello {
        instance: "front-1-a".into(),
        role: role.into(),
        address: "127.1.0.3:15006".into(),
        ..Default::default()
    }
}

#[test]
fn a_proxy_is_what_its_token_says_where_it_says_itself() {
    let ports = vec![wire::AppPort { port: 8080, address: "127.1.0.3:9090".into() }];
    let said = wire::Hello { ports, zone: "b".into(), ..hello(wire::Role::Sidecar) };
    let one = registered(enrolled("shop"), said).unwrap();
    assert_eq!((one.workload.as_str(), one.instance.as_str()), ("front-1", "front-1-a"));
    assert_eq!((one.role, &one.labels["app"][..]), (Role::Sidecar, "front"));
    assert_eq!(one.ports, [(8080, "127.1.0.3:9090".parse().unwrap())].into());
    assert_eq!((one.zone.as_deref(), one.public_address), (Some("b"), None));
    assert!(!one.app_ready && !one.draining);

    let public_address = "192.0.2.1:15443".into();
    let gateway = wire::Hello { public_address, ..hello(wire::Role::EastWest) };
    let one = registered(enrolled("weft-system"), gateway).unwrap();
    assert_eq!((one.role, one.zone), (Role::EastWest, None));
    assert_eq!(one.public_address, Some("192.0.2.1:15443".parse().unwrap()));
    let ingress = wire::Hello { address: "127.1.0.3".into(), ..hello(wire::Role::Ingress) };
    let one = registered(enrolled("weft-system"), ingress).unwrap();
    assert_eq!(one.address, "127.1.0.3:0".parse().unwrap());
    assert_eq!(registered(enrolled("weft-system"), hello(wire::Role::Sidecar)).unwrap().role, Role::Sidecar);
}

#[test]
fn who_says_what_cannot_be_is_refused() {
    let refused = |namespace, said| registered(enrolled(namespace), said).unwrap_err();
    for role in [wire::Role::Ingress, wire::Role::EastWest] {
        assert!(refused("shop", hello(role)).contains("gateways"));
    }
    assert!(refused("shop", hello(wire::Role::Unspecified)).contains("role"));
    let port = |port: usize| wire::AppPort { port: port as u32, address: "127.1.0.3:9090".into() };
    let many = |count| wire::Hello { ports: (1..=count).map(port).collect(), ..hello(wire::Role::Sidecar) };
    assert_eq!(registered(enrolled("shop"), many(MAX_PORTS)).unwrap().ports.len(), MAX_PORTS);
    assert!(refused("shop", many(MAX_PORTS + 1)).contains("at most 64"));
    let high = wire::Hello { ports: vec![port(65_536)], ..hello(wire::Role::Sidecar) };
    assert!(refused("shop", high).contains("no port"));
    let nowhere = wire::Hello { address: "here".into(), ..hello(wire::Role::Sidecar) };
    assert!(refused("shop", nowhere).contains("ip:port"));
}

#[tokio::test]
async fn of_the_hosts_that_a_proxy_asks_for_those_that_mean_a_service_are_told_to_its_like() {
    let east = East::new().await;
    let inputs = crate::snapshot::fixture::inputs("east");
    east.plane.snapshot.send_replace(Arc::new(crate::snapshot::build(&inputs)));
    let hosts = ["ratings", "nobody", "reviews.shop"].map(ToOwned::to_owned);
    let of =
        |namespace: &str| known(&east.plane, &(namespace.parse().unwrap(), "front".parse().unwrap()), &hosts);
    assert_eq!(of("shop"), ["ratings", "reviews.shop"]);
    assert_eq!(of("bank"), ["reviews.shop"]);
}

#[tokio::test]
async fn a_workload_takes_no_services_address() {
    let east = East::new().await;
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: tills, namespace: shop }\n\
                   spec: { clusterIP: 127.1.0.3, ports: [{ port: 8080 }] }\n---\n";
    let inputs = crate::snapshot::fixture::inputs_beside("east", service);
    east.plane.snapshot.send_replace(Arc::new(crate::snapshot::build(&inputs)));
    let refused = Stream::begin(&east, hello(wire::Role::Sidecar)).await.err().expect("it is refused");
    assert!(
        refused.message().contains("127.1.0.3 is the virtual address of the Service shop/tills"),
        "{refused}"
    );
    east.obey("one");
    assert!(Stream::begin(&east, hello(wire::Role::Sidecar)).await.is_ok());
}

/// A proxy's stream without its network: what the server would send lies in `sent`.
struct Stream {
    follower: Follower,
    sent: mpsc::Receiver<wire::ToProxy>,
    view: api::delta::View,
}

impl Stream {
    async fn begin(east: &East, said: wire::Hello) -> Result<Self, Status> {
        let leaf = Hash::of(b"leaf");
        let enrolled = Enrolled { leaves: vec![leaf], ..enrolled("shop") };
        east.plane.registry.enrolments.begin(enrolled, east.plane.world.moment()).await.unwrap();
        Stream::begin_by(east, &leaf, said).await
    }

    async fn begin_by(east: &East, leaf: &Hash, said: wire::Hello) -> Result<Self, Status> {
        let (sender, sent) = mpsc::channel(1_000);
        let mut follower = Follower::begin(east.plane.clone(), leaf, said, sender).await?;
        let actions = std::mem::take(&mut follower.actions);
        assert!(follower.act(actions).await.is_ok());
        Ok(Stream { follower, sent, view: api::delta::View::default() })
    }

    /// Whether the stream goes on after this.
    async fn says(&mut self, message: from_proxy::Message) -> bool {
        self.follower.on_message(message).await.is_ok()
    }

    /// What was sent since.
    fn heard(&mut self) -> Vec<wire::to_proxy::Message> {
        std::iter::from_fn(|| self.sent.try_recv().ok()).filter_map(|one| one.message).collect()
    }

    /// Takes the push that was sent; gives its version.
    fn takes(&mut self) -> u64 {
        let mut gathering = api::delta::Gathering::default();
        let pushes = self.heard().into_iter().filter_map(|message| match message {
            wire::to_proxy::Message::Frame(frame) => gathering.take(frame),
            wire::to_proxy::Message::Unknown(_) => None,
        });
        let push = pushes.last().expect("there is a push");
        self.view = api::delta::apply(std::mem::take(&mut self.view), push.delta);
        push.version
    }

    fn ack(&self, version: u64) -> from_proxy::Message {
        let digests = self.view.digests();
        let (config_digest, endpoint_digest) = (digests.config.0.to_vec(), digests.endpoint.0.to_vec());
        from_proxy::Message::Ack(wire::Ack { version, config_digest, endpoint_digest })
    }
}

impl East {
    /// Has this commit in force, and all who are registered in its snapshot.
    fn obey(&self, label: &str) {
        let mut inputs = crate::snapshot::fixture::inputs("east");
        inputs.configuration = Arc::new(fixture::configuration(label));
        inputs.workloads = self.plane.registry.workloads().borrow().clone();
        self.plane.snapshot.send_replace(Arc::new(crate::snapshot::build(&inputs)));
    }

    fn proxy(&self) -> Option<super::super::Proxy> {
        self.plane
            .registry
            .proxies()
            .borrow()
            .get(&"front-1-a".parse::<api::name::InstanceId>().unwrap())
            .cloned()
    }
}

#[tokio::test]
async fn a_proxy_obeys_what_it_has_acknowledged_and_nothing_before() {
    let east = East::new().await;
    east.obey("one");
    let mut stream = Stream::begin(&east, hello(wire::Role::Sidecar)).await.unwrap();
    assert!(east.proxy().is_some_and(|proxy| proxy.connected && proxy.reached.is_none()));
    let version = stream.takes();
    assert!(stream.says(stream.ack(version + 1)).await);
    assert_eq!(east.proxy().unwrap().reached, None, "that was no answer to this push");
    assert!(stream.says(stream.ack(version)).await);
    assert_eq!(east.proxy().unwrap().reached.as_deref(), Some("one"));

    let hosts = vec!["ratings".into(), "nobody".into()];
    let subscribe = wire::Subscribe { hosts, drop: vec![] };
    assert!(stream.says(from_proxy::Message::Subscribe(subscribe)).await);
    let account = ("shop".parse().unwrap(), "front".parse().unwrap());
    let asked = east.plane.registry.asked().borrow()[&account].clone();
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), ["ratings"]);
    let version = stream.takes();
    assert!(stream.view.items.contains_key("service/shop/ratings"));
    let reasons = vec![wire::Reason { resource: "service/shop/ratings".into(), message: "no".into() }];
    assert!(stream.says(from_proxy::Message::Nack(wire::Nack { version, reasons })).await);
    assert_eq!(east.proxy().unwrap().refused, ["service/shop/ratings: no"]);

    let heartbeat = wire::Heartbeat { app_ready: true, ..Default::default() };
    assert!(stream.says(from_proxy::Message::Heartbeat(heartbeat)).await);
    assert!(east.proxy().unwrap().registered.app_ready);
    assert!(!stream.says(from_proxy::Message::Hello(hello(wire::Role::Sidecar))).await);
    assert!(!stream.says(from_proxy::Message::Farewell(wire::Farewell {})).await);
    assert!(east.proxy().is_none());
}

#[tokio::test]
async fn who_was_revoked_after_it_opened_its_stream_begins_none() {
    let east = East::new().await;
    east.obey("one");
    let leaf = Hash::of(b"leaf");
    let first = Stream::begin(&east, hello(wire::Role::Sidecar)).await.unwrap();
    drop(first);
    east.plane.registry.revoke(&"front-1".parse().unwrap()).await.unwrap();
    let refused = Stream::begin_by(&east, &leaf, hello(wire::Role::Sidecar)).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(east.proxy().is_none());
}

#[tokio::test]
async fn what_a_proxy_says_at_length_is_cut() {
    let east = East::new().await;
    east.obey("one");
    let long = "ä".repeat(100_000);
    let said = wire::Hello { version: long.clone(), ..hello(wire::Role::Sidecar) };
    let mut stream = Stream::begin(&east, said).await.unwrap();
    let version = stream.takes();
    let reason = wire::Reason { resource: long.clone(), message: long.clone() };
    let nack = wire::Nack { version, reasons: vec![reason; 1_000] };
    assert!(stream.says(from_proxy::Message::Nack(nack)).await);
    let ejected =
        (0..1_000).map(|i| wire::EndpointHealth { endpoint: format!("{i}{long}"), reason: long.clone() });
    let heartbeat = wire::Heartbeat { ejected: ejected.collect(), ..Default::default() };
    assert!(stream.says(from_proxy::Message::Heartbeat(heartbeat)).await);
    let proxy = east.proxy().unwrap();
    assert!(proxy.version.len() < 2 * MAX_VERSION);
    assert_eq!((proxy.refused.len(), proxy.ejected.len()), (MAX_REASONS, MAX_EJECTED));
    let longest = proxy.ejected.iter().map(|(endpoint, reason)| endpoint.len().max(reason.len())).max();
    assert!(longest.is_some_and(|longest| longest < 2 * MAX_WORDS));
}

#[tokio::test]
async fn who_comes_back_goes_on_from_what_it_holds_and_what_its_like_have_asked_for() {
    let east = East::new().await;
    east.obey("one");
    let hosts = vec!["ratings".into()];
    let mut first = Stream::begin(&east, wire::Hello { hosts, ..hello(wire::Role::Sidecar) }).await.unwrap();
    let version = first.takes();
    assert!(first.says(first.ack(version)).await);
    // Without asking for the host again.
    let held = first.view.held().0.into_iter().map(|(name, hash)| wire::Item {
        name: name.to_string(),
        hash: hash.0.to_vec(),
        ..Default::default()
    });
    let said = wire::Hello { held: held.collect(), ..hello(wire::Role::Sidecar) };
    let mut again = Stream::begin(&east, said.clone()).await.unwrap();
    assert!(again.heard().is_empty());
    assert_eq!(east.proxy().unwrap().reached.as_deref(), Some("one"));

    let short = wire::Item { name: "a".into(), hash: vec![0; 31], ..Default::default() };
    let wrong = Stream::begin(&east, wire::Hello { held: vec![short], ..said.clone() }).await.err().unwrap();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    let other = wire::Hello { instance: "reviews-a".into(), ..said };
    let wrong = Stream::begin(&east, other).await.err().unwrap();
    assert_eq!(wrong.code(), tonic::Code::PermissionDenied);
}
