//! The etcd of one cluster: its part of the protocol that a control plane's store speaks, durable before it answers.
//!
//! It is there as a whole or not at all, as clients of a cluster with a quorum see it. It can be killed, unplugged,
//! parted from some of its clients, full and compacted.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use controlplane::store::Connect;
use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent,
    PbKeyValue, PbKvServer, PbKvService, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest,
    PbLeaseKeepAliveResponse, PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest,
    PbLeaseRevokeResponse, PbLeaseServer, PbLeaseService, PbLeaseTimeToLiveRequest,
    PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbRangeStreamResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse,
    PbTxnRequest, PbTxnRequestOp, PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
    PbWatchServer, PbWatchService,
};
use etcd_client::{BalancedChannelBuilder, Channel, Client};
use futures_util::{Stream, StreamExt};
use http::Uri;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use process::{shutdown::Shutdown, world::World};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    transport::{self, Endpoint, channel::Change},
};
use tower::{Service as _, ServiceExt, util::BoxCloneSyncService};

use crate::{
    mesh::Mesh,
    network::{End, Outlook},
};

/// Where clients connect.
pub const PORT: u16 = 2379;
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(500);
/// What waits for a client that is slow.
const QUEUE: usize = 64;

/// The machine of the servers.
pub struct Servers {
    /// Their address.
    pub ip: IpAddr,
    /// Whether they take nothing more.
    pub full: Arc<AtomicBool>,
    kept: Arc<Kept>,
    life: RefCell<Option<Shutdown>>,
}

/// How the store of a control plane that lives in `world` connects to them.
pub fn connect(world: Arc<Outlook>) -> Connect {
    Arc::new(move |endpoints, options| {
        let channels = Channels(world.clone());
        Box::pin(async { Client::connect_with_balanced_channel(endpoints, Some(options), channels).await })
    })
}

struct Channels(Arc<Outlook>);

impl BalancedChannelBuilder for Channels {
    type Error = etcd_client::Error;

    /// A channel to the one endpoint, which is told of right after this.
    fn balanced_channel(
        self,
        size: usize,
    ) -> Result<(Channel, mpsc::Sender<Change<Uri, Endpoint>>), etcd_client::Error> {
        let (tell, told) = mpsc::channel::<Change<Uri, Endpoint>>(size);
        let world = self.0;
        let dial = tower::service_fn(move |url: Uri| {
            let world = world.clone();
            async move {
                let address = format!("{}:{PORT}", url.host().unwrap_or_default());
                let address = address.parse().map_err(io::Error::other)?;
                world.connect(address, None).await.map(TokioIo::new)
            }
        });
        let channel = Arc::new(tokio::sync::Mutex::new((told, None::<transport::Channel>)));
        let answer = tower::service_fn(move |call| {
            let (dial, channel) = (dial.clone(), channel.clone());
            async move {
                let mut held = channel.lock().await;
                let (told, channel) = &mut *held;
                while channel.is_none() {
                    match told.recv().await {
                        Some(Change::Insert(_, one)) => {
                            *channel = Some(one.connect_with_connector_lazy(dial.clone()))
                        }
                        Some(Change::Remove(_)) => {}
                        None => return Err("no endpoint is known".into()),
                    }
                }
                let mut channel: transport::Channel = channel.clone().ok_or("no endpoint is known")?;
                drop(held);
                Ok::<_, tower::BoxError>(channel.ready().await?.call(call).await?)
            }
        });
        Ok((Channel::Custom(BoxCloneSyncService::new(answer)), tell))
    }
}

/// What is durable, and who waits for more of it.
struct Kept {
    data: Mutex<Data>,
    revision: watch::Sender<i64>,
}

#[derive(Debug, Clone, Default)]
struct Data {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, PbKeyValue>,
    leases: BTreeMap<i64, Lease>,
    /// All changes that no compaction has taken.
    history: Vec<(i64, PbEvent)>,
    /// What a lease is called next.
    next_lease: i64,
}

#[derive(Debug, Clone)]
struct Lease {
    lasts: Duration,
    ends: Instant,
}

impl Servers {
    /// Servers that are off and empty.
    pub fn new(ip: IpAddr) -> Self {
        let kept = Kept { data: Mutex::default(), revision: watch::Sender::default() };
        Servers { ip, full: Arc::default(), kept: Arc::new(kept), life: RefCell::default() }
    }

    /// Whether they are there.
    pub fn is_on(&self) -> bool {
        self.life.borrow().is_some()
    }

    /// Starts them. Every lease begins anew, as after an election of theirs.
    pub fn start(&self, mesh: &Mesh) {
        let world = mesh.network.boot(self.ip);
        let life = Shutdown::new();
        *self.life.borrow_mut() = Some(life.clone());
        self.kept.change(|data| {
            let now = Instant::now();
            data.leases.values_mut().for_each(|lease| lease.ends = now + lease.lasts);
        });
        let (service, ip) = (Service { kept: self.kept.clone(), full: self.full.clone() }, self.ip);
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = life.cancelled() => {}
                () = service.expire() => {}
                () = service.serve(&*world, ip) => {}
            }
        });
    }

    /// Ends them without warning.
    pub fn kill(&self, mesh: &Mesh, end: End) {
        if let Some(life) = self.life.borrow_mut().take() {
            mesh.network.kill(self.ip, end);
            life.cancel();
        }
    }

    /// Forgets all of the past, and with it what watches have missed.
    pub fn compact(&self) {
        self.kept.change(|data| {
            data.compacted = data.revision;
            data.history.clear();
        });
    }

    /// Who is registered, by instance.
    pub fn registered(&self) -> Vec<String> {
        let data = self.kept.lock();
        let names = data.keys.keys().map(|key| String::from_utf8_lossy(key).into_owned());
        names.filter_map(|key| key.split_once("/registration/").map(|(_, name)| name.to_owned())).collect()
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Data) -> T) -> T {
        let mut data = self.lock();
        let changed = change(&mut data);
        let revision = data.revision;
        drop(data);
        self.revision.send_replace(revision);
        changed
    }
}

impl Data {
    fn header(&self) -> Option<PbResponseHeader> {
        Some(PbResponseHeader { revision: self.revision, ..PbResponseHeader::default() })
    }

    fn found(&self, key: &[u8], end: &[u8]) -> Vec<PbKeyValue> {
        match end {
            [] => self.keys.get(key).cloned().into_iter().collect(),
            end => self.keys.range(key.to_vec()..end.to_vec()).map(|(_, one)| one.clone()).collect(),
        }
    }

    fn range(&self, asked: &PbRangeRequest) -> PbRangeResponse {
        let mut kvs = self.found(&asked.key, &asked.range_end);
        let count = kvs.len();
        // By key, down: the only order beside the usual one that is asked for.
        if asked.sort_order == 2 {
            kvs.reverse();
        }
        let limit = if asked.limit > 0 { asked.limit as usize } else { usize::MAX };
        kvs.truncate(if asked.count_only { 0 } else { limit });
        if asked.keys_only {
            kvs.iter_mut().for_each(|one| one.value.clear());
        }
        PbRangeResponse { header: self.header(), more: count > limit, count: count as i64, kvs }
    }

    fn put(&mut self, asked: &PbPutRequest, revision: i64) -> Result<PbPutResponse, Status> {
        if asked.lease != 0 && !self.leases.contains_key(&asked.lease) {
            return Err(Status::not_found("etcdserver: requested lease not found"));
        }
        let before = self.keys.get(&asked.key);
        let one = PbKeyValue {
            key: asked.key.clone(),
            value: asked.value.clone(),
            create_revision: before.map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.map_or(1, |before| before.version + 1),
            lease: asked.lease,
        };
        self.keys.insert(asked.key.clone(), one.clone());
        self.history.push((revision, PbEvent { r#type: 0, kv: Some(one), prev_kv: None }));
        Ok(PbPutResponse { header: self.header(), prev_kv: None })
    }

    fn delete(&mut self, key: &[u8], end: &[u8], revision: i64) -> PbDeleteResponse {
        let gone = self.found(key, end);
        for one in &gone {
            self.keys.remove(&one.key);
            let left = PbKeyValue { key: one.key.clone(), mod_revision: revision, ..PbKeyValue::default() };
            self.history.push((revision, PbEvent { r#type: 1, kv: Some(left), prev_kv: None }));
        }
        PbDeleteResponse { header: self.header(), deleted: gone.len() as i64, prev_kvs: Vec::new() }
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        let none = PbKeyValue::default();
        let found = self.keys.get(&compare.key);
        let one = found.unwrap_or(&none);
        let order = match &compare.target_union {
            Some(PbTargetUnion::Version(said)) => one.version.cmp(said),
            Some(PbTargetUnion::CreateRevision(said)) => one.create_revision.cmp(said),
            Some(PbTargetUnion::ModRevision(said)) => one.mod_revision.cmp(said),
            Some(PbTargetUnion::Lease(said)) => one.lease.cmp(said),
            // What is not there has no value.
            Some(PbTargetUnion::Value(_)) if found.is_none() => return false,
            Some(PbTargetUnion::Value(said)) => one.value.cmp(said),
            None => return false,
        };
        match compare.result {
            0 => order.is_eq(),
            1 => order.is_gt(),
            2 => order.is_lt(),
            _ => order.is_ne(),
        }
    }

    /// All of `asked` at once, at `revision` if anything changes.
    fn txn(&mut self, asked: &PbTxnRequest, revision: i64) -> Result<PbTxnResponse, Status> {
        let succeeded = asked.compare.iter().all(|compare| self.holds(compare));
        let operations = if succeeded { &asked.success } else { &asked.failure };
        let mut responses = Vec::new();
        for operation in operations {
            let done = match &operation.request {
                Some(PbTxnOpRequest::RequestRange(asked)) => {
                    PbTxnOpResponse::ResponseRange(self.range(asked))
                }
                Some(PbTxnOpRequest::RequestPut(asked)) => {
                    PbTxnOpResponse::ResponsePut(self.put(asked, revision)?)
                }
                Some(PbTxnOpRequest::RequestDeleteRange(asked)) => {
                    let done = self.delete(&asked.key, &asked.range_end, revision);
                    PbTxnOpResponse::ResponseDeleteRange(done)
                }
                Some(PbTxnOpRequest::RequestTxn(asked)) => {
                    PbTxnOpResponse::ResponseTxn(self.txn(asked, revision)?)
                }
                None => continue,
            };
            responses.push(PbResponseOp { response: Some(done) });
        }
        Ok(PbTxnResponse { header: self.header(), succeeded, responses })
    }

    /// Changes what is there by `change`, which has a revision of its own if it changes anything; all of it or nothing.
    fn commit<T>(&mut self, change: impl FnOnce(&mut Data, i64) -> Result<T, Status>) -> Result<T, Status> {
        let (mut next, before) = (self.clone(), self.history.len());
        let done = change(&mut next, self.revision + 1)?;
        if next.history.len() > before {
            next.revision += 1;
        }
        *self = next;
        Ok(done)
    }

    fn revoke(&mut self, lease: i64) -> Result<(), Status> {
        self.leases
            .remove(&lease)
            .ok_or_else(|| Status::not_found("etcdserver: requested lease not found"))?;
        let of = |one: &&PbKeyValue| one.lease == lease;
        let keys: Vec<_> = self.keys.values().filter(of).map(|one| one.key.clone()).collect();
        self.commit(|data, revision| {
            keys.iter().for_each(|key| drop(data.delete(key, &[], revision)));
            Ok(())
        })
    }
}

/// What the servers answer in one life.
#[derive(Clone)]
struct Service {
    kept: Arc<Kept>,
    full: Arc<AtomicBool>,
}

impl Service {
    async fn serve(&self, world: &dyn World, ip: IpAddr) {
        let Ok(listener) = world.listen(SocketAddr::new(ip, PORT)).await else { return };
        let service = self.clone();
        let answer = tower::service_fn(move |call: http::Request<Incoming>| service.clone().answer(call));
        while let Ok((stream, _)) = listener.accept().await {
            let served = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(answer.clone()));
            tokio::spawn(served);
        }
    }

    async fn answer(self, call: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        match call.uri().path().split('/').nth(1) {
            Some("etcdserverpb.Lease") => PbLeaseServer::new(self).call(call).await,
            Some("etcdserverpb.Watch") => PbWatchServer::new(self).call(call).await,
            _ => PbKvServer::new(self).max_decoding_message_size(usize::MAX).call(call).await,
        }
    }

    /// Ends leases that nobody renews.
    async fn expire(&self) {
        loop {
            tokio::time::sleep(TICK).await;
            let now = Instant::now();
            let leases = self.kept.lock().leases.clone();
            for id in leases.into_iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| id) {
                let _ = self.kept.change(|data| data.revoke(id));
            }
        }
    }

    /// Refuses what would take room while there is none.
    fn room(&self, needed: bool) -> Result<(), Status> {
        match needed && self.full.load(Relaxed) {
            true => Err(Status::resource_exhausted("etcdserver: mvcc: database space exceeded")),
            false => Ok(()),
        }
    }
}

fn puts(operations: &[PbTxnRequestOp]) -> bool {
    operations.iter().any(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestPut(_)) => true,
        Some(PbTxnOpRequest::RequestTxn(txn)) => puts(&txn.success) || puts(&txn.failure),
        _ => false,
    })
}

/// What nobody asks of these servers.
fn unasked<T>() -> Result<T, Status> {
    Err(Status::unimplemented("nobody asks for this"))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PbKvService for Service {
    type RangeStreamStream = Answers<PbRangeStreamResponse>;

    async fn range(&self, asked: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        Ok(Response::new(self.kept.lock().range(asked.get_ref())))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        unasked()
    }

    async fn put(&self, asked: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.room(true)?;
        let put = |data: &mut Data| data.commit(|data, revision| data.put(asked.get_ref(), revision));
        self.kept.change(put).map(Response::new)
    }

    async fn delete_range(
        &self,
        asked: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let PbDeleteRequest { key, range_end, .. } = asked.get_ref();
        let delete = |data: &mut Data, revision| Ok(data.delete(key, range_end, revision));
        self.kept.change(|data| data.commit(delete)).map(Response::new)
    }

    async fn txn(&self, asked: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let asked = asked.get_ref();
        self.room(puts(&asked.success) || puts(&asked.failure))?;
        let run = |data: &mut Data, revision| data.txn(asked, revision);
        self.kept.change(|data| data.commit(run)).map(Response::new)
    }

    async fn compact(
        &self,
        _: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        unasked()
    }
}

#[tonic::async_trait]
impl PbLeaseService for Service {
    type LeaseKeepAliveStream = Answers<PbLeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        asked: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let ttl = asked.get_ref().ttl;
        let lasts = Duration::from_secs(ttl as u64);
        let (id, header) = self.kept.change(|data| {
            data.next_lease += 1;
            data.leases.insert(data.next_lease, Lease { lasts, ends: Instant::now() + lasts });
            (data.next_lease, data.header())
        });
        Ok(Response::new(PbLeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        asked: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.kept.change(|data| data.revoke(asked.get_ref().id))?;
        Ok(Response::new(PbLeaseRevokeResponse { header: self.kept.lock().header() }))
    }

    async fn lease_keep_alive(
        &self,
        asked: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let kept = self.kept.clone();
        let answers = asked.into_inner().map(move |asked| {
            let id = asked?.id;
            let mut data = kept.lock();
            // A lease that is over is answered with no time.
            let ttl = data.leases.get_mut(&id).map_or(0, |lease| {
                lease.ends = Instant::now() + lease.lasts;
                lease.lasts.as_secs() as i64
            });
            Ok(PbLeaseKeepAliveResponse { header: data.header(), id, ttl })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        unasked()
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        unasked()
    }
}

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = Answers<PbWatchResponse>;

    async fn watch(
        &self,
        asked: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, told) = mpsc::channel(QUEUE);
        tokio::spawn(watch_keys(self.kept.clone(), asked.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// One watch of a client, which never has two over one stream.
async fn watch_keys(
    kept: Arc<Kept>,
    mut asked: Streaming<PbWatchRequest>,
    answers: mpsc::Sender<Result<PbWatchResponse, Status>>,
) {
    let Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) })) =
        asked.message().await
    else {
        return;
    };
    let mut revision = kept.revision.subscribe();
    let now = kept.lock().revision;
    let mut next = if create.start_revision > 0 { create.start_revision } else { now + 1 };
    let mut created = true;
    loop {
        revision.mark_unchanged();
        let answer = {
            let data = kept.lock();
            let of = |one: &PbKeyValue| match &*create.range_end {
                [] => one.key == create.key,
                end => one.key >= create.key && *one.key < *end,
            };
            let missed = next <= data.compacted;
            let news = data.history.iter().filter(|(at, _)| *at >= next).map(|(_, event)| event);
            let events: Vec<_> = news.filter(|event| event.kv.as_ref().is_some_and(of)).cloned().collect();
            next = next.max(data.revision + 1);
            PbWatchResponse {
                header: data.header(),
                created,
                canceled: missed,
                compact_revision: if missed { data.compacted } else { 0 },
                events,
                ..PbWatchResponse::default()
            }
        };
        let ended = answer.canceled;
        let news = created || ended || !answer.events.is_empty();
        if news && answers.send(Ok(answer)).await.is_err() || ended {
            return;
        }
        created = false;
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            // The client goes, or says what nobody says.
            _ = asked.message() => return,
        }
    }
}
