//! What is broken: the sample shop in the laboratory, two clusters of two zones, half of all calls crossing between them.
//!
//! Each of its instances says its own name as the version in `served_by`. East's state is in an etcd on a host of its
//! own; Git and the clients are on a third network.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::Duration,
};

use api::admin::{ProxyState, Status};
use serde_json::json;
use weft_tests::{
    harness::{
        Client, Load,
        client::Hop,
        etcd, eventually,
        git::{Sshd, git},
        weft,
    },
    lab::{
        Lab, Mesh, User,
        mesh::{CLUSTERS, Workload, ZONES, control, gateways},
    },
};

use crate::{
    SOON,
    flow::{self, Flow},
};

/// Where the instances of the shop listen on their hosts, and the ingresses on theirs.
pub const PORT: u16 = 8080;
/// Who calls from outside.
const CLIENTS: &str = "clients";
/// The Git server.
pub const GIT: &str = "git";
/// East's store.
pub const ETCD: &str = "east-etcd";
const SERVICES: [&str; 4] = ["front", "catalogue", "reviews", "ratings"];
/// Not 22, of which known hosts would not say the number.
const SSH_PORT: u16 = 2222;
/// The port of the first commit's beat; each has the next one.
const FIRST_BEAT: u16 = 1000;
/// The raw connections end here.
const LINE_PORT: u16 = 7000;

/// The part of `policies/examples/shop` that is more than members and versions of reviews.
const SAMPLE: [&str; 8] = [
    include_str!("../../../policies/examples/shop/apps/front.yaml"),
    include_str!("../../../policies/examples/shop/apps/catalogue.yaml"),
    include_str!("../../../policies/examples/shop/apps/reviews.yaml"),
    include_str!("../../../policies/examples/shop/apps/ratings.yaml"),
    include_str!("../../../policies/examples/shop/gateways/ingress.yaml"),
    include_str!("../../../policies/examples/shop/security/authorization.yaml"),
    include_str!("../../../policies/examples/shop/security/mtls.yaml"),
    include_str!("../../../policies/examples/shop/traffic/front.yaml"),
];
const DEFAULTS: &str = include_str!("../../../policies/examples/shop/traffic/defaults.yaml");
/// What is lost is lost for half of the requests, wherever they enter.
const SPREAD: &str = "spec:
  locality:
    distribute:
      - { from: eu-east, to: { eu-east: 50, eu-west: 50 } }
      - { from: eu-west, to: { eu-east: 50, eu-west: 50 } }
";

/// The running shop.
pub struct Shop {
    mesh: Mesh,
    commits: AtomicU16,
}

impl Shop {
    /// # Panics
    /// When it does not come up.
    pub async fn up() -> Shop {
        let mut mesh = Mesh::laid_out().await;
        mesh.lab.host("east", ETCD);
        mesh.lab.network("outside");
        mesh.lab.host("outside", CLIENTS).uses_ports_again();
        mesh.lab.host("outside", GIT);
        mesh.lab.public(GIT);
        mesh.prepare_repository(&configuration()).await;
        let source = serve_git(&mesh);
        let store = serve_etcd(&mesh);
        mesh.start(json!({ "source": source, "store": store })).await;
        for cluster in CLUSTERS {
            mesh.ingress(cluster, ZONES[1]).await;
            for (service, zone) in SERVICES.into_iter().flat_map(|one| ZONES.map(|zone| (one, zone))) {
                start(&mut mesh, cluster, service, zone).await;
            }
            let line = Workload::of(&line(cluster)).serving(LINE_PORT).captured(json!({}));
            mesh.workload(cluster, &line, |host| flow::echo(host, LINE_PORT)).await;
        }
        let shop = Shop { mesh, commits: AtomicU16::new(FIRST_BEAT) };
        shop.answers().await;
        shop
    }

    /// Its hosts.
    pub fn lab(&self) -> &Lab {
        &self.mesh.lab
    }

    /// A load at the ingress of a cluster.
    pub async fn load(&self, cluster: &str, gets_per_second: u32, orders_per_second: u32) -> Load {
        let ingress = self.ingress(cluster);
        let clients = &self.mesh.lab[CLIENTS];
        clients.run(move || async move { Load::start(&ingress, gets_per_second, orders_per_second) }).await
    }

    /// A long HTTP/2 stream through each ingress, and a raw connection from each cluster to the other.
    pub async fn flows(&self) -> Vec<Flow> {
        let mut flows = Vec::new();
        for (cluster, other) in CLUSTERS.into_iter().zip(CLUSTERS.into_iter().rev()) {
            let clients = &self.mesh.lab[CLIENTS];
            flows.push(Flow::stream(clients, cluster, self.ingress(cluster)).await);
            let from = &self.mesh.lab[&caller(cluster)];
            flows.push(Flow::raw(from, cluster, echo_of(other)).await);
        }
        flows
    }

    /// Commits something that every proxy is told of, and pushes it.
    pub async fn commit(&self) {
        let port = self.commits.fetch_add(1, Relaxed);
        let repository = self.mesh.repository();
        repository.write("beat.yaml", &service("beat", port, ""));
        repository.commit("A beat").await;
        repository.git(&["push", "--quiet", "origin", "main"]);
    }

    /// Waits until the last commit rules every proxy.
    pub async fn effective(&self) -> Result<(), String> {
        self.mesh.try_weft(&["wait", "HEAD", "--timeout", "5s", "--strict"]).await.map(drop)
    }

    /// What the control plane of a cluster says.
    pub async fn status(&self, cluster: &str) -> Result<Status, String> {
        self.mesh.status(cluster).await
    }

    /// Lets all callers choose their ways between the clusters anew: a connection stays with its gateway for as long as
    /// it lives, so that a gateway that has been away has none, and could not be lost by anybody.
    pub async fn spread(&self) {
        let all: Vec<_> = CLUSTERS.into_iter().flat_map(gateways).collect();
        all.iter().for_each(|gateway| self.mesh.lab[gateway].kill(None));
        all.iter().for_each(|gateway| self.mesh.lab[gateway].again());
        eventually("the gateways are back", SOON, async || {
            let status = self.status(CLUSTERS[0]).await?;
            let proxies = status.clusters.iter().flat_map(|cluster| &cluster.proxies);
            let away = proxies.filter(|proxy| proxy.state != ProxyState::Connected);
            let away: Vec<_> = away.map(|proxy| proxy.workload.as_str()).collect();
            if away.is_empty() { Ok(()) } else { Err(format!("{away:?} are away")) }
        })
        .await;
        for gateway in &all {
            eventually(&format!("{gateway} carries"), SOON, async || match self.carries(gateway).await? {
                true => Ok(()),
                false => Err("it does not".to_owned()),
            })
            .await;
        }
    }

    /// Whether an east-west gateway passes anything on. New connections are made for it, since one that has been away is
    /// in the way of no older one.
    pub async fn carries(&self, gateway: &str) -> Result<bool, String> {
        let before = self.passed(gateway).await?;
        for (cluster, other) in CLUSTERS.into_iter().zip(CLUSTERS.into_iter().rev()) {
            let echo = echo_of(other);
            // What does not get through is what is found out here.
            let _ = self.mesh.lab[&caller(cluster)].run(move || async move { flow::say(&echo).await }).await;
        }
        Ok(self.passed(gateway).await? > before)
    }

    /// The bytes that an east-west gateway has passed on in its life.
    async fn passed(&self, gateway: &str) -> Result<u64, String> {
        let host = &self.mesh.lab[gateway];
        let admin = format!("{}:15000", host.addresses.v4);
        let answer = host.run(move || async move { Client::new(&admin).get("/metrics").await }).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let counts = text.lines().filter(|line| line.starts_with("weft_eastwest_bytes_total"));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// The ids in the order logs of every catalogue.
    pub fn orders(&self) -> Vec<String> {
        let catalogues =
            CLUSTERS.into_iter().flat_map(|cluster| [1, 2].map(|n| format!("{cluster}-catalogue-{n}")));
        let logs = catalogues
            .filter_map(|host| fs::read_to_string(self.mesh.dir(&host).join("app/orders.log")).ok());
        logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn ingress(&self, cluster: &str) -> String {
        format!("http://{}:{PORT}", self.mesh.lab[&format!("{cluster}-ingress")].addresses.v4)
    }

    /// The processes that ended by themselves, with their last words.
    pub fn ended(&self) -> Vec<String> {
        let of_clusters = CLUSTERS.into_iter().flat_map(|cluster| hosts(self.lab(), cluster));
        let all = of_clusters.chain([ETCD, GIT].map(str::to_owned));
        all.flat_map(|host| self.mesh.lab[&host].dead()).collect()
    }

    /// The hosts of all its instances.
    pub fn instances(&self) -> BTreeSet<String> {
        CLUSTERS.into_iter().flat_map(|cluster| instances(&self.mesh.lab, cluster)).collect()
    }

    /// Waits until each instance has a part in the requests of both ingresses.
    async fn answers(&self) {
        let all = self.instances();
        for cluster in CLUSTERS {
            let load = self.load(cluster, 50, 0).await;
            eventually(&format!("all instances serve {cluster}"), SOON, async || {
                let gets = load.since(load.now().saturating_sub(Duration::from_secs(2)));
                let failed = gets.iter().find_map(|get| get.failure.clone());
                let served: BTreeSet<_> = gets.into_iter().flat_map(|get| get.served).map(instance).collect();
                let missing: Vec<_> = all.difference(&served).collect();
                if missing.is_empty() && failed.is_none() {
                    Ok(())
                } else {
                    Err(format!("{missing:?} {failed:?}"))
                }
            })
            .await;
            load.stop().await;
        }
    }
}

/// Who it was that had a part in an answer.
pub fn instance(hop: Hop) -> String {
    hop.version
}

/// The hosts of the shop's instances in a cluster.
pub fn instances(lab: &Lab, cluster: &str) -> Vec<String> {
    let of = |service: &&str| [1, 2].map(|n| format!("{cluster}-{service}-{n}"));
    SERVICES.iter().flat_map(of).filter(|host| lab.has(host)).collect()
}

/// All hosts of a cluster on which a process runs, its etcd's apart.
pub fn hosts(lab: &Lab, cluster: &str) -> Vec<String> {
    let mut hosts = instances(lab, cluster);
    hosts.extend(gateways(cluster));
    hosts.extend([control(cluster), format!("{cluster}-ingress"), caller(cluster)]);
    hosts
}

async fn start(mesh: &mut Mesh, cluster: &str, service: &str, zone: &str) {
    let weft = weft().unwrap_or_else(|error| panic!("{error:#}"));
    let workload = Workload::of(service).serving(PORT).in_zone(zone);
    let number = ZONES.iter().position(|one| *one == zone).expect("a or b") + 1;
    let dir = mesh.dir(&format!("{cluster}-{service}-{number}")).join("app");
    mesh.workload(cluster, &workload, |host| {
        let ip = host.addresses.v4;
        let (listen, proxy) = (format!("{ip}:{PORT}"), format!("http://{ip}:15001"));
        let args = ["sample-service", "--name", service, "--version", host.name(), "--cluster", cluster];
        let args = [&args[..], &["--listen", &listen, "--proxy", &proxy]].concat();
        host.spawn(User::Plain, &weft, &args, &dir);
    })
    .await;
}

/// Puts the repository at a server. Gives what the primary is told of it.
fn serve_git(mesh: &Mesh) -> serde_json::Value {
    let (host, dir) = (&mesh.lab[GIT], mesh.dir(GIT));
    fs::create_dir_all(&dir).expect("a directory of the test's own");
    let bare = dir.join("config.git");
    let repository = mesh.repository();
    let path = |path: &Path| path.display().to_string();
    git(&dir, &["clone", "--quiet", "--bare", &path(repository.path()), &path(&bare)]);
    repository.git(&["remote", "add", "origin", &path(&bare)]);
    let sshd = Sshd::prepared(SocketAddr::new(host.addresses.v4.into(), SSH_PORT), &dir);
    sshd.lets_in("primary");
    let known = dir.join("known_hosts");
    fs::write(&known, format!("{}\n", sshd.known_host)).expect("a directory of the test's own");
    let (program, args) = sshd.command();
    host.spawn(User::Root, program, &args.iter().map(String::as_str).collect::<Vec<_>>(), &dir);
    json!({
        "repository": sshd.url(&bare), "keyFile": sshd.key("primary"), "knownHostsFile": known, "pollSeconds": 1,
    })
}

/// Starts east's etcd. Gives what the primary is told of it.
fn serve_etcd(mesh: &Mesh) -> serde_json::Value {
    let (host, dir) = (&mesh.lab[ETCD], mesh.dir(ETCD));
    let places = [2379, 2380, 2381].map(|port| SocketAddr::new(host.addresses.v4.into(), port));
    let args = etcd::arguments(&dir.join("data"), places, "http");
    let program = etcd::binary();
    host.spawn(User::Root, &program, &args.iter().map(String::as_str).collect::<Vec<_>>(), &dir);
    json!({ "etcd": { "endpoints": [format!("http://{}", places[0])], "prefix": "/weft/faults" } })
}

/// The service at which raw connections to a cluster end.
fn line(cluster: &str) -> String {
    format!("line-{cluster}")
}

/// The host of a cluster from which raw connections begin.
fn caller(cluster: &str) -> String {
    format!("{cluster}-{}-1", line(cluster))
}

/// Where raw connections to a cluster go.
fn echo_of(cluster: &str) -> String {
    format!("{}:{LINE_PORT}", cluster_ip(cluster))
}

fn cluster_ip(cluster: &str) -> String {
    let number = CLUSTERS.iter().position(|one| *one == cluster).expect("east or west");
    format!("10.96.0.{}", 10 + number)
}

fn configuration() -> String {
    let mut objects: Vec<String> = SAMPLE.map(str::to_owned).into();
    objects.push(DEFAULTS.replace("spec:\n", SPREAD));
    for cluster in CLUSTERS {
        let address = format!("  clusterIP: {}\n", cluster_ip(cluster));
        objects.push(service(&line(cluster), LINE_PORT, &address));
    }
    objects.join("\n---\n")
}

/// A service of bytes that is offered to the other cluster.
fn service(name: &str, port: u16, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: shop }}
spec:
  selector: {{ app: {name} }}
{more}  ports: [{{ name: bytes, port: {port}, appProtocol: tcp }}]
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {{ name: {name}, namespace: shop }}
"
    )
}
