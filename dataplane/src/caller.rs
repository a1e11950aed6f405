//! Who is at the other end of an accepted connection, and where it was met.

use std::{
    cell::{Cell, OnceCell},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use api::identity::{SpiffeId, UnixTime, Verified};
use http::HeaderValue;
use hyper::upgrade::Upgraded;
use policies::facts::Peer;
use process::{shutdown::Shutdown, tls::Identity};
use runtime::At;
use tokio::sync::Notify;

/// The listener that a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the application beside this proxy.
    Outbound,
    /// To the application beside this proxy; the port when TLS has named it.
    Inbound {
        /// The application's port; none in plaintext that was not captured, where the request's host says it.
        port: Option<u16>,
    },
    /// From outside the mesh.
    Ingress {
        /// The listener's port.
        port: u16,
    },
}

impl Side {
    /// As the access log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Outbound => "outbound",
            Side::Inbound { .. } => "inbound",
            Side::Ingress { .. } => "ingress",
        }
    }

    /// For the decision.
    pub fn at(self, known_absent: bool, inbound_port: u16) -> At {
        match self {
            Side::Outbound => At::Outbound { known_absent },
            Side::Inbound { .. } => At::Inbound { port: inbound_port },
            Side::Ingress { port } => At::Gateway { port },
        }
    }
}

/// One accepted connection.
pub struct Caller {
    /// Where it was met.
    pub side: Side,
    /// The other end.
    pub remote: SocketAddr,
    /// Its address, once it was asked for.
    pub written: OnceCell<HeaderValue>,
    /// This end.
    pub local: SocketAddr,
    /// Who it is, over mTLS.
    pub peer: Option<Identified>,
    /// The server name it asked for.
    pub sni: String,
    /// `h2` or `http/1.1`.
    pub protocol: &'static str,
    /// Where it was going before it was captured.
    pub original: Option<SocketAddr>,
    /// What it is a task of, and the tunnels that come of it.
    pub shutdown: Shutdown,
    /// What it has under way.
    pub open: Open,
    /// That an answer was cut short while its reader does not read: over HTTP/1.1 only the end of the connection says so.
    pub hang_up: Notify,
    /// Ends what its connection has become, as one that broke.
    pub reset: fn(Upgraded),
}

/// How many exchanges of a connection are under way, and since when that has not changed.
pub struct Open {
    count: Cell<usize>,
    ever: Cell<bool>,
    changed: Cell<Instant>,
}

impl Open {
    /// None, from now on.
    pub fn none() -> Self {
        Open { count: Cell::new(0), ever: Cell::new(false), changed: Cell::new(Instant::now()) }
    }

    /// One more.
    pub fn begin(&self) {
        self.count.set(self.count.get() + 1);
        self.ever.set(true);
    }

    /// Whether there has ever been one.
    pub fn ever(&self) -> bool {
        self.ever.get()
    }

    /// One less.
    pub fn end(&self, now: Instant) {
        self.count.set(self.count.get().saturating_sub(1));
        self.changed.set(now);
    }

    /// Counts idleness from now on.
    pub fn awake(&self) {
        self.changed.set(Instant::now());
    }

    /// Ends once there has been none for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let spent = self.changed.get().elapsed();
            match self.count.get() {
                0 if spent >= limit => return,
                0 => tokio::time::sleep(limit - spent).await,
                _ => tokio::time::sleep(limit).await,
            }
        }
    }
}

impl Caller {
    /// The other end's address, as headers have it; of a connection it is written once.
    pub fn address(&self) -> HeaderValue {
        let write = || HeaderValue::try_from(self.remote.ip().to_string());
        self.written.get_or_init(|| write().unwrap_or(HeaderValue::from_static("unknown"))).clone()
    }

    /// What was connected to, as policies see it: of an inbound connection the application's port, as this proxy's own
    /// is not what anybody asked for.
    pub fn destination(&self, application_port: u16) -> SocketAddr {
        match self.side {
            Side::Inbound { .. } => SocketAddr::new(self.local.ip(), application_port),
            Side::Outbound => self.original.unwrap_or(self.local),
            Side::Ingress { .. } => self.local,
        }
    }

    /// Whether its chain is believed by what is trusted now; without one there is nothing to believe.
    pub fn is_believed(&self, identity: &Identity) -> Result<(), String> {
        let Some(Identified { verified, at, .. }) = &self.peer else { return Ok(()) };
        verified.still_holds(&identity.bundle(), *at).map_err(|rejection| rejection.to_string())
    }
}

/// A caller whose chain was verified.
pub struct Identified {
    /// As policies see it.
    pub peer: Arc<Peer>,
    /// What the verification found; judged again when trust changes.
    pub verified: Arc<Verified>,
    /// When that was.
    pub at: UnixTime,
    /// What the application is told of it.
    pub header: HeaderValue,
}

impl Identified {
    /// From a verified chain; none for a control plane or a signer, which call no workloads.
    pub fn new(verified: Arc<Verified>, own: &str) -> Option<Self> {
        let SpiffeId::Workload { trust_domain, namespace, service_account } = &verified.id else {
            return None;
        };
        let principal = verified.id.to_string();
        let header = format!("By={own};Hash={};URI={principal}", verified.leaf);
        let peer = Arc::new(Peer {
            trust_domain: trust_domain.clone(),
            namespace: namespace.clone(),
            service_account: service_account.clone(),
            cluster: verified.cluster.clone(),
            principal,
        });
        Some(Identified { peer, header: HeaderValue::try_from(header).ok()?, verified, at: UnixTime::now() })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_once_nothing_is_under_way_any_more() {
        let (short, long) = (Duration::from_millis(30), Duration::from_secs(30));
        let open = Open::none();
        timeout(long, open.idle(short)).await.expect("nothing has ever been");
        assert!(!open.ever());
        open.begin();
        open.begin();
        open.end(Instant::now());
        assert!(timeout(short * 3, open.idle(short)).await.is_err());
        open.end(Instant::now());
        assert!(timeout(short / 3, open.idle(long)).await.is_err(), "from its end on");
        timeout(long, open.idle(short)).await.expect("the last has ended");
        assert!(open.ever());
        open.awake();
        assert!(timeout(short / 3, open.idle(short)).await.is_err(), "and anew from when it is asked");
    }
}
