//! The network between machines, in virtual time: connections are two pipes of bytes, each with its delay.
//!
//! Like TCP it never reorders or loses bytes within a connection; what is lost while a way is blocked comes when it is
//! open again, unless somebody gave up before. Between connections, and between the two directions, all orders occur.
//!
//! Invariant: a life of a process that was killed neither sends nor receives anything more.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use process::world::{Accept, Later, Listener, Stream, World};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, mpsc},
    time::{Instant, Sleep},
};

use crate::chance::Chance;

/// The time of day at which every simulation begins.
const BEGINNING: Duration = Duration::from_secs(1_800_000_000);
/// What one direction of a connection holds before its writer has to wait.
const WINDOW_BYTES: usize = 256 * 1024;
/// The usual delay of a segment.
const DELAY_MS: (u64, u64) = (1, 5);

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its machine lives and resets its connections.
    Killed,
    /// Its machine is gone too: nobody hears of it.
    Unplugged,
}

/// One life of the process on one machine.
type Life = (IpAddr, u64);

/// All machines, and what lies between them.
pub struct Network {
    start: Instant,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    chance: Chance,
    machines: BTreeMap<IpAddr, Machine>,
    doors: BTreeMap<SocketAddr, Door>,
    blocked: BTreeSet<(IpAddr, IpAddr)>,
    slow: BTreeMap<(IpAddr, IpAddr), Duration>,
    pipes: Vec<Weak<Pipe>>,
    connections: u16,
}

#[derive(Default)]
struct Machine {
    life: u64,
    unplugged: bool,
    skew_ms: i64,
}

struct Door {
    life: u64,
    visitors: mpsc::UnboundedSender<(Stream, SocketAddr)>,
}

impl Network {
    /// Nobody is there yet.
    pub fn new(chance: Chance) -> Arc<Self> {
        let state = State {
            chance,
            machines: BTreeMap::new(),
            doors: BTreeMap::new(),
            blocked: BTreeSet::new(),
            slow: BTreeMap::new(),
            pipes: Vec::new(),
            connections: 0,
        };
        Arc::new(Network { start: Instant::now(), state: Mutex::new(state), changed: Notify::new() })
    }

    /// A new life on a machine.
    pub fn boot(self: &Arc<Self>, ip: IpAddr) -> Arc<Outlook> {
        let (life, chance) = {
            let mut state = self.lock();
            let chance = state.chance.fork();
            let machine = state.machines.entry(ip).or_default();
            machine.life += 1;
            machine.unplugged = false;
            (machine.life, chance)
        };
        self.changed.notify_waiters();
        Arc::new(Outlook { network: self.clone(), own: (ip, life), chance: Mutex::new(chance) })
    }

    /// Ends the life on a machine.
    pub fn kill(&self, ip: IpAddr, end: End) {
        let pipes = {
            let mut state = self.lock();
            let machine = state.machines.entry(ip).or_default();
            machine.life += 1;
            machine.unplugged = end == End::Unplugged;
            state.doors.retain(|address, _| address.ip() != ip);
            state.pipes()
        };
        for pipe in pipes {
            if pipe.from.0 == ip && end == End::Killed {
                pipe.reset();
            }
            if pipe.to.0 == ip {
                pipe.lock().deaf = true;
            }
            pipe.wake();
        }
    }

    /// Blocks the way from one machine to another, or opens it again.
    pub fn block(&self, from: IpAddr, to: IpAddr, blocked: bool) {
        let mut state = self.lock();
        if blocked {
            state.blocked.insert((from, to));
        } else {
            state.blocked.remove(&(from, to));
        }
        drop(state);
        self.wake();
    }

    /// How much longer than usual the way from one machine to another is.
    pub fn slow(&self, from: IpAddr, to: IpAddr, more: Duration) {
        self.lock().slow.insert((from, to), more);
    }

    /// Resets all connections between two machines.
    pub fn cut(&self, one: IpAddr, other: IpAddr) {
        let pipes = self.lock().pipes();
        let between = |pipe: &Arc<Pipe>| {
            let ends = (pipe.from.0, pipe.to.0);
            ends == (one, other) || ends == (other, one)
        };
        pipes.into_iter().filter(between).for_each(|pipe| pipe.reset());
    }

    /// Opens every way, and makes each as fast as usual.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.blocked.clear();
        state.slow.clear();
        drop(state);
        self.wake();
    }

    /// Whether two machines see each other as usual.
    pub fn sees(&self, one: IpAddr, other: IpAddr) -> bool {
        let state = self.lock();
        [(one, other), (other, one)]
            .iter()
            .all(|way| !state.blocked.contains(way) && state.slow.get(way).is_none_or(Duration::is_zero))
    }

    /// How wrong the clock of a machine is.
    pub fn skew(&self, ip: IpAddr, skew_ms: i64) {
        self.lock().machines.entry(ip).or_default().skew_ms = skew_ms;
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn wake(&self) {
        let pipes = self.lock().pipes();
        pipes.into_iter().for_each(|pipe| pipe.wake());
        self.changed.notify_waiters();
    }

    fn lives(&self, (ip, life): Life) -> bool {
        self.lock().machines.get(&ip).is_some_and(|machine| machine.life == life)
    }

    fn is_blocked(&self, from: IpAddr, to: IpAddr) -> bool {
        self.lock().blocked.contains(&(from, to))
    }

    /// Whether a segment that nobody takes any more is answered by a reset.
    fn answers(&self, from: IpAddr, to: IpAddr) -> bool {
        let state = self.lock();
        !state.blocked.contains(&(from, to))
            && !state.blocked.contains(&(to, from))
            && !state.machines.get(&to).is_some_and(|machine| machine.unplugged)
    }

    fn delay(&self, from: IpAddr, to: IpAddr) -> Duration {
        if from == to {
            return Duration::ZERO;
        }
        let mut state = self.lock();
        let usual = Duration::from_millis(state.chance.between(DELAY_MS.0, DELAY_MS.1));
        let jitter = 0.5 + state.chance.unit();
        usual + state.slow.get(&(from, to)).map_or(Duration::ZERO, |more| more.mul_f64(jitter))
    }

    /// The door at `address` as one on machine `from` finds it.
    fn door(&self, from: IpAddr, address: SocketAddr) -> Way {
        let state = self.lock();
        let to = address.ip();
        let blocked = state.blocked.contains(&(from, to)) || state.blocked.contains(&(to, from));
        let unplugged = state.machines.get(&to).is_none_or(|machine| machine.unplugged);
        match state.doors.get(&address) {
            _ if blocked || unplugged => Way::Silence,
            None => Way::Closed,
            Some(door) => Way::Open(door.life, door.visitors.clone()),
        }
    }

    fn pipe(&self, from: Life, to: Life) -> Arc<Pipe> {
        let flow = Flow { last: Instant::now(), ..Flow::default() };
        let pipe = Arc::new(Pipe { from, to, flow: Mutex::new(flow) });
        self.lock().pipes.push(Arc::downgrade(&pipe));
        pipe
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pipes(&mut self) -> Vec<Arc<Pipe>> {
        self.pipes.retain(|pipe| pipe.strong_count() > 0);
        self.pipes.iter().filter_map(Weak::upgrade).collect()
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Network")
    }
}

/// What somebody finds who wants to connect.
enum Way {
    Open(u64, mpsc::UnboundedSender<(Stream, SocketAddr)>),
    Closed,
    Silence,
}

/// The world as one life of a process sees it.
#[derive(Debug)]
pub struct Outlook {
    network: Arc<Network>,
    own: Life,
    chance: Mutex<Chance>,
}

impl Outlook {
    /// Returns only while this life goes on.
    pub async fn alive(&self) {
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether this life goes on.
    pub fn is_alive(&self) -> bool {
        self.network.lives(self.own)
    }

    /// Listens no more.
    pub fn close(&self, address: SocketAddr) {
        if self.is_alive() {
            self.network.lock().doors.remove(&address);
        }
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<Stream> {
        let (network, from) = (&self.network, self.own.0);
        loop {
            let changed = network.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            tokio::time::sleep(network.delay(from, address.ip())).await;
            if !self.is_alive() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match network.door(from, address) {
                Way::Silence => changed.await,
                Way::Closed => return Err(io::ErrorKind::ConnectionRefused.into()),
                Way::Open(life, visitors) => {
                    let there = (address.ip(), life);
                    let (up, down) = (network.pipe(self.own, there), network.pipe(there, self.own));
                    let port = {
                        let mut state = network.lock();
                        state.connections = state.connections.wrapping_add(1);
                        state.connections
                    };
                    let visitor = Connection::new(network.clone(), there, up.clone(), down.clone());
                    // Nobody listens any more: that shows on the connection.
                    let _ = visitors.send((Box::new(visitor), (from, port).into()));
                    tokio::time::sleep(network.delay(address.ip(), from)).await;
                    return Ok(Box::new(Connection::new(network.clone(), self.own, down, up)));
                }
            }
        }
    }
}

impl World for Outlook {
    fn now(&self) -> SystemTime {
        let skew = self.network.lock().machines.get(&self.own.0).map_or(0, |machine| machine.skew_ms);
        let right = BEGINNING + self.network.elapsed();
        SystemTime::UNIX_EPOCH + Duration::from_millis((right.as_millis() as i64 + skew) as u64)
    }

    fn chance(&self) -> f64 {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).unit()
    }

    fn connect(&self, address: SocketAddr, _: Option<IpAddr>) -> Later<'_, io::Result<Stream>> {
        Box::pin(self.dial(address))
    }

    fn listen(&self, address: SocketAddr) -> Later<'_, io::Result<Listener>> {
        let (visitors, waiting) = mpsc::unbounded_channel();
        self.network.lock().doors.insert(address, Door { life: self.own.1, visitors });
        Box::pin(async { Ok(Box::new(Doorway(tokio::sync::Mutex::new(waiting))) as Listener) })
    }
}

struct Doorway(tokio::sync::Mutex<mpsc::UnboundedReceiver<(Stream, SocketAddr)>>);

impl Accept for Doorway {
    fn accept(&self) -> Later<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async {
            match self.0.lock().await.recv().await {
                Some(visitor) => Ok(visitor),
                None => std::future::pending().await,
            }
        })
    }
}

/// One direction of a connection.
struct Pipe {
    from: Life,
    to: Life,
    flow: Mutex<Flow>,
}

struct Flow {
    under_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last: Instant,
    finished: bool,
    reset: bool,
    /// Nobody reads any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Default for Flow {
    fn default() -> Self {
        Flow {
            under_way: VecDeque::new(),
            bytes: 0,
            last: Instant::now(),
            finished: false,
            reset: false,
            deaf: false,
            reader: None,
            writer: None,
        }
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset(&self) {
        let mut flow = self.lock();
        flow.reset = true;
        flow.under_way.clear();
        drop(flow);
        self.wake();
    }

    fn wake(&self) {
        let mut flow = self.lock();
        let wakers = [flow.reader.take(), flow.writer.take()];
        drop(flow);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// One end of a connection.
struct Connection {
    network: Arc<Network>,
    own: Life,
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(network: Arc<Network>, own: Life, incoming: Arc<Pipe>, outgoing: Arc<Pipe>) -> Self {
        Connection { network, own, incoming, outgoing, timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// Whether the peer's reset has arrived.
    fn was_reset(&self) -> bool {
        self.incoming.lock().reset && !self.network.is_blocked(self.incoming.from.0, self.own.0)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.network.lives(self.own) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        loop {
            let blocked = self.network.is_blocked(self.incoming.from.0, self.own.0);
            let due = {
                let mut flow = self.incoming.lock();
                flow.reader = Some(context.waker().clone());
                if blocked {
                    return Poll::Pending;
                }
                if flow.reset {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let finished = flow.finished;
                match flow.under_way.front_mut() {
                    None if finished => return Poll::Ready(Ok(())),
                    None => return Poll::Pending,
                    Some((due, bytes)) if *due <= Instant::now() => {
                        let taken = bytes.split_to(bytes.len().min(buffer.remaining()));
                        let is_empty = bytes.is_empty();
                        buffer.put_slice(&taken);
                        flow.bytes -= taken.len();
                        if is_empty {
                            flow.under_way.pop_front();
                        }
                        let writer = flow.writer.take();
                        drop(flow);
                        writer.into_iter().for_each(Waker::wake);
                        return Poll::Ready(Ok(()));
                    }
                    Some((due, _)) => *due,
                }
            };
            self.timer.as_mut().reset(due);
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.network.lives(self.own) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let (from, to) = (self.own.0, self.outgoing.to.0);
        let (answers, delay) = (self.network.answers(from, to), self.network.delay(from, to));
        if self.was_reset() || self.outgoing.lock().deaf && answers {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut flow = self.outgoing.lock();
        if flow.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        if flow.bytes >= WINDOW_BYTES {
            flow.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let due = flow.last.max(Instant::now() + delay);
        flow.last = due;
        flow.bytes += bytes.len();
        flow.under_way.push_back((due, Bytes::copy_from_slice(bytes)));
        let reader = flow.reader.take();
        drop(flow);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.lock().finished = true;
        self.outgoing.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // What a killed process leaves behind was settled when it was killed.
        if self.network.lives(self.own) {
            self.outgoing.lock().finished = true;
            self.incoming.lock().deaf = true;
            self.outgoing.wake();
            self.incoming.wake();
        }
    }
}
