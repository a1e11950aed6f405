//! A mesh in the laboratory: clusters on networks of their own, each with a control plane and two east-west gateways, and
//! workloads on hosts of their own.
//!
//! Everything is started by its settings file, as anywhere. Other networks reach the control plane of the primary and
//! the gateways, and nothing else.

use std::{
    convert::Infallible,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use api::admin::Status;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{Host, Lab, User};
use crate::harness::{Answer, Client, Repository, client, eventually, weft};

/// What is not ready by then has failed.
const READY: Duration = Duration::from_secs(60);

/// No command takes longer.
const COMMAND: Duration = Duration::from_secs(60);

/// The clusters, the primary first.
pub const CLUSTERS: [&str; 2] = ["east", "west"];

/// The zones of each; what does not say where it runs is in the first.
pub const ZONES: [&str; 2] = ["a", "b"];

/// What every mesh of the laboratory has.
const BASE: &str = "apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: lab.example }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: east }
spec: { network: east, locality: { region: eu-east, zone: a }, namespaces: [shop, weft-system] }
---
apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: west }
spec: { network: west, locality: { region: eu-west, zone: a }, namespaces: [shop, weft-system] }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
";

/// A running mesh.
pub struct Mesh {
    /// Its hosts; the processes end with it.
    pub lab: Lab,
    dir: TempDir,
    weft: PathBuf,
}

/// A workload that is to be.
#[derive(Debug, Clone)]
pub struct Workload {
    service: String,
    ports: Vec<u16>,
    settings: Value,
}

impl Workload {
    /// One that bears the label `app: <service>`, and the service account of that name, in the namespace `shop`.
    pub fn of(service: &str) -> Self {
        Workload { service: service.to_owned(), ports: Vec::new(), settings: json!({}) }
    }

    /// Its application listens on this port of the host's address.
    pub fn serving(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// Its sidecar captures what the application sends and is sent, with these settings.
    pub fn captured(mut self, capture: Value) -> Self {
        self.settings["capture"] = capture;
        self
    }

    /// It runs in this zone instead of `a`.
    pub fn in_zone(mut self, zone: &str) -> Self {
        self.settings["zone"] = zone.into();
        self
    }
}

impl Mesh {
    /// East and west, ruled by `configuration` beside what every mesh has.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn up(configuration: &str) -> Mesh {
        let mesh = Mesh::laid_out().await;
        mesh.prepare_repository(configuration).await;
        mesh.start(json!({ "source": { "repository": mesh.repository().path() } })).await;
        mesh
    }

    /// The hosts of east and west, where nothing runs yet, so that what the mesh is to find may be put beside them.
    ///
    /// # Panics
    /// When programs are missing, or the right to make namespaces.
    pub async fn laid_out() -> Mesh {
        let mut lab = Lab::new().await;
        let dir = tempfile::tempdir().expect("a directory");
        // Proxies are no root, and their state lies in it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("one's own directory");
        for cluster in CLUSTERS {
            lab.network(cluster);
            lab.host(cluster, &control(cluster));
            for gateway in gateways(cluster) {
                lab.host(cluster, &gateway);
                lab.public(&gateway);
            }
        }
        lab.public(&control(CLUSTERS[0]));
        Mesh { lab, dir, weft: weft().unwrap_or_else(|error| panic!("{error:#}")) }
    }

    /// Starts control planes and east-west gateways. `primary` is told to the primary's control plane besides: at
    /// least its `source`, which has to have the commit that the repository is at.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start(&self, primary: Value) {
        for cluster in CLUSTERS {
            self.start_control_plane(cluster, &primary).await;
            for (gateway, zone) in gateways(cluster).iter().zip(ZONES) {
                self.start_gateway(cluster, gateway, zone).await;
            }
        }
        self.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
    }

    /// The repository that rules it.
    pub fn repository(&self) -> Repository {
        Repository::at(&self.dir.path().join("config"))
    }

    /// Commits what was changed and waits until it is effective.
    pub async fn commit(&self, message: &str) {
        self.repository().commit(message).await;
        self.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
    }

    /// Runs `weft` beside the primary's control plane; it has to succeed. Gives what it printed.
    pub async fn weft(&self, args: &[&str]) -> String {
        self.try_weft(args).await.unwrap_or_else(|said| panic!("weft {args:?}: {said}"))
    }

    /// The same; an error is what it said when it failed.
    pub async fn try_weft(&self, args: &[&str]) -> Result<String, String> {
        let host = &self.lab["east-control"];
        let token = fs::read_to_string(self.admin_token("east")).expect("it has made its token");
        let mut command = tokio::process::Command::from(host.command(User::Root, &self.weft));
        command.args(args).current_dir(self.repository().path()).stdin(Stdio::null()).kill_on_drop(true);
        command.env("WEFT_API", api("east", &self.lab)).env("WEFT_TOKEN", token.trim());
        let output = tokio::time::timeout(COMMAND, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("weft {args:?} takes longer than {COMMAND:?}"));
        let output = output.expect("weft can be started");
        let said = if output.status.success() { &output.stdout } else { &output.stderr };
        let said = String::from_utf8_lossy(said).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// What the control plane of a cluster says of the mesh, as `weft status` shows it. Asked beside it.
    pub async fn status(&self, cluster: &str) -> Result<Status, String> {
        let answer = self.call(cluster, "GET", "/status", Bytes::new()).await?;
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
    }

    /// Starts a workload on a host of its own, called `<cluster>-<service>-<number>`: first its application, as
    /// `application` starts it, then its sidecar. Gives the host's name once the sidecar is ready.
    pub async fn workload(
        &mut self,
        cluster: &str,
        workload: &Workload,
        application: impl FnOnce(&Host),
    ) -> String {
        let number = (1..).find(|n| !self.lab.has(&format!("{cluster}-{}-{n}", workload.service)));
        let name = format!("{cluster}-{}-{}", workload.service, number.expect("there are enough numbers"));
        application(self.lab.host(cluster, &name));
        self.start_sidecar(cluster, &name, workload).await;
        name
    }

    /// Starts a sidecar on a host, beside an application that is there.
    pub async fn start_sidecar(&self, cluster: &str, host: &str, workload: &Workload) {
        let ip = self.lab[host].addresses.v4;
        let apps: Vec<_> = workload
            .ports
            .iter()
            .map(|port| json!({ "port": port, "address": format!("{ip}:{port}") }))
            .collect();
        let mut settings = json!({
            "role": "sidecar",
            "inbound": format!("{ip}:15006"),
            "outbound": format!("{ip}:15001"),
            "apps": apps,
        });
        merge(&mut settings, &workload.settings);
        self.start_proxy(cluster, host, "shop", &workload.service, settings).await;
    }

    /// Starts an ingress gateway, which everybody may call, on a host of its own, called `<cluster>-ingress`.
    pub async fn ingress(&mut self, cluster: &str, zone: &str) -> String {
        let name = format!("{cluster}-ingress");
        let ip = self.lab.host(cluster, &name).addresses.v4;
        self.lab.public(&name);
        let settings = json!({ "role": "ingress", "zone": zone, "listen": ip });
        self.start_proxy(cluster, &name, "weft-system", "ingress", settings).await;
        name
    }

    /// The directory of the processes of a host.
    pub fn dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn admin_token(&self, cluster: &str) -> PathBuf {
        self.dir(&control(cluster)).join("admin.token")
    }

    /// Makes the repository, of one commit: `configuration` beside what every mesh has.
    pub async fn prepare_repository(&self, configuration: &str) {
        let repository = self.repository();
        repository.write("mesh.yaml", BASE);
        repository.write("shop.yaml", configuration);
        for command in [
            &["init", "--quiet", "--initial-branch=main"][..],
            &["config", "user.name", "Lab"],
            &["config", "user.email", "lab@localhost"],
        ] {
            repository.git(command);
        }
        repository.commit("The mesh").await;
    }

    async fn start_control_plane(&self, cluster: &str, primary: &Value) {
        let name = control(cluster);
        let (host, dir) = (&self.lab[&name], self.dir(&name));
        fs::create_dir_all(&dir).expect("a directory of the test's own");
        let ip = host.addresses.v4;
        let mut settings = json!({
            "cluster": cluster, "stateDir": dir, "address": ip, "network": cluster,
            "locality": { "region": format!("eu-{cluster}"), "zone": "a" },
        });
        if cluster == CLUSTERS[0] {
            settings["role"] = "primary".into();
            merge(&mut settings, primary);
        } else {
            let token = self.ask(CLUSTERS[0], "/join-tokens", json!({ "cluster": cluster })).await;
            let file = write(&dir.join("join.token"), token["token"].as_str().expect("a token"));
            let primary = format!("{}:15013", self.lab[&control(CLUSTERS[0])].addresses.v4);
            merge(&mut settings, &json!({ "role": "remote", "joinTokenFile": file, "primary": primary }));
        }
        let file = write(&dir.join("config.json"), &settings.to_string());
        host.spawn(User::Root, &self.weft, &["controlplane", "--config", &file], &dir);
        self.ready(&name, format!("{ip}:15014")).await;
    }

    async fn start_gateway(&self, cluster: &str, name: &str, zone: &str) {
        let listen = format!("{}:15443", self.lab[name].addresses.v4);
        let settings =
            json!({ "role": "east-west", "zone": zone, "listen": listen, "publicAddress": listen });
        self.start_proxy(cluster, name, "weft-system", "east-west", settings).await;
    }

    async fn start_proxy(&self, cluster: &str, host: &str, namespace: &str, account: &str, settings: Value) {
        let request = json!({
            "workload": host, "namespace": namespace, "serviceAccount": account, "labels": { "app": account },
        });
        let token = self.ask(cluster, "/tokens", request).await;
        let dir = self.dir(host).join("proxy");
        let token = write(&dir.join("token"), token["token"].as_str().expect("a token"));
        let ip = self.lab[host].addresses.v4;
        let mut all = json!({
            "workload": host, "stateDir": dir, "tokenFile": token, "source": ip, "zone": ZONES[0],
            "controlPlanes": [format!("{}:15012", self.lab[&control(cluster)].addresses.v4)],
            "admin": format!("{ip}:15000"), "accessLog": { "path": dir.join("access.log") },
            "drainSeconds": 2,
        });
        merge(&mut all, &settings);
        let file = write(&dir.join("config.json"), &all.to_string());
        let proxy = self.weft.with_file_name("weft-proxy");
        self.lab[host].spawn(User::Proxy, &proxy, &["--config", &file], &dir);
        self.ready(host, format!("{ip}:15000")).await;
    }

    /// Waits until a process of a host says on `/ready` that it is.
    async fn ready(&self, host: &str, address: String) {
        let host = &self.lab[host];
        eventually(&format!("{} is ready", host.name()), READY, async || {
            let dead = host.dead();
            assert!(dead.is_empty(), "{}", dead.join("\n"));
            let address = address.clone();
            let answer = host.run(move || async move { Client::new(&address).get("/ready").await }).await?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&answer.body).into_owned())
            }
        })
        .await;
    }

    /// Posts to a cluster's admin API, from beside it.
    async fn ask(&self, cluster: &str, path: &str, body: Value) -> Value {
        let answer = self.call(cluster, "POST", path, body.to_string().into()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    async fn call(&self, cluster: &str, method: &str, path: &str, body: Bytes) -> Result<Answer, String> {
        let token = fs::read_to_string(self.admin_token(cluster)).map_err(|error| error.to_string())?;
        let bearer = format!("Bearer {}", token.trim());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let mut request = client::request(method, &format!("/api/v1{path}"), &headers);
        *request.body_mut() = body.into();
        let address = api(cluster, &self.lab);
        let control = &self.lab[&control(cluster)];
        control.run(move || async move { Client::new(&address).send(request, true).await }).await
    }
}

/// An HTTP server on a host that answers everything with the host's name.
pub fn name_yourself(host: &Host, port: u16) {
    host.addresses.all().into_iter().for_each(|address| name_yourself_at(host, address, port));
}

fn name_yourself_at(host: &Host, address: IpAddr, port: u16) {
    let name = host.name().to_owned();
    host.keep(move || async move {
        let listener = TcpListener::bind((address, port)).await.expect("the host is new");
        while let Ok((stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::task::spawn_local(async move {
                let answer = service_fn(|_| {
                    let answer = Response::new(Full::<Bytes>::from(name.clone()));
                    async move { Ok::<_, Infallible>(answer) }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
}

/// The hosts of a cluster's east-west gateways, one in each zone.
pub fn gateways(cluster: &str) -> [String; 2] {
    [1, 2].map(|number| format!("{cluster}-gateway-{number}"))
}

/// The host of a cluster's control plane.
pub fn control(cluster: &str) -> String {
    format!("{cluster}-control")
}

fn api(cluster: &str, lab: &Lab) -> String {
    format!("http://{}:15080", lab[&control(cluster)].addresses.v4)
}

/// Writes a file of the test's own. Gives its path.
fn write(path: &Path, text: &str) -> String {
    fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory of the test's own");
    fs::write(path, text).expect("a directory of the test's own");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("one's own file");
    path.display().to_string()
}

/// Adds the fields of one object to another.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { return };
    into.extend(from.iter().map(|(key, value)| (key.clone(), value.clone())));
}
