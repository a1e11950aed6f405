//! Real Git servers: `git http-backend` behind a server of our own, and OpenSSH's `sshd`, each on a loopback address.
//!
//! Both serve the bare repositories below one directory, see [`Origin`].

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A directory with bare repositories, and a work tree of each.
pub struct Origin {
    /// Holds the bare repositories, `NAME.git`.
    pub root: PathBuf,
}

impl Origin {
    /// An empty one below `dir`.
    pub fn below(dir: &Path) -> Self {
        let root = dir.join("origin");
        fs::create_dir_all(&root).expect("a writable directory");
        Origin { root }
    }

    /// Makes a bare repository that takes pushes, and a work tree with `origin` set to it.
    pub fn make(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let (bare, work) = (self.bare(name), self.root.join(name));
        let bare_text = bare.to_str().expect("a path in UTF-8");
        git(&self.root, &[&["init", "-q", "--bare", "-b", "main"], arguments, &[bare_text]].concat());
        git(&bare, &["config", "http.receivepack", "true"]);
        git(&bare, &["config", "receive.denyDeleteCurrent", "ignore"]);
        git(&self.root, &[&["init", "-q", "-b", "main"], arguments, &[name]].concat());
        git(&work, &["remote", "add", "origin", bare_text]);
        work
    }

    /// A bare repository's directory.
    pub fn bare(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.git"))
    }

    /// Commits one file and pushes it; gives the commit's id.
    pub fn push(&self, name: &str, file: &str, text: &str) -> String {
        let work = self.root.join(name);
        fs::write(work.join(file), text).expect("a writable directory");
        git(&work, &["add", "--all"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", &format!("change {file}")]);
        git(&work, &["push", "-q", "--force", "origin", "HEAD:main"]);
        git(&work, &["rev-parse", "HEAD"]).trim().to_owned()
    }
}

/// Runs git there, untouched by the settings of whoever runs the tests. It has to succeed.
pub fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1"), ("HOME", "/nonexistent")])
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@shop.example")])
        .envs([("GIT_COMMITTER_NAME", "Ada"), ("GIT_COMMITTER_EMAIL", "ada@shop.example")])
        .args(arguments)
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `git http-backend` behind HTTP or HTTPS.
pub struct HttpBackend {
    /// Where it listens.
    pub address: SocketAddr,
    parts: Arc<Parts>,
    task: JoinHandle<()>,
}

struct Parts {
    root: PathBuf,
    tls: Option<TlsAcceptor>,
    /// The user and the password that are asked for.
    wanted: Mutex<Option<(String, String)>>,
    manner: Mutex<Manner>,
    /// Paths that were asked for with the right credentials.
    served: Mutex<u32>,
}

/// How a server behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// It serves.
    Serve,
    /// It takes requests, and never answers.
    Hang,
    /// It sends everybody elsewhere.
    Redirect(String),
}

impl HttpBackend {
    /// Serves `root` at a free port of `ip`, with TLS if it is given.
    pub async fn start(ip: &str, root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let parts = Arc::new(Parts {
            root: root.to_owned(),
            tls: tls.map(TlsAcceptor::from),
            wanted: Mutex::default(),
            manner: Mutex::new(Manner::Serve),
            served: Mutex::default(),
        });
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        HttpBackend { address, task: tokio::spawn(accept(listener, parts.clone())), parts }
    }

    /// The URL of a repository.
    pub fn url(&self, name: &str) -> String {
        let scheme = if self.parts.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/{name}.git", self.address)
    }

    /// From now on these credentials are needed.
    pub fn wants(&self, user: &str, password: &str) {
        *self.parts.wanted.lock().unwrap() = Some((user.to_owned(), password.to_owned()));
    }

    /// From now on it behaves so.
    pub fn behaves(&self, manner: Manner) {
        *self.parts.manner.lock().unwrap() = manner;
    }

    /// How many requests were served.
    pub fn served(&self) -> u32 {
        *self.parts.served.lock().unwrap()
    }

    /// Refuses connections, and ends those that are open.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Serves again, at the same address.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its port is still free");
        self.task = tokio::spawn(accept(listener, self.parts.clone()));
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, parts: Arc<Parts>) {
    // Dropped with this task, and with them all connections.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let parts = parts.clone();
        connections.spawn(async move {
            match parts.tls.clone() {
                None => converse(stream, parts).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, parts).await;
                    }
                }
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, parts: Arc<Parts>) {
    let service = service_fn(move |request| {
        let parts = parts.clone();
        async move { Ok::<_, Infallible>(answer(&parts, request).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(parts: &Parts, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let plain = |status| Response::builder().status(status);
    let manner = parts.manner.lock().unwrap().clone();
    match manner {
        Manner::Serve => {}
        Manner::Hang => std::future::pending().await,
        Manner::Redirect(to) => {
            return plain(StatusCode::FOUND).header(header::LOCATION, to).body(Full::default()).unwrap();
        }
    }
    let wanted = parts.wanted.lock().unwrap().clone();
    let basic =
        wanted.map(|(user, word)| format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{word}"))));
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|shown| shown.to_str().ok());
    if basic.is_some() && shown != basic.as_deref() {
        let refused = plain(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"");
        return refused.body(Full::default()).unwrap();
    }
    *parts.served.lock().unwrap() += 1;
    backend(&parts.root, request).await
}

/// One request by CGI.
async fn backend(root: &Path, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("the whole request").to_bytes();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("git is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    let write = async move { drop(stdin.write_all(&body).await) };
    let (_, output) = tokio::join!(write, child.wait_with_output());
    let output = output.expect("its output").stdout;
    let end = output.windows(4).position(|at| at == b"\r\n\r\n").expect("the head of an answer");
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => response = response.status(status.split(' ').next().unwrap()),
            Some((name, value)) => response = response.header(name, value),
            None => {}
        }
    }
    response.body(Bytes::copy_from_slice(&output[end + 4..]).into()).expect("an answer of git's")
}

/// An authority, what it certified, and where its files are.
pub struct Certificates {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// A client's chain.
    pub client: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// How a server uses them: clients have to show a certificate.
    pub server: Arc<rustls::ServerConfig>,
}

impl Certificates {
    /// For a server at `ip`.
    pub fn make(dir: &Path, ip: &str) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let leaf = |names: Vec<SanType>| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = names;
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf(vec![SanType::IpAddress(ip.parse().unwrap())]);
        let (client, client_key) = leaf(vec![SanType::DnsName("weft.example".try_into().unwrap())]);
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        Certificates {
            ca: write("ca.pem", ca.pem()),
            client: write("client.pem", client.pem()),
            client_key: write("client.key", client_key.serialize_pem()),
            server: server.into(),
        }
    }
}

/// `sshd` with a configuration, keys and an address of its own.
pub struct Sshd {
    /// Where it listens.
    pub address: SocketAddr,
    /// What to put into a known-hosts file.
    pub known_host: String,
    child: Option<Child>,
    authorized: PathBuf,
    dir: PathBuf,
    keys: Mutex<HashMap<String, PathBuf>>,
}

impl Sshd {
    /// Starts it at a free port of `ip`, with its files below `dir`.
    pub async fn start(ip: &str, dir: &Path) -> Self {
        let free = std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
        let mut sshd = Sshd::prepared(free, dir);
        let (program, arguments) = sshd.command();
        let log = fs::File::create(sshd.dir.join("log")).unwrap();
        sshd.child = Some(Command::new(program).args(arguments).stderr(log).spawn().unwrap());
        super::eventually("sshd listens", std::time::Duration::from_secs(10), async || {
            tokio::net::TcpStream::connect(free).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        sshd
    }

    /// All that one at `address` needs, below `dir`; somebody else runs its [`command`](Self::command).
    pub fn prepared(address: SocketAddr, dir: &Path) -> Self {
        let dir = dir.join("sshd");
        fs::create_dir_all(&dir).unwrap();
        if nix::unistd::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap(); // Where it locks up its unprivileged half.
        }
        let host = key(&dir, "host");
        let public = fs::read_to_string(host.with_extension("pub")).unwrap();
        let authorized = dir.join("authorized");
        fs::write(&authorized, "").unwrap();
        let lines = format!(
            "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             AcceptEnv GIT_PROTOCOL\nMaxStartups 100\n",
            host.display(),
            authorized.display()
        );
        fs::write(dir.join("config"), lines).unwrap();
        let known_host = format!("[{}]:{} {}", address.ip(), address.port(), public.trim());
        Sshd { address, known_host, child: None, authorized, dir, keys: Mutex::default() }
    }

    /// The program and its arguments.
    pub fn command(&self) -> (&'static Path, Vec<String>) {
        let program =
            ["/usr/sbin/sshd", "/usr/bin/sshd"].map(Path::new).into_iter().find(|path| path.is_file());
        let program = program.expect("there is no sshd: scripts/setup installs openssh-server");
        let config = self.dir.join("config").display().to_string();
        (program, vec!["-D".into(), "-e".into(), "-f".into(), config])
    }

    /// The URL of a repository.
    pub fn url(&self, repository: &Path) -> String {
        let output = Command::new("id").arg("-un").output().unwrap();
        format!(
            "ssh://{}@{}{}",
            String::from_utf8_lossy(&output.stdout).trim(),
            self.address,
            repository.display()
        )
    }

    /// A private key of that name, made when it is first asked for.
    pub fn key(&self, name: &str) -> PathBuf {
        let mut keys = self.keys.lock().unwrap();
        keys.entry(name.to_owned()).or_insert_with(|| key(&self.dir, name)).clone()
    }

    /// From now on this key alone opens.
    pub fn lets_in(&self, name: &str) {
        let public = fs::read(self.key(name).with_extension("pub")).unwrap();
        fs::write(&self.authorized, public).unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn key(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(made.expect("there is no ssh-keygen: scripts/setup installs openssh-client").success());
    path
}
