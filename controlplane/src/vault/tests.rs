use tempfile::TempDir;

use super::*;
use crate::store::Embedded;

/// Control planes that share a store. Each is a value that leads while it lives.
struct Cluster(Arc<dyn Store>, #[expect(dead_code, reason = "holds the store's file")] TempDir);

impl Cluster {
    fn new() -> Self {
        let home = home();
        Cluster(Arc::new(Embedded::open(home.path()).unwrap()), home)
    }

    async fn lead(&self, dir: &TempDir) -> Vault {
        let election = self.0.campaign().await.unwrap();
        Vault::shared(dir.path(), self.0.clone(), Leading::by(election))
    }
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap()
}

fn write(dir: &TempDir, name: &str, text: &str) {
    files::write_private(&dir.path().join(name), text.as_bytes()).unwrap();
}

fn give_seal(from: &TempDir, to: &TempDir) {
    std::fs::copy(from.path().join(SEAL_FILE), to.path().join(SEAL_FILE)).unwrap();
}

#[tokio::test]
async fn who_serves_next_begins_with_the_files_of_who_served_last() {
    let (cluster, a, b) = (Cluster::new(), home(), home());
    let first = cluster.lead(&a).await;
    assert!(!first.begin().await.unwrap(), "nobody has served yet");
    write(&a, "token.key", "key");
    // Those of many clusters.
    let catalogues = "of west ".repeat(250_000);
    write(&a, "catalogues.bin", &catalogues);
    first.keep().await.unwrap();
    write(&a, "tokens.json", "one is used");
    first.keep().await.unwrap();
    assert!(first.is_own().await.unwrap() && first.served_last().unwrap());
    drop(first);

    let second = cluster.lead(&b).await;
    let refused = second.begin().await.unwrap_err().to_string();
    assert!(refused.contains("seal.key"), "{refused}");
    write(&b, SEAL_FILE, &"x".repeat(32));
    assert!(matches!(second.begin().await, Err(VaultError::Sealed(_))), "another key does not open it");
    assert!(!b.path().join("token.key").exists());
    give_seal(&a, &b);
    assert!(second.begin().await.unwrap());
    assert_eq!(
        [read(&b, "token.key"), read(&b, "tokens.json"), read(&b, "catalogues.bin")],
        ["key", "one is used", &catalogues]
    );
    write(&b, "tokens.json", "two are used");
    second.keep().await.unwrap();
    drop(second);

    let first = cluster.lead(&a).await;
    assert!(!first.is_own().await.unwrap());
    assert!(first.begin().await.unwrap());
    assert_eq!(read(&a, "tokens.json"), "two are used");
}

/// Found by the simulated network: one that had heard of a removal, and could not hand it on, believed the removed again.
#[tokio::test]
async fn whom_it_trusts_never_goes_back_to_a_copy() {
    let (cluster, a, b) = (Cluster::new(), home(), home());
    let bundle = |sequence: u64| {
        let (roots, clusters, revoked) = Default::default();
        let trust_domain = "shop.example".parse().unwrap();
        serde_json::to_string(&Bundle { trust_domain, sequence, roots, clusters, revoked }).unwrap()
    };
    let first = cluster.lead(&a).await;
    write(&a, BUNDLE_FILE, &bundle(7));
    first.keep().await.unwrap();
    drop(first);
    write(&a, BUNDLE_FILE, &bundle(8));
    give_seal(&a, &b);
    let second = cluster.lead(&b).await;
    assert!(second.begin().await.unwrap());
    second.keep().await.unwrap();
    drop(second);
    let first = cluster.lead(&a).await;
    assert!(first.begin().await.unwrap());
    assert_eq!(read(&a, BUNDLE_FILE), bundle(8));
    first.keep().await.unwrap();
    drop(first);
    assert!(cluster.lead(&b).await.begin().await.unwrap());
    assert_eq!(read(&b, BUNDLE_FILE), bundle(8), "a later one is taken");
}

#[tokio::test]
async fn what_changed_here_while_nobody_led_is_not_lost_to_an_old_copy() {
    let (cluster, a) = (Cluster::new(), home());
    let before = cluster.lead(&a).await;
    write(&a, "tokens.json", "one is used");
    before.keep().await.unwrap();
    drop(before);
    write(&a, "tokens.json", "two are used");
    let after = cluster.lead(&a).await;
    assert!(!after.begin().await.unwrap());
    assert_eq!(read(&a, "tokens.json"), "two are used");
    after.keep().await.unwrap();
    assert!(after.is_own().await.unwrap());
}

#[tokio::test]
async fn who_was_succeeded_unawares_keeps_nothing_over_the_other_ones_files() {
    let (cluster, a, b) = (Cluster::new(), home(), home());
    let first = cluster.lead(&a).await;
    write(&a, "tokens.json", "of the first");
    first.keep().await.unwrap();
    drop(first);
    give_seal(&a, &b);
    let second = cluster.lead(&b).await;
    second.begin().await.unwrap();
    write(&b, "tokens.json", "of the second");
    second.keep().await.unwrap();
    drop(second);

    let first = cluster.lead(&a).await;
    assert!(matches!(first.keep().await, Err(VaultError::Succeeded)));
    first.begin().await.unwrap();
    assert_eq!(read(&a, "tokens.json"), "of the second");
    first.keep().await.unwrap();
}

#[tokio::test]
async fn without_a_leadership_nothing_is_kept_and_who_retired_did_not_serve_last() {
    let (cluster, a) = (Cluster::new(), home());
    let idle = Vault::shared(a.path(), cluster.0.clone(), Leading::none());
    write(&a, "token.key", "key");
    idle.keep().await.unwrap();
    assert_eq!(cluster.0.document(TRUST).await.unwrap(), None);
    assert!(!idle.served_last().unwrap());
    cluster.lead(&a).await.keep().await.unwrap();
    assert!(idle.served_last().unwrap());
    idle.retire().unwrap();
    idle.retire().unwrap();
    assert!(!idle.served_last().unwrap());
}

#[tokio::test]
async fn who_is_alone_has_its_files_and_no_copies() {
    let (cluster, a) = (Cluster::new(), home());
    let alone = Vault::alone(a.path());
    assert!(!alone.begin().await.unwrap());
    alone.keep().await.unwrap();
    assert!(alone.is_own().await.unwrap());
    assert!(!alone.served_last().unwrap());
    assert_eq!(cluster.0.document(TRUST).await.unwrap(), None);
}

#[tokio::test]
async fn what_has_not_changed_is_not_kept_anew_in_the_same_term() {
    let (cluster, a) = (Cluster::new(), home());
    let vault = cluster.lead(&a).await;
    write(&a, "token.key", "key");
    write(&a, "catalogues.bin", "of west");
    vault.keep().await.unwrap();
    // Each sealing draws another nonce.
    let copies = async || {
        let [catalogues, trust] = DOCUMENTS.map(|(document, _)| cluster.0.document(document));
        (catalogues.await.unwrap(), trust.await.unwrap())
    };
    let first = copies().await;
    vault.keep().await.unwrap();
    assert_eq!(copies().await, first);
    write(&a, "token.key", "new");
    vault.keep().await.unwrap();
    let second = copies().await;
    assert_eq!(second.0, first.0);
    assert_ne!(second.1, first.1);
    drop(vault);
    cluster.lead(&a).await.keep().await.unwrap();
    let third = copies().await;
    assert!(third.0 != second.0 && third.1 != second.1, "they bear the new term");
}

#[tokio::test]
async fn who_cannot_note_that_another_one_serves_says_so() {
    let a = home();
    std::fs::create_dir(a.path().join(TERM_FILE)).unwrap();
    assert!(matches!(Vault::alone(a.path()).retire(), Err(VaultError::File(..))));
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_not_taken_for_what_is_not_there() {
    let (cluster, a) = (Cluster::new(), home());
    let vault = cluster.lead(&a).await;
    vault.keep().await.unwrap();
    let path = a.path().join("token.key");
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(matches!(vault.keep().await, Err(VaultError::File(..))));
}

#[tokio::test]
async fn a_store_from_a_backup_does_not_take_newer_files_away() {
    let (before, a) = (Cluster::new(), home());
    let vault = before.lead(&a).await;
    write(&a, "tokens.json", "as in the backup");
    vault.keep().await.unwrap();
    let backup = before.0.document(TRUST).await.unwrap().unwrap();
    drop(vault);
    let vault = before.lead(&a).await;
    write(&a, "tokens.json", "newer");
    vault.keep().await.unwrap();
    drop(vault);

    // Another store that has only the backup, under a term that comes before.
    let after = Cluster::new();
    let election = after.0.campaign().await.unwrap();
    after.0.keep_document(TRUST, backup, &election).await.unwrap();
    let restored = Vault::shared(a.path(), after.0.clone(), Leading::by(election));
    assert!(!restored.begin().await.unwrap());
    assert_eq!(read(&a, "tokens.json"), "newer");
    assert!(restored.is_own().await.unwrap());
    restored.keep().await.unwrap();
    assert_ne!(after.0.document(TRUST).await.unwrap(), None);
    assert!(restored.is_own().await.unwrap() && restored.served_last().unwrap());
}
