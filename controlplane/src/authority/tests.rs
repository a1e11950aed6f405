//! Who may sign what, until when, and what of it outlives the process.

use api::head::Revision;
use federation::token::{TokenId, WorkloadToken};
use tempfile::TempDir;

use super::*;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 60 * 60;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * DAY)
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn east() -> ClusterName {
    "east".parse().unwrap()
}

fn west() -> ClusterName {
    "west".parse().unwrap()
}

fn primary(home: &TempDir, now: u64) -> Authority {
    let domain = "shop.example".parse().unwrap();
    Authority::primary(home.path(), &east(), &domain, &Certificates::default(), at(now)).unwrap()
}

/// A remote whose intermediate lives so many days from [`NOW`].
fn join(home: &TempDir, primary: &Authority, lifetime: u64) -> Authority {
    let key = IntermediateKey::load_or_create(home.path()).unwrap();
    let request = key.request().unwrap();
    let signed = primary.sign_intermediate(&request, &west(), days(lifetime), at(NOW)).unwrap();
    let bundle = (*primary.identity().bundle()).clone();
    Authority::joined(home.path(), &west(), key, signed, bundle, at(NOW)).unwrap()
}

fn rejoin(home: &TempDir) -> Option<Authority> {
    Authority::rejoin(home.path(), &west(), at(NOW)).unwrap()
}

fn head(n: u64) -> Head {
    let revision = Revision { commits: vec![], manifest: Hash::of(b"manifest"), positions: None };
    Head { n, stable: Some(revision), ..Head::first(1) }
}

/// Until when its own leaf is valid.
fn leaf_end(authority: &Authority) -> u64 {
    authority.identity().credentials().validity().end().as_secs()
}

#[test]
fn a_primary_is_the_same_after_a_restart() {
    let home = home();
    let first = primary(&home, NOW);
    assert_eq!(first.trust_domain().to_string(), "shop.example");
    assert_eq!(first.root_hash(), Some(first.identity().bundle().roots[0].hash()));
    assert_eq!(first.intermediate_not_after(), at(NOW + 90 * DAY));
    assert_eq!(first.identity().bundle().sequence, 1);
    assert!(first.identity().bundle().clusters.contains_key(&east()));
    let bundle = first.with_members([(west(), Vouch::default())].into(), 0).unwrap();
    first.trust(bundle.clone()).unwrap();

    let second = primary(&home, NOW + DAY);
    assert_eq!(*second.identity().bundle(), bundle);
    assert_eq!(second.intermediate_not_after(), at(NOW + 90 * DAY));
    second.believes(&first.sign_head(head(1)).unwrap()).unwrap();
    // One that was away for long begins with a new intermediate.
    let third = primary(&home, NOW + 80 * DAY);
    assert_eq!(third.intermediate_not_after(), at(NOW + 170 * DAY));
    assert_eq!(third.root_hash(), first.root_hash());
}

#[test]
fn a_remote_that_has_joined_is_the_same_after_a_restart() {
    let (east_home, home) = (home(), home());
    let east = primary(&east_home, NOW);
    assert!(rejoin(&home).is_none());
    let first = join(&home, &east, 90);
    let second = rejoin(&home).unwrap();
    assert_eq!(second.identity().bundle(), east.identity().bundle());
    assert_eq!(second.intermediate_not_after(), first.intermediate_not_after());
    assert_eq!(
        second.identity().credentials().id().to_string(),
        "spiffe://shop.example/weft/controlplane/west"
    );
}

#[test]
fn what_the_primary_signed_is_believed_and_what_anybody_else_did_is_not() {
    let (homes, home) = ([home(), home()], home());
    let [east, other] = homes.each_ref().map(|home| primary(home, NOW));
    let west = join(&home, &east, 90);
    let signed = east.sign_head(head(1)).unwrap();
    assert_eq!(*signed.head(), head(1));
    west.believes(&signed).unwrap();
    east.believes(&signed).unwrap();
    let foreign = other.sign_head(head(1)).unwrap();
    assert!(matches!(west.believes(&foreign), Err(AuthorityError::HeadKey)));

    let (signature, statement) = east.sign_bundle(b"a bundle").unwrap();
    let believes = |what, bytes: &[u8]| west.signed_by_primary(what, bytes, &signature, &statement);
    believes(Signed::Bundle, b"a bundle").unwrap();
    assert!(matches!(believes(Signed::Bundle, b"another"), Err(AuthorityError::Signature)));
    assert!(matches!(believes(Signed::Head, b"a bundle"), Err(AuthorityError::Signature)));
    let garbage = west.signed_by_primary(Signed::Bundle, b"a bundle", &signature, b"no statement");
    assert!(matches!(garbage, Err(AuthorityError::HeadKey)));
}

#[test]
fn a_remote_signs_for_its_own_workloads_alone() {
    let (east_home, home) = (home(), home());
    let east = primary(&east_home, NOW);
    let west = join(&home, &east, 90);
    let request = Key::generate().unwrap().request().unwrap();
    assert!(matches!(west.sign_head(head(1)), Err(TrustError::NotPrimary)));
    assert!(matches!(west.sign_bundle(b"a bundle"), Err(TrustError::NotPrimary)));
    let intermediate = west.sign_intermediate(&request, &self::east(), days(1), at(NOW));
    assert!(matches!(intermediate, Err(TrustError::NotPrimary)));

    let id = "spiffe://shop.example/ns/shop/sa/front".parse().unwrap();
    let chain = west.sign_leaf(&request, &id, days(1), at(NOW)).unwrap();
    let members = [(self::west(), Vouch { namespaces: api::resource::mesh::Vouched::All })].into();
    east.trust(east.with_members(members, 0).unwrap()).unwrap();
    let verified = east.identity().verify(&chain, at(NOW)).unwrap();
    assert_eq!((&verified.id, &verified.cluster), (&id, &self::west()));
}

#[test]
fn a_bundle_is_replaced_by_a_newer_one_for_good() {
    let (east_home, home) = (home(), home());
    let east = primary(&east_home, NOW);
    let west = join(&home, &east, 90);
    let old = (*west.identity().bundle()).clone();
    let new = Bundle { sequence: 7, ..old.clone() };
    west.trust(new.clone()).unwrap();
    assert!(matches!(west.trust(old), Err(TrustError::Bundle(_))));
    assert_eq!(*west.identity().bundle(), new);
    assert_eq!(*rejoin(&home).unwrap().identity().bundle(), new);
}

#[test]
fn a_bundle_goes_on_where_members_change_or_the_store_is_ahead() {
    let home = home();
    let east = primary(&home, NOW);
    let held = (*east.identity().bundle()).clone();
    let next = |clusters: &BTreeMap<_, _>, epoch| {
        east.with_members(clusters.clone(), epoch).map(|bundle| {
            assert_eq!(
                bundle,
                Bundle { sequence: bundle.sequence, clusters: clusters.clone(), ..held.clone() }
            );
            bundle.sequence
        })
    };
    let more = [(self::east(), Vouch::default()), (west(), Vouch::default())].into();
    assert_eq!(next(&held.clusters, 0), None);
    assert_eq!(next(&held.clusters, 1), None);
    assert_eq!(next(&held.clusters, 2), Some(2));
    assert_eq!(next(&held.clusters, 9), Some(9));
    assert_eq!(next(&more, 0), Some(2));
    assert_eq!(next(&more, 1), Some(2));
    assert_eq!(next(&more, 9), Some(9));
}

#[test]
fn a_token_is_good_once_also_after_a_restart() {
    let home = home();
    let east = primary(&home, NOW);
    let token = WorkloadToken {
        id: TokenId::random().unwrap(),
        cluster: self::east(),
        namespace: "shop".parse().unwrap(),
        service_account: "front".parse().unwrap(),
        labels: BTreeMap::new(),
        workload: "front-1".parse().unwrap(),
        root: east.root_hash().unwrap(),
        control_planes: vec![],
        expires: NOW + 600,
    };
    let text = east.issue(&token);
    assert_eq!(east.redeem::<WorkloadToken>(&text, at(NOW)).unwrap(), token);
    assert!(matches!(east.redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Used)));
    let again = primary(&home, NOW);
    assert!(matches!(again.redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Used)));
}

#[test]
fn its_own_leaf_is_renewed_at_half_its_life_or_where_leaves_are_to_live_shorter() {
    let (east_home, home) = (home(), home());
    let west = join(&home, &primary(&east_home, NOW), 90);
    assert_eq!(leaf_end(&west), NOW + DAY);
    // It began a minute before, since clocks differ.
    let half = NOW - 60 + (DAY + 60) / 2;
    let renewed = |lifetime: u64, now: u64| {
        let before = west.identity().credentials();
        west.renew_own(Duration::from_secs(lifetime), at(now)).unwrap();
        !Arc::ptr_eq(&before, &west.identity().credentials())
    };
    assert!(!renewed(DAY, NOW));
    assert!(!renewed(2 * DAY, half - 1));
    assert!(!renewed(2 * DAY, NOW));
    assert!(renewed(DAY, half));
    assert_eq!(leaf_end(&west), half + DAY);
    assert!(!renewed(DAY, half));
    assert!(renewed(3600, half));
    assert_eq!(leaf_end(&west), half + 3600);
    // It begins with what it has kept, before it renews that too.
    let kept = Identity::load(home.path()).unwrap().unwrap();
    assert_eq!(kept.credentials().validity().end().as_secs(), half + 3600);
}

#[test]
fn an_intermediate_is_renewed_thirty_days_before_its_end_or_a_third_of_its_life() {
    let (east_home, homes) = (home(), [home(), home()]);
    let east = primary(&east_home, NOW);
    // Of nine days it has had a minute before they began.
    for (home, lifetime, due) in [(&homes[0], 90, 60 * DAY), (&homes[1], 9, 6 * DAY - 20)] {
        let west = join(home, &east, lifetime);
        assert!(west.intermediate_request(at(NOW + due - 1)).unwrap().is_none(), "{lifetime} days");
        let request = west.intermediate_request(at(NOW + due)).unwrap().expect("it is due");
        let signed = east.sign_intermediate(&request, &self::west(), days(lifetime), at(NOW + due)).unwrap();
        west.renew_intermediate(signed, at(NOW + due)).unwrap();
        let end = at(NOW + due + lifetime * DAY);
        assert_eq!(west.intermediate_not_after(), end);
        assert_eq!(leaf_end(&west), NOW + due + DAY, "its own leaf is of the new one");
        assert_eq!(rejoin(home).unwrap().intermediate_not_after(), end);
        let kept = Identity::load(home.path()).unwrap().unwrap();
        assert_eq!(kept.credentials().chain()[1], *west.intermediate.load().certificate());
    }
}

#[test]
fn the_primary_renews_its_own_intermediate_and_a_remote_asks_for_it() {
    let (east_home, home) = (home(), home());
    let east = primary(&east_home, NOW);
    let west = join(&home, &east, 90);
    for (authority, renewed) in [(&east, true), (&west, false)] {
        let before = authority.intermediate_not_after();
        authority.renew_own_intermediate(days(90), at(NOW + 60 * DAY - 1)).unwrap();
        assert_eq!(authority.intermediate_not_after(), before);
        authority.renew_own_intermediate(days(90), at(NOW + 60 * DAY)).unwrap();
        let after = if renewed { at(NOW + 150 * DAY) } else { before };
        assert_eq!(authority.intermediate_not_after(), after);
    }
}

#[test]
fn an_intermediate_of_another_cluster_is_not_taken_into_use() {
    let (east_home, home) = (home(), home());
    let east = primary(&east_home, NOW);
    let west = join(&home, &east, 90);
    let request = west.intermediate_request(at(NOW + 80 * DAY)).unwrap().unwrap();
    let signed = east.sign_intermediate(&request, &"south".parse().unwrap(), days(90), at(NOW)).unwrap();
    assert!(west.renew_intermediate(signed, at(NOW)).is_err());
    assert_eq!(west.intermediate.load().cluster(), &self::west());
}
