//! The settings of one proxy: what its file says ([`Said`]) and what that means ([`Config`]), all errors at once.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use api::wire::Role as WireRole;
use serde::Deserialize;

use crate::capture::{Capture, Exclude};

/// The most workers: more threads than this help no proxy on one machine.
const MAX_WORKERS: usize = 64;

/// The most that capture leaves alone: the kernel asks for each of these at each connection.
const MAX_EXCLUDED: usize = 256;

/// What the file says. Everything may be missing; what must not is said by [`Said::mean`].
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Said {
    role: Option<String>,
    workload: Option<String>,
    state_dir: Option<PathBuf>,
    token_file: Option<PathBuf>,
    control_planes: Vec<String>,
    source: Option<String>,
    inbound: Option<String>,
    outbound: Option<String>,
    listen: Option<String>,
    public_address: Option<String>,
    admin: Option<String>,
    apps: Vec<SaidApp>,
    zone: Option<String>,
    workers: Option<usize>,
    access_log: Option<SaidLog>,
    tracing: Option<SaidTracing>,
    drain_seconds: Option<u64>,
    capture: Option<SaidCapture>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct SaidCapture {
    install: Option<bool>,
    user: Option<u32>,
    exclude_users: Vec<u32>,
    exclude_inbound_ports: Vec<u16>,
    exclude_outbound_ports: Vec<u16>,
    exclude_addresses: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidApp {
    port: u16,
    address: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidLog {
    path: PathBuf,
    sample: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidTracing {
    endpoint: Option<String>,
    sample: Option<f64>,
}

/// What the settings mean.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this proxy is.
    pub role: Role,
    /// A label for logs; who it really is stands in its certificate.
    pub workload: String,
    /// Credentials and the last good view.
    pub state_dir: PathBuf,
    /// The one-time token, used when there are no usable credentials.
    pub token_file: Option<PathBuf>,
    /// Any of them will do.
    pub control_planes: Vec<SocketAddr>,
    /// The local address of connections to others.
    pub source: IpAddr,
    /// `/metrics`, `/ready`, `/runtime`, `/drain`.
    pub admin: SocketAddr,
    /// Of the locality, where the cluster does not say it.
    pub zone: String,
    /// Threads that carry requests.
    pub workers: usize,
    /// Where requests are told of.
    pub access_log: Option<Log>,
    /// Where spans go.
    pub tracing: Tracing,
    /// How long the end may take.
    pub drain: Duration,
    /// What of the application's traffic is captured; without it the application names this proxy itself.
    pub capture: Option<Capture>,
}

/// What a proxy is, with the sockets that this takes.
#[derive(Debug, Clone)]
pub enum Role {
    /// Beside an application.
    Sidecar {
        /// Where others reach it.
        inbound: SocketAddr,
        /// Where its application asks it to call others.
        outbound: SocketAddr,
        /// Where the application itself listens.
        apps: Vec<App>,
    },
    /// At the edge of the mesh; its ports come from `Gateway`s.
    Ingress {
        /// The address it listens on.
        listen: IpAddr,
    },
    /// At the edge of a network, for the other clusters.
    EastWest {
        /// Where it listens.
        listen: SocketAddr,
        /// As other networks reach it.
        public: SocketAddr,
    },
}

/// One port of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// As services name it.
    pub port: u16,
    /// Where it is.
    pub address: SocketAddr,
}

/// The access log.
#[derive(Debug, Clone)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    /// The share of requests that are told of; what fails always is.
    pub sample: f64,
}

/// Tracing. Without an endpoint the context is passed on and nothing is sent.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// `http://host:port` of an OTLP/gRPC receiver.
    pub endpoint: Option<String>,
    /// The share of traces that begin here and are kept.
    pub sample: f64,
}

/// All that is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Mistakes {}

impl Role {
    /// As the wire names it.
    pub fn wire(&self) -> WireRole {
        match self {
            Role::Sidecar { .. } => WireRole::Sidecar,
            Role::Ingress { .. } => WireRole::Ingress,
            Role::EastWest { .. } => WireRole::EastWest,
        }
    }

    /// Where other proxies reach it.
    pub fn address(&self) -> String {
        match self {
            Role::Sidecar { inbound, .. } => inbound.to_string(),
            // Its ports come and go with the gateways that it serves.
            Role::Ingress { listen } => SocketAddr::new(*listen, 0).to_string(),
            Role::EastWest { listen, .. } => listen.to_string(),
        }
    }

    /// The application's ports.
    pub fn apps(&self) -> &[App] {
        match self {
            Role::Sidecar { apps, .. } => apps,
            Role::Ingress { .. } | Role::EastWest { .. } => &[],
        }
    }
}

impl Config {
    /// Whether a connection of this proxy to `to` would come in where its own application calls out, or where it is
    /// administered: nobody else is to be led there.
    pub fn leads_back(&self, to: SocketAddr) -> bool {
        let outbound = match &self.role {
            Role::Sidecar { outbound, .. } => Some(*outbound),
            Role::Ingress { .. } | Role::EastWest { .. } => None,
        };
        outbound.into_iter().chain([self.admin]).any(|own| self.comes_to(own, to))
    }

    /// Whether a connection of this proxy to `to` would come in at its listener `own`.
    fn comes_to(&self, own: SocketAddr, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        let anywhere = own.ip().is_unspecified();
        to.port() == own.port()
            && (ip == own.ip() || ip.is_unspecified() || anywhere && (ip.is_loopback() || ip == self.source))
    }
}

/// Reads the file at `path`.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    Ok(process::config::read::<Said>(path)?.mean()?)
}

impl Said {
    /// What it means, or all that is wrong with it.
    pub fn mean(self) -> Result<Config, Mistakes> {
        let mut wrong = Wrong::default();
        let role = wrong.role(&self);
        let control_planes =
            self.control_planes.iter().filter_map(|text| wrong.parse("controlPlanes", text)).collect();
        if self.control_planes.is_empty() {
            wrong.say::<()>("controlPlanes: name at least one `IP:PORT`");
        }
        let source = wrong.need("source", self.source.as_deref());
        let admin = wrong.need("admin", self.admin.as_deref());
        let workers = self.workers.unwrap_or(1);
        if !(1..=MAX_WORKERS).contains(&workers) {
            wrong.say::<()>(format!("workers: 1 to {MAX_WORKERS}, not {workers}"));
        }
        let log = self
            .access_log
            .map(|log| Log { sample: wrong.share("accessLog.sample", log.sample), path: log.path });
        let tracing = self.tracing.unwrap_or(SaidTracing { endpoint: None, sample: None });
        let capture = self.capture.as_ref().and_then(|said| wrong.capture(said, role.as_ref()));
        let tracing =
            Tracing { sample: wrong.share("tracing.sample", tracing.sample), endpoint: tracing.endpoint };
        let state_dir = self.state_dir.or_else(|| wrong.say("stateDir: missing"));
        match (role, source, admin, state_dir, wrong.0.is_empty()) {
            (Some(role), Some(source), Some(admin), Some(state_dir), true) => Ok(Config {
                role,
                workload: self.workload.unwrap_or_default(),
                state_dir,
                token_file: self.token_file,
                control_planes,
                source,
                admin,
                zone: self.zone.unwrap_or_default(),
                workers,
                access_log: log,
                tracing,
                drain: Duration::from_secs(self.drain_seconds.unwrap_or(5)),
                capture,
            }),
            _ => Err(Mistakes(wrong.0)),
        }
    }
}

#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn say<T>(&mut self, what: impl Into<String>) -> Option<T> {
        self.0.push(what.into());
        None
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.say::<()>(format!("{field}: `{text}`: {error}"))).ok()
    }

    fn need<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: Option<&str>) -> Option<T> {
        match text {
            Some(text) => self.parse(field, text),
            None => self.say(format!("{field}: missing")),
        }
    }

    fn capture(&mut self, said: &SaidCapture, role: Option<&Role>) -> Option<Capture> {
        let (inbound, outbound, apps) = match role? {
            Role::Sidecar { inbound, outbound, apps } => (inbound.port(), outbound.port(), apps),
            Role::Ingress { .. } | Role::EastWest { .. } => {
                return self.say("capture: it is for sidecars; a gateway has no application beside it");
            }
        };
        let install = said.install.unwrap_or(true);
        if !install && said.user.is_none() {
            return self.say("capture.user: say as which user the proxy runs, since others set its rules");
        }
        let all = said.exclude_users.len()
            + said.exclude_inbound_ports.len()
            + said.exclude_outbound_ports.len()
            + said.exclude_addresses.len();
        if all > MAX_EXCLUDED {
            return self.say(format!("capture: {all} exclusions, at most {MAX_EXCLUDED} are kept apart"));
        }
        let addresses = &said.exclude_addresses;
        Some(Capture {
            install,
            user: said.user.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
            inbound,
            outbound,
            serves_ssh: apps.iter().any(|app| app.port == 22),
            exclude: Exclude {
                users: said.exclude_users.clone(),
                inbound_ports: said.exclude_inbound_ports.clone(),
                outbound_ports: said.exclude_outbound_ports.clone(),
                addresses: addresses
                    .iter()
                    .filter_map(|text| self.parse("capture.excludeAddresses", text))
                    .collect(),
            },
        })
    }

    fn share(&mut self, field: &str, share: Option<f64>) -> f64 {
        let share = share.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&share) {
            self.say::<()>(format!("{field}: 0 to 1, not {share}"));
        }
        share
    }

    fn role(&mut self, said: &Said) -> Option<Role> {
        match said.role.as_deref() {
            Some("sidecar") => {
                let (inbound, outbound) = (
                    self.need("inbound", said.inbound.as_deref()),
                    self.need("outbound", said.outbound.as_deref()),
                );
                let apps = said.apps.iter().filter_map(|app| {
                    Some(App { port: app.port, address: self.parse("apps.address", &app.address)? })
                });
                let apps = apps.collect();
                Some(Role::Sidecar { inbound: inbound?, outbound: outbound?, apps })
            }
            Some("ingress") => Some(Role::Ingress { listen: self.need("listen", said.listen.as_deref())? }),
            Some("east-west") => {
                let listen: Option<SocketAddr> = self.need("listen", said.listen.as_deref());
                let public = match said.public_address.as_deref() {
                    Some(text) => self.parse("publicAddress", text),
                    None => listen,
                };
                Some(Role::EastWest { listen: listen?, public: public? })
            }
            Some(other) => self.say(format!("role: `{other}` is none of sidecar, ingress, east-west")),
            None => self.say("role: missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(text: &str) -> Result<Config, Mistakes> {
        serde_json::from_str::<Said>(text).unwrap().mean()
    }

    #[test]
    fn a_sidecar_means_what_it_says() {
        let config = mean(
            r#"{"role":"sidecar","workload":"reviews-v1-1","stateDir":"s","tokenFile":"t","controlPlanes":["127.1.0.1:15012"],
                "source":"127.1.0.11","inbound":"127.1.0.11:15006","outbound":"127.1.0.11:15001","admin":"127.1.0.11:15000",
                "apps":[{"port":8080,"address":"127.1.0.11:8080"}],"zone":"a","workers":2,
                "accessLog":{"path":"access.log","sample":0.5},"tracing":{"endpoint":"http://127.0.0.1:4317"}}"#,
        )
        .unwrap();
        assert_eq!(config.role.apps().len(), 1);
        assert_eq!((config.workers, config.access_log.unwrap().sample, config.tracing.sample), (2, 0.5, 1.0));
        assert_eq!(config.drain, Duration::from_secs(5));
    }

    #[test]
    fn capture_leads_to_the_ports_of_the_sidecar() {
        let sidecar = |capture: &str| {
            mean(&format!(
                r#"{{"role":"sidecar","stateDir":"s","controlPlanes":["10.0.0.1:15012"],"source":"10.0.0.2",
                    "inbound":"10.0.0.2:15006","outbound":"127.0.0.1:15001","admin":"10.0.0.2:15000","capture":{capture}}}"#
            ))
        };
        let capture = sidecar(r#"{"user":1337,"excludeAddresses":["10.0.0.0/8"]}"#).unwrap().capture.unwrap();
        assert_eq!((capture.install, capture.user), (true, 1337));
        assert_eq!((capture.inbound, capture.outbound), (15006, 15001));
        let mistakes = sidecar(r#"{"install":false}"#).unwrap_err();
        assert!(mistakes.0[0].starts_with("capture.user: say as which user"), "{mistakes}");
        let mistakes = sidecar(r#"{"excludeAddresses":["10.0.0.0/33","here"]}"#).unwrap_err();
        assert_eq!(mistakes.0.len(), 2, "{mistakes}");
    }

    /// The fields that a type knows, by its own word.
    fn fields<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let unknown = serde_json::from_str::<T>(r#"{"?": 0}"#).err().expect("it knows no such field");
        unknown.to_string().split('`').skip(3).step_by(2).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn each_setting_stands_in_the_documents() {
        let document = include_str!("../../docs/settings.md");
        let [app, log, tracing] = [fields::<SaidApp>(), fields::<SaidLog>(), fields::<SaidTracing>()];
        let all = [fields::<Said>(), fields::<SaidCapture>(), app, log, tracing];
        assert!(all.iter().all(|fields| !fields.is_empty()), "{all:?}");
        for field in all.concat() {
            let named = [format!("`{field}`"), format!("\"{field}\"")];
            assert!(named.iter().any(|name| document.contains(name)), "{field} is not told of");
        }
    }

    #[test]
    fn what_leads_back_is_told_from_what_leads_elsewhere() {
        let back = |outbound: &str, to: &str| {
            let config = mean(&format!(
                r#"{{"role":"sidecar","stateDir":"s","controlPlanes":["10.0.0.1:15012"],"source":"10.0.0.9",
                    "inbound":"10.0.0.9:15006","outbound":"{outbound}","admin":"10.0.0.9:15000"}}"#
            ));
            config.unwrap().leads_back(to.parse().unwrap())
        };
        for to in ["127.0.0.1:15001", "0.0.0.0:15001", "[::ffff:127.0.0.1]:15001", "[::]:15001"] {
            assert!(back("127.0.0.1:15001", to), "{to}");
        }
        for to in ["127.0.0.1:15002", "10.0.0.9:15001", "10.0.0.8:15001"] {
            assert!(!back("127.0.0.1:15001", to), "{to}");
        }
        assert!(back("127.0.0.1:15001", "10.0.0.9:15000"), "its admin listener");
        assert!(back("0.0.0.0:15001", "10.0.0.9:15001") && back("0.0.0.0:15001", "127.3.0.1:15001"));
        assert!(!back("0.0.0.0:15001", "10.0.0.8:15001"));
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes =
            mean(r#"{"role":"sidecar","source":"here","workers":0,"tracing":{"sample":2}}"#).unwrap_err();
        let fields: Vec<_> = mistakes.0.iter().map(|m| m.split(':').next().unwrap()).collect();
        let all = [
            "inbound",
            "outbound",
            "controlPlanes",
            "source",
            "admin",
            "workers",
            "tracing.sample",
            "stateDir",
        ];
        assert_eq!(fields, all);
        assert!(mean(r#"{"role":"router"}"#).unwrap_err().0[0].contains("none of sidecar"));
    }
}
