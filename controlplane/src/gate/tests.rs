use std::sync::Arc;

use expect_test::{Expect, expect};

use super::*;
use crate::{git::File, union::Part};

const MESH: &str = "apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: shop.example }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: east }
spec: { network: east, namespaces: [shop, till] }
";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: { name: reviews, namespace: shop }
spec: { selector: { app: reviews }, ports: [{ name: http, port: 8080 }] }
";

/// What `source` says in one file.
fn tree(source: &str, text: &str) -> Tree {
    Tree::read(&Checkout {
        source: source.parse().unwrap(),
        commit: "a".repeat(40).parse().unwrap(),
        files: vec![File { path: format!("{source}.yaml"), text: Arc::from(text) }],
        refusals: vec![],
        author: "Ada <ada@shop.example>".into(),
        time: 0,
        subject: "a change".into(),
        rewrote: false,
    })
}

fn ownership() -> Ownership {
    let said = [("platform", None), ("shop", Some("shop")), ("till", Some("till"))];
    let said = said.map(|(source, own)| (source.parse().unwrap(), own.map(|own| vec![own.parse().unwrap()])));
    Ownership::new(said.into()).unwrap()
}

/// What is wrong with a commit of `source`, beside what others have in force; `before` is what its own source has.
fn check(source: &str, text: &str, before: &str, others: &[(&str, &str)], expected: Expect) {
    let others: Vec<_> = others.iter().map(|(source, text)| Part::of(&tree(source, text))).collect();
    let others: Vec<_> = others.iter().flat_map(Part::placed).collect();
    let before = Part::of(&tree(source, before));
    let problems = judge(&tree(source, text), &ownership(), &others, before.placed());
    let lines = problems.iter().map(|one| {
        let Problem { file, line, column, message, help, severity } = one;
        let warning = if *severity == Severity::Warning { "warning: " } else { "" };
        format!("{file}:{line}:{column}: {warning}{message}\n  {}\n", help.as_deref().unwrap_or("-"))
    });
    expected.assert_eq(&lines.collect::<String>());
}

/// A policy at a Service of the shop's: what refers across.
fn traffic(namespace: &str, target: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: calm, namespace: {namespace} }}\n\
         spec:\n  targetRefs: [{{ group: \"\", kind: Service, name: {target}, namespace: shop }}]\n"
    )
}

#[test]
fn a_source_says_what_it_owns_and_nothing_else() {
    check("shop", SERVICE, "", &[("platform", MESH)], expect![""]);
    let foreign = format!("{SERVICE}---\n{}", traffic("till", "reviews"));
    check(
        "shop",
        &foreign,
        "",
        &[("platform", MESH)],
        expect![[r#"
        shop.yaml:8:36: namespace `till` is owned by source `till`
          commit it there, or let the settings of the control plane give the namespace to this source
    "#]],
    );
    let system = "apiVersion: weft.mesh/v1alpha1
kind: PeerAuthentication
metadata: { name: open, namespace: weft-system }
spec: { mtls: DISABLE }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
";
    check(
        "shop",
        system,
        "",
        &[("platform", MESH)],
        expect![[r#"
        shop.yaml:3:36: namespace `weft-system` is owned by source `platform`
          commit it there
        shop.yaml:7:7: what a `Namespace` says is mesh-wide, and owned by source `platform`
          commit it there
    "#]],
    );
    let both = format!("{MESH}---\n{SERVICE}");
    check(
        "platform",
        &both,
        "",
        &[],
        expect![[r#"
        platform.yaml:13:39: namespace `shop` is owned by source `shop`
          commit it there, or let the settings of the control plane give the namespace to this source
    "#]],
    );
}

#[test]
fn nothing_is_in_force_without_a_mesh() {
    check(
        "shop",
        SERVICE,
        "",
        &[("till", "")],
        expect![[r#"
        .:0:0: no `Mesh` is in force yet, which source `platform` says
          it is judged again as soon as that source has a good commit
    "#]],
    );
}

#[test]
fn references_lead_from_source_to_source() {
    let shop = [("platform", MESH), ("shop", SERVICE)];
    check("till", &traffic("till", "reviews"), "", &shop, expect![""]);
    check(
        "till",
        &traffic("till", "review"),
        "",
        &shop,
        expect![[r#"
        till.yaml:5:50: there is no Service `shop/review`
          did you mean `reviews`?
    "#]],
    );
}

#[test]
fn what_a_commit_takes_from_another_source_is_its_mistake() {
    let other = SERVICE.replace("name: reviews,", "name: ratings,");
    let relied = traffic("till", "reviews");
    let till = [("platform", MESH), ("till", relied.as_str())];
    check(
        "shop",
        &other,
        SERVICE,
        &till,
        expect![[r#"
        source till: till.yaml:5:50: there is no Service `shop/reviews`
          it relies on what this commit changes: let it be changed first
    "#]],
    );
    // What was wrong with the other before is not.
    check("shop", &other, &other, &till, expect![""]);
}

#[test]
fn references_that_lead_nowhere_are_warned_of_where_the_mesh_says_so() {
    let lenient = MESH.replace("shop.example }", "shop.example, unresolvedReferences: REPORT }");
    let relied = traffic("till", "reviews");
    check(
        "till",
        &relied.replace("name: reviews", "name: review"),
        "",
        &[("platform", &lenient), ("shop", SERVICE)],
        expect![[r#"
            till.yaml:5:50: warning: there is no Service `shop/review`
              did you mean `reviews`?
        "#]],
    );
    let other = SERVICE.replace("name: reviews,", "name: ratings,");
    let told = expect![[r#"
        source till: till.yaml:5:50: warning: there is no Service `shop/reviews`
          it relies on what this commit changes
    "#]];
    check("shop", &other, SERVICE, &[("platform", &lenient), ("till", &relied)], told);
    // Who takes the leniency back takes it from everybody.
    let told = expect![[r#"
        source till: till.yaml:5:50: there is no Service `shop/reviews`
          it relies on what this commit changes: let it be changed first
    "#]];
    check("platform", MESH, &lenient, &[("shop", &other), ("till", &relied)], told);
}

#[test]
fn a_denial_by_identity_is_warned_of_where_callers_need_none() {
    let authentication = |namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: PeerAuthentication\n\
             metadata: {{ name: {namespace}-{}, namespace: {namespace} }}\nspec: {{ {spec} }}\n",
            spec.len()
        )
    };
    let warned = |action: &str, target: &str, when: &str, authentications: &[String]| {
        let policy = format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: p, namespace: shop }}\nspec: {{ {target} action: {action}, rules: [{{ when: '{when}' }}] }}\n"
        );
        let text = format!("{MESH}---\n{SERVICE}{policy}{}", authentications.concat());
        let problems =
            judge(&tree("platform", &text), &Ownership::sole("platform".parse().unwrap()), &[], &[]);
        let is_told =
            |one: &Problem| one.severity == Severity::Warning && one.message.contains("by who calls");
        assert!(problems.iter().all(is_told), "{problems:?}");
        problems.len()
    };
    let identity = r#"source.serviceAccount == "front""#;
    let (all, open) = ("", authentication("shop", "mtls: PERMISSIVE"));
    let reviews = "selector: { matchLabels: { app: reviews } },";
    let service = "targetRefs: [{ kind: Service, name: reviews }],";
    assert_eq!(warned("DENY", all, identity, &[]), 0, "STRICT is the default");
    for target in [all, reviews, service] {
        assert_eq!(warned("DENY", target, identity, std::slice::from_ref(&open)), 1, "{target}");
    }
    assert_eq!(warned("ALLOW", all, identity, std::slice::from_ref(&open)), 0);
    assert_eq!(warned("DENY", all, r#"request.path == "/x""#, std::slice::from_ref(&open)), 0);
    let meant = r#"!connection.mtls || source.serviceAccount == "front""#;
    assert_eq!(warned("DENY", all, meant, std::slice::from_ref(&open)), 0, "they are thought of");

    let everywhere = authentication("weft-system", "mtls: PERMISSIVE");
    let strict = authentication("shop", "mtls: STRICT");
    assert_eq!(warned("DENY", all, identity, std::slice::from_ref(&everywhere)), 1);
    assert_eq!(warned("DENY", all, identity, &[everywhere, strict]), 0, "the narrower counts");
    let own = authentication("shop", &format!("{reviews} mtls: STRICT"));
    assert_eq!(warned("DENY", reviews, identity, &[open.clone(), own.clone()]), 0);
    assert_eq!(warned("DENY", all, identity, &[open, own]), 1, "others are let in still");
    let port = authentication("shop", "ports: [{ port: 8080, mtls: PERMISSIVE }]");
    assert_eq!(warned("DENY", all, identity, &[port]), 1);
    let ratings = authentication("shop", "selector: { matchLabels: { app: ratings } }, mtls: PERMISSIVE");
    assert_eq!(warned("DENY", reviews, identity, &[ratings]), 0, "that is somebody else");
}

#[test]
fn all_sources_together_are_bounded() {
    let (mesh, shop) = (Part::of(&tree("platform", MESH)), tree("shop", SERVICE));
    let others = vec![&mesh.placed()[0]; MAX_OBJECTS];
    let problems = judge(&shop, &ownership(), &others, &[]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].message.starts_with("more than 100000 objects in all sources together"),
        "{problems:?}"
    );
}

#[test]
fn a_directory_is_judged_by_what_is_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let placed = format!(
        "{SERVICE}---\n{}---\n{}---\n{}",
        traffic("shop", "rewiews"),
        traffic("till", "reviews"),
        traffic("shop", "reviews")
            .replace("name: calm", "name: placed, labels: { weft.mesh/clusters: east }")
    );
    std::fs::write(dir.path().join("shop.yaml"), placed).unwrap();
    let own = BTreeSet::from(["shop".parse().unwrap()]);
    let told: Vec<_> =
        check_dir(dir.path(), Some(&own)).iter().map(|one| (one.line, one.message.clone())).collect();
    assert_eq!(
        told,
        [
            (10, "there is no Service `shop/rewiews`".to_owned()),
            (14, "namespace `till` is owned by another source".to_owned())
        ]
    );
    // References into what others own may hold.
    let own = BTreeSet::from(["till".parse().unwrap()]);
    std::fs::write(dir.path().join("shop.yaml"), traffic("till", "reviews")).unwrap();
    let told = check_dir(dir.path(), Some(&own));
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn expressions_are_judged_until_enough_is_wrong() {
    let rules = "  - when: nope\n".repeat(200);
    let policy = |n| {
        format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: p{n}, namespace: shop }}\nspec:\n  rules:\n{rules}"
        )
    };
    let text: String = (0..6).map(policy).collect();
    let mesh = Part::of(&tree("platform", MESH));
    let others: Vec<_> = mesh.placed().iter().collect();
    let problems = judge(&tree("shop", &text), &ownership(), &others, &[]);
    assert_eq!(problems.len(), 1001);
    assert_eq!(problems[0].message, "only 1000 mistakes are told, and there may be more");
}

#[test]
fn the_patterns_of_all_policies_have_a_limit_together() {
    // Each rule has about four megabytes of them, which is as much as one may have.
    let large = r#"request.path.matches("[a-z]{9000}")"#;
    let rule = format!("  - when: '{}'\n", [large; 3].join(" || "));
    let text = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: shop }}\n\
         spec:\n  rules:\n{}",
        rule.repeat(120)
    );
    let mesh = Part::of(&tree("platform", MESH));
    let others: Vec<_> = mesh.placed().iter().collect();
    let problems = judge(&tree("shop", &text), &ownership(), &others, &[]);
    let told: Vec<_> = problems.iter().map(|one| one.message.as_str()).collect();
    assert_eq!(told, ["the patterns of the rules before it take more than 268435456 bytes: repeat less"]);
}
