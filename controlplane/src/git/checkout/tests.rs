use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::{MAX_FILE_BYTES, MAX_FILES};
use crate::git::fixture::Fixture;

fn refusals(fixture: &Fixture) -> Vec<String> {
    let commit = fixture.commit("all of it");
    let checkout = fixture.repository().checkout(&commit, None).unwrap();
    checkout.refusals.iter().map(|refusal| refusal.to_string()).collect()
}

#[test]
fn the_yaml_of_the_folder_comes_sorted_with_who_and_when() {
    let fixture = Fixture::new();
    fixture.write("mesh/z.yaml", "z: 1\n");
    fixture.write("mesh/a/b.yml", "b: 1\n");
    fixture.write("mesh/a.yaml", "a: é\n");
    fixture.write("mesh/README.md", "no\n");
    fixture.write("other.yaml", "other: 1\n");
    let commit = fixture.commit("lay it out\n\nwith a body");
    fixture.write("mesh/z.yaml", "not committed\n");
    let checkout = fixture.folder("/mesh/").checkout(&commit, None).unwrap();
    let files: Vec<_> = checkout.files.iter().map(|file| (file.path.as_str(), &*file.text)).collect();
    assert_eq!(files, [("mesh/a.yaml", "a: é\n"), ("mesh/a/b.yml", "b: 1\n"), ("mesh/z.yaml", "z: 1\n")]);
    assert!(checkout.refusals.is_empty());
    assert_eq!((checkout.source.as_str(), &checkout.commit), ("main", &commit));
    assert_eq!(checkout.author, "Ada <ada@shop.example>");
    assert_eq!((checkout.time, checkout.subject.as_str()), (1_700_000_000, "lay it out"));
    assert_eq!(fixture.repository().checkout(&commit, None).unwrap().files.len(), 4);
}

#[test]
fn all_that_cannot_be_taken_is_named_at_once() {
    let fixture = Fixture::new();
    fixture.write("good.yaml", "good: 1\n");
    fixture.write("huge.yaml", vec![b'#'; MAX_FILE_BYTES as usize + 1]);
    fixture.write("latin.yaml", b"name: ok\nname: caf\xe9\n");
    fixture.write(OsStr::from_bytes(b"caf\xe9.yaml"), "a: 1\n");
    fixture.write(OsStr::from_bytes(b"caf\xe9.txt"), "not ours\n");
    symlink("good.yaml", fixture.path().join("link.yaml")).unwrap();
    symlink("/etc", fixture.path().join("outside")).unwrap();
    let base = fixture.commit("base");
    fixture.git(["update-index", "--add", "--cacheinfo", &format!("160000,{base},sub")]);
    fixture.git(["commit", "-q", "-m", "a submodule"]);
    let repository = fixture.repository();
    let checkout = repository.checkout(&repository.head().unwrap(), None).unwrap();
    let refusals: Vec<_> = checkout.refusals.iter().map(|refusal| refusal.to_string()).collect();
    expect_test::expect![[r#"
        caf�.yaml:1:1: its name is not UTF-8: rename it
        huge.yaml:1:1: 4194305 bytes are over the limit of 4194304 a file: split it
        latin.yaml:2:10: not UTF-8: save the file as UTF-8
        link.yaml:1:1: a symbolic link is not followed: commit the file instead
        outside:1:1: a symbolic link is not followed: commit the file instead
        sub:1:1: a submodule is not read: commit its files instead"#]]
    .assert_eq(&refusals.join("\n"));
    assert_eq!(checkout.files.len(), 1);
}

#[test]
fn a_commit_is_bounded_as_a_whole() {
    let fixture = Fixture::new();
    for i in 0..=MAX_FILES {
        fixture.write(format!("{:02}/{i}.yaml", i / 1000), format!("a: {i}\n"));
    }
    assert!(refusals(&fixture)[0].contains("more than 10000 files"));
    let fixture = Fixture::new();
    for i in 0..17 {
        let mut content = vec![b'#'; MAX_FILE_BYTES as usize];
        content[0..2].copy_from_slice(format!("{i:02}").as_bytes());
        fixture.write(format!("{i:02}.yaml"), content);
    }
    assert!(refusals(&fixture)[0].starts_with("16.yaml:1:1: more than"));
}

#[test]
fn a_tree_that_repeats_itself_a_billion_times_ends() {
    let fixture = Fixture::new();
    fixture.commit_file("a.txt", "");
    let mut tree = fixture.git(["rev-parse", "HEAD^{tree}"]);
    for _ in 0..9 {
        let id = gix::ObjectId::from_hex(tree.as_bytes()).unwrap();
        let entry = |copy| [format!("40000 d{copy}\0").as_bytes(), id.as_bytes()].concat();
        fixture.write("tree", (0..10).flat_map(entry).collect::<Vec<u8>>());
        tree = fixture.git(["hash-object", "-t", "tree", "-w", "tree"]);
    }
    let commit = fixture.git(["commit-tree", "-m", "bomb", &tree]).parse().unwrap();
    let checkout = fixture.repository().checkout(&commit, None).unwrap();
    assert!(checkout.refusals[0].to_string().contains("200000 entries"));
}

#[test]
fn an_empty_commit_is_read_as_empty() {
    let fixture = Fixture::new();
    let commit = fixture.commit("nothing");
    let checkout = fixture.repository().checkout(&commit, None).unwrap();
    assert!(checkout.files.is_empty() && checkout.refusals.is_empty());
}

#[test]
fn a_folder_that_is_gone_is_refused_not_read_as_empty() {
    let fixture = Fixture::new();
    let commit = fixture.commit_file("a.yaml", "a: 1\n");
    let checkout = fixture.folder("mesh").checkout(&commit, None).unwrap();
    assert!(checkout.refusals[0].to_string().starts_with("mesh:1:1: there is no such folder"));
    let checkout = fixture.folder("a.yaml").checkout(&commit, None).unwrap();
    assert_eq!(checkout.refusals.len(), 1);
}

#[test]
fn a_forced_push_is_flagged() {
    let fixture = Fixture::new();
    let first = fixture.commit_file("a.yaml", "a: 1\n");
    let second = fixture.commit_file("a.yaml", "a: 2\n");
    fixture.git(["checkout", "-q", "--orphan", "other"]);
    let unrelated = fixture.commit("begin anew");
    fixture.git(["branch", "-q", "-f", "main", "other"]);
    let repository = fixture.repository();
    assert_eq!(repository.head(), Ok(unrelated.clone()));
    assert!(!repository.checkout(&second, Some(&first)).unwrap().rewrote);
    assert!(repository.checkout(&unrelated, Some(&second)).unwrap().rewrote);
    assert!(repository.checkout(&first, Some(&second)).unwrap().rewrote);
    assert!(!repository.checkout(&first, None).unwrap().rewrote);
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let fixture = Fixture::new();
    fixture.write("a.yaml", "a: 1\n");
    let first = fixture.commit_file("b.yaml", "b: 1\n");
    let second = fixture.commit_file("b.yaml", "b: 2\n");
    let repository = fixture.repository();
    let before = repository.checkout(&first, None).unwrap();
    let after = repository.checkout(&second, Some(&first)).unwrap();
    assert!(std::sync::Arc::ptr_eq(&before.files[0].text, &after.files[0].text));
    assert_eq!(&*after.files[1].text, "b: 2\n");
}

#[test]
fn a_sha256_repository_is_read() {
    let fixture = Fixture::with(&["--object-format=sha256"]);
    let first = fixture.commit_file("a.yaml", "a: 1\n");
    let commit = fixture.commit_file("a.yaml", "a: 2\n");
    assert_eq!(commit.as_str().len(), 64);
    let repository = fixture.repository();
    assert_eq!(repository.head(), Ok(commit.clone()));
    let checkout = repository.checkout(&commit, Some(&first)).unwrap();
    assert_eq!((&*checkout.files[0].text, checkout.rewrote), ("a: 2\n", false));
    fixture.git(["gc", "-q"]);
    assert_eq!(repository.resolve(&commit.as_str()[..10]), Ok(commit));
}
