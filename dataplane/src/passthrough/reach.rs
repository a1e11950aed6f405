//! From an accepted connection to the endpoint that it asks for, or to a refusal that the caller understands.

use std::{io, net::SocketAddr, time::Duration};

use api::endpoint::ServerName;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use process::metrics::EncodeLabelValue;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    HELLO_BYTES, Passthrough, Settings,
    flow::Flow,
    hello::{self, NotHello, Reading},
};

/// How long the end of a refused connection may take, and what is still read from it: closing with unread
/// bytes would reset the connection and lose the alert.
const FAREWELL: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// What a ClientHello mostly takes.
const USUAL_HELLO_BYTES: usize = 2048;

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Forwarded,
    /// Its source has as many connections as one may have, or it was silent for longest of too many.
    Crowded,
    /// No TLS, or broken off before it had said enough.
    NotTls,
    Malformed,
    Slow,
    /// The endpoint is gone, not exported, or no name was given.
    Unknown,
    /// It asked for nothing but an answer.
    Asked,
    Unreachable,
}

impl Outcome {
    /// The alert that tells the client, where it would understand one (RFC 8446, section 6).
    fn alert(self) -> Option<u8> {
        match self {
            Outcome::Forwarded | Outcome::Crowded | Outcome::NotTls | Outcome::Slow => None,
            Outcome::Malformed => Some(50),
            Outcome::Unreachable => Some(80),
            Outcome::Unknown | Outcome::Asked => Some(112),
        }
    }
}

/// The flow to the endpoint that `client` asks for, with what it has said so far to be said there first.
pub(super) async fn reach(
    gateway: &Passthrough,
    mut client: TcpStream,
) -> Result<Flow, (TcpStream, Outcome)> {
    let mut first = Vec::with_capacity(USUAL_HELLO_BYTES);
    let waiting = gateway.silent.enter();
    let heard = tokio::select! {
        biased;
        heard = timeout(gateway.settings.hello, read_hello(&mut client, &mut first)) => heard,
        () = waiting.crowded_out() => return Err((client, Outcome::Crowded)),
    };
    drop(waiting);
    let name = match heard {
        Ok(Ok(name)) => name.as_deref().and_then(ServerName::parse),
        Ok(Err(refused)) => return Err((client, refused)),
        Err(_) => return Err((client, Outcome::Slow)),
    };
    if name == Some(ServerName::Gateway) {
        return Err((client, Outcome::Asked));
    }
    let targets = name.map(|name| gateway.table.load().find(&name)).unwrap_or_default();
    if targets.is_empty() {
        return Err((client, Outcome::Unknown));
    }
    for target in targets {
        // Counted before the connect, so that many at once see each other.
        let open = target.open();
        match connect(&gateway.settings, target.address).await {
            Ok(server) => return Ok(Flow { client, server, first, open }),
            Err(error) => tracing::debug!(endpoint = %target.id, %error, "cannot reach an endpoint"),
        }
    }
    Err((client, Outcome::Unreachable))
}

async fn read_hello(client: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Option<String>, Outcome> {
    loop {
        let room = HELLO_BYTES - bytes.len();
        match client.take(room as u64).read_buf(bytes).await {
            Ok(0) | Err(_) if room > 0 => return Err(Outcome::NotTls),
            _ => {}
        }
        match hello::read(bytes) {
            Ok(Reading::Hello(name)) => return Ok(name),
            Ok(Reading::More) if bytes.len() < HELLO_BYTES => {}
            Ok(Reading::More) | Err(NotHello::Malformed) => return Err(Outcome::Malformed),
            Err(NotHello::NotTls) => return Err(Outcome::NotTls),
        }
    }
}

async fn connect(settings: &Settings, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = settings.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        // Else the kernel would choose a port at once that must be free towards everybody: there are 28,000 of them.
        let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = timeout(settings.connect, socket.connect(address)).await??;
    // A socket that refuses it is worse, not unusable.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Says why, if the client can understand it, and closes.
pub(super) async fn refuse(mut client: TcpStream, refused: Outcome) {
    if refused == Outcome::Crowded {
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return;
    }
    let farewell = async {
        if let Some(code) = refused.alert() {
            // Record: alert, TLS 1.2 as all versions write it, 2 bytes: fatal, code.
            client.write_all(&[21, 3, 3, 0, 2, 2, code]).await?;
        }
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(FAREWELL.1), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL.0, farewell).await;
}
