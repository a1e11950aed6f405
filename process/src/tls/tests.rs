//! Real handshakes in memory: who gets in, who does not, and the reason that is found afterwards.

use std::{io::Read, io::Write, time::Duration};

use api::{
    identity::{
        Bundle, CertificateDer, Rejection, RootCertificate, SpiffeId, UnixTime, Verified, Vouch, Vouched,
    },
    name::TrustDomain,
};
use federation::authority::{
    INTERMEDIATE_LIFETIME, Intermediate, IntermediateKey, LEAF_LIFETIME, LeafSpec, ROOT_LIFETIME, Root,
};
use rustls::{ClientConnection, ServerConnection, client::danger::ServerCertVerifier};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

const FRONT: &str = "spiffe://shop.example/ns/shop/sa/front";
const REVIEWS: &str = "spiffe://shop.example/ns/shop/sa/reviews";

/// One trust domain with two clusters: `east` vouches for everything, `west` for `shop` alone.
struct Mesh {
    root: Root,
    east: Intermediate,
    west: Intermediate,
}

/// A key and a chain of any shape, as a stranger might come with.
struct Stranger {
    key: PrivatePkcs8KeyDer<'static>,
    chain: Vec<CertificateDer<'static>>,
}

fn domain() -> TrustDomain {
    "shop.example".parse().unwrap()
}

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn seconds_from_now(seconds: i64) -> UnixTime {
    let now = UnixTime::now().as_secs();
    UnixTime::since_unix_epoch(Duration::from_secs(now.saturating_add_signed(seconds)))
}

fn anchor(root: &Root) -> RootCertificate {
    RootCertificate::new(root.certificate().clone()).unwrap()
}

impl Mesh {
    fn new() -> Self {
        let root = Root::generate(&domain(), ROOT_LIFETIME, UnixTime::now()).unwrap();
        Mesh { east: Mesh::member(&root, "east"), west: Mesh::member(&root, "west"), root }
    }

    fn member(root: &Root, name: &str) -> Intermediate {
        let key = IntermediateKey::generate().unwrap();
        let (request, now) = (key.request().unwrap(), UnixTime::now());
        let certificate =
            root.sign_intermediate(&request, &cluster(name), INTERMEDIATE_LIFETIME, now).unwrap();
        key.certified(certificate).unwrap()
    }

    fn bundle(&self) -> Bundle {
        let shop = Vouched::Only(["shop".parse().unwrap()].into());
        Bundle {
            trust_domain: domain(),
            sequence: 1,
            roots: vec![anchor(&self.root)],
            clusters: [
                (cluster("east"), Vouch { namespaces: Vouched::All }),
                (cluster("west"), Vouch { namespaces: shop }),
            ]
            .into(),
            revoked: Default::default(),
        }
    }

    fn identity(&self, signer: &Intermediate, text: &str) -> Arc<Identity> {
        Identity::new(credentials(signer, text), self.bundle())
    }

    /// Reviews in east, which every client below connects to.
    fn reviews(&self) -> Arc<Identity> {
        self.identity(&self.east, REVIEWS)
    }
}

fn credentials(signer: &Intermediate, text: &str) -> Credentials {
    let key = Key::generate().unwrap();
    let request = key.request().unwrap();
    key.certified(signer.sign_leaf(&request, &id(text), LEAF_LIFETIME, UnixTime::now()).unwrap()).unwrap()
}

fn stranger(signer: &Intermediate, change: impl FnOnce(&mut LeafSpec)) -> Stranger {
    let mut spec = LeafSpec::new(&id(FRONT), seconds_from_now(-600), seconds_from_now(600));
    change(&mut spec);
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let chain = signer.sign_spec(request.der(), &spec).unwrap();
    Stranger { key: key.serialize_der().into(), chain }
}

fn expect(ids: &[&str], name: &str) -> Expect {
    Expect { ids: ids.iter().map(|text| id(text)).collect(), cluster: Some(cluster(name)) }
}

/// A client that shows what the stranger has, and believes any server of `mesh` that is reviews.
fn strange(mesh: &Mesh, stranger: Option<Stranger>) -> Arc<ClientConfig> {
    let verifier = ServerVerifier::Member { identity: mesh.reviews(), expect: expect(&[REVIEWS], "east") };
    assert_eq!(verifier.supported_verify_schemes(), [rustls::SignatureScheme::ECDSA_NISTP256_SHA256]);
    let builder = client_builder(verifier);
    let mut config = match stranger {
        None => builder.with_no_client_auth(),
        Some(Stranger { key, chain }) => {
            builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key)).unwrap()
        }
    };
    finish(&mut config, &["h2"]);
    Arc::new(config)
}

/// A connection after both ends have said what they had to say.
struct Met {
    client: Result<(), rustls::Error>,
    server: Result<(), rustls::Error>,
    ends: (ClientConnection, ServerConnection),
    /// What the application behind the server would have read.
    delivered: Vec<u8>,
}

fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Met {
    let name = "abc.ep.weft.internal".try_into().unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    client.writer().write_all(b"GET /").unwrap();
    let (mut said, mut heard, mut delivered) = (Ok(()), Ok(()), Vec::new());
    loop {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        if heard.is_ok() && !up.is_empty() {
            server.read_tls(&mut &up[..]).unwrap();
            heard = server.process_new_packets().map(|_| ());
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        if said.is_ok() && !down.is_empty() {
            client.read_tls(&mut &down[..]).unwrap();
            said = client.process_new_packets().map(|_| ());
        }
        let _ = server.reader().read_to_end(&mut delivered);
        if up.is_empty() && down.is_empty() {
            return Met { client: said, server: heard, ends: (client, server), delivered };
        }
    }
}

impl Met {
    #[track_caller]
    fn accepted(&self) {
        assert_eq!((&self.client, &self.server), (&Ok(()), &Ok(())));
        assert_eq!(self.delivered, b"GET /");
    }

    /// The server's reason; the client learns of it by an alert, and no byte was delivered.
    #[track_caller]
    fn refused_by_server(&self) -> Rejection {
        let error = self.server.as_ref().expect_err("the server let the client in");
        assert!(alert_of(self.client.as_ref().unwrap_err()).is_some(), "{:?}", self.client);
        assert_eq!(self.delivered, b"");
        rejection_of(error).unwrap_or_else(|| panic!("no reason in {error}")).clone()
    }

    /// The client's reason; no byte was sent.
    #[track_caller]
    fn refused_by_client(&self) -> Rejection {
        let error = self.client.as_ref().expect_err("the client believed the server");
        assert_eq!(self.delivered, b"");
        rejection_of(error).unwrap_or_else(|| panic!("no reason in {error}")).clone()
    }
}

#[test]
fn members_meet_and_know_each_other() {
    let mesh = Mesh::new();
    let (front, reviews) = (mesh.identity(&mesh.west, FRONT), mesh.reviews());
    let met = meet(
        &client(&front, expect(&[FRONT, REVIEWS], "east"), &["h2", "http/1.1"]),
        &server(&reviews, Clients::Members, &["http/1.1", "h2"]),
    );
    met.accepted();
    let (at_front, at_reviews) = &met.ends;
    let peer: Arc<Verified> = reviews.peer_of(at_reviews).unwrap();
    assert_eq!((peer.id.clone(), peer.cluster.clone()), (id(FRONT), cluster("west")));
    assert_eq!(front.peer_of(at_front).unwrap().cluster, cluster("east"));
    assert_eq!(at_reviews.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(at_reviews.server_name(), Some("abc.ep.weft.internal"));
    assert_eq!(at_reviews.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = at_reviews.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519);
}

#[test]
fn every_stranger_is_refused_with_the_reason_and_a_member_passes_beside() {
    let mesh = Mesh::new();
    let other = Mesh::new();
    let config = server(&mesh.reviews(), Clients::Members, &["h2"]);
    let try_with = |stranger: Option<Stranger>| meet(&strange(&mesh, stranger), &config).refused_by_server();
    let east = |change: &dyn Fn(&mut LeafSpec)| stranger(&mesh.east, |spec| change(spec));

    assert_eq!(try_with(None), Rejection::NoCertificate);
    assert_eq!(try_with(Some(stranger(&other.east, |_| ()))), Rejection::UnknownRoot);
    let two = east(&|spec| spec.uris.push(REVIEWS.to_owned()));
    assert_eq!(try_with(Some(two)), Rejection::UriSans(2));
    let expired = east(&|spec| spec.not_after = seconds_from_now(-1));
    assert!(matches!(try_with(Some(expired)), Rejection::Expired(_)));
    let early = east(&|spec| spec.not_before = seconds_from_now(300));
    assert!(matches!(try_with(Some(early)), Rejection::NotYetValid(_)));
    let foreign = east(&|spec| spec.uris = vec!["spiffe://other.example/ns/shop/sa/front".to_owned()]);
    assert!(matches!(try_with(Some(foreign)), Rejection::OtherTrustDomain { .. }));
    let signer = east(&|spec| spec.ca = true);
    assert!(matches!(try_with(Some(signer)), Rejection::Leaf(_)));
    let pay =
        stranger(&mesh.west, |spec| spec.uris = vec!["spiffe://shop.example/ns/pay/sa/till".to_owned()]);
    assert_eq!(
        try_with(Some(pay)),
        Rejection::Namespace { namespace: "pay".parse().unwrap(), cluster: cluster("west") }
    );
    let plane = stranger(&mesh.west, |spec| {
        spec.uris = vec!["spiffe://shop.example/weft/controlplane/east".to_owned()];
    });
    assert!(matches!(try_with(Some(plane)), Rejection::ForeignControlPlane { .. }));

    meet(&strange(&mesh, Some(east(&|_| ()))), &config).accepted();
}

#[test]
fn a_stolen_certificate_without_its_key_is_worth_nothing() {
    let mesh = Mesh::new();
    let thief = Stranger { chain: stranger(&mesh.east, |_| ()).chain, ..stranger(&mesh.east, |_| ()) };
    let verifier = ServerVerifier::Member { identity: mesh.reviews(), expect: expect(&[REVIEWS], "east") };
    let key = PROVIDER.key_provider.load_private_key(PrivateKeyDer::Pkcs8(thief.key)).unwrap();
    let shown = rustls::sign::CertifiedKey::new(thief.chain, key);
    let config = client_builder(verifier)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
    let met = meet(&Arc::new(config), &server(&mesh.reviews(), Clients::Members, &[]));
    assert!(met.server.is_err());
    assert_eq!(met.delivered, b"");
}

#[test]
fn a_padded_chain_does_not_change_the_cluster() {
    let mesh = Mesh::new();
    let reviews = mesh.reviews();
    let config = server(&reviews, Clients::Members, &["h2"]);
    let padded = |order: &dyn Fn(&mut Vec<CertificateDer<'static>>)| {
        let mut stranger = stranger(&mesh.west, |_| ());
        order(&mut stranger.chain);
        meet(&strange(&mesh, Some(stranger)), &config)
    };
    let east = mesh.east.certificate();
    for order in
        [&(|chain: &mut Vec<_>| chain.insert(1, east.clone())) as &dyn Fn(&mut Vec<_>), &|chain: &mut Vec<
            _,
        >| {
            chain.push(east.clone())
        }]
    {
        let met = padded(order);
        met.accepted();
        assert_eq!(reviews.peer_of(&met.ends.1).unwrap().cluster, cluster("west"));
    }
    let replaced = padded(&|chain| chain[1] = east.clone());
    assert_eq!(replaced.refused_by_server(), Rejection::UnknownRoot);

    let pay = |chain: fn(&mut Vec<CertificateDer<'static>>, CertificateDer<'static>)| {
        let mut stranger = stranger(&mesh.west, |spec| {
            spec.uris = vec!["spiffe://shop.example/ns/pay/sa/till".to_owned()];
        });
        chain(&mut stranger.chain, east.clone());
        meet(&strange(&mesh, Some(stranger)), &config).refused_by_server()
    };
    assert!(matches!(pay(|chain, east| chain.insert(1, east)), Rejection::Namespace { .. }));
}

#[test]
fn a_client_goes_only_to_whom_it_expects() {
    let mesh = Mesh::new();
    let front = mesh.identity(&mesh.west, FRONT);
    let server = server(&mesh.reviews(), Clients::Members, &[]);
    let try_with = |expect: Expect| meet(&client(&front, expect, &[]), &server);
    try_with(expect(&[REVIEWS], "east")).accepted();
    try_with(Expect { ids: vec![id(REVIEWS)], cluster: None }).accepted();
    assert_eq!(
        try_with(expect(&[FRONT], "east")).refused_by_client(),
        Rejection::UnexpectedId { found: id(REVIEWS) }
    );
    let nobody = try_with(Expect { ids: vec![], cluster: None });
    assert_eq!(nobody.refused_by_client(), Rejection::UnexpectedId { found: id(REVIEWS) });
    assert_eq!(
        try_with(expect(&[REVIEWS], "west")).refused_by_client(),
        Rejection::UnexpectedCluster { id: id(REVIEWS), found: cluster("east"), expected: cluster("west") }
    );
}

#[test]
fn withdrawn_trust_holds_from_the_next_handshake_on() {
    let mesh = Mesh::new();
    let (front, reviews) = (mesh.identity(&mesh.west, FRONT), mesh.reviews());
    let client = client(&front, expect(&[REVIEWS], "east"), &[]);
    let config = server(&reviews, Clients::Members, &[]);
    meet(&client, &config).accepted();

    let west = Hash::of(mesh.west.certificate());
    let mut bundle = Bundle { sequence: 2, ..mesh.bundle() };
    bundle.revoked.insert(west, mesh.west.not_after().as_secs());
    reviews.trust(bundle).unwrap();
    let revoked = Rejection::Revoked { cluster: cluster("west"), fingerprint: west };
    let met = meet(&client, &config);
    assert_eq!(met.refused_by_server(), revoked);

    reviews.trust(Bundle { sequence: 3, ..mesh.bundle() }).unwrap();
    let living = meet(&client, &config);
    living.accepted();
    let other = Mesh::new();
    reviews.trust(Bundle { sequence: 4, roots: vec![anchor(&other.root)], ..mesh.bundle() }).unwrap();
    assert_eq!(meet(&client, &config).refused_by_server(), Rejection::UnknownRoot);
    assert_eq!(reviews.peer_of(&living.ends.1), Err(Rejection::UnknownRoot));

    let both = vec![anchor(&other.root), anchor(&mesh.root)];
    reviews.trust(Bundle { sequence: 5, roots: both, ..mesh.bundle() }).unwrap();
    meet(&client, &config).accepted();
}

#[test]
fn nothing_is_resumed() {
    let mesh = Mesh::new();
    let client = client(&mesh.identity(&mesh.west, FRONT), expect(&[REVIEWS], "east"), &[]);
    let config = server(&mesh.reviews(), Clients::Members, &[]);
    for _ in 0..2 {
        let met = meet(&client, &config);
        met.accepted();
        assert_eq!(met.ends.1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn a_bundle_is_replaced_only_by_a_newer_one_of_its_domain() {
    let mesh = Mesh::new();
    let front = mesh.identity(&mesh.west, FRONT);
    let at = |sequence| Bundle { sequence, ..mesh.bundle() };
    front.trust(at(5)).unwrap();
    front.trust(at(5)).unwrap();
    assert_eq!(front.trust(at(4)), Err(StaleBundle { offered: 4, held: 5 }));
    assert!(front.trust(Bundle { roots: vec![], ..at(5) }).is_err());
    assert!(front.trust(Bundle { trust_domain: "other.example".parse().unwrap(), ..at(6) }).is_err());
    assert_eq!(*front.bundle(), at(5));
}

#[test]
fn a_renewed_certificate_is_shown_at_the_next_handshake() {
    let mesh = Mesh::new();
    let (front, reviews) = (mesh.identity(&mesh.west, FRONT), mesh.reviews());
    let client = client(&front, expect(&[REVIEWS], "east"), &[]);
    let config = server(&reviews, Clients::Members, &[]);
    let leaf = || reviews.peer_of(&meet(&client, &config).ends.1).unwrap().leaf;
    let before = leaf();
    front.renew(credentials(&mesh.west, FRONT)).unwrap();
    assert_ne!(leaf(), before);
    let other = front.renew(credentials(&mesh.west, REVIEWS));
    assert!(matches!(other, Err(CredentialsError::OtherId { .. })));
}

#[test]
fn who_enrols_finds_the_root_by_its_hash_and_nobody_else_will_do() {
    const PLANE: &str = "spiffe://shop.example/weft/controlplane/east";
    let mesh = Mesh::new();
    let plane = mesh.identity(&mesh.east, PLANE);
    let port = server(&plane, Clients::Enrolling, &["h2"]);
    let newcomer = |root, name: &str| enrolment(root, &cluster(name), &["h2"]);
    let met = meet(&newcomer(mesh.root.hash(), "east"), &port);
    met.accepted();
    assert_eq!(plane.peer_of(&met.ends.1), Err(Rejection::NoCertificate));

    let wrong = Hash::of(b"another root");
    let met = meet(&newcomer(wrong, "east"), &port);
    assert_eq!(met.refused_by_client(), Rejection::OtherRoot { expected: wrong });
    let met = meet(&newcomer(mesh.root.hash(), "west"), &port);
    assert_eq!(met.refused_by_client(), Rejection::UnexpectedId { found: id(PLANE) });
    let impostor = server(&mesh.reviews(), Clients::Enrolling, &["h2"]);
    let met = meet(&newcomer(mesh.root.hash(), "east"), &impostor);
    assert_eq!(met.refused_by_client(), Rejection::UnexpectedId { found: id(REVIEWS) });

    let front = mesh.identity(&mesh.east, FRONT);
    let expect = Expect::control_plane(&domain(), &cluster("east"));
    let met = meet(&client(&front, expect, &["h2"]), &port);
    met.accepted();
    assert_eq!(plane.peer_of(&met.ends.1).unwrap().id, id(FRONT));
    let expired = stranger(&mesh.east, |spec| spec.not_after = seconds_from_now(-1));
    let chain = expired.chain.clone();
    assert!(matches!(plane.verify(&chain, UnixTime::now()), Err(Rejection::Expired(_))));
}

#[test]
fn an_identity_is_read_as_it_was_kept_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert!(Identity::load(&state).unwrap().is_none());
    let mesh = Mesh::new();
    let front = mesh.identity(&mesh.west, FRONT);
    front.store(&state).unwrap();
    let again = Identity::load(&state).unwrap().unwrap();
    assert_eq!(again.credentials().chain(), front.credentials().chain());
    assert_eq!(again.bundle(), front.bundle());
    let met = meet(
        &client(&again, expect(&[REVIEWS], "east"), &[]),
        &server(&mesh.reviews(), Clients::Members, &[]),
    );
    met.accepted();
    for name in ["identity.pem", "bundle.json"] {
        let mode = std::fs::metadata(state.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    std::fs::write(state.join("identity.pem"), "nonsense").unwrap();
    assert!(matches!(Identity::load(&state), Err(CredentialsError::File(_))));
}

#[test]
fn a_chain_of_another_key_is_no_identity() {
    let mesh = Mesh::new();
    let chain = credentials(&mesh.east, FRONT).chain().to_vec();
    let other = Key::generate().unwrap().certified(chain);
    assert!(matches!(other, Err(CredentialsError::Mismatch(_))));
    assert!(matches!(Key::generate().unwrap().certified(vec![]), Err(CredentialsError::Leaf(_))));
}

#[test]
fn a_reason_is_found_however_the_error_is_wrapped() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);
    let refused = || {
        let mesh = Mesh::new();
        let config = server(&mesh.reviews(), Clients::Members, &[]);
        meet(&strange(&mesh, None), &config).server.unwrap_err()
    };
    let outer = Outer(std::io::Error::new(std::io::ErrorKind::InvalidData, refused()));
    assert_eq!(rejection_of(&outer), Some(&Rejection::NoCertificate));
    assert_eq!(rejection_of(&std::io::Error::other("no TLS")), None);
    assert_eq!(alert_of(&outer), None);
}
