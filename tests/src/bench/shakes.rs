//! New connections of mutual TLS, one after the other, each with one request.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::compare::Load;

/// At once.
pub const CONNECTIONS: usize = 8;

const ANSWER: Duration = Duration::from_secs(10);

/// A client with a certificate, and whom it asks.
pub struct Client {
    /// Whether it resumes is up to this.
    pub config: Arc<ClientConfig>,
    /// The server's name.
    pub name: String,
    /// Whether every connection but the first must be resumed; else none may.
    pub resumed: bool,
}

impl Client {
    /// Of the certificates that [`crate::peers::Site::certificates`] has made.
    pub fn of_peers(dir: &Path, resumed: bool) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("root.pem"))?)?;
        let chain = vec![CertificateDer::from_pem_file(dir.join("leaf.pem"))?];
        let key = PrivateKeyDer::from_pem_file(dir.join("leaf.key"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.resumption =
            if resumed { Resumption::in_memory_sessions(1024) } else { Resumption::disabled() };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Client { config: Arc::new(config), name: crate::peers::CERTIFICATE_NAME.into(), resumed })
    }

    /// Connects as often as it can. Its unit is a connection.
    pub fn run(&self, to: SocketAddr, seconds: u32) -> anyhow::Result<Load> {
        // All at once, so that there is a ticket for each.
        at_once(|| self.one(to).map(drop))?;
        let began = Instant::now();
        let (end, done, resumed) =
            (began + Duration::from_secs(seconds.into()), AtomicU64::new(0), AtomicU64::new(0));
        let work = || -> anyhow::Result<()> {
            while Instant::now() < end {
                resumed.fetch_add((self.one(to)? == HandshakeKind::Resumed).into(), Relaxed);
                done.fetch_add(1, Relaxed);
            }
            Ok(())
        };
        at_once(work)?;
        let (done, resumed) = (done.into_inner(), resumed.into_inner());
        let expected = if self.resumed { resumed * 100 >= done * 95 } else { resumed == 0 };
        ensure!(expected, "{resumed} of {done} connections were resumed");
        Ok(Load::of(done as f64, began.elapsed()))
    }

    fn one(&self, to: SocketAddr) -> anyhow::Result<HandshakeKind> {
        let socket = TcpStream::connect_timeout(&to, ANSWER)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let name = ServerName::try_from(self.name.clone())?;
        let mut stream = StreamOwned::new(ClientConnection::new(self.config.clone(), name)?, socket);
        stream.write_all(b"GET /item HTTP/1.1\r\nhost: pair.bench:8080\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::with_capacity(2048);
        match stream.read_to_end(&mut answer) {
            // Some close without saying so in TLS; the answer says how long it is.
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        let status = answer.get(..15).map(String::from_utf8_lossy).unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 200"), "{to} answered `{status}`");
        ensure!(answer.len() > crate::peers::BODY, "{to} answered {} bytes", answer.len());
        stream.conn.handshake_kind().context("no handshake")
    }
}

/// The same on a thread for each connection.
fn at_once(work: impl Fn() -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(ended) => ended,
            Err(_) => bail!("a connection's thread panicked"),
        })
    })
}
