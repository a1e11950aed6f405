use crate::git::Trouble;
use crate::git::fixture::Fixture;

#[test]
fn the_head_is_that_of_the_branch_not_of_the_work_tree() {
    let fixture = Fixture::new();
    let first = fixture.commit_file("a.yaml", "a: 1\n");
    fixture.git(["switch", "-q", "-c", "draft"]);
    let draft = fixture.commit_file("a.yaml", "a: 2\n");
    let repository = fixture.repository();
    assert_eq!(repository.head(), Ok(first.clone()));
    assert_eq!(repository.resolve("HEAD"), Ok(draft.clone()));
    assert_eq!(repository.resolve("main"), Ok(first.clone()));
    assert_eq!(repository.resolve("draft~1"), Ok(first.clone()));
    assert_eq!(repository.resolve(&draft.as_str()[..8]), Ok(draft.clone()));
    assert_eq!(repository.resolve(draft.as_str()), Ok(draft));
    for bad in ["", "nowhere", "main:a.yaml", "HEAD^{/change}", "@{-1}", "main..draft", &"a".repeat(256)] {
        assert!(matches!(repository.resolve(bad), Err(Trouble::Unknown { .. })), "{bad}");
    }
}

#[test]
fn a_packed_branch_and_a_bare_repository_are_read() {
    let fixture = Fixture::new();
    let commit = fixture.commit_file("a.yaml", "a: 1\n");
    fixture.git(["gc", "-q"]);
    assert_eq!(fixture.repository().head(), Ok(commit.clone()));
    fixture.git(["clone", "-q", "--bare", ".", "bare.git"]);
    let bare = fixture.at("bare.git");
    assert_eq!(bare.head(), Ok(commit.clone()));
    assert_eq!(bare.checkout(&commit, None).unwrap().files.len(), 1);
}

#[test]
fn ancestry_is_seen_through_merges() {
    let fixture = Fixture::new();
    let base = fixture.commit("base");
    fixture.git(["switch", "-q", "-c", "side"]);
    let side = fixture.commit("side");
    fixture.git(["switch", "-q", "main"]);
    let main = fixture.commit("main");
    fixture.git(["merge", "-q", "--no-edit", "side"]);
    let repository = fixture.repository();
    let merged = repository.head().unwrap();
    for ancestor in [&base, &side, &main, &merged] {
        assert_eq!(repository.descends(ancestor, &merged), Ok(true));
    }
    assert_eq!(repository.descends(&side, &main), Ok(false));
    assert_eq!(repository.descends(&merged, &base), Ok(false));
    assert_eq!(repository.descends(&"0".repeat(40).parse().unwrap(), &base), Ok(false));
}

#[test]
fn what_is_not_there_is_told_apart() {
    let fixture = Fixture::new();
    let repository = fixture.repository();
    assert!(matches!(repository.head(), Err(Trouble::BranchGone { branch, .. }) if branch == "main"));
    std::fs::remove_dir_all(fixture.path()).unwrap();
    assert!(matches!(repository.head(), Err(Trouble::Away { .. })));
    std::fs::create_dir(fixture.path()).unwrap();
    assert!(matches!(repository.head(), Err(Trouble::Away { .. })));
    fixture.write(".git/HEAD", "rubbish");
    assert!(matches!(repository.head(), Err(Trouble::Unreadable { .. })));
}

#[test]
fn a_damaged_repository_is_reported_not_believed() {
    let fixture = Fixture::new();
    let commit = fixture.commit_file("a.yaml", "a: 1\n");
    let blob = fixture.git(["rev-parse", "HEAD:a.yaml"]);
    std::fs::remove_file(fixture.path().join(".git/objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    assert!(matches!(fixture.repository().checkout(&commit, None), Err(Trouble::Unreadable { .. })));
}

#[test]
fn a_reftable_repository_is_refused_with_the_way_out() {
    let fixture = Fixture::new();
    fixture.commit_file("a.yaml", "a: 1\n");
    // Written by hand, since the oldest `git` that the tests run with cannot make one.
    fixture.git(["config", "core.repositoryFormatVersion", "1"]);
    fixture.git(["config", "extensions.refStorage", "reftable"]);
    let trouble = fixture.repository().head().unwrap_err();
    assert!(matches!(trouble, Trouble::Reftable { .. }), "{trouble}");
    assert!(trouble.to_string().contains("git refs migrate --ref-format=files"));
}

#[test]
fn an_extension_that_nobody_here_knows_is_refused() {
    let fixture = Fixture::new();
    fixture.commit_file("a.yaml", "a: 1\n");
    std::fs::write(
        fixture.path().join(".git/config"),
        "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tchunkedRefs = true\n",
    )
    .unwrap();
    let trouble = fixture.repository().head().unwrap_err().to_string();
    assert!(trouble.contains("`chunkedrefs`"), "{trouble}");
}

#[test]
fn a_replaced_commit_is_still_itself() {
    let fixture = Fixture::new();
    let first = fixture.commit_file("a.yaml", "a: 1\n");
    let second = fixture.commit_file("a.yaml", "a: 2\n");
    fixture.git(["replace", second.as_str(), first.as_str()]);
    let checkout = fixture.repository().checkout(&second, None).unwrap();
    assert_eq!(&*checkout.files[0].text, "a: 2\n");
}
