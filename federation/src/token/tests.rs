use std::time::Duration;

use super::*;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn workload() -> WorkloadToken {
    WorkloadToken {
        id: TokenId::random().unwrap(),
        cluster: "west".parse().unwrap(),
        namespace: "shop".parse().unwrap(),
        service_account: "reviews".parse().unwrap(),
        labels: [("version".into(), "v1".into())].into(),
        workload: "reviews-v1-9".parse().unwrap(),
        root: Hash::of(b"root"),
        control_planes: vec!["127.2.0.1:15012".into()],
        expires: NOW + 600,
    }
}

fn join() -> JoinToken {
    JoinToken {
        id: TokenId::random().unwrap(),
        cluster: "west".parse().unwrap(),
        primary: "east".parse().unwrap(),
        root: Hash::of(b"root"),
        addresses: vec!["127.1.0.1:15013".into()],
        expires: NOW + 600,
    }
}

fn redeemer(dir: &Path) -> Redeemer {
    let key = MacKey::load_or_create(&dir.join("token.key")).unwrap();
    Redeemer::open(key, &dir.join("tokens.json")).unwrap()
}

#[test]
fn the_bearer_reads_it_and_the_issuer_redeems_it_once_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut west = redeemer(dir.path());
    let token = workload();
    let text = west.key().issue(&token);
    assert!(text.starts_with("weftw1.") && text.len() < 1024, "{text}");
    assert_eq!(read::<WorkloadToken>(&text).unwrap(), token);
    assert_eq!(west.redeem::<WorkloadToken>(&format!("{text}\n"), at(NOW)).unwrap(), token);
    assert!(matches!(west.redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Used)));
    assert!(matches!(redeemer(dir.path()).redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Used)));

    let join = join();
    let text = west.key().issue(&join);
    assert_eq!(west.redeem::<JoinToken>(&text, at(NOW)).unwrap(), join);
}

#[test]
fn a_token_of_another_key_kind_or_time_is_refused_and_not_used_up() {
    let (west, east) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut west, east) = (redeemer(west.path()), redeemer(east.path()));
    let token = workload();
    let redeem =
        |west: &mut Redeemer, text: &str, now| west.redeem::<WorkloadToken>(text, at(now)).unwrap_err();

    assert!(matches!(redeem(&mut west, &east.key().issue(&token), NOW), BadToken::Forged));
    let text = west.key().issue(&token);
    let mut changed = token.clone();
    changed.service_account = "front".parse().unwrap();
    let (payload, mac) = (east.key().issue(&changed), text.rsplit_once('.').unwrap().1);
    let spliced = format!("{}.{mac}", payload.rsplit_once('.').unwrap().0);
    assert!(matches!(redeem(&mut west, &spliced, NOW), BadToken::Forged));
    let join = west.key().issue(&join());
    assert!(matches!(redeem(&mut west, &join, NOW), BadToken::Malformed));
    assert!(matches!(redeem(&mut west, &text, NOW + 600), BadToken::Expired));
    for cut in ["", "weftw1", "weftw1..", &text[..text.len() - 9], &"x".repeat(9000)] {
        assert!(!matches!(redeem(&mut west, cut, NOW), BadToken::Used | BadToken::Ledger(_)), "{cut}");
    }
    assert_eq!(west.redeem::<WorkloadToken>(&text, at(NOW)).unwrap(), token);
}

#[test]
fn a_ledger_that_cannot_be_kept_redeems_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut west = redeemer(dir.path());
    let text = west.key().issue(&workload());
    std::fs::create_dir(dir.path().join("tokens.json")).unwrap();
    assert!(matches!(west.redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Ledger(_))));
    std::fs::remove_dir(dir.path().join("tokens.json")).unwrap();
    assert!(west.redeem::<WorkloadToken>(&text, at(NOW)).is_ok());
}

#[test]
fn a_ledger_forgets_only_what_has_long_expired() {
    let mut ledger = Ledger::default();
    let (one, two) = (TokenId::random().unwrap(), TokenId::random().unwrap());
    ledger.redeem(one, NOW + 10, at(NOW)).unwrap();
    ledger.redeem(two, NOW + 10, at(NOW + 3600)).unwrap();
    assert!(matches!(ledger.redeem(one, NOW + 10, at(NOW)), Err(BadToken::Used)));
    assert!(matches!(ledger.redeem(one, NOW + 10, at(NOW + 10 + GRACE - 1)), Err(BadToken::Used)));
    ledger.redeem(one, NOW + 10, at(NOW + 10 + GRACE)).unwrap();
    assert_eq!(ledger.used(), 1);
}

#[test]
fn a_full_ledger_is_read_whole_and_takes_no_more_until_some_are_forgotten() {
    const MAX_USED: u32 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let used: BTreeMap<_, _> = (0..MAX_USED).map(|n| (format!("{n:032x}"), NOW)).collect();
    let json = serde_json::json!({ "used": used });
    std::fs::write(dir.path().join("tokens.json"), json.to_string()).unwrap();
    let mut west = redeemer(dir.path());
    let text = west.key().issue(&workload());
    assert!(matches!(west.redeem::<WorkloadToken>(&text, at(NOW)), Err(BadToken::Full)));

    let mut ledger: Ledger = serde_json::from_value(json).unwrap();
    assert_eq!(ledger.used(), MAX_USED as usize);
    ledger.redeem(TokenId::random().unwrap(), NOW + 2 * GRACE, at(NOW + GRACE)).unwrap();
    assert_eq!(ledger.used(), 1);
}

#[test]
fn a_text_over_the_limit_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let west = redeemer(dir.path());
    let of = |bytes: usize| format!("weftw1.{}.AAAA", "A".repeat(bytes - "weftw1..AAAA".len()));
    let check = |text: &str| west.key().check::<WorkloadToken>(text, at(NOW)).unwrap_err();
    assert!(matches!(check(&of(MAX_TOKEN_BYTES)), BadToken::Forged));
    assert!(matches!(check(&of(MAX_TOKEN_BYTES + 1)), BadToken::Malformed));
    let long = WorkloadToken { labels: [("note".into(), "x".repeat(5_000))].into(), ..workload() };
    assert_eq!(west.key().check::<WorkloadToken>(&west.key().issue(&long), at(NOW)).unwrap(), long);
}

const GRACE: u64 = 24 * 60 * 60;
