//! One worker's upstream connections: idle HTTP/1.1 ones, and HTTP/2 ones that many requests share.
//!
//! Invariant: a connection serves one endpoint for as long as it lives, and is given up when the endpoint's chain is
//! no longer believed. An endpoint is its id, its cluster and its identity: a cluster that announces another's id does
//! not get at the other's connections, nor the other's callers at its own.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    endpoint::EndpointId,
    identity::{UnixTime, Verified},
};
use foldhash::HashMap;
use futures_util::future::{Either, FutureExt, LocalBoxFuture, Shared};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;

use crate::{
    balance::{Endpoint, Gateway, Moment},
    body::Body,
    dial::{self, DialError, Dialled, Route},
    http1::HEAD_BYTES,
    limit::{Kind, Load, Place},
    liveness::Handle,
    worker::{LocalExecutor, Worker},
};

/// Idle connections to what is no proxy are kept at most this long, since nobody knows when it closes them.
const IDLE: Duration = Duration::from_secs(20);

/// Idle connections to other sidecars are kept at most this long, whatever the policy says: a gateway between them and
/// the sidecar close them later, so that no request is sent into a connection that its server is about to close.
pub const MEMBER_IDLE: Duration = Duration::from_secs(50 * 60);

/// Idle connections where no policy says how many.
const MAX_IDLE: usize = 64;

/// Requests that share an HTTP/2 connection before another is opened.
const STREAMS: u32 = 100;

/// What a stream of HTTP/2 may bring before it is read. That of a connection is all of its streams': those whose readers
/// stand still must not hold up the others.
const WINDOW: u32 = 1 << 20;

/// How often an HTTP/2 connection to a member is asked whether it lives. Servers of gRPC close connections that ask them
/// more often than each five minutes; whether those are there, the kernel tells.
const PING: Duration = Duration::from_secs(5);

/// All upstream connections of a worker.
#[derive(Default)]
pub struct Pool {
    endpoints: RefCell<HashMap<EndpointId, Vec<Owned>>>,
    plain: RefCell<HashMap<SocketAddr, Rc<Slot>>>,
    /// Of connections that nobody limits.
    unlimited: Arc<Load>,
}

/// Among what a new connection counts.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// What stands already.
    pub load: &'a Arc<Load>,
    /// How many there may be; 0: any number.
    pub limit: u32,
}

impl Room<'_> {
    /// A place for another connection, if need be that of one of this worker's that idles.
    pub fn place(self, pool: &Pool) -> Option<Place> {
        let take = || Place::take(self.load, Kind::Connection, self.limit);
        take().or_else(|| pool.give_up_idle(self.load).then(take).flatten())
    }
}

/// The connections to an endpoint, and who says that it has its id.
struct Owned {
    cluster: String,
    identity: String,
    slot: Rc<Slot>,
}

/// The connections to one place.
pub struct Slot {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<H2>>>,
    connecting: RefCell<Option<Connecting>>,
    /// Those to members, whatever is under way on them.
    standing: RefCell<Vec<Standing>>,
    /// For HTTP/1.1 and HTTP/2, made once.
    tls: [RefCell<Option<Arc<ClientConfig>>>; 2],
    max_idle: Cell<usize>,
    idle_for: Cell<Duration>,
    /// Whether an answer has ever come over HTTP/2.
    spoke_h2: Cell<bool>,
    used: Cell<Option<Instant>>,
}

impl Default for Slot {
    fn default() -> Self {
        Slot {
            idle: RefCell::default(),
            shared: RefCell::default(),
            connecting: RefCell::default(),
            standing: RefCell::default(),
            tls: Default::default(),
            max_idle: Cell::new(MAX_IDLE),
            idle_for: Cell::new(IDLE),
            spoke_h2: Cell::default(),
            used: Cell::default(),
        }
    }
}

/// A connection that may have to be ended at any time.
struct Standing {
    facts: Weak<Facts>,
    handle: Handle,
}

type Connecting = Shared<LocalBoxFuture<'static, Result<(), DialError>>>;

struct Idle {
    sender: http1::SendRequest<Body>,
    facts: Rc<Facts>,
    since: Instant,
}

impl Idle {
    fn is_lost(&self) -> bool {
        self.sender.is_closed() || !self.facts.reachable()
    }
}

struct H2 {
    sender: http2::SendRequest<Body>,
    facts: Rc<Facts>,
    active: Cell<u32>,
    /// How many the server takes at a time, by its last word.
    taken: Rc<Cell<usize>>,
    since: Cell<Instant>,
}

impl H2 {
    /// Whether another request may share it. One that the server does not take would hold up all that come after it.
    fn has_room(&self) -> bool {
        let active = self.active.get();
        active < STREAMS && (active as usize) < self.taken.get().max(1)
    }
}

/// What is known of one connection.
pub struct Facts {
    /// Who is at the other end, over mTLS.
    pub peer: Option<Arc<Verified>>,
    /// The gateway that it goes through.
    pub gateway: Option<Arc<Gateway>>,
    /// Whether a response has come over it.
    pub proven: Cell<bool>,
    /// Whether it was told of that it broke.
    broken: Cell<bool>,
    /// When the peer was verified. That its certificate expires later does not end the connection.
    pub verified_at: UnixTime,
    made: Moment,
    place: Place,
}

impl Facts {
    fn new(dialled: &Dialled, place: Place, made: Moment) -> Rc<Self> {
        let (peer, gateway) = (dialled.peer.clone(), dialled.gateway.clone());
        let (proven, broken) = (Cell::new(false), Cell::new(false));
        Rc::new(Facts { peer, gateway, proven, broken, verified_at: UnixTime::now(), made, place })
    }

    /// Whether who is at the other end of TCP is not known to be away. A gateway may fall silent while its connections
    /// stand; to find that out of each of them would delay a request each.
    fn reachable(&self) -> bool {
        self.gateway.as_ref().is_none_or(|gateway| gateway.alive())
    }
}

/// The right to send one request over a connection; ends with the response's body.
pub struct Lease {
    /// The connection.
    pub facts: Rc<Facts>,
    /// Whether it had been used before.
    pub reused: bool,
    slot: Rc<Slot>,
    sender: Option<Sender>,
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(Rc<H2>),
}

/// How a request failed to bring a response.
pub struct Unsent {
    /// What happened.
    pub error: hyper::Error,
    /// The request, when nothing of it left.
    pub returned: bool,
}

impl Pool {
    /// The connections to an endpoint.
    pub fn endpoint(&self, endpoint: &Endpoint) -> Rc<Slot> {
        let (cluster, identity) = (&endpoint.wire.cluster, &endpoint.wire.identity);
        let is_its = |one: &&Owned| one.cluster == *cluster && one.identity == *identity;
        if let Some(one) = self.endpoints.borrow().get(&endpoint.id).and_then(|all| all.iter().find(is_its)) {
            return one.slot.clone();
        }
        let slot = Rc::<Slot>::default();
        let one = Owned { cluster: cluster.clone(), identity: identity.clone(), slot: slot.clone() };
        self.endpoints.borrow_mut().entry(endpoint.id.clone()).or_default().push(one);
        slot
    }

    /// The connections to an address in plaintext.
    pub fn plain(&self, address: SocketAddr) -> Rc<Slot> {
        if let Some(slot) = self.plain.borrow().get(&address) {
            return slot.clone();
        }
        self.plain.borrow_mut().entry(address).or_default().clone()
    }

    /// The place of what goes to an address that is no endpoint.
    pub fn unlimited(&self) -> Room<'_> {
        Room { load: &self.unlimited, limit: 0 }
    }

    /// Closes a connection that idles, so that another may take its place.
    fn give_up_idle(&self, load: &Arc<Load>) -> bool {
        self.endpoints.borrow().values().flatten().any(|one| one.slot.give_up_idle(load))
    }

    /// Closes what is no longer believed, and of what idles that which does so too long or that another gateway is to have
    /// its share of; what else is under way ends by itself.
    pub fn sweep(&self, worker: &Worker, now: Instant) {
        self.endpoints.borrow_mut().retain(|_, all| {
            all.retain(|one| one.slot.sweep(worker, now));
            !all.is_empty()
        });
        self.plain.borrow_mut().retain(|_, slot| slot.sweep(worker, now));
    }

    /// Connections by place, for the admin view: idle and shared.
    pub fn counts(&self) -> (usize, usize) {
        let count = |slots: &mut dyn Iterator<Item = &Rc<Slot>>| {
            slots.fold((0, 0), |(idle, shared), slot| {
                (idle + slot.idle.borrow().len(), shared + slot.shared.borrow().len())
            })
        };
        let (endpoints, plain) = (self.endpoints.borrow(), self.plain.borrow());
        let (a, b) =
            (count(&mut endpoints.values().flatten().map(|one| &one.slot)), count(&mut plain.values()));
        (a.0 + b.0, a.1 + b.1)
    }
}

impl Slot {
    /// What the policy says of idle connections, to a member of the mesh or to something else.
    pub fn limit(&self, max_idle: u32, idle: Duration, member: bool) {
        let most = if member { MEMBER_IDLE } else { IDLE };
        self.max_idle.set(if max_idle > 0 { max_idle as usize } else { MAX_IDLE });
        self.idle_for.set(if idle.is_zero() { most } else { idle.min(most) });
    }

    /// Whether HTTP/2 is spoken there, as far as is known: it has answered so.
    pub fn spoke_h2(&self) -> bool {
        self.spoke_h2.get()
    }

    /// TLS towards this place, made by `make` at first.
    pub fn tls(
        &self,
        h2: bool,
        make: impl FnOnce() -> Result<Arc<ClientConfig>, DialError>,
    ) -> Result<Arc<ClientConfig>, DialError> {
        let mut slot = self.tls[usize::from(h2)].borrow_mut();
        if let Some(config) = &*slot {
            return Ok(config.clone());
        }
        Ok(slot.insert(make()?).clone())
    }

    /// A connection that stands already.
    pub fn take(self: &Rc<Self>, h2: bool) -> Option<Lease> {
        if h2 { self.take_h2() } else { self.take_h1() }
    }

    fn take_h1(self: &Rc<Self>) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let one = loop {
            // The one that was used last; those that are not asked are looked after by the sweep.
            let at = idle.iter().rposition(|one| one.sender.is_ready() || one.is_lost())?;
            let one = idle.remove(at);
            if !one.is_lost() {
                break one;
            }
        };
        Some(Lease {
            facts: one.facts,
            reused: true,
            slot: self.clone(),
            sender: Some(Sender::H1(one.sender)),
        })
    }

    fn take_h2(self: &Rc<Self>) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|one| !one.sender.is_closed() && one.facts.reachable());
        let one = shared.iter().filter(|one| one.has_room()).min_by_key(|one| one.active.get())?;
        one.active.set(one.active.get() + 1);
        let reused = one.facts.proven.get();
        Some(Lease {
            facts: one.facts.clone(),
            reused,
            slot: self.clone(),
            sender: Some(Sender::H2(one.clone())),
        })
    }

    /// A new connection. Requests that want HTTP/2 at the same time share one. Boxed, so that the many which need none
    /// are not as large.
    pub fn connect<'a>(
        self: &'a Rc<Self>,
        worker: &'a Rc<Worker>,
        route: Route<'a>,
        h2: bool,
        room: Room<'a>,
    ) -> LocalBoxFuture<'a, Result<Lease, DialError>> {
        self.connected(worker, route, h2, room).boxed_local()
    }

    async fn connected(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        route: Route<'_>,
        h2: bool,
        room: Room<'_>,
    ) -> Result<Lease, DialError> {
        let place = || room.place(&worker.pool).ok_or(DialError::Full);
        if !h2 {
            let place = place()?;
            let dialled = dial::dial(worker, &route).await?;
            return self.start_h1(worker, dialled, route.address, place).await;
        }
        loop {
            let standing = self.connecting.borrow().clone();
            let own = standing.is_none();
            let connecting = match standing {
                Some(connecting) => connecting,
                None => self.begin_h2(worker, &route, place()?),
            };
            let waited = Waiting { slot: self, connecting }.wait().await;
            // Many may wait for one connection that fails once.
            waited.map_err(|error| if own { error } else { DialError::Shared(Box::new(error)) })?;
            if let Some(lease) = self.take_h2() {
                return Ok(lease);
            }
        }
    }

    fn begin_h2(self: &Rc<Self>, worker: &Rc<Worker>, route: &Route<'_>, place: Place) -> Connecting {
        let (slot, worker) = (self.clone(), worker.clone());
        let (address, tls, timeout) = (route.address, route.tls.clone(), route.timeout);
        let (endpoint, keep_alive) = (route.endpoint.cloned(), route.keep_alive.clone());
        let connect = async move {
            let route = Route { address, endpoint: endpoint.as_ref(), tls, timeout, keep_alive };
            let dialled = dial::dial(&worker, &route).await?;
            slot.start_h2(&worker, dialled, address, place).await
        };
        let connecting = connect.boxed_local().shared();
        *self.connecting.borrow_mut() = Some(connecting.clone());
        connecting
    }

    async fn start_h1(
        self: &Rc<Self>,
        worker: &Worker,
        dialled: Dialled,
        address: SocketAddr,
        place: Place,
    ) -> Result<Lease, DialError> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES * 4);
        let facts = self.facts(worker, &dialled, place);
        let shaken = builder.handshake(TokioIo::new(dialled.stream)).await;
        let (sender, connection) = shaken.map_err(|error| DialError::Tcp(address, error.to_string()))?;
        worker.spawn(connection.with_upgrades().map(drop));
        Ok(Lease { facts, reused: false, slot: self.clone(), sender: Some(Sender::H1(sender)) })
    }

    async fn start_h2(
        self: &Rc<Self>,
        worker: &Worker,
        dialled: Dialled,
        address: SocketAddr,
        place: Place,
    ) -> Result<(), DialError> {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * STREAMS)
            // As much as over HTTP/1.1.
            .max_header_list_size(4 * HEAD_BYTES as u32);
        if dialled.peer.is_some() {
            builder.keep_alive_interval(PING).keep_alive_timeout(PING);
        }
        let facts = self.facts(worker, &dialled, place);
        let shaken = builder.handshake(TokioIo::new(dialled.stream)).await;
        let (sender, mut connection) = shaken.map_err(|error| DialError::Tcp(address, error.to_string()))?;
        let taken = Rc::new(Cell::new(connection.current_max_send_streams()));
        let told = taken.clone();
        let connection = poll_fn(move |context| {
            let ended = Pin::new(&mut connection).poll(context);
            told.set(connection.current_max_send_streams());
            ended.map(drop)
        });
        worker.spawn(connection);
        let h2 = H2 { sender, facts, active: Cell::new(0), taken, since: Cell::new(Instant::now()) };
        self.shared.borrow_mut().push(Rc::new(h2));
        Ok(())
    }

    /// What is known of a new connection; one to a member ends when that is believed no more.
    fn facts(&self, worker: &Worker, dialled: &Dialled, place: Place) -> Rc<Facts> {
        let facts = Facts::new(dialled, place, worker.proxy.now());
        if facts.peer.is_some() {
            let mut standing = self.standing.borrow_mut();
            standing.retain(|one| one.facts.strong_count() > 0);
            standing.push(Standing { facts: Rc::downgrade(&facts), handle: dialled.stream.handle() });
        }
        facts
    }

    fn put(&self, idle: Idle) {
        let mut all = self.idle.borrow_mut();
        if all.len() < self.max_idle.get() && !idle.sender.is_closed() {
            idle.facts.place.idles();
            all.push(idle);
        }
    }

    /// Closes one that idles and has a place of `load`.
    fn give_up_idle(&self, load: &Arc<Load>) -> bool {
        let mut idle = self.idle.borrow_mut();
        if let Some(at) = idle.iter().position(|one| one.facts.place.is_of(load)) {
            idle.swap_remove(at);
            return true;
        }
        let mut shared = self.shared.borrow_mut();
        let at = shared.iter().position(|one| one.active.get() == 0 && one.facts.place.is_of(load));
        at.map(|at| shared.swap_remove(at)).is_some()
    }

    /// Whether there is still something to keep.
    fn sweep(self: &Rc<Self>, worker: &Worker, now: Instant) -> bool {
        let idle_for = self.idle_for.get();
        let fresh = |since: Instant| now.saturating_duration_since(since) < idle_for;
        let believed = |facts: &Facts| {
            let bundle = worker.proxy.identity.bundle();
            facts.peer.as_ref().is_none_or(|peer| peer.still_holds(&bundle, facts.verified_at).is_ok())
        };
        // What is under way there ends too: its other end is to learn nothing more.
        self.standing.borrow_mut().retain(|one| {
            let Some(facts) = one.facts.upgrade() else { return false };
            let stays = believed(&facts);
            if !stays {
                worker.liveness.end(&one.handle);
            }
            stays
        });
        let moment = worker.proxy.moment(now);
        let stays = |facts: &Facts| {
            let outgrown = facts.gateway.as_ref().is_some_and(|gateway| gateway.outgrown(facts.made, moment));
            !outgrown && believed(facts)
        };
        // Where connections are limited another worker may want the place of one that idles here.
        let kept = |since: Instant, facts: &Facts| fresh(since) && !facts.place.is_wanted();
        self.idle
            .borrow_mut()
            .retain(|one| !one.sender.is_closed() && kept(one.since, &one.facts) && stays(&one.facts));
        self.shared.borrow_mut().retain(|one| {
            !one.sender.is_closed()
                && (one.active.get() > 0 || kept(one.since.get(), &one.facts))
                && stays(&one.facts)
        });
        let empty = self.idle.borrow().is_empty() && self.shared.borrow().is_empty();
        if !empty || Rc::strong_count(self) > 1 {
            self.used.set(Some(now));
        }
        !empty || self.used.get().is_some_and(fresh)
    }
}

/// Somebody who waits for a connection that others may share.
struct Waiting<'a> {
    slot: &'a Slot,
    connecting: Connecting,
}

impl Waiting<'_> {
    async fn wait(self) -> Result<(), DialError> {
        self.connecting.clone().await
    }
}

impl Drop for Waiting<'_> {
    /// Whoever comes next begins anew: nobody may be left who drives what this one gave up.
    fn drop(&mut self) {
        self.slot.connecting.borrow_mut().take_if(|one| one.ptr_eq(&self.connecting));
    }
}

impl Lease {
    /// Whether requests go as HTTP/2.
    pub fn is_h2(&self) -> bool {
        matches!(self.sender, Some(Sender::H2(_)))
    }

    /// Sends a request and waits for the head of its response.
    pub fn send(
        &mut self,
        request: http::Request<Body>,
    ) -> impl Future<Output = Result<http::Response<hyper::body::Incoming>, Unsent>> {
        let sent = match &mut self.sender {
            Some(Sender::H1(sender)) => Either::Left(sender.try_send_request(request)),
            Some(Sender::H2(h2)) => Either::Right(h2.sender.clone().try_send_request(request)),
            None => unreachable!("a lease is only emptied by its end"),
        };
        sent.map(|sent| match sent {
            Ok(response) => {
                self.facts.proven.set(true);
                self.slot.spoke_h2.set(self.slot.spoke_h2.get() || self.is_h2());
                Ok(response)
            }
            Err(mut error) => {
                let returned = error.take_message().is_some();
                Err(Unsent { error: error.into_error(), returned })
            }
        })
    }

    /// A request over it has ended so. Whether that is news of its endpoint: of a connection that breaks under many requests
    /// only the first of them tells, and if there is a gateway before the endpoint, that may be who broke it.
    pub fn broke(&self, error: &hyper::Error, now: Moment) -> bool {
        if is_of_stream(error) {
            return true;
        }
        if let Some(gateway) = &self.facts.gateway {
            gateway.doubt(now);
        }
        !self.facts.broken.replace(true)
    }

    /// The response has come to its end: the connection may serve another request.
    pub fn end(mut self, now: Instant) {
        if let Some(Sender::H1(sender)) = self.sender.take_if(|sender| matches!(sender, Sender::H1(_))) {
            self.slot.put(Idle { sender, facts: self.facts.clone(), since: now });
        }
    }
}

/// Whether it ends one stream of HTTP/2 alone.
fn is_of_stream(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(h2::Error::is_reset)
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Sender::H2(h2)) = &self.sender {
            h2.active.set(h2.active.get() - 1);
            h2.since.set(Instant::now());
            self.facts.place.idles();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_are_kept_as_the_policy_says_unless_their_server_would_close_them_first() {
        let check = |member, said: u64, kept: Duration| {
            let slot = Slot::default();
            slot.limit(0, Duration::from_secs(said), member);
            assert_eq!((slot.idle_for.get(), slot.max_idle.get()), (kept, MAX_IDLE), "{member} {said}");
        };
        check(true, 300, Duration::from_secs(300));
        check(true, 7200, MEMBER_IDLE);
        check(true, 0, MEMBER_IDLE);
        check(false, 300, IDLE);
        check(false, 5, Duration::from_secs(5));
    }
}
