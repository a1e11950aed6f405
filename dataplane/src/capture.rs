//! Transparent capture: rules of the kernel's packet filter that lead what an application sends and is sent to its
//! sidecar, without its knowledge.
//!
//! Invariants: the rules are one table of this proxy's own, replaced as a whole and removed as a whole; nothing else of
//! the host is touched. What this proxy itself sends passes by, or it would call itself for ever.

mod rules;

use std::{
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    str::FromStr,
};

use socket2::SockRef;
use tokio::net::TcpStream;

pub use rules::script;

/// What is captured, and what is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Whether the proxy sets the rules itself; otherwise `weft-proxy capture install` does, for proxies that may not.
    pub install: bool,
    /// The user whose traffic passes by: that of the proxy.
    pub user: u32,
    /// Where what is sent is led to.
    pub outbound: u16,
    /// Where what is received is led to.
    pub inbound: u16,
    /// Whether port 22 is an application's, that would else be left alone.
    pub serves_ssh: bool,
    /// What is left alone.
    pub exclude: Exclude,
}

/// What is left alone, beside loopback, DNS, SSH and the mesh's own ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclude {
    /// Users whose traffic is not captured.
    pub users: Vec<u32>,
    /// Ports of this host.
    pub inbound_ports: Vec<u16>,
    /// Ports of others.
    pub outbound_ports: Vec<u16>,
    /// Addresses of others.
    pub addresses: Vec<Range>,
}

/// Addresses that begin alike: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no [`Range`].
#[derive(Debug, thiserror::Error)]
#[error("write an address, or a range like `10.0.0.0/8` or `fd00::/8`")]
pub struct BadRange;

impl FromStr for Range {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| BadRange)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadRange)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        if bits > all { Err(BadRange) } else { Ok(Range { address, bits }) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.bits)
    }
}

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Not to be found.
    #[error("`nft` cannot be started ({0}): install the package nftables")]
    NoNft(io::Error),
    /// The kernel refused.
    #[error(
        "this process may not change the rules of the packet filter: give it CAP_NET_ADMIN, or set `capture.install` \
         to false and run `weft-proxy capture install` as root"
    )]
    NotPermitted,
    /// It said so.
    #[error("nft refused the rules of capture: {0}")]
    Refused(String),
}

/// Rules in force; removed when it is dropped.
pub struct Installed(());

impl Capture {
    /// Where what is sent arrives: the kernel leads it to loopback, so that nobody else may come there.
    pub fn outbound_at(&self) -> [SocketAddr; 2] {
        [(Ipv4Addr::LOCALHOST, self.outbound).into(), (Ipv6Addr::LOCALHOST, self.outbound).into()]
    }

    /// Where what is received arrives: at whatever address the interface has.
    pub fn inbound_at(&self) -> [SocketAddr; 2] {
        [(Ipv4Addr::UNSPECIFIED, self.inbound).into(), (Ipv6Addr::UNSPECIFIED, self.inbound).into()]
    }

    /// Takes the rules into force, whatever was there of them before.
    pub fn install(&self) -> Result<Installed, CaptureError> {
        if self.user == 0 {
            tracing::warn!("what root sends passes by the capture: run the proxy as a user of its own");
        }
        nft(&script(self))?;
        Ok(Installed(()))
    }
}

impl Installed {
    /// Leaves them in force.
    pub fn stay(self) {
        std::mem::forget(self);
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Err(error) = remove() {
            tracing::error!(%error, "the rules of capture stay: `weft-proxy capture remove` removes them");
        }
    }
}

/// Removes the rules, if there are any.
pub fn remove() -> Result<(), CaptureError> {
    nft(rules::REMOVAL)
}

/// Where a captured connection was going; none when it was meant for this proxy. `local` is where it came to.
pub fn original(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Without any rule the kernel keeps no track of connections, and knows none.
    let original = found.ok()?.as_socket()?;
    (original != local).then_some(original)
}

fn nft(script: &str) -> Result<(), CaptureError> {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(CaptureError::NoNft)?;
    if let Some(mut input) = child.stdin.take() {
        // What it does not read it complains of itself.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(CaptureError::NoNft)?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("not permitted") => Err(CaptureError::NotPermitted),
        false => Err(CaptureError::Refused(said.trim().to_owned())),
    }
}
