//! Documents in the shape of the upstream projects' own examples (`testdata/upstream`, each says which it follows):
//! what they say is read and kept, all of it; what is not supported is refused by name, as their comments say.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value as Json;

use super::{
    parse,
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

fn files() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/upstream");
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> = entries.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn what_upstream_shows_is_read_whole_or_refused_by_name() {
    let mut kinds = BTreeSet::new();
    for (file, text) in files() {
        let parsed = parse(&[(&file, &text)]);
        let told: Vec<_> = parsed.diagnostics.iter().map(|one| one.message.as_str()).collect();
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# refused: ")).collect();
        assert_eq!(told, expected, "{file}");
        if !expected.is_empty() {
            continue; // what was refused was not kept
        }

        let said: Vec<Json> = documents(&text, &mut Vec::new()).iter().map(|node| json(node)).collect();
        for placed in &parsed.placed {
            let resource = &placed.resource;
            let meta = resource.meta();
            let document = said.iter().find(|one| {
                one["kind"] == resource.kind().name() && one["metadata"]["name"] == meta.name.as_str()
            });
            let document = document.unwrap_or_else(|| panic!("{file}: {} was not said", resource.key()));
            let kept: Json = serde_json::from_slice(&resource.to_json()).unwrap();
            for (field, said) in document.as_object().unwrap() {
                if !["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
                    let kept = if field == "spec" { &kept["spec"] } else { &kept["spec"][field] };
                    assert!(
                        keeps(said, kept),
                        "{file}: {}: {field}\nsaid {said}\nkept {kept}",
                        resource.key()
                    );
                }
            }
            kinds.insert(resource.kind().name());
        }
    }
    let standard = ["EndpointSlice", "Gateway", "HTTPRoute", "Namespace", "Service", "ServiceExport"];
    assert_eq!(kinds, standard.into());
}
