//! What a process asks of the machine that it runs on: the time of day, chance, and connections.
//!
//! [`Machine`] is the real one. The simulated network of the tests is the other: under it the same code runs in
//! virtual time, with partitions, slow links and clocks that are wrong. How long something lasts is asked of
//! `tokio::time`, which a test may pause.

use std::{
    fmt::Debug,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::identity::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    time::Instant,
};

use crate::limits;

/// What a world answers later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The world around one process.
pub trait World: Debug + Send + Sync + 'static {
    /// The time of day, which may jump.
    fn now(&self) -> SystemTime;

    /// A random number from 0, included, to 1.
    fn chance(&self) -> f64;

    /// A connection to `address`, from the local address `source` where one is given.
    fn connect(&self, address: SocketAddr, source: Option<IpAddr>) -> Later<'_, io::Result<Stream>>;

    /// Connections that come to `address` from now on.
    fn listen(&self, address: SocketAddr) -> Later<'_, io::Result<Listener>>;

    /// This moment, by both clocks.
    fn moment(&self) -> Moment {
        Moment { of_day: self.now(), counted: Instant::now() }
    }

    /// The time of day, as certificates count it.
    fn unix(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// Half to all of `pause`, so that many who wait for the same do not return as one.
    fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.chance() / 2.0)
    }
}

/// A moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time of day, which people are shown, and which may jump.
    pub of_day: SystemTime,
    /// What counts how long something lasts: it goes on evenly, and means nothing elsewhere.
    pub counted: Instant,
}

impl Moment {
    /// How long it is since `earlier`, however the time of day was set meanwhile.
    pub fn since(self, earlier: Moment) -> Duration {
        self.counted.saturating_duration_since(earlier.counted)
    }
}

/// The world as most hold it.
pub type SharedWorld = Arc<dyn World>;

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection of whatever kind.
pub type Stream = Box<dyn Io>;

/// What connections come from.
pub trait Accept: Send + Sync {
    /// The next connection, and where it comes from.
    fn accept(&self) -> Later<'_, io::Result<(Stream, SocketAddr)>>;
}

/// A listener of whatever kind.
pub type Listener = Box<dyn Accept>;

impl Accept for TcpListener {
    fn accept(&self) -> Later<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async {
            let (stream, peer) = loop {
                let accepted = self.accept().await?;
                if !limits::is_too_many(&accepted.0) {
                    break accepted;
                }
            };
            let _ = stream.set_nodelay(true);
            Ok((Box::new(stream) as Stream, peer))
        })
    }
}

/// The machine itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl World for Machine {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn chance(&self) -> f64 {
        rand::random()
    }

    fn connect(&self, address: SocketAddr, source: Option<IpAddr>) -> Later<'_, io::Result<Stream>> {
        Box::pin(async move {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(source) = source {
                socket.bind((source, 0).into())?;
            }
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn listen(&self, address: SocketAddr) -> Later<'_, io::Result<Listener>> {
        Box::pin(async move { Ok(Box::new(TcpListener::bind(address).await?) as Listener) })
    }
}

/// The time of day of a world, where rustls asks for it.
#[derive(Debug)]
pub(crate) struct Clock(pub(crate) SharedWorld);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.unix())
    }
}
