//! Listeners: each worker has its own on every address, and the kernel deals connections out among them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use process::{limits, logs::Limit, shutdown::Shutdown};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    connection::{self, Entrance},
    worker::Worker,
};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// After a failed accept, mostly for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

static FAILURES: Limit = Limit::new(1);

/// Opens a listener that shares its address with those of the other workers.
pub fn open(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, false)
}

/// The same at an address that captured connections are led to; none where this host does not speak the protocol.
/// IPv4 has one of its own.
pub fn open_captured(address: SocketAddr) -> io::Result<Option<TcpListener>> {
    match bind(address, true) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if address.is_ipv6() && is_foreign(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_foreign(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: SocketAddr, one_family: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if one_family && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `shutdown`; then takes what the kernel has accepted already, and closes.
pub async fn run(worker: Rc<Worker>, listener: TcpListener, entrance: Entrance, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, remote)) => begin(&worker, stream, remote, entrance, &shutdown),
            Err(error) => {
                if FAILURES.pass(Instant::now()).is_some() {
                    tracing::warn!(%error, "cannot accept a connection; are there file descriptors left?");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, remote)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            begin(&worker, stream, remote, entrance, &shutdown);
        }
    }
}

fn begin(
    worker: &Rc<Worker>,
    stream: TcpStream,
    remote: SocketAddr,
    entrance: Entrance,
    shutdown: &Shutdown,
) {
    if limits::is_too_many(&stream) {
        return;
    }
    let serving = connection::run(worker.clone(), stream, remote, entrance, shutdown.clone());
    worker.spawn(shutdown.track("connection".into(), serving));
}

/// Keeps the listeners of an ingress gateway those that the runtime names.
pub async fn follow_gateways(worker: Rc<Worker>, address: IpAddr, shutdown: Shutdown) {
    let mut changes = worker.proxy.changes();
    let mut open_ports = std::collections::BTreeMap::<u16, Shutdown>::new();
    loop {
        let wanted: Vec<u16> =
            worker.proxy.state().map_or(Vec::new(), |state| state.runtime.listener_ports().collect());
        open_ports.retain(|port, listener| {
            let stays = wanted.contains(port);
            if !stays {
                listener.cancel();
            }
            stays
        });
        for port in wanted {
            if open_ports.contains_key(&port) {
                continue;
            }
            match open((address, port).into()) {
                Ok(listener) => {
                    let own = shutdown.child();
                    worker.spawn(own.track(
                        "listener".into(),
                        run(worker.clone(), listener, Entrance::Ingress { port }, own.clone()),
                    ));
                    open_ports.insert(port, own);
                }
                Err(error) => {
                    tracing::error!(%address, port, %error, "a gateway's listener cannot be opened")
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}
