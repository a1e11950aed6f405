//! A real mesh of one cluster: a Git repository, a control plane on the load's core, and proxies on the other.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use api::admin::{Token, TokenRequest, WaitAnswer};
use serde_json::{Value, json};

use crate::{
    http,
    machine::{Core, Programs, Running, output, pinned},
};

/// Also of a control plane that checks 20,000 resources first.
const START: Duration = Duration::from_secs(180);
/// Of requests that the access log tells of.
const LOGGED_SHARE: f64 = 0.01;

/// The control plane's ports.
const PROXIES: u16 = 15012;
const METRICS: u16 = 15014;
const API: u16 = 15080;
/// A proxy's.
const ADMIN: u16 = 15000;
/// Where a sidecar's application asks it to call others.
pub const OUTBOUND: u16 = 15001;
/// Where others call a sidecar's application.
pub const INBOUND: u16 = 15006;
/// Where other networks call an east-west gateway.
pub const EAST_WEST: u16 = 15443;

/// One running mesh. Its cluster is `east`, its addresses are `127.BLOCK.0.*`.
pub struct Mesh<'a> {
    programs: &'a Programs,
    dir: PathBuf,
    block: u8,
    token: String,
    controlplane: Running,
}

/// A proxy that is to be started.
pub struct Member<'a> {
    /// The workload's id.
    pub id: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account, which is its label `app` too.
    pub account: &'a str,
    /// The last number of its address.
    pub host: u8,
    /// What it does.
    pub role: Role,
}

/// What a proxy does.
#[derive(Clone, Copy)]
pub enum Role {
    /// A sidecar of this application.
    Sidecar(SocketAddr),
    /// At the edge of the mesh.
    Ingress,
    /// At the edge of the network.
    EastWest,
}

impl<'a> Member<'a> {
    /// Beside an application.
    pub fn sidecar(id: &'a str, namespace: &'a str, account: &'a str, host: u8, app: SocketAddr) -> Self {
        Member { id, namespace, account, host, role: Role::Sidecar(app) }
    }

    /// A gateway of the mesh.
    pub fn gateway(id: &'a str, account: &'a str, host: u8, role: Role) -> Self {
        Member { id, namespace: "weft-system", account, host, role }
    }
}

impl<'a> Mesh<'a> {
    /// Commits `files` to a new repository and serves it; the control plane has `core`.
    pub fn start(
        programs: &'a Programs,
        dir: &Path,
        block: u8,
        core: Core,
        files: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let repository = dir.join("config");
        commit_all(&repository, files)?;
        let state = dir.join("controlplane");
        fs::create_dir_all(&state)?;
        let at = |port| SocketAddr::new(ip(block, 1), port);
        let file = dir.join("controlplane.json");
        let config = json!({
            "cluster": "east", "role": "primary", "stateDir": &state, "address": ip(block, 1), "network": "east",
            "locality": { "region": "eu-east", "zone": "a", "subzone": "" },
            "source": { "repository": &repository, "branch": "main", "path": "" },
        });
        fs::write(&file, config.to_string())?;
        let mut command = pinned(core, &programs.weft);
        command.arg("controlplane").arg("--config").arg(&file);
        let mut controlplane = Running::start("weft controlplane", command, &dir.join("controlplane.log"))?;
        controlplane.wait(START, || http::is_ready(at(METRICS)))?;
        let token =
            fs::read_to_string(state.join("admin.token")).context("the control plane made no token")?;
        let token = token.trim().to_owned();
        Ok(Mesh { programs, dir: dir.to_owned(), block, token, controlplane })
    }

    /// The address with this last number.
    pub fn ip(&self, host: u8) -> IpAddr {
        ip(self.block, host)
    }

    /// Where proxies ask it.
    pub fn control_plane(&self) -> SocketAddr {
        SocketAddr::new(self.ip(1), PROXIES)
    }

    /// The control plane's process.
    pub fn process(&self) -> &Running {
        &self.controlplane
    }

    /// Commits this file, and returns when every proxy obeys it: how long that took, from the end of `git commit`, and
    /// the commit.
    pub fn commit(&self, file: &str, text: &str) -> anyhow::Result<(Duration, String)> {
        let repository = self.dir.join("config");
        fs::write(repository.join(file), text)?;
        git(&repository, &["add", file])?;
        git(&repository, &["commit", "--quiet", "-m", file])?;
        let began = Instant::now();
        let head = output(Command::new("git").arg("-C").arg(&repository).args(["rev-parse", "HEAD"]))?;
        self.wait_for(head.trim())?;
        Ok((began.elapsed(), head.trim().to_owned()))
    }

    /// Starts a proxy on the proxies' core and waits until it is ready.
    pub fn proxy(&self, member: &Member<'_>) -> anyhow::Result<Running> {
        let dir = self.dir.join(member.id);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("token"), self.mint(member)?)?;
        let file = dir.join("config.json");
        fs::write(&file, self.settings(member, &dir).to_string())?;
        let mut command = pinned(Core::Proxies, &self.programs.proxy);
        command.arg("--config").arg(&file);
        let name = format!("weft-proxy {}", member.id);
        let mut running = Running::start(&name, command, &dir.join("output.log"))?;
        let admin = SocketAddr::new(self.ip(member.host), ADMIN);
        running.wait(START, || http::is_ready(admin))?;
        Ok(running)
    }

    fn settings(&self, member: &Member<'_>, dir: &Path) -> Value {
        let own = self.ip(member.host);
        let at = |port| SocketAddr::new(own, port);
        let mut settings = json!({
            "workload": member.id, "stateDir": dir, "tokenFile": dir.join("token"),
            "controlPlanes": [self.control_plane()], "source": own, "admin": at(ADMIN),
            "zone": "a", "workers": 1, "drainSeconds": 1,
            "accessLog": { "path": dir.join("access.log"), "sample": LOGGED_SHARE },
        });
        let role = match member.role {
            Role::Ingress => json!({ "role": "ingress", "listen": own }),
            Role::EastWest => json!({ "role": "east-west", "listen": at(EAST_WEST) }),
            Role::Sidecar(app) => json!({
                "role": "sidecar", "inbound": at(INBOUND), "outbound": at(OUTBOUND),
                "apps": [{ "port": 8080, "address": app }],
            }),
        };
        if let (Value::Object(settings), Value::Object(role)) = (&mut settings, role) {
            settings.extend(role);
        }
        settings
    }

    /// A one-time token.
    pub fn mint(&self, member: &Member<'_>) -> anyhow::Result<String> {
        let request = TokenRequest {
            workload: member.id.parse()?,
            namespace: member.namespace.parse()?,
            service_account: member.account.parse()?,
            labels: BTreeMap::from([("app".into(), member.account.into())]),
            ttl_seconds: None,
        };
        let answer: Token = self.call("POST", "/api/v1/tokens", &serde_json::to_string(&request)?)?;
        Ok(answer.token)
    }

    /// Waits until every proxy obeys the newest commit.
    pub fn effective(&self) -> anyhow::Result<()> {
        self.wait_for("HEAD")
    }

    fn wait_for(&self, commit: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/wait?commit={commit}&timeout=60");
        let answer: WaitAnswer = self.call("GET", &path, "")?;
        ensure!(answer.effective, "the configuration does not reach every proxy: {answer:?}");
        Ok(())
    }

    fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<T> {
        let bearer = format!("Bearer {}", self.token);
        let headers =
            [("host", "weft"), ("authorization", bearer.as_str()), ("content-type", "application/json")];
        let answer = http::call(SocketAddr::new(self.ip(1), API), method, path, &headers, body)?;
        ensure!(answer.status < 300, "{method} {path} answers {}: {}", answer.status, answer.body);
        serde_json::from_str(&answer.body).with_context(|| format!("{method} {path} answers {}", answer.body))
    }
}

fn ip(block: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, block, 0, host).into()
}

fn commit_all(repository: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    fs::create_dir_all(repository)?;
    for (name, text) in files {
        fs::write(repository.join(name), text)?;
    }
    let git = |args: &[&str]| git(repository, args);
    git(&["init", "--quiet", "--initial-branch=main"])?;
    git(&["add", "--all"])?;
    git(&["commit", "--quiet", "-m", "The mesh to be measured"])
}

/// Runs git there with an author of our own.
pub fn git(repository: &Path, args: &[&str]) -> anyhow::Result<()> {
    let own = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false"];
    output(Command::new("git").arg("-C").arg(repository).args(own).args(args)).map(drop)
}
