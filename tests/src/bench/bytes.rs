//! Bytes through a passthrough: a server that sends as many as it is asked for, and three loads.
//!
//! Each connection begins with a real ClientHello, since that is what the proxies choose the way by; then come eight
//! bytes, how many the client wants, and the server sends them and closes. Nobody speaks TLS.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

use crate::compare::Load;

/// Connections at once.
pub const BULK_CONNECTIONS: usize = 4;
/// Connections at once.
pub const SHORT_CONNECTIONS: usize = 16;
/// What a short connection brings.
pub const SHORT_BYTES: u64 = 1024;

/// Asked for by a connection that stays open after its one byte.
const STAY: u64 = u64::MAX;
const CHUNK: usize = 256 * 1024;
const ANSWER: Duration = Duration::from_secs(20);
/// Idle connections that come from one address.
const PER_SOURCE: usize = 1000;

/// A client of a server behind passthroughs.
pub struct Client {
    hello: Vec<u8>,
}

/// Connections that are held open.
pub struct Held {
    _runtime: tokio::runtime::Runtime,
    _streams: Vec<TcpStream>,
}

impl Client {
    /// A server on `address`, for as long as this process lives, and its client, which asks for it by `name`.
    pub fn of(address: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let hello = client_hello(name)?;
        let (length, runtime) = (hello.len(), runtime()?);
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(4096)
        })?;
        thread::Builder::new()
            .name("bytes".into())
            .spawn(move || runtime.block_on(serve(listener, length)))?;
        Ok(Client { hello })
    }

    /// As much as comes. Its unit is a gigabyte.
    pub fn bulk(&self, to: SocketAddr, seconds: u32) -> anyhow::Result<Load> {
        let end = Instant::now() + Duration::from_secs(seconds.into());
        let one = async || {
            let mut stream = self.ask(TcpSocket::new_v4()?, to, u64::MAX - 1).await?;
            let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
            while Instant::now() < end {
                let count = timeout(ANSWER, stream.read(&mut buffer)).await??;
                ensure!(count > 0, "it ended after {bytes} bytes");
                bytes += count as u64;
            }
            Ok(bytes)
        };
        let (sum, took) = at_once(BULK_CONNECTIONS, one)?;
        Ok(Load::of(sum as f64 / 1e9, took))
    }

    /// One connection after the other. Its unit is a connection.
    pub fn short(&self, to: SocketAddr, seconds: u32) -> anyhow::Result<Load> {
        let end = Instant::now() + Duration::from_secs(seconds.into());
        let one = async || {
            let mut done = 0;
            while Instant::now() < end {
                self.fetch(to).await?;
                done += 1;
            }
            Ok(done)
        };
        let (sum, took) = at_once(SHORT_CONNECTIONS, one)?;
        Ok(Load::of(sum as f64, took))
    }

    /// Connections that have been used once and say no more, from several addresses of this block.
    pub fn idle(&self, to: SocketAddr, block: u8, count: usize) -> anyhow::Result<Held> {
        let runtime = runtime()?;
        let streams = runtime.block_on(async {
            let mut streams = Vec::with_capacity(count);
            for number in 0..count {
                let source = Ipv4Addr::new(127, block, 1, (1 + number / PER_SOURCE) as u8);
                let socket = TcpSocket::new_v4()?;
                socket.bind((IpAddr::from(source), 0).into())?;
                let mut stream = self.ask(socket, to, STAY).await?;
                timeout(ANSWER, stream.read_exact(&mut [0]))
                    .await?
                    .with_context(|| format!("connection {number} of {count}"))?;
                streams.push(stream);
            }
            anyhow::Ok(streams)
        })?;
        Ok(Held { _runtime: runtime, _streams: streams })
    }

    /// Fails unless `to` leads to the server.
    pub fn check(&self, to: SocketAddr) -> anyhow::Result<()> {
        runtime()?.block_on(self.fetch(to))
    }

    async fn fetch(&self, to: SocketAddr) -> anyhow::Result<()> {
        let mut stream = self.ask(TcpSocket::new_v4()?, to, SHORT_BYTES).await?;
        let mut bytes = Vec::with_capacity(2 * SHORT_BYTES as usize);
        timeout(ANSWER, stream.read_to_end(&mut bytes)).await??;
        ensure!(bytes.len() as u64 == SHORT_BYTES, "{to} brought {} bytes", bytes.len());
        Ok(())
    }

    async fn ask(&self, socket: TcpSocket, to: SocketAddr, count: u64) -> anyhow::Result<TcpStream> {
        let mut stream = timeout(ANSWER, socket.connect(to)).await?.with_context(|| to.to_string())?;
        stream.set_nodelay(true)?;
        stream.write_all(&[&self.hello[..], &count.to_be_bytes()].concat()).await?;
        Ok(stream)
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The sum of what so many at once bring, and how long it took.
fn at_once(count: usize, one: impl AsyncFn() -> anyhow::Result<u64>) -> anyhow::Result<(u64, Duration)> {
    runtime()?.block_on(async {
        let began = Instant::now();
        let sums = futures_util::future::try_join_all((0..count).map(|_| one())).await?;
        Ok((sums.iter().sum(), began.elapsed()))
    })
}

async fn serve(listener: TcpListener, hello: usize) {
    while let Ok((stream, _)) = listener.accept().await {
        // One that breaks off is the client's to tell of.
        tokio::spawn(async move { answer(stream, hello).await.ok() });
    }
}

async fn answer(mut stream: TcpStream, hello: usize) -> std::io::Result<()> {
    static ZEROES: [u8; CHUNK] = [0; CHUNK];
    stream.set_nodelay(true)?;
    let mut head = vec![0; hello + size_of::<u64>()];
    stream.read_exact(&mut head).await?;
    let mut count = u64::from_be_bytes(head[hello..].try_into().unwrap_or_default());
    drop(head);
    if count == STAY {
        stream.write_all(&[0]).await?;
        while stream.read(&mut [0]).await? > 0 {}
        return Ok(());
    }
    while count > 0 {
        let now = count.min(CHUNK as u64);
        stream.write_all(&ZEROES[..now as usize]).await?;
        count -= now;
    }
    Ok(())
}

fn client_hello(name: &str) -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}
