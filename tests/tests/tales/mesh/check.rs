//! `weft check`: twenty different mistakes, each where it stands, and nothing on the sample.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use api::admin::Problem;
use weft_tests::harness::{copy, weft};

/// Files with mistakes. `‸` stands before each, and what is said of it has to contain the words listed, in order.
const MISTAKES: [(&str, &str, &[&str]); 12] = [
    (
        // Five in one document.
        "traffic/five.yaml",
        "apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: five, namespace: shop }
spec:
  targetRefs: [{ group: \"\", kind: Service, name: ‸catalog }]
  loadBalancing: { policy: ‸FASTEST }
  outlierEjection: { ‸consecutiveGatewayError: 5, interval: ‸ten seconds }
  retry: { attempts: ‸many }
",
        &["catalog", "FASTEST", "consecutiveGatewayError", "ten seconds", "many"],
    ),
    (
        "security/typo.yaml",
        "apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: typo, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: ratings }]
  action: DENY
  rules:
    - name: unknown-name
      when: ‸source.serviceAcount == \"front\"
    - name: wrong-type
      when: source.port ‸== \"80\"
    - name: not-closed
      when: (source.namespace == \"shop\"‸
",
        &["serviceAcount", "int", ""],
    ),
    (
        "kinds/unknown.yaml",
        "apiVersion: v1\nkind: ‸Servce\nmetadata: { name: a, namespace: shop }\n",
        &["Servce"],
    ),
    (
        "kinds/later.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ‸GRPCRoute\nmetadata: { name: a, namespace: shop }\n",
        &["not yet supported"],
    ),
    (
        "kinds/version.yaml",
        "apiVersion: ‸weft.mesh/v2\nkind: PeerAuthentication\nmetadata: { name: a, namespace: shop }\nspec: { mtls: STRICT }\n",
        &["weft.mesh/v1alpha1"],
    ),
    (
        "apps/twice.yaml",
        "apiVersion: v1
kind: Service
metadata: { name: till, namespace: shop }
spec:
  selector: { app: till }
  ‸selector: { app: tills }
  ports: [{ name: http, port: ‸80800 }]
",
        &["twice", "80800"],
    ),
    (
        "apps/zz-again.yaml",
        "apiVersion: v1
kind: Service
metadata: { ‸name: reviews, namespace: shop }
spec:
  selector: { app: reviews }
  ports: [{ name: http, port: 8080 }]
",
        &["reviews"],
    ),
    (
        "apps/homeless.yaml",
        "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: ‸{ name: front }\n",
        &["namespace"],
    ),
    (
        "apps/export.yaml",
        "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: { name: ‸basket, namespace: shop }\n",
        &["basket"],
    ),
    (
        "gateways/route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: lost, namespace: shop }
spec:
  parentRefs:
    - { name: ‸entrance, namespace: weft-system }
  rules:
    - matches:
        - path: { type: PathPrefix, value: ‸reviews }
      backendRefs:
        - { name: ‸review, port: 8080 }
        - { name: ratings, port: ‸9090 }
",
        &["entrance", "reviews", "review", "9090"],
    ),
    (
        "second-mesh.yaml",
        "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: { ‸name: other }\nspec: { trustDomain: other.example }\n",
        &["Mesh"],
    ),
    ("broken/yaml.yaml", "kind: [Mesh\n‸", &["not YAML"]),
];

#[test]
fn nothing_is_said_of_the_sample() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/shop");
    assert_eq!(check(&sample), (true, Vec::new()));
}

#[test]
fn twenty_different_mistakes_are_told_where_they_stand() {
    let mut expected = 0;
    let mut wrong = Vec::new();
    for (file, marked, words) in MISTAKES {
        let repository = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/shop"), repository.path());
        let path = repository.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, marked.replace('‸', "")).unwrap();
        let (good, problems) = check(repository.path());
        assert!(!good, "{file} passes");
        let places = places(marked);
        assert_eq!(places.len(), words.len(), "{file}");
        expected += places.len();
        for (place, word) in places.iter().zip(words) {
            let told = |one: &&Problem| (one.line, one.column) == *place && one.file == file;
            if !problems.iter().find(told).is_some_and(|one| said(one).contains(word)) {
                wrong
                    .push(format!("{file}:{}:{}: nothing about {word:?} in {problems:#?}", place.0, place.1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(expected >= 20, "{expected} mistakes");
}

#[test]
fn all_files_are_reported_in_one_run() {
    // A document of which nobody can say what it is may be just the one that others refer to.
    let legible =
        || MISTAKES.iter().filter(|(file, ..)| !["kinds/unknown.yaml", "broken/yaml.yaml"].contains(file));
    let repository = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/shop"), repository.path());
    for (file, marked, _) in legible() {
        let path = repository.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, marked.replace('‸', "")).unwrap();
    }
    let (_, problems) = check(repository.path());
    let told: BTreeSet<_> = problems.iter().map(|one| one.file.as_str()).collect();
    let silent: Vec<_> = legible().filter(|(file, ..)| !told.contains(file)).map(|(file, ..)| file).collect();
    assert!(silent.is_empty(), "nothing is said of {silent:?}: {problems:#?}");
}

#[test]
fn of_a_source_that_owns_namespaces_what_others_own_is_refused() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/shop");
    let (good, problems) = check_with(&sample, &["--namespaces", "shop,till"]);
    assert!(
        !good && problems.iter().all(|one| one.message.ends_with("owned by another source")),
        "{problems:#?}"
    );
    let told: BTreeSet<_> = problems.iter().map(|one| one.file.as_str()).collect();
    let others = [
        "apps/namespace.yaml",
        "clusters/members.yaml",
        "gateways/ingress.yaml",
        "mesh.yaml",
        "security/mtls.yaml",
    ];
    assert_eq!(told, others.into());

    let own = tempfile::tempdir().unwrap();
    for directory in ["apps", "traffic"] {
        copy(&sample.join(directory), &own.path().join(directory));
    }
    fs::remove_file(own.path().join("apps/namespace.yaml")).unwrap();
    assert_eq!(check_with(own.path(), &["--namespaces", "shop"]), (true, Vec::new()));
}

fn said(problem: &Problem) -> String {
    format!("{} {}", problem.message, problem.help.as_deref().unwrap_or_default())
}

/// Line and column, both from 1, of each mark once the marks are taken out.
fn places(marked: &str) -> Vec<(u32, u32)> {
    let (mut line, mut column) = (1, 1);
    let mut places = Vec::new();
    for character in marked.chars() {
        match character {
            '‸' => places.push((line, column)),
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
    }
    places
}

fn check(repository: &Path) -> (bool, Vec<Problem>) {
    check_with(repository, &[])
}

fn check_with(repository: &Path, arguments: &[&str]) -> (bool, Vec<Problem>) {
    let weft = weft().unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(weft);
    let output =
        command.args(["check", "--output", "json"]).args(arguments).arg(repository).output().unwrap();
    let problems = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), problems)
}
