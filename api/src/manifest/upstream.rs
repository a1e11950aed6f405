//! What the upstream projects show of their kinds is read and kept, all of it; what is not supported is refused by name.
//!
//! Documents in the shape of their examples (`testdata/upstream`, each says which it follows), whose comments say what
//! is refused; and the Gateway API's own examples, which `scripts/setup test` fetches, with a table of what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use expect_test::expect;
use serde_json::Value as Json;

use super::{
    Parsed, parse,
    tree::{Node, Value, documents},
};

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Mapping(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), json(&entry.node))).collect()
        }
        Value::Sequence(items) => items.iter().map(json).collect(),
        _ => node.json_scalar().unwrap_or_default(),
    }
}

/// Whether `kept` has all that `said` has; the case of names of headers is not kept.
fn keeps(said: &Json, kept: &Json) -> bool {
    match (said, kept) {
        (Json::Object(said), Json::Object(kept)) => {
            said.iter().all(|(name, value)| keeps(value, kept.get(name).unwrap_or(&Json::Null)))
        }
        (Json::Array(said), Json::Array(kept)) => {
            said.len() == kept.len() && said.iter().zip(kept).all(|(said, kept)| keeps(said, kept))
        }
        (Json::String(said), Json::String(kept)) => said.eq_ignore_ascii_case(kept),
        _ => said == kept,
    }
}

/// All that an object said is in what was kept of it. Gives the kinds of those that were read without a flaw.
fn kept_whole(file: &str, text: &str, parsed: &Parsed) -> BTreeSet<&'static str> {
    let said = documents(text, &mut Vec::new());
    let mut kinds = BTreeSet::new();
    for placed in parsed.placed.iter().filter(|placed| placed.flaws.is_empty()) {
        let resource = &placed.resource;
        let document = said.iter().find(|node| node.at.line == placed.origin.line);
        let document = json(document.unwrap_or_else(|| panic!("{file}: {} was not said", resource.key())));
        assert_eq!(document["metadata"]["name"], resource.meta().name.as_str(), "{file}");
        let kept: Json = serde_json::from_slice(&resource.to_json()).unwrap();
        for (field, said) in document.as_object().unwrap() {
            if !["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
                let kept = if field == "spec" { &kept["spec"] } else { &kept["spec"][field] };
                assert!(keeps(said, kept), "{file}: {}: {field}\nsaid {said}\nkept {kept}", resource.key());
            }
        }
        kinds.insert(resource.kind().name());
    }
    kinds
}

/// The files of a directory and of those in it, by their paths from there.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn what_upstream_shows_is_read_whole_or_refused_by_name() {
    let mut kinds = BTreeSet::new();
    for (file, text) in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/upstream")) {
        let parsed = parse(&[(&file, &text)]);
        let told: Vec<_> = parsed.diagnostics.iter().map(|one| one.message.as_str()).collect();
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# refused: ")).collect();
        assert_eq!(told, expected, "{file}");
        kinds.append(&mut kept_whole(&file, &text, &parsed));
    }
    let standard = ["EndpointSlice", "Gateway", "HTTPRoute", "Namespace", "Service", "ServiceExport"];
    assert_eq!(kinds, standard.into());
}

/// Where the examples lie, beside what is built: tests run from below it.
fn examples() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let found = me.ancestors().map(|dir| dir.join("parts/gateway-api")).find(|dir| dir.is_dir());
    found.expect("the examples of the Gateway API are not there: `scripts/setup test` fetches them")
}

/// As `kubectl apply` takes it: what names no namespace lies in `default`. Here each object has to name its own.
fn applied(text: &str) -> String {
    let place = |document: &str| {
        let said = documents(document, &mut Vec::new()).first().map(|node| json(node)).unwrap_or_default();
        let lies_in_none = ["Namespace", "GatewayClass"].iter().any(|kind| said["kind"] == *kind);
        if lies_in_none || !said["metadata"]["namespace"].is_null() {
            return document.to_owned();
        }
        document.replacen("metadata:\n", "metadata:\n  namespace: default\n", 1)
    };
    text.split("\n---").map(place).collect::<Vec<_>>().join("\n---")
}

#[test]
fn the_examples_of_the_gateway_api_are_read_whole_or_refused_by_name() {
    let (mut read, mut refused) = (BTreeMap::<_, u32>::new(), BTreeMap::<_, u32>::new());
    for (file, text) in files(&examples()) {
        let text = applied(&text);
        let parsed = parse(&[(&file, &text)]);
        kept_whole(&file, &text, &parsed);
        let said = documents(&text, &mut Vec::new());
        for (node, next) in said.iter().zip(said.iter().skip(1).map(Some).chain([None])) {
            let until = next.map_or(u32::MAX, |next| next.at.line);
            let kind = json(node)["kind"].as_str().unwrap().to_owned();
            let of_it = parsed.diagnostics.iter().filter(|one| (node.at.line..until).contains(&one.at.line));
            let told: BTreeSet<_> = of_it.map(|one| one.message.clone()).collect();
            let is_whole = parsed
                .placed
                .iter()
                .any(|placed| placed.flaws.is_empty() && placed.origin.line == node.at.line);
            assert_eq!(is_whole, told.is_empty(), "{file}:{}: {told:?}", node.at.line);
            if is_whole {
                *read.entry(kind).or_default() += 1;
            } else {
                told.into_iter().for_each(|why| *refused.entry((kind.clone(), why)).or_default() += 1);
            }
        }
    }
    let mut table = String::new();
    read.iter().for_each(|(kind, times)| writeln!(table, "{times:2} {kind}: read whole").unwrap());
    for ((kind, why), times) in refused {
        writeln!(table, "{times:2} {kind}: {why}").unwrap();
    }
    expect![[r#"
         4 Gateway: read whole
        38 HTTPRoute: read whole
        11 Namespace: read whole
         2 BackendTLSPolicy: `BackendTLSPolicy` is not yet supported
         7 GRPCRoute: `GRPCRoute` is not yet supported
         1 Gateway: `TCPRoute` is not yet supported at a listener: only HTTPRoute is
         1 Gateway: `UDPRoute` is not yet supported at a listener: only HTTPRoute is
         1 Gateway: `allowedListeners` is not yet supported
         3 Gateway: `from: Selector` is not yet supported
        10 Gateway: `protocol: HTTPS` is not yet supported
         2 Gateway: `protocol: TCP` is not yet supported
         3 Gateway: `protocol: TLS` is not yet supported
         2 Gateway: `protocol: UDP` is not yet supported
         3 Gateway: `selector` is not yet supported
        14 Gateway: `tls` is not yet supported
         1 Gateway: `type: Hostname` is not yet supported
         4 GatewayClass: unknown kind `GatewayClass`
         1 HTTPRoute: `kind: ServiceImport` is not yet supported
         5 HTTPRoute: `type: CORS` is not yet supported
         1 HTTPRoute: `type: RequestMirror` is not yet supported
         1 HTTPRoute: a backend of kind `CustomBackend` is not yet supported: only Service is
         6 HTTPRoute: a backend of kind `ServiceImport` is not yet supported: only Service is
         2 ListenerSet: `ListenerSet` is not yet supported
         3 ReferenceGrant: `ReferenceGrant` is not yet supported
         4 TCPRoute: `TCPRoute` is not yet supported
         4 TLSRoute: `TLSRoute` is not yet supported
         3 UDPRoute: `UDPRoute` is not yet supported
    "#]]
    .assert_eq(&table);
}
