//! A real etcd server: the `etcd` of the path, or the binary that `WEFT_TEST_ETCD` names. The control plane's own tests
//! read this file too, so it knows nobody.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A server that is not ready by then has failed.
const READY_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// The program.
pub fn binary() -> PathBuf {
    std::env::var_os("WEFT_TEST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from)
}

/// What a cluster of one is told: where its data lies, where clients, peers and scrapes find it, and how clients speak.
pub fn arguments(data: &Path, places: [SocketAddr; 3], scheme: &str) -> Vec<String> {
    member(data, places, scheme, &[places[1]])
}

/// The same of a member of a cluster, whose peers these are; members are named by where their peers find them.
fn member(
    data: &Path,
    [client, peer, metrics]: [SocketAddr; 3],
    scheme: &str,
    peers: &[SocketAddr],
) -> Vec<String> {
    let name = peer.to_string();
    let (client, peer) = (format!("{scheme}://{client}"), format!("http://{peer}"));
    let peers: Vec<_> = peers.iter().map(|peer| format!("{peer}=http://{peer}")).collect();
    [
        ("--data-dir", data.display().to_string()),
        ("--name", name),
        ("--initial-cluster", peers.join(",")),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer),
        ("--listen-metrics-urls", format!("http://{metrics}")),
        ("--heartbeat-interval", "20".to_owned()),
        ("--election-timeout", "200".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

/// One server, of a cluster of one unless it is told otherwise. Its drop ends it.
pub struct EtcdServer {
    child: Option<Child>,
    home: TempDir,
    /// Where clients, peers and scrapes find it.
    places: [SocketAddr; 3],
    peers: Vec<SocketAddr>,
    tls: bool,
    args: Vec<String>,
}

impl EtcdServer {
    /// Starts one at free ports of `ip`, with further arguments, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(ip: IpAddr, args: &[&str]) -> Self {
        let mut server = EtcdServer::at(ip);
        server.tls = args.contains(&"--cert-file");
        server.again_with(args);
        server
    }

    /// Starts a cluster, one member at free ports of each of these addresses, and waits until all are ready.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn cluster<const N: usize>(ips: [IpAddr; N]) -> [Self; N] {
        let mut members = ips.map(EtcdServer::at);
        let peers = members.each_ref().map(|member| member.places[1]);
        for member in &mut members {
            member.peers = peers.into();
            member.run();
        }
        members.iter().for_each(EtcdServer::wait_until_ready);
        members
    }

    /// One that has its places, and does not run yet.
    fn at(ip: IpAddr) -> Self {
        // All held until all are chosen, so that they differ.
        let held = [(); 3].map(|()| TcpListener::bind((ip, 0)).expect("a free port"));
        let places = held.map(|one| one.local_addr().expect("it is bound"));
        let home = tempfile::tempdir().expect("a directory");
        EtcdServer { child: None, home, places, peers: vec![places[1]], tls: false, args: Vec::new() }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.places[0])
    }

    /// Starts it again on the data that it has.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn again(&mut self) {
        self.run();
        self.wait_until_ready();
    }

    fn run(&mut self) {
        let binary = binary();
        let child = Command::new(&binary)
            .args(member(&self.data(), self.places, self.scheme(), &self.peers))
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.home.path().join("etcd.err")).expect("a directory"))
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("{} cannot be started: {error}; `scripts/setup test` installs etcd, or name one in WEFT_TEST_ETCD", binary.display())
        }));
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + READY_LIMIT;
        while !self.metrics().is_ok_and(|all| all.contains("etcd_server_has_leader 1")) {
            assert!(Instant::now() < deadline, "etcd is not ready:\n{}", self.said());
            thread::sleep(POLL);
        }
    }

    /// Whether it leads its cluster.
    pub fn leads(&self) -> bool {
        self.metrics().is_ok_and(|all| all.contains("etcd_server_is_leader 1"))
    }

    /// The same with other arguments.
    pub fn again_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.again();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal by its name, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name} {pid}");
    }

    /// A copy of its data as a killed server leaves it: a backup. The server has to be dead.
    pub fn back_up(&self, to: &Path) {
        assert!(self.child.is_none());
        copy(&self.data(), to);
    }

    /// Replaces its data by a backup, or by nothing. The server has to be dead.
    pub fn restore(&self, from: Option<&Path>) {
        assert!(self.child.is_none());
        fs::remove_dir_all(self.data()).expect("it has data");
        if let Some(from) = from {
            copy(from, &self.data());
        }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.home.path().join("etcd.err")).unwrap_or_default()
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// What it tells of itself once it serves; its own word on its health is no when it is merely full.
    fn metrics(&self) -> std::io::Result<String> {
        let [client, _, metrics] = self.places;
        TcpStream::connect(client)?;
        let mut stream = TcpStream::connect(metrics)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Copies a directory with all that it holds.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a file");
        }
    }
}
