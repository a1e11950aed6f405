//! `weft-bench splice LISTEN TO`: the floor of the passthrough, a forwarder that knows one way and does nothing but
//! splice. Our own, since nobody's program is as bare: one thread, edge-triggered epoll, a pipe for each direction that
//! the next connection uses again. It reads no ClientHello, counts nothing, and no limit bounds it.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, SpliceFFlags, splice},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, accept4, connect, setsockopt,
            shutdown, socket, sockopt::TcpNoDelay,
        },
    },
    unistd::pipe2,
};

const EVENTS: usize = 256;
const AT_ONCE: usize = 1 << 20;
/// What names the listener among the events.
const LISTENER: u64 = u64::MAX;

struct Forwarder {
    epoll: Epoll,
    to: SockaddrStorage,
    all: Vec<Option<Connection>>,
    free: Vec<usize>,
    pipes: Vec<Pipe>,
}

struct Connection {
    sockets: [OwnedFd; 2],
    ways: [Way; 2],
}

/// One direction.
struct Way {
    pipe: Pipe,
    held: usize,
    ended: bool,
    told: bool,
}

struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Forwards until it is killed.
pub fn run(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut forwarder =
        Forwarder { epoll, to: to.into(), all: Vec::new(), free: Vec::new(), pipes: Vec::new() };
    let mut events = vec![EpollEvent::empty(); EVENTS];
    loop {
        let count = match forwarder.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => forwarder.accept(&listener)?,
                connection => forwarder.forward(connection as usize),
            }
        }
    }
}

impl Forwarder {
    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            let client = match accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK) {
                // SAFETY: the kernel has just made it, and nobody else knows it.
                Ok(client) => unsafe { OwnedFd::from_raw_fd(client) },
                Err(_) => return Ok(()),
            };
            let server = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
            match connect(server.as_raw_fd(), &self.to) {
                Ok(()) | Err(Errno::EINPROGRESS) => {}
                Err(_) => continue,
            }
            for socket in [&client, &server] {
                setsockopt(socket, TcpNoDelay, &true)?;
            }
            let ways = [self.way()?, self.way()?];
            let index = self.free.pop().unwrap_or_else(|| {
                self.all.push(None);
                self.all.len() - 1
            });
            let flags =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            for socket in [&client, &server] {
                self.epoll.add(socket, EpollEvent::new(flags, index as u64))?;
            }
            self.all[index] = Some(Connection { sockets: [client, server], ways });
        }
    }

    fn way(&mut self) -> anyhow::Result<Way> {
        let pipe = match self.pipes.pop() {
            Some(pipe) => pipe,
            None => {
                let (out, into) = pipe2(OFlag::O_NONBLOCK)?;
                Pipe { out, into }
            }
        };
        Ok(Way { pipe, held: 0, ended: false, told: false })
    }

    fn forward(&mut self, index: usize) {
        let Some(Some(connection)) = self.all.get_mut(index) else { return };
        let [client, server] = &connection.sockets;
        let [up, down] = &mut connection.ways;
        let broken = up.go_on(client, server).and_then(|()| down.go_on(server, client)).is_err();
        if broken || (up.told && down.told) {
            let ways = self.all[index].take().map(|connection| connection.ways);
            let clean = ways.into_iter().flatten().filter(|way| way.held == 0);
            self.pipes.extend(clean.map(|way| way.pipe));
            self.free.push(index);
        }
    }
}

impl Way {
    fn go_on(&mut self, from: &OwnedFd, to: &OwnedFd) -> nix::Result<()> {
        loop {
            let moved = match (self.held, self.ended) {
                (0, true) if self.told => return Ok(()),
                (0, true) => {
                    self.told = true;
                    return shutdown(to.as_raw_fd(), Shutdown::Write).or(Ok(()));
                }
                (0, false) => moved(from, &self.pipe.into).map(|count| {
                    self.ended = count == 0;
                    self.held = count;
                }),
                _ => moved(&self.pipe.out, to).map(|count| self.held -= count),
            };
            match moved {
                Err(Errno::EAGAIN) => return Ok(()),
                moved => moved?,
            }
        }
    }
}

fn moved(from: impl AsFd, to: impl AsFd) -> nix::Result<usize> {
    splice(from, None, to, None, AT_ONCE, SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK)
}
