//! What a `weft-proxy` is told: the JSON file of its `--config`.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::{
    admin::TokenRequest,
    name::{Namespace, WorkloadId},
};
use serde::{Deserialize, Serialize};

use crate::process::{Process, weft_proxy, write_private};

pub(crate) const ADMIN_PORT: u16 = 15000;
pub(crate) const OUTBOUND_PORT: u16 = 15001;
pub(crate) const INBOUND_PORT: u16 = 15006;
pub(crate) const EAST_WEST_PORT: u16 = 15443;
/// How long a proxy may take to finish its requests when asked to end.
pub(crate) const DRAIN_SECONDS: u64 = 5;
/// Its settings, in its state directory.
const CONFIG: &str = "config.json";

/// One proxy's settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Proxy {
    role: Role,
    workload: WorkloadId,
    state_dir: PathBuf,
    token_file: PathBuf,
    control_planes: Vec<String>,
    source: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbound: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outbound: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_address: Option<SocketAddr>,
    admin: SocketAddr,
    apps: Vec<App>,
    zone: String,
    workers: u32,
    access_log: AccessLog,
    tracing: Tracing,
    drain_seconds: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Sidecar,
    Ingress,
    EastWest,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct App {
    port: u16,
    address: SocketAddr,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AccessLog {
    path: PathBuf,
    sample: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tracing {
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    sample: f64,
}

impl Role {
    /// As people write it; a gateway's service account bears it too.
    fn name(self) -> &'static str {
        match self {
            Role::Sidecar => "sidecar",
            Role::Ingress => "ingress",
            Role::EastWest => "east-west",
        }
    }
}

/// What all proxies of one cluster are told alike.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The control plane's address for proxies.
    pub(crate) control_plane: String,
    /// Where spans go.
    pub(crate) trace: Option<String>,
}

impl Proxy {
    fn new(role: Role, workload: &WorkloadId, ip: IpAddr, dir: &Path, surroundings: &Surroundings) -> Self {
        Proxy {
            role,
            workload: workload.clone(),
            state_dir: dir.to_owned(),
            token_file: dir.join("token"),
            control_planes: vec![surroundings.control_plane.clone()],
            source: ip,
            inbound: None,
            outbound: None,
            listen: None,
            public_address: None,
            admin: SocketAddr::new(ip, ADMIN_PORT),
            apps: Vec::new(),
            zone: "a".to_owned(),
            workers: 1,
            access_log: AccessLog { path: dir.join("access.log"), sample: 1.0 },
            tracing: Tracing { endpoint: surroundings.trace.clone(), sample: 1.0 },
            drain_seconds: DRAIN_SECONDS,
        }
    }

    /// The sidecar of the application at `app`, which services know by `port`.
    pub(crate) fn sidecar(
        workload: &WorkloadId,
        ip: IpAddr,
        (port, app): (u16, SocketAddr),
        dir: &Path,
        surroundings: &Surroundings,
    ) -> Self {
        Proxy {
            inbound: Some(SocketAddr::new(ip, INBOUND_PORT)),
            outbound: Some(SocketAddr::new(ip, OUTBOUND_PORT)),
            apps: vec![App { port, address: app }],
            ..Proxy::new(Role::Sidecar, workload, ip, dir, surroundings)
        }
    }

    /// An ingress gateway: its ports come from the `Gateway`s.
    pub(crate) fn ingress(
        workload: &WorkloadId,
        ip: IpAddr,
        dir: &Path,
        surroundings: &Surroundings,
    ) -> Self {
        Proxy { listen: Some(ip.to_string()), ..Proxy::new(Role::Ingress, workload, ip, dir, surroundings) }
    }

    /// An east-west gateway.
    pub(crate) fn east_west(
        workload: &WorkloadId,
        ip: IpAddr,
        dir: &Path,
        surroundings: &Surroundings,
    ) -> Self {
        let listen = SocketAddr::new(ip, EAST_WEST_PORT);
        Proxy {
            listen: Some(listen.to_string()),
            public_address: Some(listen),
            ..Proxy::new(Role::EastWest, workload, ip, dir, surroundings)
        }
    }

    /// What the proxy whose state lies in `dir` was told.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(CONFIG);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what weft wrote", path.display()))
    }

    /// What the token of a gateway has to vouch for; a sidecar's is that of its workload.
    pub(crate) fn gateway_token(&self) -> TokenRequest {
        let account = self.role.name();
        TokenRequest {
            workload: self.workload.clone(),
            namespace: Namespace::system(),
            service_account: account.parse().expect("a literal"),
            labels: BTreeMap::from([("app".into(), account.into())]),
            ttl_seconds: None,
        }
    }

    /// `ingress`, `east-west` or `sidecar`.
    pub(crate) fn kind(&self) -> &'static str {
        self.role.name()
    }

    /// Its state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.state_dir
    }

    /// Where its clients reach it: the sidecar's inbound, an east-west gateway's listener, an ingress's address.
    pub(crate) fn address(&self) -> String {
        match (self.inbound, &self.listen) {
            (Some(inbound), _) => inbound.to_string(),
            (None, Some(listen)) => listen.clone(),
            (None, None) => self.source.to_string(),
        }
    }

    /// Where its readiness is asked for.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn workload(&self) -> &WorkloadId {
        &self.workload
    }

    /// Hands it its one-time token.
    pub(crate) fn give_token(&self, token: &str) -> anyhow::Result<()> {
        write_private(&self.token_file, token)
    }

    /// Writes the settings to its state directory.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        write_private(&self.state_dir.join(CONFIG), &serde_json::to_string_pretty(self)?)
    }

    /// Writes the settings, and says how it is started.
    pub(crate) fn prepare(&self) -> anyhow::Result<Process> {
        self.write()?;
        Ok(Process {
            name: match self.role {
                Role::Sidecar => format!("sidecar of {}", self.workload),
                Role::Ingress | Role::EastWest => format!("gateway {}", self.workload),
            },
            program: weft_proxy()?,
            args: vec!["--config".into(), self.state_dir.join(CONFIG).into()],
            env: Vec::new(),
            dir: self.state_dir.clone(),
            cwd: None,
            foreground: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_sidecar_is_told_all_it_needs() {
        let ip: IpAddr = "127.1.0.11".parse().unwrap();
        let sidecar = Proxy::sidecar(
            &"east-front-1".parse().unwrap(),
            ip,
            (8080, SocketAddr::new(ip, 8080)),
            Path::new("/srv/sidecar"),
            &Surroundings { control_plane: "127.1.0.1:15012".into(), trace: None },
        );
        expect![[r#"
            {
              "role": "sidecar",
              "workload": "east-front-1",
              "stateDir": "/srv/sidecar",
              "tokenFile": "/srv/sidecar/token",
              "controlPlanes": [
                "127.1.0.1:15012"
              ],
              "source": "127.1.0.11",
              "inbound": "127.1.0.11:15006",
              "outbound": "127.1.0.11:15001",
              "admin": "127.1.0.11:15000",
              "apps": [
                {
                  "port": 8080,
                  "address": "127.1.0.11:8080"
                }
              ],
              "zone": "a",
              "workers": 1,
              "accessLog": {
                "path": "/srv/sidecar/access.log",
                "sample": 1.0
              },
              "tracing": {
                "sample": 1.0
              },
              "drainSeconds": 5
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&sidecar).unwrap());
    }

    #[test]
    fn gateways_listen_where_their_role_says() {
        let ip: IpAddr = "127.1.0.2".parse().unwrap();
        let surroundings = Surroundings { control_plane: "127.1.0.1:15012".into(), trace: None };
        let id = "east-eastwest".parse().unwrap();
        let gateway =
            serde_json::to_value(Proxy::east_west(&id, ip, Path::new("/g"), &surroundings)).unwrap();
        assert_eq!(gateway["role"], "east-west");
        assert_eq!(gateway["listen"], "127.1.0.2:15443");
        assert_eq!(gateway["publicAddress"], "127.1.0.2:15443");
        let gateway = serde_json::to_value(Proxy::ingress(&id, ip, Path::new("/g"), &surroundings)).unwrap();
        assert_eq!((&gateway["role"], &gateway["listen"]), (&"ingress".into(), &"127.1.0.2".into()));
    }
}
