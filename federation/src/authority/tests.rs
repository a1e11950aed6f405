use std::{os::unix::fs::PermissionsExt, path::Path};

use api::identity::{Bundle, CertificateDer, RootCertificate, UnixTime, Vouch, Vouched, validity, verify};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};

use super::*;

const NOW: u64 = 1_800_000_000;
const MINUTE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
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

fn root() -> Root {
    Root::generate(&domain(), ROOT_LIFETIME, at(NOW)).unwrap()
}

fn intermediate(root: &Root, name: &str) -> Intermediate {
    let key = IntermediateKey::generate().unwrap();
    let request = key.request().unwrap();
    let certificate =
        root.sign_intermediate(&request, &cluster(name), INTERMEDIATE_LIFETIME, at(NOW)).unwrap();
    key.certified(certificate).unwrap()
}

fn bundle(root: &Root) -> Bundle {
    Bundle {
        trust_domain: domain(),
        sequence: 1,
        roots: vec![RootCertificate::new(root.certificate().clone()).unwrap()],
        clusters: [(cluster("east"), Vouch { namespaces: Vouched::All })].into(),
        revoked: Default::default(),
    }
}

fn request() -> Vec<u8> {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn end(der: &CertificateDer<'_>) -> UnixTime {
    *validity(der).unwrap().end()
}

const FRONT: &str = "spiffe://shop.example/ns/shop/sa/front";

#[test]
fn a_signed_leaf_is_what_the_verification_accepts() {
    let root = root();
    let east = intermediate(&root, "east");
    for text in [FRONT, "spiffe://shop.example/weft/controlplane/east"] {
        let chain = east.sign_leaf(&request(), &id(text), LEAF_LIFETIME, at(NOW)).unwrap();
        let verified = verify(&chain, &bundle(&root), at(NOW)).unwrap();
        assert_eq!((verified.id, verified.cluster), (id(text), cluster("east")));
        assert_eq!(verified.not_after, at(NOW + 24 * 3600));
    }
}

#[test]
fn only_the_key_of_a_request_counts() {
    let root = root();
    let east = intermediate(&root, "east");
    let mut params = CertificateParams::new(vec!["reviews.shop".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names.push(rcgen::SanType::URI("spiffe://shop.example/ns/a/sa/b".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = east.sign_leaf(pem.as_bytes(), &id(FRONT), LEAF_LIFETIME, at(NOW)).unwrap();
    assert_eq!(verify(&chain, &bundle(&root), at(NOW)).unwrap().id, id(FRONT));
}

#[test]
fn requests_without_proof_or_with_another_kind_of_key_are_refused() {
    let east = intermediate(&root(), "east");
    let refused = |request: &[u8]| {
        let result = east.sign_leaf(request, &id(FRONT), LEAF_LIFETIME, at(NOW));
        assert!(matches!(result, Err(AuthorityError::Request(_))), "{result:?}");
    };
    let mut stolen = request();
    *stolen.last_mut().unwrap() ^= 1;
    refused(&stolen);
    let mut trailing = request();
    trailing.push(0);
    refused(&trailing);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    refused(CertificateParams::default().serialize_request(&key).unwrap().der());
    refused(b"");
    refused(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n");
}

#[test]
fn a_request_of_16_kib_is_read_and_a_longer_one_is_not() {
    const LIMIT: usize = 16 * 1024;
    let east = intermediate(&root(), "east");
    let key = KeyPair::generate().unwrap();
    let mut pem = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap().into_bytes();
    pem.resize(LIMIT, b'\n');
    east.sign_leaf(&pem, &id(FRONT), LEAF_LIFETIME, at(NOW)).unwrap();
    pem.push(b'\n');
    let result = east.sign_leaf(&pem, &id(FRONT), LEAF_LIFETIME, at(NOW));
    assert!(matches!(result, Err(AuthorityError::Request(why)) if why.contains("16 KiB")));
}

/// Some readers refuse a number that is negative, zero or shorter than it says (RFC 5280, 4.1.2.2).
#[test]
fn serial_numbers_are_random_positive_and_of_16_bytes() {
    let serial = || request::params(None, &[], at(NOW), at(NOW)).unwrap().serial_number.unwrap().to_bytes();
    let serials: std::collections::BTreeSet<_> = (0..100).map(|_| serial()).collect();
    assert_eq!(serials.len(), 100);
    for serial in &serials {
        assert!(serial.len() == 16 && (0x40..0x80).contains(&serial[0]), "{serial:x?}");
    }
    // Each of the other six bits of the first byte is drawn.
    let bits = |combine: fn(u8, u8) -> u8| serials.iter().map(|serial| serial[0]).reduce(combine).unwrap();
    assert_eq!((bits(|a, b| a | b), bits(|a, b| a & b)), (0x7f, 0x40));
}

#[test]
fn nothing_outlives_its_issuer() {
    let root = Root::generate(&domain(), 100 * DAY, at(NOW)).unwrap();
    let later = at(NOW + 50 * DAY.as_secs());
    let key = IntermediateKey::generate().unwrap();
    let certificate = root
        .sign_intermediate(&key.request().unwrap(), &cluster("east"), INTERMEDIATE_LIFETIME, later)
        .unwrap();
    assert_eq!(end(&certificate), root.not_after());
    let east = key.certified(certificate).unwrap();
    let late = at(NOW + 100 * DAY.as_secs() - 3600);
    let chain = east.sign_leaf(&request(), &id(FRONT), LEAF_LIFETIME, late).unwrap();
    assert_eq!(end(&chain[0]), east.not_after());
    let over = east.sign_leaf(&request(), &id(FRONT), LEAF_LIFETIME, east.not_after());
    assert!(matches!(over, Err(AuthorityError::Expired(_))));
    let over = root.sign_intermediate(&request(), &cluster("east"), DAY, root.not_after());
    assert!(matches!(over, Err(AuthorityError::Expired(_))));
}

#[test]
fn ids_and_lifetimes_out_of_bounds_are_refused() {
    let east = intermediate(&root(), "east");
    for other in [
        "spiffe://shop.example",
        "spiffe://other.example/ns/shop/sa/front",
        "spiffe://shop.example/weft/controlplane/west",
    ] {
        let result = east.sign_leaf(&request(), &id(other), LEAF_LIFETIME, at(NOW));
        assert!(matches!(result, Err(AuthorityError::Id { .. })), "{other}");
    }
    for lifetime in [Duration::ZERO, 4 * MINUTE, 91 * DAY] {
        let result = east.sign_leaf(&request(), &id(FRONT), lifetime, at(NOW));
        assert!(matches!(result, Err(AuthorityError::Lifetime(_))), "{lifetime:?}");
    }
    let short = east.sign_leaf(&request(), &id(FRONT), LEAF_MIN, at(NOW)).unwrap();
    assert_eq!(validity(&short[0]).unwrap(), at(NOW - 30)..=at(NOW + 300));
}

#[test]
fn a_renewed_intermediate_keeps_its_key_so_leaves_stay_good() {
    let root = root();
    let east = intermediate(&root, "east");
    let chain = east.sign_leaf(&request(), &id(FRONT), LEAF_LIFETIME, at(NOW)).unwrap();
    let renew = |name: &str, request: Vec<u8>| {
        let soon = at(NOW + 60);
        root.sign_intermediate(&request, &cluster(name), INTERMEDIATE_LIFETIME, soon).unwrap()
    };
    let renewed = east.renewed(renew("east", east.request().unwrap())).unwrap();
    assert!(renewed.not_after() > east.not_after());
    let swapped = [chain[0].clone(), renewed.certificate().clone()];
    assert_eq!(verify(&swapped, &bundle(&root), at(NOW + 60)).unwrap().id, id(FRONT));
    assert!(east.renewed(renew("west", east.request().unwrap())).is_err());
    assert!(east.renewed(renew("east", request())).is_err());
}

#[test]
fn authorities_are_read_as_they_were_written_by_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("ca");
    let seal = SealKey::load_or_create(&state.join("seal.key")).unwrap();
    let open = |td: &TrustDomain| Root::load_or_create(&state, &seal, td, ROOT_LIFETIME, at(NOW));
    let root = open(&domain()).unwrap();
    assert_eq!(open(&domain()).unwrap().certificate(), root.certificate());
    let other = open(&"other.example".parse().unwrap());
    assert!(matches!(other, Err(AuthorityError::TrustDomain { .. })));

    assert!(Intermediate::load(&state).unwrap().is_none());
    let key = IntermediateKey::load_or_create(&state).unwrap();
    let certificate =
        root.sign_intermediate(&key.request().unwrap(), &cluster("east"), DAY, at(NOW)).unwrap();
    assert!(Intermediate::load(&state).unwrap().is_none());
    key.certified(certificate.clone()).unwrap().save(&state).unwrap();
    assert_eq!(Intermediate::load(&state).unwrap().unwrap().certificate(), &certificate);

    HeadKey::load_or_create(&state).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_sealed_root_opens_under_its_own_key_and_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let seal = |name: &str| SealKey::load_or_create(&dir.path().join(name)).unwrap();
    let open = |seal: &SealKey| Root::load_or_create(dir.path(), seal, &domain(), ROOT_LIFETIME, at(NOW));
    let root = open(&seal("a")).unwrap();
    let sealed = std::fs::read(dir.path().join("root.sealed")).unwrap();
    assert!(!sealed.windows(6).any(|window| window == b"\"key\":"));
    assert!(matches!(open(&seal("b")), Err(AuthorityError::File { .. })));
    let mut changed = sealed.clone();
    changed[40] ^= 1;
    std::fs::write(dir.path().join("root.sealed"), &changed).unwrap();
    assert!(matches!(open(&seal("a")), Err(AuthorityError::File { .. })));
    std::fs::write(dir.path().join("root.sealed"), []).unwrap();
    assert!(matches!(open(&seal("a")), Err(AuthorityError::File { .. })));
    std::fs::write(dir.path().join("root.sealed"), sealed).unwrap();
    assert_eq!(open(&seal("a")).unwrap().hash(), root.hash());
}

#[test]
fn what_cannot_be_read_is_not_taken_for_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seal.key");
    assert!(SealKey::load(&path).unwrap().is_none());
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(SealKey::load(&path), Err(AuthorityError::Io { .. })));
}

#[test]
fn a_head_is_believed_with_the_word_of_a_trusted_root() {
    let dir = tempfile::tempdir().unwrap();
    let key = HeadKey::load_or_create(dir.path()).unwrap();
    let root = root();
    let certificate = key.certify(&root, 3).unwrap();
    let trusted = certificate.verify(&bundle(&root)).unwrap();
    assert_eq!(trusted.sequence(), 3);
    let again = HeadKey::load_or_create(dir.path()).unwrap();
    let signature = again.sign(Signed::Head, b"head 7").unwrap();
    trusted.verify(Signed::Head, b"head 7", &signature).unwrap();
    for (what, bytes) in [(Signed::Head, b"head 8"), (Signed::Bundle, b"head 7")] {
        let result = trusted.verify(what, bytes, &signature);
        assert!(matches!(result, Err(AuthorityError::Signature)), "{what:?}");
    }

    let refused = |certificate: &HeadCertificate, bundle: &Bundle| {
        assert!(matches!(certificate.verify(bundle), Err(AuthorityError::HeadKey)));
    };
    let other = Root::generate(&domain(), ROOT_LIFETIME, at(NOW)).unwrap();
    refused(&certificate, &bundle(&other));
    refused(&HeadCertificate { sequence: 4, ..certificate.clone() }, &bundle(&root));
    let text = serde_json::to_string(&certificate).unwrap();
    assert_eq!(serde_json::from_str::<HeadCertificate>(&text).unwrap(), certificate);
}
