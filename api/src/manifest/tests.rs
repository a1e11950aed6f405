//! Golden tables: YAML → diagnostics with their positions.

use expect_test::{Expect, expect};

use super::*;
use crate::resource::{Gateway, HttpRoute, route};

fn check(text: &str, expect: Expect) {
    let told: Vec<String> = parse(&[("a.yaml", text)]).diagnostics.iter().map(ToString::to_string).collect();
    expect.assert_eq(&told.join("\n"));
}

fn one<S: crate::resource::Spec>(text: &str) -> S {
    let parsed = parse(&[("a.yaml", text)]);
    assert_eq!(parsed.diagnostics, []);
    let json = parsed.placed[0].resource.to_json();
    let object = Resource::from_json(&json).unwrap();
    serde_json::from_value(serde_json::to_value(&object.as_kind::<S>().unwrap().spec).unwrap()).unwrap()
}

#[test]
fn yaml_that_is_not_read() {
    check("a: [1, 2", expect!["a.yaml:2:1: not YAML: while parsing a flow sequence, expected ',' or ']'"]);
    check(
        "kind: Mesh\nkind: Mesh\n",
        expect![[r#"
        a.yaml:1:1: `apiVersion` is missing
        a.yaml:1:1: `metadata` is missing
        a.yaml:1:1: `spec` is missing (Trust domain and defaults. A repository holds exactly one.)
        a.yaml:2:1: `kind` is given twice: also at line 1"#]],
    );
    check("a: &x 1\nb: *x\n", expect!["a.yaml:2:4: YAML aliases are not read: write the value out"]);
    check(
        "kind: !!str Mesh\n",
        expect![[r#"
        a.yaml:1:1: `apiVersion` is missing
        a.yaml:1:1: `metadata` is missing
        a.yaml:1:1: `spec` is missing (Trust domain and defaults. A repository holds exactly one.)
        a.yaml:1:7: YAML tags are not read: leave the tag out, and quote what is to be text"#]],
    );
    check("- a\n", expect!["a.yaml:1:1: expected an object, found a list"]);
    check("{}", expect!["a.yaml:1:1: `kind` is missing"]);
    check(
        &"[".repeat(100),
        expect!["a.yaml:1:50: deeper than 48 levels or more than 200000 values in one file"],
    );
    check("# nothing\n---\n---\n", expect![]);
}

#[test]
fn kinds_that_are_not_known() {
    check(
        "apiVersion: v1\nkind: Servce\nmetadata: { name: a }\n",
        expect!["a.yaml:2:7: unknown kind `Servce` (did you mean `Service`?)"],
    );
    check(
        "apiVersion: v1\nkind: Pod\n",
        expect![
            "a.yaml:2:7: unknown kind `Pod` (known are Mesh, Cluster, Namespace, Service, EndpointSlice, Gateway, HTTPRoute, ServiceExport, PeerAuthentication, AuthorizationPolicy, TrafficPolicy)"
        ],
    );
    check(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\n",
        expect!["a.yaml:2:7: `GRPCRoute` is not yet supported"],
    );
    check(
        "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceImport\n",
        expect!["a.yaml:2:7: unknown kind `ServiceImport` (it is made from ServiceExports, never committed)"],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: a, namespace: b }\n",
        expect![
            "a.yaml:1:13: `Gateway` is not read under `networking.istio.io/v1` (write `apiVersion: gateway.networking.k8s.io/v1`)"
        ],
    );
    check(
        "apiVersion: weft.mesh/v1\nkind: Mesh\nmetadata: { name: a }\nspec: { trustDomain: a }\n",
        expect!["a.yaml:1:13: expected `weft.mesh/v1alpha1`, found text `weft.mesh/v1`"],
    );
}

#[test]
fn five_mistakes_in_one_document() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: Reviews
spec:
  hostname: [shop.example]
  rules:
    - matches:
        - path: { type: Prefix, value: reviews }
      backendRefs:
        - { name: reviews, port: 80800, weight: heavy }
",
        expect![[r#"
            a.yaml:4:3: `namespace` is missing: every HTTPRoute lies in one (at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123))
            a.yaml:4:9: `Reviews` is not a name of an object: at most 253 of `a-z`, `0-9`, `-` and `.`, each part beginning and ending with a letter or digit (RFC 1123)
            a.yaml:6:3: unknown field `hostname` (did you mean `hostnames`?)
            a.yaml:9:25: expected `Exact`, `PathPrefix` or `RegularExpression`, found text `Prefix`
            a.yaml:11:34: must be 1 to 65535, is 80800 (The Service's port; needed for a Service.)
            a.yaml:11:49: expected a whole number, found text `heavy` (Its share, relative to the sum of all.)"#]],
    );
}

#[test]
fn what_is_standard_but_not_there_yet_is_named() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: a, namespace: b, ownerReferences: [], uid: x }
spec:
  rules:
    - sessionPersistence: { sessionName: a }
      filters:
        - { type: RequestMirror, requestMirror: { backendRef: { name: a } } }
        - { type: CORS, cors: {} }
      backendRefs:
        - { name: a, port: 1, filters: [] }
        - { group: multicluster.x-k8s.io, kind: ServiceImport, name: a, port: 1 }
status: {}
---
apiVersion: v1
kind: Service
metadata: { name: a, namespace: b }
spec:
  type: ExternalName
  externalName: example.org
  ports: [{ port: 53, protocol: UDP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: a, namespace: b }
spec:
  gatewayClassName: weft
  listeners:
    - { name: a, port: 443, protocol: HTTPS, tls: { mode: Terminate } }
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: a, namespace: b }
spec: { loadBalancing: { policy: HASH, hash: { on: HEADER, name: x } } }
",
        expect![[r#"
            a.yaml:3:36: `ownerReferences` is not yet supported (it is part of the standard, but nothing here would act on it: leave it out)
            a.yaml:3:57: `uid` is not read: it is written by the API server (configuration says what is wanted: leave it out)
            a.yaml:6:7: `sessionPersistence` is not yet supported (it is part of the standard, but nothing here would act on it: leave it out)
            a.yaml:8:19: `type: RequestMirror` is not yet supported
            a.yaml:9:19: `type: CORS` is not yet supported
            a.yaml:11:31: `filters` is not yet supported (it is part of the standard, but nothing here would act on it: leave it out)
            a.yaml:12:49: a backend of kind `ServiceImport` is not yet supported: only Service is
            a.yaml:13:1: `status` is not read: it is written by the API server (configuration says what is wanted: leave it out)
            a.yaml:19:9: `type: ExternalName` is not yet supported
            a.yaml:20:3: `externalName` is not yet supported (it is part of the standard, but nothing here would act on it: leave it out)
            a.yaml:21:33: `protocol: UDP` is not yet supported
            a.yaml:29:39: `protocol: HTTPS` is not yet supported
            a.yaml:29:46: `tls` is not yet supported (it is part of the standard, but nothing here would act on it: leave it out)
            a.yaml:34:34: `policy: HASH` is not yet supported
            a.yaml:34:40: `hash` is not yet supported (nothing here would act on it: leave it out)"#]],
    );
}

#[test]
fn rules_inside_an_object() {
    check(
        "apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: Shop.example
  certificates: { leaf: 1m, intermediate: 1m, root: 10d }
---
apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh2, namespace: a }
spec:
  trustDomain: shop.example
  certificates: { leaf: 1m, intermediate: 30s, root: 30s }
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: a, namespace: b }
spec:
  targetRefs: [{ kind: Gateway, group: gateway.networking.k8s.io, name: a }]
  locality:
    failover: [{ from: x, to: [x] }]
    distribute: [{ from: x, to: { x: 50, y: 40 } }, { from: y/a/b, to: { x: 100 } }]
    panicPercent: 101
  outlierEjection: { baseEjection: 30s, maxEjection: 10s, successRate: { deviations: 20 } }
  retry: { attempts: 11, statuses: [200], backoff: { base: 1s, max: 25ms } }
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: a, namespace: b }
spec:
  selector: { matchLabels: { app: a } }
  targetRefs: [{ kind: Service, name: a, namespace: other }]
  rules: [{ name: a, when: }, { name: a, when: 'true' }]
---
apiVersion: v1
kind: Service
metadata: { name: a, namespace: b }
spec: { ports: [{ port: 1 }, { port: 1, name: A, targetPort: true }] }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: a }
spec: { gateways: [\"gateway:15443\"], namespaces: [Shop] }
",
        expect![[r#"
            a.yaml:5:16: `Shop.example` is not a trust domain: 1 to 255 of `a-z`, `0-9`, `.`, `_` and `-` (SPIFFE-ID, section 2.1) (Fixed once the root exists.)
            a.yaml:6:25: must be 5m to 2160h, is 1m
            a.yaml:6:43: must be longer than a leaf's 1m, is 1m
            a.yaml:6:53: `10d` is not a duration: write `300ms`, `10s` or `1h30m` (units h, m, s, ms; at most five digits each, four parts) (Of the mesh's root.)
            a.yaml:10:26: `namespace` is not allowed: objects of this kind lie in no namespace (leave it out)
            a.yaml:13:25: must be 5m to 2160h, is 1m
            a.yaml:13:43: must be longer than a leaf's 1m, is 30s
            a.yaml:13:54: must be longer than an intermediate's 30s, is 30s
            a.yaml:19:24: a TrafficPolicy is about Services: expected `Service`
            a.yaml:21:31: `x` cannot stand in for itself
            a.yaml:22:26: `x` has `failover` too: `distribute` excludes it, keep one
            a.yaml:22:33: the shares must sum to 100, they sum to 90
            a.yaml:22:53: `y/a/b` is neither `region` nor `region/zone`
            a.yaml:23:19: must be 0 to 100, is 101 (Below this healthy share of a priority its ejections are ignored; 0: never.)
            a.yaml:24:54: must be at least `baseEjection`, 30s
            a.yaml:24:86: must be 0.1 to 10, is 20 (So many standard deviations below the mean.)
            a.yaml:25:22: must be 0 to 10, is 11 (How many more tries; 0: none.)
            a.yaml:25:37: must be 400 to 599, is 200
            a.yaml:25:69: must be at least `base`, 1s
            a.yaml:31:3: `selector` and `targetRefs` exclude each other: keep one
            a.yaml:32:53: an AuthorizationPolicy guards only what lies in its own namespace
            a.yaml:33:22: expected text, found nothing (The condition, in CEL; without one the rule matches all.)
            a.yaml:33:39: this name is given twice
            a.yaml:38:17: `name` is missing: needed with several ports
            a.yaml:38:38: this port is given twice
            a.yaml:38:47: `A` does not match `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$` (Needed when there are several.)
            a.yaml:38:62: expected a whole number or text, found `true` (The workload's port, by number or by name; the same number when absent.)
            a.yaml:43:20: `gateway:15443` is not an IP address and port: write `127.2.0.2:15443` (an IP address and a port, `127.2.0.2:15443`)
            a.yaml:43:51: `Shop` is not a namespace: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123)"#]],
    );
}

#[test]
fn rules_inside_a_route() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: a, namespace: b }
spec:
  parentRefs: [{ kind: Service, name: a }]
  hostnames: [Shop.example]
  rules:
    - name: one
      matches:
        - path: { value: reviews }
        - path: { type: Exact, value: /a//b }
        - path: { type: RegularExpression, value: '(' }
        - headers: [{ name: 'x y', value: a }]
        - headers: [{ name: a, value: a }, { name: A, value: b }]
        - method: get
      filters:
        - { type: RequestRedirect, requestRedirect: { statusCode: 200 } }
        - type: URLRewrite
          urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
      backendRefs: [{ name: a, weight: -1 }]
      timeouts: { request: 1s, backendRequest: 2s }
    - name: one
      retry: { codes: [700], backoff: 1 }
",
        expect![[r#"
            a.yaml:5:24: `Service` is of group ``, not `gateway.networking.k8s.io` (write `group: ""`)
            a.yaml:6:15: `Shop.example` is not a host name: a DNS name in lower case without port or trailing dot, `*.` may lead (Gateway API, Hostname)
            a.yaml:10:26: `reviews` must begin with `/`
            a.yaml:11:39: must not contain `//`
            a.yaml:12:52: not a regular expression: unclosed group
            a.yaml:13:29: `x y` is not a header name: 1 to 256 letters, digits or !#$%&'*+-.^_`|~ (RFC 9110, token) (The header.)
            a.yaml:14:52: this header is given twice
            a.yaml:15:19: expected `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `CONNECT`, `OPTIONS`, `TRACE` or `PATCH`, found text `get` (did you mean `GET`?)
            a.yaml:17:19: a rule that redirects has no `backendRefs`: keep one
            a.yaml:17:67: expected `301`, `302`, `303`, `307` or `308`, found `200`
            a.yaml:19:39: ReplacePrefixMatch needs exactly one match in the rule, of type PathPrefix
            a.yaml:20:21: `port` is missing: needed for a Service
            a.yaml:20:40: must be 0 to 1000000, is -1 (Its share, relative to the sum of all.)
            a.yaml:21:48: must not be longer than `request`
            a.yaml:22:13: this name is given twice
            a.yaml:23:24: must be 400 to 599, is 700
            a.yaml:23:39: expected text, found `1`: quote it (At least this long between two.)"#]],
    );
}

#[test]
fn objects_are_placed_by_label_or_folder() {
    let service = |name: &str, label: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: s{label} }}\nspec: {{ ports: [{{ port: 1 }}] }}\n"
        )
    };
    let both = ", labels: { weft.mesh/clusters: 'east, west', app: a }";
    let parsed = parse(&[
        ("clusters/east/a.yaml", service("folder", "")),
        ("a.yaml", service("label", both)),
        ("b.yaml", service("all", "")),
    ]);
    assert_eq!(parsed.diagnostics, []);
    let keys: Vec<String> = parsed.placed.iter().map(|own| own.resource.key().to_string()).collect();
    assert_eq!(
        keys,
        ["Service s/label@east", "Service s/label@west", "Service s/all", "Service s/folder@east"]
    );
    assert_eq!(parsed.placed[0].resource.meta().labels.len(), 1, "the label of placement says nothing else");

    let told = |files: &[(&str, String)]| {
        parse(files).diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    expect!["clusters/east/a.yaml:3:67: the label says other clusters than the folder, which says `east`: keep one of them"].assert_eq(&told(&[("clusters/east/a.yaml", service("a", both))]));
    expect!["a.yaml:3:66: `East` is not a name of a cluster: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123)"].assert_eq(&told(&[("a.yaml", service("a", ", labels: { weft.mesh/clusters: East }"))]));
    expect!["b.yaml:3:13: `Service s/a` is already declared at a.yaml:1, as `Service s/a@east` (remove one, rename one, or place them in different clusters)"].assert_eq(&told(&[("a.yaml", service("a", both)), ("b.yaml", service("a", ""))]));
    assert_eq!(
        told(&[("clusters/east/a.yaml", service("a", "")), ("clusters/west/a.yaml", service("a", ""))]),
        ""
    );
}

#[test]
fn a_label_makes_no_more_copies_than_may_be_kept() {
    let service = |name: usize, clusters: usize| {
        let clusters: Vec<_> = (0..clusters).map(|n| format!("c{n}")).collect();
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{name}, namespace: s, labels: {{ weft.mesh/clusters: \"{}\" }} }}\n\
             spec: {{ ports: [{{ port: 1 }}] }}\n",
            clusters.join(",")
        )
    };
    check(
        &service(0, 65),
        expect![
            "a.yaml:4:68: at most 64 clusters in one label, these are 65: without the label it applies in all"
        ],
    );
    let many: String = (0..=MAX_OBJECTS / 64).map(|name| service(name, 64)).collect();
    let parsed = parse(&[("a.yaml", &many)]);
    assert!(parsed.placed.is_empty());
    let told: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(told, [".: more than 100000 objects in one repository: split it"]);

    let mut full = Parsed { kept_bytes: MAX_KEPT_BYTES, ..Parsed::default() };
    full.file(&"a.yaml".into(), &service(0, 1));
    assert!(full.placed.is_empty());
    assert!(full.is_closed());
}

#[test]
fn the_patterns_of_a_repository_have_a_limit_together() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: a, namespace: b }\n\
                spec: { rules: [{ matches: [{ path: { type: RegularExpression, value: '/a+' } }] }] }\n";
    let read = |pattern_bytes| {
        let mut parsed = Parsed { pattern_bytes, ..Parsed::default() };
        parsed.file(&"a.yaml".into(), text);
        (parsed.diagnostics.into_iter().map(|one| one.message).collect::<Vec<_>>(), parsed.pattern_bytes)
    };
    let (none, taken) = read(0);
    assert!(none.is_empty() && taken > 0, "{none:?} {taken}");
    let (told, _) = read(crate::pattern::ALL_BYTES_MAX + 1);
    assert!(told.len() == 1 && told[0].contains("268435456 bytes: repeat less"), "{told:?}");
}

#[test]
fn mistakes_beyond_the_limit_are_neither_told_nor_looked_for() {
    let fields: String = (0..1_500).map(|n| format!("  x{n}: 1\n")).collect();
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: a }}\nspec:\n{fields}---\nnonsense: 1\n"
    );
    let mut parsed = parse(&[("a.yaml", text.as_str()), ("b.yaml", "a: &x 1\nb: *x\n")]);
    assert_eq!(parsed.diagnostics.len(), report::MAX_DIAGNOSTICS);
    assert!(parsed.placed.is_empty(), "what is wrong with it is not all known");
    parsed.error(&"c.yaml".into(), Position::default(), Code::Syntax, "one more".into());
    assert_eq!(parsed.diagnostics.len(), report::MAX_DIAGNOSTICS);
}

#[test]
fn paths_are_written_as_requests_are_once_normalised() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: a, namespace: b }
spec:
  rules:
    - matches:
        - path: { type: Exact, value: /caf%c3%a9 }
        - path: { value: /%7Euser }
        - path: { value: /100% }
        - path: { value: /caf%C3%A9/~user/%25 }
    - matches: [{ path: { value: /a } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: \"*.example\", path: { type: ReplacePrefixMatch, replacePrefixMatch: xyz } }
    - matches: [{ path: { value: /b } }]
      filters:
        - type: URLRewrite
          urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: \"\" } }
    - filters:
        - type: RequestRedirect
          requestRedirect: { hostname: \"*.example\", path: { type: ReplaceFullPath, replaceFullPath: \"/a b\" } }
    - filters:
        - type: RequestRedirect
          requestRedirect: { path: { type: ReplaceFullPath, replaceFullPath: \"/a\\nb\" } }
",
        expect![[r#"
            a.yaml:7:39: `/caf%c3%a9` is not how requests say it once normalised (write `/caf%C3%A9`)
            a.yaml:8:26: `/%7Euser` is not how requests say it once normalised (write `/~user`)
            a.yaml:9:26: a `%` must be followed by two hexadecimal digits (a percent sign itself is `%25`)
            a.yaml:14:36: `*.example` stands for many hosts: one is needed here
            a.yaml:14:102: `xyz` must begin with `/`
            a.yaml:21:41: `*.example` stands for many hosts: one is needed here
            a.yaml:21:102: must not contain ` `: write it percent-encoded
            a.yaml:24:79: must not contain `\n`: write it percent-encoded"#]],
    );
}

#[test]
fn addresses_and_ports_that_no_service_has() {
    check(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: a, namespace: b, labels: { kubernetes.io/service-name: a } }
addressType: IPv4
endpoints:
  - addresses: [127.0.0.1, 0.0.0.0, 169.254.169.254, 224.0.0.1, 255.255.255.255]
ports: [{ name: a, port: 15000 }, { name: b, port: 15090 }, { name: c, port: 15091 }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: b, namespace: b, labels: { kubernetes.io/service-name: a } }
addressType: IPv6
endpoints:
  - addresses: [\"::1\", \"fe80::1\", \"ff02::1\", \"::ffff:169.254.169.254\"]
---
apiVersion: v1
kind: Service
metadata: { name: a, namespace: b }
spec:
  clusterIP: 224.0.0.1
  clusterIPs: [169.254.0.1, \"::\"]
  ports: [{ port: 1 }]
---
apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: a
  virtualAddresses: [10.0.0.0/33, 10.1.0.0/8, \"fd00::/8\"]
",
        expect![[r#"
            a.yaml:6:28: `0.0.0.0` is unspecified: an endpoint has an address of its own
            a.yaml:6:37: `169.254.169.254` is link-local: an endpoint has an address of its own
            a.yaml:6:54: `224.0.0.1` is a multicast address: an endpoint has an address of its own
            a.yaml:6:65: `255.255.255.255` is the broadcast address: an endpoint has an address of its own
            a.yaml:7:26: 15000 is one of the mesh's own ports, 15000 to 15090: no service is there
            a.yaml:7:52: 15090 is one of the mesh's own ports, 15000 to 15090: no service is there
            a.yaml:14:25: `fe80::1` is link-local: an endpoint has an address of its own
            a.yaml:14:36: `ff02::1` is a multicast address: an endpoint has an address of its own
            a.yaml:14:47: `::ffff:169.254.169.254` is link-local: an endpoint has an address of its own
            a.yaml:20:14: `224.0.0.1` is a multicast address: no Service is reached there
            a.yaml:21:16: `169.254.0.1` is link-local: no Service is reached there
            a.yaml:21:30: `::` is unspecified: no Service is reached there
            a.yaml:29:22: `10.0.0.0/33` is not a range of addresses: write `10.0.0.0/8` or `fc00::/7` (a range of IP addresses, `10.0.0.0/8`)
            a.yaml:29:35: `10.1.0.0/8` says more than its prefix: write `10.0.0.0/8` (a range of IP addresses, `10.0.0.0/8`)"#]],
    );
}

#[test]
fn a_cluster_and_a_namespace_are_named_as_others_name_them() {
    check(
        "apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: eu.west }
spec: {}
---
apiVersion: v1
kind: Namespace
metadata: { name: shop.eu }
",
        expect![[r#"
            a.yaml:3:19: `eu.west` is not a name of a cluster: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123)
            a.yaml:8:19: `shop.eu` is not a namespace: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123)"#]],
    );
}

#[test]
fn bytes_that_are_no_text() {
    let told = |bytes: &[u8]| {
        parse(&[("a.yaml", bytes)]).diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(told(b"a: b\nc: \xff"), "a.yaml:2:4: not UTF-8");
    assert_eq!(told(&vec![b' '; MAX_FILE_BYTES + 1]), "a.yaml: larger than 1048576 bytes: split it");
    assert!(parse(&[("README.md", b"\xff")]).diagnostics.is_empty());
}

#[test]
fn the_text_of_an_expression_is_found_in_its_source() {
    let text = "apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: a, namespace: b }
spec:
  rules:
    - name: literal
      when: | # why
        source.namespace == \"shop\"

        && request.method == \"GET\"
    - when: >-
        source.ip
          == request.path
    - when: 'request.path == ''x'' && oops'
    - when: source.cluster == nope
    - { name: quoted, when: \"request.path == \\\"x\\\" && oops\" }
";
    let parsed = parse(&[("a.yaml", text)]);
    assert_eq!(parsed.diagnostics, []);
    let crate::resource::Resource::AuthorizationPolicy(policy) = &parsed.placed[0].resource else {
        unreachable!()
    };
    let positions = &parsed.placed[0].positions;
    let find = |rule: usize, needle: &str| {
        let when = policy.spec.rules[rule].when.as_ref().unwrap();
        let at = positions.within(&format!("/spec/rules/{rule}/when"), when.find(needle).unwrap());
        let line = text.lines().nth(at.line as usize - 1).unwrap();
        assert!(line[at.column as usize - 1..].starts_with(needle), "{needle}: {at:?}");
        (at.line, at.column)
    };
    assert_eq!(find(0, "source"), (8, 9));
    assert_eq!(positions.at("/spec/rules/0/when"), Position { line: 8, column: 9 });
    assert_eq!(find(0, "request.method"), (10, 12));
    assert_eq!(find(1, "request.path"), (13, 14));
    assert_eq!(find(2, "oops"), (14, 39));
    assert_eq!(find(3, "nope"), (15, 31));
    find(4, "oops");
    assert_eq!(positions.key_at("/spec/rules/0/when"), Position { line: 7, column: 7 });
    assert_eq!(positions.at("/spec/rules/9/when").line, 6, "the deepest part that exists");
}

/// Objects in the shapes that the Gateway API's and MCS-API's documentation shows.
#[test]
fn objects_as_the_standards_show_them() {
    let route: HttpRoute = one("
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: http-app
  namespace: apps
  labels: { app.kubernetes.io/name: http-app }
  annotations: { example.org/note: \"anything: at all\" }
spec:
  parentRefs:
  - name: prod-gateway
    sectionName: web
  - group: ''
    kind: Service
    name: app
    port: 80
  hostnames: [app.example.org, '*.apps.example.org']
  rules:
  - matches:
    - path: { type: Exact, value: /login }
      method: POST
      headers:
      - type: Exact
        name: Magic
        value: foo
      queryParams:
      - { type: RegularExpression, name: great, value: 'ex.*' }
    - path: { value: /v2 }
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{ name: my-header, value: foo }]
        add: [{ name: other, value: bar }]
        remove: [x-secret]
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [{ name: x-served-by, value: app }] }
    - type: URLRewrite
      urlRewrite:
        hostname: app.internal.example
        path: { type: ReplaceFullPath, replaceFullPath: /new }
    backendRefs:
    - { name: app-v1, port: 8080, weight: 90 }
    - { group: '', kind: Service, name: app-v2, port: 8080, weight: 10 }
    timeouts: { request: 10s, backendRequest: 2s }
    retry: { codes: [500, 502], attempts: 3, backoff: 100ms }
  - matches:
    - path: { type: PathPrefix, value: /old }
    filters:
    - type: RequestRedirect
      requestRedirect:
        scheme: https
        hostname: new.example.org
        port: 8443
        statusCode: 301
        path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }
  - {}
");
    assert_eq!(route.rules.len(), 3);
    assert_eq!(route.rules[0].matches[0].headers[0].name.as_str(), "magic");
    assert_eq!(
        route.rules[0].matches[1].path,
        route::PathMatch { type_: route::PathMatchType::PathPrefix, value: "/v2".into() }
    );
    assert_eq!(
        route.rules[2].matches,
        [route::HttpMatch::default()],
        "a rule without matches takes every path"
    );
    assert_eq!(route.parent_refs[1].group, "");

    let gateway: Gateway = one("
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: prod-gateway, namespace: apps }
spec:
  gatewayClassName: weft
  addresses: [{ value: 192.0.2.10 }, { type: IPAddress, value: '2001:db8::1' }]
  listeners:
  - name: web
    protocol: HTTP
    port: 80
    hostname: '*.example.org'
    allowedRoutes:
      namespaces: { from: Same }
      kinds: [{ kind: HTTPRoute }]
  - { name: all, protocol: HTTP, port: 80 }
");
    assert_eq!(gateway.addresses.len(), 2);
    for version in ["v1alpha1", "v1beta1"] {
        one::<crate::resource::ServiceExport>(&format!(
            "apiVersion: multicluster.x-k8s.io/{version}\nkind: ServiceExport\nmetadata: {{ name: a, namespace: b }}\n"
        ));
    }
    one::<crate::resource::Service>(
        "apiVersion: v1\nkind: Service\nmetadata: { name: a, namespace: b }\nspec:\n  clusterIP: None\n  selector: { app: a, tier: \"1\" }\n  \
         type: ClusterIP\n  ports:\n  - { name: web, port: 80, targetPort: 8080, protocol: TCP, appProtocol: kubernetes.io/h2c }\n  \
         - { name: admin, port: 9000, targetPort: 9001 }\n",
    );
}
