//! The sample repository: it is right, and whatever is made wrong in it is told where it stands.

use std::{collections::BTreeSet, fs, path::Path};

use expect_test::{Expect, expect};

use super::*;
use crate::manifest::tree::{self, Node, Value};

type Files = Vec<(String, String)>;

fn sample() -> Files {
    fn walk(root: &Path, folder: &Path, files: &mut Files) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/shop");
    let mut files = Vec::new();
    walk(&root, &root, &mut files);
    files.push((
        "apps/legacy.yaml".into(),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: ratings-machine\n  namespace: shop\n  \
         labels: { kubernetes.io/service-name: ratings }\naddressType: IPv4\nendpoints:\n  - addresses: [\"127.0.9.1\"]\n    \
         conditions: { ready: true }\nports:\n  - { name: http, port: 8080 }\n"
            .into(),
    ));
    files.sort();
    files
}

/// The diagnostics of the sample with one more file.
fn check(path: &str, text: &str, expect: Expect) {
    let mut files = sample();
    files.push((path.to_owned(), text.to_owned()));
    let told: Vec<String> = load(&files).diagnostics.iter().map(ToString::to_string).collect();
    expect.assert_eq(&told.join("\n"));
}

#[test]
fn the_sample_is_right_and_round_trips() {
    let loaded = load(&sample());
    assert_eq!(loaded.diagnostics, []);
    let set = loaded.accept().unwrap();
    let kinds: BTreeSet<Kind> = set.resources.keys().map(|key| key.kind).collect();
    assert_eq!(kinds, Kind::ALL.iter().copied().collect());
    for (key, entry) in &set.resources {
        let json = entry.resource.to_json();
        assert_eq!(Resource::from_json(&json).unwrap(), entry.resource);
        assert_eq!(entry.resource.key(), *key);
        assert!(!String::from_utf8(json).unwrap().contains(".yaml"), "no positions in what is hashed");
    }
    let east = ClusterName::new("east").unwrap();
    assert_eq!(set.clusters().collect::<Vec<_>>(), [east.clone(), ClusterName::new("west").unwrap()]);
    assert_eq!(set.mesh().unwrap().trust_domain.as_str(), "shop.example");
    let gateways: Vec<String> =
        set.in_cluster::<crate::resource::Gateway>(&east).map(|(key, _)| key.to_string()).collect();
    assert_eq!(gateways, ["Gateway weft-system/ingress@east"]);
    let reviews = |cluster| {
        set.find::<crate::resource::Service>(
            &Namespace::new("shop").unwrap(),
            &ObjectName::new("reviews").unwrap(),
            cluster,
        )
    };
    assert!(reviews(&east).is_some());
}

#[test]
fn the_order_of_files_does_not_matter() {
    let mut files = sample();
    let forwards = load(&files).set;
    files.reverse();
    let backwards = load(&files).set;
    let shape = |set: &ResourceSet| {
        set.resources
            .iter()
            .map(|(key, own)| format!("{key} {} {}", own.resource.hash(), own.origin))
            .collect::<Vec<_>>()
    };
    assert_eq!(shape(&forwards), shape(&backwards));
}

#[test]
fn a_repository_has_one_mesh() {
    let without: Files = sample().into_iter().filter(|(path, _)| path != "mesh.yaml").collect();
    assert_eq!(load(&without).diagnostics[0].message, "there is no `Mesh`: a repository holds exactly one");
    let text = "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: { name: other }\nspec: { trustDomain: b.example }\n";
    check(
        "z.yaml",
        text,
        expect![
            "z.yaml:3:13: a second `Mesh`: the first one is at mesh.yaml:2 (a repository holds exactly one)"
        ],
    );
}

#[test]
fn references_that_git_owns_resolve_in_every_cluster() {
    let route = |backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ group: \"\", kind: Service, name: front }}]\n  rules: [{{ backendRefs: [{backend}] }}]\n"
        )
    };
    check(
        "z.yaml",
        &route("{ name: raitings, port: 8080 }"),
        expect!["z.yaml:6:35: there is no Service `shop/raitings` (did you mean `ratings`?)"],
    );
    check(
        "z.yaml",
        &route("{ name: ratings, port: 80 }"),
        expect!["z.yaml:6:50: `Service shop/ratings`, at apps/ratings.yaml:1, has no port 80"],
    );
    check(
        "z.yaml",
        &route("{ name: ratings, namespace: other, port: 80 }"),
        expect![
            "z.yaml:6:55: a backend in another namespace is not yet supported: it needs a ReferenceGrant"
        ],
    );
    let one_sided = "apiVersion: v1\nkind: Service\nmetadata: { name: till, namespace: shop }\nspec: { selector: { app: till }, ports: [{ port: 80 }] }\n---\n".to_owned();
    check("clusters/east/z.yaml", &one_sided, expect![""]);
    let mut files = sample();
    files.push(("clusters/east/z.yaml".into(), one_sided));
    files.push(("z.yaml".into(), route("{ name: till, port: 80 }")));
    let told: Vec<String> = load(&files).diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["z.yaml:6:35: there is no Service `shop/till` in cluster `west`"]);
    // What Git does not own belongs to the cluster.
    check(
        "z.yaml",
        &route("{ name: ratings, port: 8080 }").replace("namespace: shop", "namespace: other"),
        expect![""],
    );
}

#[test]
fn a_slice_names_the_ports_of_its_service() {
    check(
        "apps/other.yaml",
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: other, namespace: shop, labels: { kubernetes.io/service-name: ratings } }
addressType: IPv4
endpoints: [{ addresses: [127.0.9.2] }]
ports:
  - { name: http, port: 9000 }
  - { port: 9001 }
",
        expect!["apps/other.yaml:8:5: the Service has no port without a name (its ports are `http`)"],
    );
}

/// The sample where the `Mesh` says `unresolvedReferences: REPORT`.
fn lenient() -> Files {
    let lenient = |text: String| text.replace("unresolvedReferences: REFUSE", "unresolvedReferences: REPORT");
    sample().into_iter().map(|(path, text)| (path, lenient(text))).collect()
}

#[test]
fn unresolved_references_may_be_let_pass_and_are_warned_of() {
    let mut files = lenient();
    for (_, text) in &mut files {
        *text = text.replace("name: reviews-v3, port", "name: gone, port");
    }
    let loaded = load(&files);
    let told: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    expect![[r#"
        traffic/reviews.yaml:16:19: warning: there is no Service `shop/gone`
        traffic/reviews.yaml:21:19: warning: there is no Service `shop/gone`"#]]
    .assert_eq(&told.join("\n"));
    assert!(loaded.accept().is_ok());
}

#[test]
fn what_is_let_pass_hides_no_mistake() {
    let mut files = lenient();
    // More warnings than are told, in a file that comes first; and in one object a mistake beside a warning.
    let route = |name: &str, backends: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
             parentRefs: [{{ group: \"\", kind: Service, name: front }}]\n  rules: [{{ backendRefs: [{backends}] }}]\n---\n"
        )
    };
    let many = (0..=MAX_DIAGNOSTICS).map(|n| route(&format!("r{n}"), "{ name: gone, port: 1 }"));
    files.push(("a.yaml".into(), many.collect()));
    let both = "{ name: gone, port: 80 }, { name: ratings, namespace: other, port: 80 }";
    files.push(("z.yaml".into(), route("both", both)));
    let loaded = load(&files);
    let (errors, warnings): (Vec<_>, Vec<_>) = loaded.diagnostics.iter().partition(|one| one.is_error());
    assert_eq!(warnings.len(), MAX_DIAGNOSTICS);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    expect!["z.yaml:6:81: a backend in another namespace is not yet supported: it needs a ReferenceGrant"]
        .assert_eq(&errors.join("\n"));
    assert!(loaded.accept().is_err());
}

#[test]
fn policies_hold_to_their_targets() {
    let own = |kind: &str, spec: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: {kind}\nmetadata: {{ name: z, namespace: shop }}\nspec:\n  {spec}\n"
        )
    };
    check(
        "z.yaml",
        &own("TrafficPolicy", "targetRefs: [{ kind: Service, name: reviews }]"),
        expect![
            "z.yaml:5:16: `TrafficPolicy shop/reviews`, at traffic/reviews.yaml:25, has the same target as `TrafficPolicy shop/z` (two of one kind at one target contradict each other: make them one)"
        ],
    );
    check(
        "z.yaml",
        &own("TrafficPolicy", "targetRefs: [{ kind: Service, name: reviews, sectionName: http }]"),
        expect![""],
    );
    check(
        "z.yaml",
        &own("TrafficPolicy", "targetRefs: [{ kind: Service, name: reviews, sectionName: grpc }]"),
        expect![[r#"
        z.yaml:5:61: `Service shop/reviews`, at apps/reviews.yaml:3, has no port named `grpc`"#]],
    );
    check(
        "z.yaml",
        &own("PeerAuthentication", "mtls: PERMISSIVE").replace("namespace: shop", "namespace: weft-system"),
        expect![[r#"
        z.yaml:3:19: `PeerAuthentication weft-system/strict`, at security/mtls.yaml:3, has the same target as `PeerAuthentication weft-system/z` (two of one kind at one target contradict each other: make them one)"#]],
    );
    check(
        "z.yaml",
        &own(
            "AuthorizationPolicy",
            "targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: reviews }]",
        ),
        expect![[r#"
        z.yaml:5:75: a route with a Service as parent guards nothing, since it acts on the caller's side (attach the policy to the Service)"#]],
    );
    check(
        "z.yaml",
        &own("AuthorizationPolicy", "targetRefs: [{ kind: Gateway, name: ingress }]"),
        expect![[
            r#"z.yaml:5:16: the kind is of group `gateway.networking.k8s.io`, not `` (write `group: "gateway.networking.k8s.io"`)"#
        ]],
    );
    check(
        "z.yaml",
        &own(
            "AuthorizationPolicy",
            "targetRefs: [{ kind: Service, name: reviews }]\n  action: DENY\n  rules: [{ name: all }]",
        ),
        expect![""],
    );
}

#[test]
fn clusters_bound_what_may_be_said_of_them() {
    let text = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: a, namespace: lab }\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: { name: a, namespace: lab }\nspec: { ports: [{ port: 1 }] }\n";
    check(
        "clusters/west/z.yaml",
        text,
        expect![[r#"
        clusters/west/z.yaml:3:33: cluster `west` may not export from namespace `lab` (add it to `spec.namespaces` of the Cluster, or place the export elsewhere)"#]],
    );
    check(
        "clusters/wset/z.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n",
        expect!["clusters/wset/z.yaml:3:19: there is no Cluster `wset`"],
    );
}

#[test]
fn routes_attach_where_a_listener_takes_them() {
    let text = |parent: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  parentRefs: [{parent}]\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: own, namespace: weft-system }}\nspec:\n  \
         gatewayClassName: weft\n  listeners: [{{ name: a, port: 80, protocol: HTTP }}]\n"
        )
    };
    check(
        "z.yaml",
        &text("{ name: own, namespace: weft-system }"),
        expect![[r#"
        z.yaml:5:24: Gateway `weft-system/own`, at z.yaml:7, takes no HTTPRoute from namespace `shop` there (`allowedRoutes.namespaces.from: All` at the listener would)"#]],
    );
    check(
        "z.yaml",
        &text("{ name: ingress, namespace: weft-system, sectionName: https }"),
        expect![[r#"
        z.yaml:5:70: Gateway `weft-system/ingress`, at gateways/ingress.yaml:3, has no such listener"#]],
    );
}

#[test]
fn a_port_of_a_gateway_process_belongs_to_one_gateway() {
    let gateway = |name: &str, cluster: &str, spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{ name: {name}, namespace: edge, labels: {{ weft.mesh/clusters: {cluster} }} }}\nspec:\n  \
             gatewayClassName: weft\n  listeners: [{{ name: a, port: 90, protocol: HTTP }}]\n{spec}---\n"
        )
    };
    let at = |address: &str| format!("  addresses: [{{ value: {address} }}]\n");
    let one = gateway("one", "east", &at("127.1.0.1"));
    check(
        "z.yaml",
        &format!("{one}{}", gateway("other", "east", &at("127.1.0.1"))),
        expect![
            "z.yaml:14:32: `Gateway edge/one@east`, at z.yaml:1, has the same port as `Gateway edge/other@east` (a port of the ingress gateways belongs to one Gateway: take another, or give each its own `addresses`)"
        ],
    );
    // One without addresses is served at every address.
    check(
        "z.yaml",
        &format!("{one}{}", gateway("other", "east", "")),
        expect![
            "z.yaml:14:32: `Gateway edge/one@east`, at z.yaml:1, has the same port as `Gateway edge/other@east` (a port of the ingress gateways belongs to one Gateway: take another, or give each its own `addresses`)"
        ],
    );
    check(
        "z.yaml",
        &format!("{}{one}", gateway("other", "east", "")),
        expect![
            "z.yaml:13:32: `Gateway edge/other@east`, at z.yaml:1, has the same port as `Gateway edge/one@east` (a port of the ingress gateways belongs to one Gateway: take another, or give each its own `addresses`)"
        ],
    );
    check("z.yaml", &format!("{one}{}", gateway("other", "east", &at("127.1.0.2"))), expect![""]);
    check("z.yaml", &format!("{one}{}", gateway("other", "west", "")), expect![""]);
}

/// What a mutation did, and where it must be told.
struct Mutation {
    file: usize,
    text: String,
    at: Position,
    codes: &'static [Code],
}

/// Calls `visit` with the pointer of every entry of the tree, where its key stands, and its value.
fn walk(node: &Node, pointer: &str, visit: &mut dyn FnMut(&str, Position, &Node)) {
    match &node.value {
        Value::Mapping(entries) => {
            for entry in entries {
                let pointer = format!("{pointer}/{}", entry.key.replace('/', "~1"));
                visit(&pointer, entry.key_at, &entry.node);
                walk(&entry.node, &pointer, visit);
            }
        }
        Value::Sequence(items) => {
            items.iter().enumerate().for_each(|(i, item)| walk(item, &format!("{pointer}/{i}"), visit))
        }
        Value::Scalar { .. } => {}
    }
}

/// `text` with what stands at `at` replaced, when it is there in so many words.
fn replace(text: &str, at: Position, old: &str, new: &str) -> Option<String> {
    let line_start: usize = text.split_inclusive('\n').take(at.line as usize - 1).map(str::len).sum();
    let start = line_start + at.column as usize - 1;
    let (before, rest) = text.split_at_checked(start)?;
    let rest = rest.strip_prefix(old)?;
    Some(format!("{before}{new}{rest}"))
}

fn mutate(file: usize, text: &str, tree: &Node, out: &mut Vec<(&'static str, Mutation)>) {
    // Maps whose keys are free, and fields on which it hangs how the rest is read.
    let free = ["/labels", "/annotations", "/selector", "/matchLabels"];
    let steers = ["/apiVersion", "/kind", "/type"];
    let refers = |pointer: &str| {
        let parts: Vec<&str> = pointer.split('/').skip(1).collect();
        match parts.as_slice() {
            ["spec", "targetRefs" | "parentRefs", _, "name" | "sectionName"] => true,
            ["spec", "rules", _, "backendRefs", _, "name"] | ["spec", "gatewayClassName"] => true,
            ["metadata", "labels", _] => true,
            ["metadata", "name"] => tree.field("kind").unwrap().node.text() == Some("ServiceExport"),
            _ => false,
        }
    };
    walk(tree, "", &mut |pointer, key_at, node| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        if !free.iter().any(|free| parent.ends_with(free))
            && !steers.iter().any(|field| pointer.ends_with(field))
        {
            let text = replace(text, key_at, key, &format!("{key}X")).unwrap();
            out.push(("unknown field", Mutation { file, text, at: key_at, codes: &[Code::UnknownField] }));
        }
        let Value::Scalar { text: value, .. } = &node.value else {
            return;
        };
        let quoted = format!("\"{value}\"");
        let raw = if replace(text, node.at, &quoted, "").is_some() { quoted } else { value.clone() };
        if let Some(text) =
            replace(text, node.at, &raw, "{ no: 1 }").filter(|_| !steers[..2].contains(&pointer))
        {
            out.push(("wrong type", Mutation { file, text, at: node.at, codes: &[Code::WrongType] }));
        }
        if refers(pointer) {
            let text = replace(text, node.at, &raw, &format!("{value}-not-there")).unwrap();
            out.push((
                "dangling reference",
                Mutation { file, text, at: node.at, codes: &[Code::UnresolvedReference, Code::Placement] },
            ));
        }
    });
}

#[test]
fn every_mutation_of_the_sample_is_told_at_its_line_and_column() {
    let files = sample();
    let mut mutated = BTreeSet::new();
    let mut count = 0;
    for (index, (path, text)) in files.iter().enumerate().filter(|(_, (path, _))| path.ends_with(".yaml")) {
        for tree in tree::documents(text, &mut Vec::new()) {
            let kind = tree.field("kind").unwrap().node.text().unwrap().to_owned();
            let mut mutations = Vec::new();
            mutate(index, text, &tree, &mut mutations);
            for (what, mutation) in mutations {
                let mut files = files.clone();
                files[mutation.file].1 = mutation.text;
                let told = load(&files).diagnostics;
                let hit = told.iter().any(|own| {
                    *own.file == **path && own.at == mutation.at && mutation.codes.contains(&own.code)
                });
                assert!(
                    hit,
                    "{kind}: {what} at {path}:{:?}\n{told:#?}\n{}",
                    mutation.at, files[mutation.file].1
                );
                mutated.insert((what, kind.clone()));
                count += 1;
            }
        }
        let mut files = files.clone();
        files.push((format!("{path}.copy.yaml"), text.clone()));
        for tree in tree::documents(text, &mut Vec::new()) {
            let at = tree.field("metadata").unwrap().node.field("name").unwrap().key_at;
            let told = load(&files).diagnostics;
            let hit = told.iter().any(|own| {
                own.code == Code::DuplicateObject && own.at == at && own.file.ends_with("copy.yaml")
            });
            assert!(hit, "duplicate of {path}: {told:#?}");
            mutated.insert(("duplicate", tree.field("kind").unwrap().node.text().unwrap().to_owned()));
        }
    }
    for kind in Kind::ALL {
        for what in ["unknown field", "wrong type", "duplicate"] {
            assert!(mutated.contains(&(what, kind.name().to_owned())), "{kind}: no {what} was tried");
        }
    }
    for kind in
        ["EndpointSlice", "Gateway", "HTTPRoute", "ServiceExport", "AuthorizationPolicy", "TrafficPolicy"]
    {
        assert!(
            mutated.contains(&("dangling reference", kind.to_owned())),
            "{kind}: no dangling reference was tried"
        );
    }
    assert!(count > 300, "{count}");
}

#[test]
fn an_address_leads_to_one_service() {
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
             clusterIP: 10.96.0.9\n  clusterIPs: [10.96.0.9, \"fd00:96::9\"]\n  ports: [{{ port: 80 }}]\n  {more}\n---\n"
        )
    };
    check(
        "apps/twice.yaml",
        &[service("one", "selector: { app: one }"), service("two", "selector: { app: two }")].concat(),
        expect![[r#"
            apps/twice.yaml:14:14: `Service shop/one`, at apps/twice.yaml:1, has the same address as `Service shop/two` (a virtual address leads to one Service: give each its own)
            apps/twice.yaml:15:28: `Service shop/one`, at apps/twice.yaml:1, has the same address as `Service shop/two` (a virtual address leads to one Service: give each its own)"#]],
    );
}

#[test]
fn a_service_takes_no_address_that_may_be_somebody_elses() {
    let resolver = "apiVersion: v1
kind: Service
metadata: { name: resolver, namespace: shop }
spec:
  clusterIP: 8.8.8.8
  clusterIPs: [8.8.8.8, \"2001:db8::8\"]
  ports: [{ port: 53 }]
";
    check(
        "apps/z.yaml",
        resolver,
        expect![[r#"
            apps/z.yaml:5:14: `8.8.8.8` is no virtual address of this mesh: it may be somebody else's (take one of `10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`, `100.64.0.0/10`, `240.0.0.0/4`, `127.0.0.0/8`, `fc00::/7`, or add its range to `virtualAddresses` of the Mesh)
            apps/z.yaml:6:16: `8.8.8.8` is no virtual address of this mesh: it may be somebody else's (take one of `10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`, `100.64.0.0/10`, `240.0.0.0/4`, `127.0.0.0/8`, `fc00::/7`, or add its range to `virtualAddresses` of the Mesh)
            apps/z.yaml:6:26: `2001:db8::8` is no virtual address of this mesh: it may be somebody else's (take one of `10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`, `100.64.0.0/10`, `240.0.0.0/4`, `127.0.0.0/8`, `fc00::/7`, or add its range to `virtualAddresses` of the Mesh)"#]],
    );
    let told = |ranges: &str, text: &str| {
        let said = format!("spec:\n  virtualAddresses: {ranges}\n");
        let mut files = sample();
        let mesh = files.iter_mut().find(|(path, _)| path == "mesh.yaml").unwrap();
        mesh.1 = mesh.1.replace("spec:\n", &said);
        files.push(("apps/z.yaml".into(), text.into()));
        load(&files).diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told("[8.8.8.0/24, \"2001:db8::/32\"]", resolver), [""; 0]);
    let all = told("[0.0.0.0/0, \"::/0\"]", &resolver.replace("8.8.8.8", "169.254.169.254"));
    assert_eq!(all.len(), 2, "whatever the Mesh says: {all:?}");
    assert_eq!(told("[]", resolver).len(), 3);
    let all = told("[10.0.0.0/33]", resolver);
    assert_eq!(all.len(), 1, "a Mesh that is wrong itself is not held against others: {all:?}");
}

#[test]
fn too_many_mistakes_are_told_in_part() {
    let fields: String = (0..1_500).map(|n| format!("  x{n}: 1\n")).collect();
    let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: a }}\nspec:\n{fields}");
    let told = load(&[("a.yaml", text)]).diagnostics;
    assert_eq!(told.len(), MAX_DIAGNOSTICS + 1, "and nothing of what was not looked at, such as the Mesh");
    assert_eq!(
        told[0].to_string(),
        ".: only 1000 mistakes are told, and there may be more (mend these first)"
    );
}

mod laws {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever is typed into a file, reading it ends, and every mistake stands in a file that there is.
        #[test]
        fn reading_is_total(
            file in any::<prop::sample::Index>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), r#"[-:{}\[\],&*|>'"a0 \n\té#]{0,4}"#, 0..4usize), 1..4),
        ) {
            let mut files = sample();
            let text = &mut file.get_mut(&mut files).1;
            for (place, insert, remove) in edits {
                let mut chars: Vec<char> = text.chars().collect();
                let start = place.index(chars.len() + 1);
                let end = (start + remove).min(chars.len());
                chars.splice(start..end, insert.chars());
                *text = chars.into_iter().collect();
            }
            let lines = |path: &str| files.iter().find(|(own, _)| own == path).map(|(_, text)| text.lines().count() as u32);
            for own in load(&files).diagnostics {
                prop_assert!(own.at.line == 0 || lines(&own.file).is_some_and(|count| own.at.line <= count + 1), "{own}");
            }
        }
    }
}
