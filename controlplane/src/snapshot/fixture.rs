//! The sample configuration with a few workloads, for tests of this crate.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use api::{identity::Bundle, name::InstanceId, wire};

use super::{Configuration, Inputs, Place, Registered, Role, Said};

/// The inputs of `cluster` under the sample configuration, with nobody living there.
pub(crate) fn inputs(cluster: &str) -> Inputs {
    inputs_beside(cluster, "")
}

/// The same, with these objects too.
pub(crate) fn inputs_beside(cluster: &str, more: &str) -> Inputs {
    with_files(cluster, &sample(more))
}

/// The same, where the `Mesh` lets references pass that lead nowhere.
pub(crate) fn lenient_beside(cluster: &str, more: &str) -> Inputs {
    let mut files = sample(more);
    for (_, text) in &mut files {
        let lenient = String::from_utf8_lossy(text).replace("References: REFUSE", "References: REPORT");
        *text = lenient.into_bytes();
    }
    with_files(cluster, &files)
}

/// The sample configuration and these objects.
fn sample(more: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("more.yaml".to_owned(), more.into())];
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/examples/shop")), &mut files);
    files
}

/// The inputs of `cluster` under these files.
pub(crate) fn with_files(cluster: &str, files: &[(String, Vec<u8>)]) -> Inputs {
    let set = api::link::load(files).accept().expect("the fixture passes the gate");
    let mut objects: Vec<_> = set
        .resources
        .values()
        .map(|entry| Said {
            resource: entry.resource.clone(),
            changed_in: "c0ffee".into(),
            file: entry.origin.file.to_string(),
            line: entry.origin.line,
            rules: vec![],
        })
        .collect();
    objects.sort_by_cached_key(|said| said.resource.key());
    let clusters = set.all::<api::resource::Cluster>().map(|(key, object)| {
        let vouch = api::identity::Vouch { namespaces: object.spec.namespaces.clone() };
        (key.name.as_str().parse().unwrap(), vouch)
    });
    Inputs {
        cluster: cluster.parse().unwrap(),
        own: Arc::new(Place {
            network: cluster.parse().unwrap(),
            locality: format!("eu-{cluster}/a").parse().unwrap(),
        }),
        configuration: Arc::new(Configuration { head: None, commit: "c0ffee".into(), objects }),
        workloads: Arc::default(),
        peers: Arc::default(),
        bundle: Arc::new(Bundle {
            trust_domain: "shop.example".parse().unwrap(),
            sequence: 1,
            roots: vec![],
            clusters: clusters.collect(),
            revoked: BTreeMap::new(),
        }),
        now: 1_000,
    }
}

fn read(dir: &Path, files: &mut Vec<(String, Vec<u8>)>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}

/// A workload of the shop: `app` at `127.1.0.<host>`.
pub(crate) fn workload(id: &str, app: &str, version: &str, host: u8) -> Registered {
    let at = |port| format!("127.1.0.{host}:{port}").parse().unwrap();
    Registered {
        instance: format!("{id}-x").parse().unwrap(),
        workload: id.parse().unwrap(),
        role: Role::Sidecar,
        namespace: "shop".parse().unwrap(),
        service_account: app.parse().unwrap(),
        labels: [("app", app), ("version", version)].map(|(k, v)| (k.into(), v.into())).into(),
        address: at(15006),
        public_address: None,
        ports: [(8080, at(8080))].into(),
        zone: None,
        app_ready: true,
        draining: false,
    }
}

/// A gateway of either kind.
pub(crate) fn gateway(id: &str, role: Role, host: u8) -> Registered {
    Registered {
        role,
        namespace: "weft-system".parse().unwrap(),
        labels: BTreeMap::new(),
        ports: BTreeMap::new(),
        public_address: Some(format!("127.1.0.{host}:15443").parse().unwrap()),
        ..workload(id, if role == Role::Ingress { "ingress" } else { "east-west" }, "v1", host)
    }
}

/// These inputs with these workloads.
pub(crate) fn living(inputs: Inputs, workloads: impl IntoIterator<Item = Registered>) -> Inputs {
    let all: BTreeMap<InstanceId, _> = workloads.into_iter().map(|one| (one.instance.clone(), one)).collect();
    Inputs { workloads: Arc::new(all), ..inputs }
}

/// These inputs with another cluster's catalogue.
pub(crate) fn knowing(inputs: Inputs, catalogue: wire::Catalogue) -> Inputs {
    let mut peers = (*inputs.peers).clone();
    peers.insert(catalogue.cluster.parse().unwrap(), Arc::new(catalogue));
    Inputs { peers: Arc::new(peers), ..inputs }
}
