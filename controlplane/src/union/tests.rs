use tempfile::TempDir;

use super::*;
use crate::{
    git::{Checkout, File},
    store::Embedded,
};

fn commit(digit: &str) -> CommitId {
    digit.repeat(40).parse().unwrap()
}

/// What `source` says at the commit of `digit`: of each namespace one Service.
fn tree(source: &str, digit: &str, namespaces: &[&str]) -> Tree {
    let service = |namespace: &&str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: one, namespace: {namespace} }}\n\
             spec: {{ selector: {{ app: one }}, ports: [{{ name: http, port: 8080 }}] }}\n"
        );
        File { path: format!("{namespace}.yaml"), text: text.into() }
    };
    Tree::read(&Checkout {
        source: source.parse().unwrap(),
        commit: commit(digit),
        files: namespaces.iter().map(service).collect(),
        refusals: vec![],
        author: format!("author of {source}"),
        time: 0,
        subject: "a change".into(),
        rewrote: false,
    })
}

/// Commits by source, and of each resource namespace, source, commit and author of its last change.
async fn told(store: &dyn Store, revision: &Revision) -> (String, Vec<String>) {
    let all = read_revision(store, revision).await.unwrap().into_iter().map(|one| {
        let at = one.position.unwrap();
        format!("{} {} by {}", one.namespace, one.changed_in.of(&at.source.unwrap()), at.author)
    });
    let short =
        |text: String| ["a", "b", "c"].iter().fold(text, |text, one| text.replace(&one.repeat(40), one));
    (short(revision.label()), all.map(short).collect())
}

fn ownership(of: &[(&str, Option<&str>)]) -> Ownership {
    let said =
        of.iter().map(|(source, own)| (source.parse().unwrap(), own.map(|own| vec![own.parse().unwrap()])));
    Ownership::new(said.collect()).unwrap()
}

#[tokio::test]
async fn what_the_new_owner_of_a_namespace_has_not_said_yet_stays_as_it_was() {
    let home = TempDir::new().unwrap();
    let store = Embedded::open(home.path()).unwrap();
    let main: SourceName = "main".parse().unwrap();
    let mut union = Union::default();
    union.replace(&main, Part::of(&tree("main", "a", &["shop", "other"])));
    let whole = union.write(&store, None).await.unwrap();
    let all = ["other main@a by author of main".to_owned(), "shop main@a by author of main".to_owned()];
    assert_eq!(told(&store, &whole).await, ("a".into(), all.to_vec()));

    // The repository is split. The platform speaks first, and says nothing of the shop any more.
    let owners = ownership(&[("platform", None), ("shop", Some("shop"))]);
    let head = Head::first(1).next(whole.clone());
    let mut union = Union::read(&store, &head, &owners).await.unwrap();
    union.replace(&"platform".parse().unwrap(), Part::of(&tree("platform", "b", &["other", "more"])));
    let split = union.write(&store, Some(&whole)).await.unwrap();
    let said = ["more platform@b by author of platform", &all[0], &all[1]].map(str::to_owned);
    assert_eq!(told(&store, &split).await, ("main@a platform@b".into(), said.to_vec()));
    assert_eq!(
        union.beside(&"platform".parse().unwrap()).len(),
        1,
        "what the shop has by who owned it before"
    );

    // Whoever goes on from the head goes on from the same.
    let head = head.next(split.clone());
    let mut again = Union::read(&store, &head, &owners).await.unwrap();
    assert_eq!(again.write(&store, Some(&split)).await.unwrap(), split);

    again.replace(&"shop".parse().unwrap(), Part::of(&tree("shop", "c", &[])));
    again.forget_former();
    let last = again.write(&store, Some(&split)).await.unwrap();
    assert_eq!(told(&store, &last).await, ("platform@b shop@c".into(), said[..2].to_vec()));
}

#[test]
fn what_a_source_loses_is_counted_in_its_own_part() {
    let before = Part::of(&tree("shop", "a", &["shop", "till", "other"]));
    assert_eq!(before.loses(&Part::of(&tree("shop", "b", &["till", "new"]))), (3, 2));
}
