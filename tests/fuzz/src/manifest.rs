//! Configuration: every text is either refused with positions, or means what it meant when it is written anew.

use api::{
    link,
    resource::{AuthorizationPolicy, Resource},
};
use policies::Surface;
use serde_json::Value;

pub(crate) fn run(bytes: &[u8]) {
    let loaded = link::load(&[("fuzz.yaml", bytes)]);
    let again = link::load(&[("fuzz.yaml", bytes)]);
    assert_eq!(loaded.diagnostics, again.diagnostics, "the gate says the same twice");
    assert!(loaded.diagnostics.is_sorted());
    let lines = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u32 + 1;
    for diagnostic in &loaded.diagnostics {
        assert!(diagnostic.at.line <= lines + 1, "{diagnostic} stands behind the end");
        assert!(!diagnostic.message.is_empty());
    }
    let Ok(set) = loaded.accept() else { return };
    let mut anew = String::new();
    for (key, entry) in &set.resources {
        assert_eq!(key.to_string().parse().as_ref(), Ok(key));
        let json = serde_json::to_value(&entry.resource).expect("a resource has a JSON form");
        let read = serde_json::from_value::<Resource>(json.clone()).expect("and is read back from it");
        assert_eq!(read, entry.resource);
        anew += &document(&entry.resource, json);
        if let Some(policy) = entry.resource.as_kind::<AuthorizationPolicy>() {
            for when in policy.spec.rules.iter().filter_map(|rule| rule.when.as_deref()) {
                let _ = policies::check(when, Surface::Http);
            }
        }
    }
    let written = match link::load(&[("anew.yaml", anew.as_bytes())]).accept() {
        Ok(written) => written,
        Err(diagnostics) => panic!("what was accepted is refused when written anew: {diagnostics:?}\n{anew}"),
    };
    let meant = set.resources.iter().map(|(key, entry)| (key, &entry.resource));
    let meant_again = written.resources.iter().map(|(key, entry)| (key, &entry.resource));
    assert!(meant.eq(meant_again), "it means something else when written anew:\n{anew}");
}

/// The object as an author would write it.
fn document(resource: &Resource, mut json: Value) -> String {
    json["apiVersion"] = resource.kind().api_versions()[0].into();
    if let Some(cluster) = json["metadata"].as_object_mut().and_then(|meta| meta.remove("cluster")) {
        json["metadata"]["labels"]["weft.mesh/clusters"] = cluster;
    }
    format!("---\n{json}\n")
}
