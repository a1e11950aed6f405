//! Who is where on loopback: two clusters, each a block `127.N` of its own. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::ensure;
use api::{
    admin::Role,
    name::{ClusterName, WorkloadId},
};
use serde_json::{Value, json};

use crate::{
    descriptor::{self, EAST_WEST, INGRESS},
    proxy::{EAST_WEST_PORT, Proxy, Surroundings},
    workload::{local::Member, spec::Spec},
};

const PROXIES_PORT: u16 = 15012;
const FEDERATION_PORT: u16 = 15013;
const METRICS_PORT: u16 = 15014;
const API_PORT: u16 = 15080;
const APP_PORT: u16 = 8080;
/// The sample's `Gateway` listens here.
const INGRESS_PORT: u16 = 8080;
/// Workloads are numbered from here in their cluster's block.
const FIRST_WORKLOAD: u8 = 11;

/// What runs in each cluster, twice: service, version, and the stem of its ids.
const APPLICATIONS: [(&str, &str, &str); 6] = [
    ("front", "v1", "front"),
    ("catalogue", "v1", "catalogue"),
    ("reviews", "v1", "reviews-v1"),
    ("reviews", "v2", "reviews-v2"),
    ("reviews", "v3", "reviews-v3"),
    ("ratings", "v1", "ratings"),
];

/// The whole mesh.
pub(crate) struct Layout {
    /// The `weft up` directory.
    pub(crate) dir: PathBuf,
    /// The primary first.
    pub(crate) clusters: Vec<Cluster>,
    /// The primary's `store`; a file by default.
    pub(crate) store: Option<Value>,
}

/// One cluster.
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) role: Role,
    region: &'static str,
    /// The second number of all its addresses.
    block: u8,
    /// The primary's block.
    primary: u8,
    up: PathBuf,
    trace: Option<String>,
}

impl Layout {
    /// East in `127.block`, west in the one after it.
    pub(crate) fn new(dir: PathBuf, block: u8, trace: Option<String>) -> anyhow::Result<Self> {
        ensure!((1..=254).contains(&block), "--block is 1 to 254: east takes 127.N, west 127.N+1");
        let cluster = |name: &str, role, region, own| Cluster {
            name: name.parse().expect("a literal"),
            role,
            region,
            block: own,
            primary: block,
            up: dir.clone(),
            trace: trace.clone(),
        };
        let clusters = vec![
            cluster("east", Role::Primary, "eu-east", block),
            cluster("west", Role::Remote, "eu-west", block + 1),
        ];
        Ok(Layout { dir, clusters, store: None })
    }

    /// The repository that rules the mesh.
    pub(crate) fn repository(&self) -> PathBuf {
        self.dir.join("config")
    }
}

impl Cluster {
    fn ip(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.block, 0, host).into()
    }

    fn controlplane(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(1), port)
    }

    pub(crate) fn controlplane_dir(&self) -> PathBuf {
        descriptor::controlplane_dir(&self.up, &self.name)
    }

    pub(crate) fn join_token(&self) -> PathBuf {
        self.controlplane_dir().join("join.token")
    }

    /// The control plane's metrics and readiness.
    pub(crate) fn metrics(&self) -> SocketAddr {
        self.controlplane(METRICS_PORT)
    }

    pub(crate) fn api(&self) -> String {
        format!("http://{}", self.controlplane(API_PORT))
    }

    pub(crate) fn ingress(&self) -> SocketAddr {
        SocketAddr::new(self.ip(3), INGRESS_PORT)
    }

    pub(crate) fn east_west(&self) -> SocketAddr {
        SocketAddr::new(self.ip(2), EAST_WEST_PORT)
    }

    pub(crate) fn gateway_dir(&self, name: &str) -> PathBuf {
        descriptor::gateway_dir(&self.up, &self.name, name)
    }

    /// What its control plane is told.
    pub(crate) fn controlplane_config(&self, repository: &Path) -> Value {
        let mut config = json!({
            "cluster": self.name,
            "role": self.role,
            "stateDir": self.controlplane_dir(),
            "address": self.ip(1),
            "proxies": self.controlplane(PROXIES_PORT),
            "federation": self.controlplane(FEDERATION_PORT),
            "metrics": self.metrics(),
            "admin": self.controlplane(API_PORT),
            "network": self.name,
            "locality": { "region": self.region, "zone": "a", "subzone": "" },
        });
        match self.role {
            Role::Primary => {
                config["source"] = json!({ "repository": repository, "branch": "main", "path": "" });
            }
            Role::Remote => {
                config["joinTokenFile"] = json!(self.join_token());
                config["primary"] = json!(format!("127.{}.0.1:{FEDERATION_PORT}", self.primary));
            }
        }
        config
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings { control_plane: self.controlplane(PROXIES_PORT).to_string(), trace: self.trace.clone() }
    }

    /// Its ingress and its east-west gateway.
    pub(crate) fn gateways(&self) -> [Member; 2] {
        let gateway = |name: &str, make: fn(&WorkloadId, IpAddr, &Path, &Surroundings) -> Proxy, host| {
            let workload: WorkloadId = format!("{}-{name}", self.name).parse().expect("two labels");
            let proxy = make(&workload, self.ip(host), &self.gateway_dir(name), &self.surroundings());
            Member { request: proxy.gateway_token(), proxy }
        };
        [gateway(INGRESS, Proxy::ingress, 3), gateway(EAST_WEST, Proxy::east_west, 2)]
    }

    /// The sample application's workloads; `weft` is the binary that serves them.
    pub(crate) fn workloads(&self, weft: &Path) -> Vec<Spec> {
        let numbered = APPLICATIONS.iter().flat_map(|application| [(application, 1), (application, 2)]);
        numbered
            .zip(FIRST_WORKLOAD..)
            .map(|((&(service, version, stem), number), host)| {
                self.workload(weft, service, version, &format!("{stem}-{number}"), host)
            })
            .collect()
    }

    fn workload(&self, weft: &Path, service: &str, version: &str, name: &str, host: u8) -> Spec {
        let id: WorkloadId = format!("{}-{name}", self.name).parse().expect("labels");
        let ip = self.ip(host);
        let app = SocketAddr::new(ip, APP_PORT);
        let command = [
            &weft.display().to_string(),
            "sample-service",
            "--name",
            service,
            "--version",
            version,
            "--cluster",
            self.name.as_str(),
            "--listen",
            &app.to_string(),
        ]
        .map(str::to_owned);
        Spec {
            dir: descriptor::workload_dir(&self.up, &self.name, &id),
            id,
            cluster: self.name.clone(),
            namespace: "shop".parse().expect("a literal"),
            service: service.parse().expect("a literal"),
            service_account: service.parse().expect("a literal"),
            version: version.to_owned(),
            labels: BTreeMap::from([("app".into(), service.into()), ("version".into(), version.into())]),
            ip,
            port: APP_PORT,
            app,
            command: command.into(),
            cwd: None,
            control_plane: self.controlplane(PROXIES_PORT).to_string(),
            trace: self.trace.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect;

    use super::*;

    fn layout() -> Layout {
        Layout::new("/srv/up".into(), 1, None).unwrap()
    }

    #[test]
    fn the_primary_reads_git_and_the_remote_joins_it() {
        let layout = layout();
        let config = |n: usize| layout.clusters[n].controlplane_config(&layout.repository()).to_string();
        expect![[r#"{"cluster":"east","role":"primary","stateDir":"/srv/up/east/controlplane","address":"127.1.0.1","proxies":"127.1.0.1:15012","federation":"127.1.0.1:15013","metrics":"127.1.0.1:15014","admin":"127.1.0.1:15080","network":"east","locality":{"region":"eu-east","zone":"a","subzone":""},"source":{"repository":"/srv/up/config","branch":"main","path":""}}"#]]
        .assert_eq(&config(0));
        expect![[r#"{"cluster":"west","role":"remote","stateDir":"/srv/up/west/controlplane","address":"127.2.0.1","proxies":"127.2.0.1:15012","federation":"127.2.0.1:15013","metrics":"127.2.0.1:15014","admin":"127.2.0.1:15080","network":"west","locality":{"region":"eu-west","zone":"a","subzone":""},"joinTokenFile":"/srv/up/west/controlplane/join.token","primary":"127.1.0.1:15013"}"#]]
        .assert_eq(&config(1));
    }

    #[test]
    fn each_process_has_an_address_and_a_directory_of_its_own() {
        let layout = layout();
        let mut ids = BTreeSet::new();
        let mut places = BTreeSet::new();
        let mut dirs = BTreeSet::new();
        for cluster in &layout.clusters {
            for spec in cluster.workloads(Path::new("/bin/weft")) {
                assert!(ids.insert(spec.id.clone()), "{}", spec.id);
                assert!(places.insert(spec.ip), "{}", spec.ip);
                assert!(dirs.insert(spec.app_dir()) && dirs.insert(spec.sidecar_dir()));
            }
            for gateway in cluster.gateways() {
                assert!(ids.insert(gateway.request.workload.clone()));
                assert!(places.insert(gateway.proxy.admin().ip()));
            }
            assert!(places.insert(cluster.ip(1)));
        }
        assert_eq!(ids.len(), 28);
        assert!(Layout::new("/srv/up".into(), 255, None).is_err());
    }

    #[test]
    fn a_workload_carries_the_labels_that_services_select() {
        let layout = layout();
        let specs = layout.clusters[0].workloads(Path::new("/bin/weft"));
        let reviews = specs.iter().find(|spec| spec.id.as_str() == "east-reviews-v2-1").unwrap();
        expect![[r#"{"workload":"east-reviews-v2-1","namespace":"shop","serviceAccount":"reviews","labels":{"app":"reviews","version":"v2"},"ttlSeconds":null}"#]]
        .assert_eq(&serde_json::to_string(&reviews.token_request()).unwrap());
        expect![
            "/bin/weft sample-service --name reviews --version v2 --cluster east --listen 127.1.0.17:8080"
        ]
        .assert_eq(&reviews.command.join(" "));
    }
}
