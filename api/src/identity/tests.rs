//! The table of peers: a good one, and one for each mistake.

use std::{collections::BTreeSet, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Extended,
    IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage, SanType, date_time_ymd,
};

use super::*;
use crate::{digest::Hash, name::ClusterName};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const FRONT: &str = "spiffe://shop.example/ns/shop/sa/front";

/// A signer: a root, or the intermediate of a cluster.
struct Signer {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn params(name: Option<&str>, uris: &[&str], from: u64, until: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params
}

fn ca(name: &str, path_length: u8) -> CertificateParams {
    let mut params = params(Some(name), &["spiffe://shop.example"], NOW - DAY, NOW + 90 * DAY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![Usage::KeyCertSign];
    params
}

fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = params(None, uris, NOW - 60, NOW + DAY);
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Extended::ServerAuth, Extended::ClientAuth];
    params
}

impl Signer {
    fn root() -> Self {
        let (params, key) = (ca("weft root", 1), KeyPair::generate().unwrap());
        let der = params.self_signed(&key).unwrap().der().clone();
        Signer { params, key, der }
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().der().clone()
    }

    fn signer(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Signer { der: self.sign(&params, &key), params, key }
    }

    fn leaf(&self, params: &CertificateParams) -> Vec<CertificateDer<'static>> {
        vec![self.sign(params, &KeyPair::generate().unwrap()), self.der.clone()]
    }
}

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn bundle(root: &Signer) -> Bundle {
    let shop: BTreeSet<_> = ["shop".parse().unwrap()].into();
    Bundle {
        trust_domain: "shop.example".parse().unwrap(),
        sequence: 1,
        roots: vec![RootCertificate::new(root.der.clone()).unwrap()],
        clusters: [
            (cluster("east"), Vouch { namespaces: Vouched::All }),
            (cluster("west"), Vouch { namespaces: Vouched::Only(shop) }),
        ]
        .into(),
        revoked: Default::default(),
    }
}

struct World {
    root: Signer,
    east: Signer,
    west: Signer,
    bundle: Bundle,
}

fn world() -> World {
    let root = Signer::root();
    let (east, west) = (root.signer(ca("east", 0)), root.signer(ca("west", 0)));
    World { bundle: bundle(&root), root, east, west }
}

impl World {
    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<Verified, Rejection> {
        verify(chain, &self.bundle, at(NOW))
    }

    #[track_caller]
    fn refused(&self, chain: &[CertificateDer<'static>], label: &str) {
        let rejection = self.verify(chain).expect_err(label);
        assert_eq!(rejection.label(), label, "{rejection}");
    }
}

#[test]
fn a_good_peer_is_who_its_leaf_says_in_the_cluster_its_intermediate_says() {
    let world = world();
    let chain = world.west.leaf(&leaf(&[FRONT]));
    let verified = world.verify(&chain).unwrap();
    assert_eq!(verified.id.to_string(), FRONT);
    assert_eq!(verified.cluster, cluster("west"));
    assert_eq!(verified.not_after, at(NOW + DAY));
    assert_eq!(verified.root, Hash::of(&world.root.der));
    assert_eq!(verified.intermediate, Hash::of(&world.west.der));
}

#[test]
fn certificates_beside_the_path_change_nothing() {
    let world = world();
    let [leaf, own] = &world.west.leaf(&leaf(&[FRONT]))[..] else { panic!() };
    let (east, root) = (&world.east.der, &world.root.der);
    for chain in [
        vec![leaf.clone(), east.clone(), own.clone()],
        vec![leaf.clone(), own.clone(), east.clone()],
        vec![leaf.clone(), root.clone(), east.clone(), own.clone(), own.clone()],
    ] {
        assert_eq!(world.verify(&chain).unwrap().cluster, cluster("west"));
    }
    world.refused(&[leaf.clone(), east.clone()], "unknown_root");
    let many = |count| [vec![leaf.clone(), own.clone()], vec![east.clone(); count - 2]].concat();
    assert_eq!(world.verify(&many(MAX_CHAIN)).unwrap().cluster, cluster("west"));
    world.refused(&many(MAX_CHAIN + 1), "too_many_certificates");
}

#[test]
fn an_intermediate_with_the_key_of_another_cluster_does_not_lend_its_name() {
    let world = world();
    let twin = Signer {
        der: world.root.sign(&ca("east", 0), &world.west.key),
        params: ca("east", 0),
        key: KeyPair::generate().unwrap(),
    };
    let mut chain = world.west.leaf(&leaf(&[FRONT]));
    chain.insert(1, twin.der);
    assert_eq!(world.verify(&chain).unwrap().cluster, cluster("west"));
}

#[test]
fn each_mistake_in_a_leaf_is_named() {
    let world = world();
    let check = |label: &str, change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf(&[FRONT]);
        change(&mut params);
        world.refused(&world.east.leaf(&params), label);
    };
    let epoch = date_time_ymd(1970, 1, 1);
    check("uri_sans", &|p| p.subject_alt_names.push(p.subject_alt_names[0].clone()));
    check("uri_sans", &|p| p.subject_alt_names.clear());
    check("bad_spiffe_id", &|p| {
        p.subject_alt_names = vec![SanType::URI("spiffe://shop.example/x".try_into().unwrap())]
    });
    check("bad_leaf", &|p| {
        p.subject_alt_names = vec![SanType::URI("spiffe://shop.example".try_into().unwrap())]
    });
    check("other_trust_domain", &|p| {
        p.subject_alt_names =
            vec![SanType::URI("spiffe://other.example/ns/shop/sa/front".try_into().unwrap())]
    });
    check("bad_leaf", &|p| p.distinguished_name.push(DnType::CommonName, "front"));
    check("bad_leaf", &|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    check("bad_leaf", &|p| p.key_usages = vec![Usage::KeyEncipherment]);
    check("bad_leaf", &|p| p.key_usages.push(Usage::KeyCertSign));
    check("bad_leaf", &|p| p.extended_key_usages = vec![Extended::ServerAuth]);
    check("bad_leaf", &|p| p.extended_key_usages = vec![Extended::ClientAuth]);
    check("bad_leaf", &|p| p.extended_key_usages.clear());
    check("expired", &|p| p.not_after = epoch + Duration::from_secs(NOW - 1));
    check("not_yet_valid", &|p| p.not_before = epoch + Duration::from_secs(NOW + 1));
    world.refused(&[], "no_certificate");
    world.refused(&[CertificateDer::from(vec![1, 2, 3])], "malformed");
}

#[test]
fn each_mistake_on_the_path_is_named() {
    let world = world();
    let check = |label: &str, signer: Signer| world.refused(&signer.leaf(&leaf(&[FRONT])), label);
    check("unknown_root", Signer::root().signer(ca("east", 0)));
    check("not_a_member", world.root.signer(ca("north", 0)));
    check("bad_intermediate", world.root.signer(ca("Not A Name", 0)));
    check("bad_intermediate", world.root.signer(ca("east", 1)));
    let mut silent = ca("east", 0);
    silent.key_usages = vec![Usage::CrlSign];
    check("bad_intermediate", world.root.signer(silent));
    let mut nameless = ca("east", 0);
    nameless.subject_alt_names.clear();
    check("bad_intermediate", world.root.signer(nameless));
    let mut old = ca("east", 0);
    old.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW - 1);
    check("issuer_expired", world.root.signer(old));
    world.refused(&world.root.leaf(&leaf(&[FRONT])), "path_length");

    let below = world.east.signer(ca("west", 0));
    let mut chain = below.leaf(&leaf(&[FRONT]));
    chain.push(world.east.der.clone());
    world.refused(&chain, "bad_path");
}

#[test]
fn a_cluster_vouches_only_for_its_own() {
    let world = world();
    let peer = |signer: &Signer, id: &str| world.verify(&signer.leaf(&leaf(&[id]))).map(|v| v.cluster);
    let pay = "spiffe://shop.example/ns/pay/sa/till";
    assert_eq!(peer(&world.east, pay), Ok(cluster("east")));
    assert_eq!(
        peer(&world.west, pay),
        Err(Rejection::Namespace { namespace: "pay".parse().unwrap(), cluster: cluster("west") })
    );
    assert_eq!(peer(&world.west, "spiffe://shop.example/ns/weft-system/sa/ingress"), Ok(cluster("west")));
    let plane = "spiffe://shop.example/weft/controlplane/east";
    assert_eq!(peer(&world.east, plane), Ok(cluster("east")));
    assert_eq!(
        peer(&world.west, plane),
        Err(Rejection::ForeignControlPlane { claimed: cluster("east"), cluster: cluster("west") })
    );
}

#[test]
fn a_verified_peer_falls_with_what_it_stood_on() {
    let World { root, west, bundle, .. } = world();
    let chain = west.leaf(&leaf(&[FRONT]));
    let verified = verify(&chain, &bundle, at(NOW)).unwrap();
    let check = |label: &str, now: u64, change: &dyn Fn(&mut Bundle)| {
        let mut bundle = bundle.clone();
        change(&mut bundle);
        let rejection = verified.still_holds(&bundle, at(now)).expect_err(label);
        assert_eq!(rejection.label(), label);
        assert_eq!(verify(&chain, &bundle, at(now)), Err(rejection));
    };
    for now in [NOW - 60, NOW, NOW + DAY] {
        assert_eq!(verified.still_holds(&bundle, at(now)), Ok(()));
        assert!(verify(&chain, &bundle, at(now)).is_ok(), "{now}");
    }
    check("unknown_root", NOW, &|b| b.roots = vec![RootCertificate::new(Signer::root().der).unwrap()]);
    check("revoked", NOW, &|b| _ = b.revoked.insert(Hash::of(&west.der), NOW + 90 * DAY));
    check("not_a_member", NOW, &|b| _ = b.clusters.remove("west"));
    check("namespace_not_vouched", NOW, &|b| _ = b.clusters.insert(cluster("west"), Vouch::default()));
    check("not_yet_valid", NOW - 61, &|_| ());
    check("expired", NOW + DAY + 1, &|_| ());

    let mut both = bundle.clone();
    both.roots.insert(0, RootCertificate::new(Signer::root().der).unwrap());
    assert_eq!(verify(&chain, &both, at(NOW)).unwrap().root, Hash::of(&root.der));
}

#[test]
fn a_token_s_hash_is_enough_to_know_the_control_plane() {
    let world = world();
    let plane = leaf(&["spiffe://shop.example/weft/controlplane/east"]);
    let mut chain = world.east.leaf(&plane);
    let root = Hash::of(&world.root.der);
    let check =
        |chain: &[CertificateDer<'static>], root| verify_enrolment(chain, root, &cluster("east"), at(NOW));
    assert_eq!(check(&chain, root).unwrap_err().label(), "other_root");
    chain.push(world.root.der.clone());
    assert_eq!(check(&chain, root).unwrap().cluster, cluster("east"));
    assert_eq!(check(&chain, Hash::of(b"x")).unwrap_err().label(), "other_root");
    chain.resize(MAX_CHAIN, world.west.der.clone());
    assert_eq!(check(&chain, root).unwrap().cluster, cluster("east"));
    chain.push(world.west.der.clone());
    assert_eq!(check(&chain, root).unwrap_err().label(), "too_many_certificates");

    let mut workload = world.east.leaf(&leaf(&["spiffe://shop.example/ns/weft-system/sa/ingress"]));
    workload.push(world.root.der.clone());
    assert_eq!(check(&workload, root).unwrap_err().label(), "unexpected_id");
    let mut west = world.west.leaf(&leaf(&["spiffe://shop.example/weft/controlplane/west"]));
    west.push(world.root.der.clone());
    assert_eq!(check(&west, root).unwrap_err().label(), "unexpected_id");
    let mut false_east = world.west.leaf(&plane);
    false_east.push(world.root.der.clone());
    assert_eq!(check(&false_east, root).unwrap_err().label(), "not_a_member");
}

#[test]
fn a_bundle_is_read_as_it_is_written() {
    let mut bundle = world().bundle;
    bundle.revoked.insert(Hash::of(b"x"), 7);
    let text = serde_json::to_string(&bundle).unwrap();
    assert_eq!(serde_json::from_str::<Bundle>(&text).unwrap(), bundle);
    let newer = Bundle { sequence: 2, ..bundle.clone() };
    assert!(newer.supersedes(&bundle) && !bundle.supersedes(&newer) && !bundle.supersedes(&bundle));
}

#[test]
fn a_rejection_says_since_when() {
    let text = Rejection::Expired(Day(at(0))).to_string();
    assert!(text.contains("Jan  1 00:00:00 1970"), "{text}");
}
