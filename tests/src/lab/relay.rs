//! Latency: what a host sends to others is led through a device of the test's own, which holds each packet for a while.
//!
//! The kernels that this is to run on have no netem. Packets keep their order; what is too much is lost, as in a queue.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{Addresses, Host};

/// More than this on its way is lost.
const QUEUE: usize = 10_000;

/// The largest packet that the device takes.
const PACKET: usize = 2048;

/// A device without a header before each packet (`linux/if_tun.h`).
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Leads what `host` sends to `there` through the relay until the sender is dropped.
pub(super) fn start(
    host: &Host,
    name: &str,
    table: u32,
    there: &[Addresses],
    delay: Duration,
) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel();
    let (ready, opened) = std::sync::mpsc::channel();
    let device = name.to_owned();
    host.keep(move || async move {
        let device = open(&device).expect("a device of the test's own");
        // SAFETY: the file stays open and the same for as long as it is registered, since it is moved into it.
        let tun = unsafe { AsyncFd::register(device) }.expect("it can be polled");
        let _ = ready.send(());
        tokio::select! {
            failed = relay(&tun, delay) => panic!("the relay broke: {failed:?}"),
            _ = stopped => {}
        }
    });
    opened.recv().expect("the relay stands");
    for (setting, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        (&format!("net/ipv4/conf/{name}/rp_filter"), "0"),
        // What comes out of the relay bears this host's own address.
        (&format!("net/ipv4/conf/{name}/accept_local"), "1"),
    ] {
        host.namespace.sysctl(setting, value);
    }
    let Addresses { v4, v6 } = host.addresses;
    let route =
        |source: &dyn std::fmt::Display| format!("route add default dev {name} src {source} table {table}\n");
    host.namespace.ip(&format!(
        "link set {name} up\n{}{}",
        route(&v4),
        rules("add", table, there, |one| one.v4)
    ));
    host.namespace.ip6(&format!("{}{}", route(&v6), rules("add", table, there, |one| one.v6)));
    stop
}

/// Ends what [`start`] has begun; the device goes with the relay.
pub(super) fn end(host: &Host, table: u32, there: &[Addresses]) {
    host.namespace.ip(&rules("del", table, there, |one| one.v4));
    host.namespace.ip6(&rules("del", table, there, |one| one.v6));
}

/// Of what this host itself sends, what goes to `there` is looked up in the relay's table.
fn rules<A: std::fmt::Display>(
    verb: &str,
    table: u32,
    there: &[Addresses],
    of: impl Fn(&Addresses) -> A,
) -> String {
    there.iter().map(|other| format!("rule {verb} iif lo to {} lookup {table}\n", of(other))).collect()
}

fn open(name: &str) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes one `ifreq`, of which `Request` has the size and the layout.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

async fn relay(tun: &AsyncFd<File>, delay: Duration) -> io::Result<()> {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; PACKET];
    loop {
        let due = held.front().map(|(due, _)| *due);
        let next = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = tun.async_io(Interest::READABLE, |mut tun| tun.read(&mut buffer)) => {
                let packet = buffer[..read?].to_vec();
                if held.len() < QUEUE {
                    held.push_back((Instant::now() + delay, packet));
                }
            }
            () = next => {
                let Some((_, packet)) = held.pop_front() else { continue };
                // A packet that the kernel does not take is one that is lost.
                let _ = tun.get_ref().write(&packet);
            }
        }
    }
}
