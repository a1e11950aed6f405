//! The remote's end: joins once, then keeps one stream to the primary, and goes on without it.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{
    admin::ClusterStatus,
    digest::Hash,
    head::SignedHead,
    identity::{Bundle, CertificateDer},
    name::ClusterName,
    wire::{self, from_remote, to_remote},
};
use bytes::Bytes;
use federation::{
    authority::{IntermediateKey, Signed},
    token::{self, JoinToken},
};
use process::{
    rpc::{self, stub::federation_client::FederationClient},
    shutdown::Shutdown,
    tls,
    world::SharedWorld,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    GATHER, MAX_MESSAGE_BYTES, PATIENCE, QUEUE, grow_stale, learn_by_primary, primary::catalogue_digest,
};
use crate::{
    authority::Authority,
    plane::{Heard, Plane, load},
    store::{self, Conflict, Leading, StoreError},
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two tries to bring a head into a store that does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the intermediate's end is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(600);
/// Blobs asked for in one message.
const WANTED: usize = 5_000;

/// Why a cluster could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token.
    #[error(transparent)]
    Token(#[from] token::BadToken),
    /// A token for another cluster.
    #[error("this join token is for cluster {0}")]
    OtherCluster(ClusterName),
    /// The primary is not there, or not the one that the token names.
    #[error(transparent)]
    Connect(#[from] rpc::ConnectError),
    /// The primary said no.
    #[error("the primary refused: {0}")]
    Refused(String),
    /// What the primary sent makes no sense.
    #[error("the primary's answer cannot be used: {0}")]
    Answer(String),
}

/// Joins the mesh with a one-time token. The primary's root is checked against the token before the token is sent.
pub async fn join(
    world: &SharedWorld,
    text: &str,
    cluster: &ClusterName,
    primary: SocketAddr,
    source: IpAddr,
    dir: &std::path::Path,
) -> Result<Authority, JoinError> {
    let token: JoinToken = token::read(text)?;
    if token.cluster != *cluster {
        return Err(JoinError::OtherCluster(token.cluster));
    }
    let unusable = |error: &dyn std::fmt::Display| JoinError::Answer(error.to_string());
    let key = IntermediateKey::load_or_create(dir).map_err(|error| unusable(&error))?;
    let request = key.request().map_err(|error| unusable(&error))?;
    let tls = tls::enrolment(token.root, &token.primary, &["h2"]);
    let channel = rpc::connect(world, primary, Some(source), tls, "federation.weft.internal".into()).await?;
    let asked = wire::JoinRequest { token: text.to_owned(), intermediate_csr: request };
    let joined = FederationClient::new(channel).join(asked).await;
    let joined = joined.map_err(|status| JoinError::Refused(status.message().to_owned()))?.into_inner();
    let certificate = joined.intermediate.into_iter().next().ok_or_else(|| unusable(&"no certificate"))?;
    let bundle: Bundle = serde_json::from_slice(&joined.bundle).map_err(|error| unusable(&error))?;
    Authority::joined(dir, cluster, key, CertificateDer::from(certificate), bundle, world.unix())
        .map_err(|error| unusable(&error))
}

/// Keeps the link up until `shutdown`, by the addresses of the primary in turn.
pub async fn run(plane: Arc<Plane>, primaries: Vec<SocketAddr>, leading: Leading, shutdown: Shutdown) {
    let mut pause = FIRST_PAUSE;
    for primary in primaries.into_iter().cycle() {
        let begun = tokio::time::Instant::now();
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = once(&plane, primary, &leading) => ended,
        };
        mark_away(&plane);
        tracing::warn!(%primary, "the link to the primary is down: {ended}");
        // Half to all of the pause, so that clusters which lost the same primary do not return as one.
        if begun.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(plane.world.jittered(pause)) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn mark_away(plane: &Plane) {
    let now = plane.now();
    let first = plane.primary_away.send_if_modified(|away| {
        let first = away.is_none();
        away.get_or_insert(now);
        first
    });
    if first {
        plane.events.note("primary", "is away; this cluster goes on with what it has");
    }
    plane.reports.send_modify(|reports| {
        Arc::make_mut(reports)
            .values_mut()
            .for_each(|heard| heard.away_since = heard.away_since.or(Some(now)));
    });
    grow_stale(plane, |name| *name != plane.config.cluster);
}

/// One life of the link; says why it ended.
async fn once(plane: &Arc<Plane>, primary: SocketAddr, leading: &Leading) -> String {
    let Some(name) = primary_name(plane) else {
        return "the primary's name is not known: join again".into();
    };
    let expect = tls::Expect::control_plane(&plane.authority.trust_domain(), &name);
    let tls = tls::client(plane.authority.identity(), expect, &["h2"]);
    let source = Some(plane.config.address);
    let channel =
        match rpc::connect(&plane.world, primary, source, tls, "federation.weft.internal".into()).await {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let hello = wire::FromRemote { message: Some(from_remote::Message::Hello(hello(plane))) };
    if sender.send(hello).await.is_err() {
        return "the link closed before it began".into();
    }
    let mut client = FederationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = match client.link(ReceiverStream::new(receiver)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    let leading = leading.clone();
    let link =
        Link { plane: plane.clone(), sender, wanted: None, asked: HashSet::new(), leading, again: false };
    link.run(incoming).await
}

/// The primary is the member that vouched for nobody's joining but its own: its name came with the token.
fn primary_name(plane: &Plane) -> Option<ClusterName> {
    let text = std::fs::read_to_string(plane.config.state_dir.join(PRIMARY_FILE)).ok()?;
    ClusterName::new(text.trim()).ok()
}

/// Holds the primary's name, which the join token said.
const PRIMARY_FILE: &str = "primary";

/// Keeps the primary's name for later starts.
pub fn keep_primary(dir: &std::path::Path, text: &str) -> Result<(), JoinError> {
    let token: JoinToken = token::read(text)?;
    process::files::write_private(&dir.join(PRIMARY_FILE), token.primary.as_str().as_bytes())
        .map_err(|error| JoinError::Answer(error.to_string()))
}

fn hello(plane: &Plane) -> wire::RemoteHello {
    let head = plane.store.watch_head().borrow().as_ref().map(|head| Hash::of(head.bytes()).0.to_vec());
    wire::RemoteHello {
        cluster: plane.config.cluster.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        head: head.unwrap_or_default(),
        bundle_sequence: plane.bundle.borrow().sequence,
        // What is held is stale by now, so all of it is asked for anew.
        catalogues: Vec::new(),
    }
}

struct Link {
    plane: Arc<Plane>,
    sender: mpsc::Sender<wire::FromRemote>,
    /// The head that comes into force once its blobs are here.
    wanted: Option<SignedHead>,
    /// The blobs that it was asked for and has not sent yet.
    asked: HashSet<Hash>,
    leading: Leading,
    /// Whether the store did not answer when it was to be brought.
    again: bool,
}

impl Link {
    async fn run(mut self, mut incoming: Streaming<wire::ToRemote>) -> String {
        let mut snapshots = self.plane.snapshot.subscribe();
        let mut owns = self.plane.own.subscribe();
        let mut renewal = tokio::time::interval(RENEWAL_CHECK);
        let (mut catalogue, mut status) = (None, None);
        loop {
            if let Err(why) = self.tell(&mut catalogue, &mut status).await {
                return why;
            }
            tokio::select! {
                biased;
                message = incoming.message() => {
                    let done = match message {
                        Ok(Some(wire::ToRemote { message: Some(message) })) => self.on_message(message).await,
                        Ok(Some(wire::ToRemote { message: None })) => Ok(()),
                        Ok(None) => Err("the primary closed it".to_owned()),
                        Err(status) => Err(status.message().to_owned()),
                    };
                    if let Err(why) = done {
                        return why;
                    }
                }
                _ = snapshots.changed() => tokio::time::sleep(GATHER).await,
                _ = owns.changed() => {}
                _ = renewal.tick() => if let Err(why) = self.ask_renewal().await { return why },
                () = tokio::time::sleep(AGAIN), if self.again => {
                    if let Err(why) = self.adopt().await {
                        return why;
                    }
                }
                () = self.leading.changed() => if let Err(why) = self.adopt().await { return why },
            }
        }
    }

    /// Tells what changed since it was last told.
    async fn tell(&self, catalogue: &mut Option<Hash>, status: &mut Option<Hash>) -> Result<(), String> {
        let offered = self.plane.snapshot.borrow().catalogue();
        let digest = catalogue_digest(&offered);
        if *catalogue != Some(digest) {
            *catalogue = Some(digest);
            self.send(from_remote::Message::Catalogue(offered)).await?;
        }
        let own = self.plane.own.borrow().clone();
        let json = serde_json::to_vec(&*own).expect("a status has a JSON form");
        let digest = Hash::of(&json);
        if *status != Some(digest) {
            *status = Some(digest);
            let cluster = self.plane.config.cluster.to_string();
            self.send(from_remote::Message::Status(wire::ClusterStatus { cluster, json })).await?;
        }
        Ok(())
    }

    async fn ask_renewal(&self) -> Result<(), String> {
        match self.plane.authority.intermediate_request(self.plane.world.unix()) {
            Ok(Some(csr)) => self.send(from_remote::Message::Renew(wire::RenewIntermediate { csr })).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn send(&self, message: from_remote::Message) -> Result<(), String> {
        let sent = timeout(PATIENCE, self.sender.send(wire::FromRemote { message: Some(message) })).await;
        let sent = sent.map_err(|_| "the primary does not read what it is sent".to_owned())?;
        sent.map_err(|_| "the stream is closed".to_owned())
    }

    async fn on_message(&mut self, message: to_remote::Message) -> Result<(), String> {
        let back = self.plane.primary_away.send_if_modified(|away| away.take().is_some());
        if back {
            self.plane.events.note("primary", "is back");
        }
        match message {
            to_remote::Message::Head(head) => {
                let head = SignedHead::parse(head.head, head.signature, head.statement)
                    .map_err(|e| e.to_string())?;
                let judged = self.plane.authority.believes(&head);
                judged.map_err(|error| format!("a head without the primary's signature: {error}"))?;
                self.wanted = Some(head);
                // What the primary did not have for the last one it may have for this one.
                self.asked.clear();
                self.adopt().await
            }
            to_remote::Message::Blobs(blobs) => {
                let blobs: Vec<Bytes> = blobs.blobs.into_iter().map(Into::into).collect();
                blobs.iter().for_each(|blob| _ = self.asked.remove(&Hash::of(blob)));
                match self.plane.store.put(blobs).await {
                    Ok(_) => self.adopt().await,
                    Err(error) => self.later(&error),
                }
            }
            to_remote::Message::Bundle(signed) => self.trust(signed),
            to_remote::Message::Catalogue(catalogue) => {
                if catalogue.cluster != self.plane.config.cluster.as_str() {
                    learn_by_primary(&self.plane, catalogue);
                }
                Ok(())
            }
            to_remote::Message::Gone(gone) => {
                let peers = &self.plane.peers;
                peers.send_if_modified(|peers| Arc::make_mut(peers).remove(gone.cluster.as_str()).is_some());
                Ok(())
            }
            to_remote::Message::Intermediate(intermediate) => {
                let certificate =
                    intermediate.chain.into_iter().next().ok_or("an intermediate without certificate")?;
                let renewed =
                    self.plane.authority.renew_intermediate(certificate.into(), self.plane.world.unix());
                renewed.map_err(|error| error.to_string())
            }
            to_remote::Message::Status(status) => {
                let status: ClusterStatus =
                    serde_json::from_slice(&status.json).map_err(|error| error.to_string())?;
                if status.name != self.plane.config.cluster {
                    let name = status.name.clone();
                    let heard = Heard { away_since: status.away_since, status: Arc::new(status) };
                    self.plane
                        .reports
                        .send_modify(|reports| drop(Arc::make_mut(reports).insert(name, heard)));
                }
                Ok(())
            }
        }
    }

    fn trust(&self, signed: wire::Bundle) -> Result<(), String> {
        let authority = &self.plane.authority;
        let judged =
            authority.signed_by_primary(Signed::Bundle, &signed.bundle, &signed.signature, &signed.statement);
        judged.map_err(|error| format!("a bundle without the primary's signature: {error}"))?;
        let bundle: Bundle = serde_json::from_slice(&signed.bundle).map_err(|error| error.to_string())?;
        // What is trusted and was not told may not be on disk: it is kept before it is told.
        if bundle.sequence > self.plane.bundle.borrow().sequence {
            authority.trust(bundle).map_err(|error| error.to_string())?;
            self.plane.tell_bundle();
        }
        Ok(())
    }

    /// Takes the wanted head into force if all its blobs are here, or asks for those that are not.
    async fn adopt(&mut self) -> Result<(), String> {
        self.again = false;
        let Some(head) = self.wanted.clone() else { return Ok(()) };
        let Some(revision) = head.head().stable.clone() else { return Ok(()) };
        let Some(election) = self.leading.now() else { return Ok(()) };
        let store = self.plane.store.clone();
        let missing = match store::missing(&*store, &revision).await {
            Ok(missing) => missing,
            Err(error) => return self.later(&error),
        };
        if !missing.is_empty() {
            return self.ask(missing).await;
        }
        let seq = head.head().seq();
        let held = match store.head().await {
            Ok(held) => held.map(|held| held.head().seq()),
            Err(error) => return self.later(&error),
        };
        let swapped = async {
            store.compare_and_swap_head(held, head.clone(), &election).await?;
            store.hold(&head).await
        };
        match swapped.await {
            Ok(()) => {}
            // An older head of the same primary, sent again: what is in force is later. Or one that the store took, and could
            // not hold: whoever follows the store's head brings it.
            Err(Conflict::NotLater { .. }) => {
                self.wanted = None;
                return Ok(());
            }
            // The next leadership brings it.
            Err(Conflict::NotLeader) => return Ok(()),
            Err(Conflict::Store(error)) => return self.later(&error),
            Err(error) => return Err(error.to_string()),
        }
        self.wanted = None;
        let configuration = load(&*store, seq, &revision).await.map_err(|error| error.to_string())?;
        self.plane.bring_into_force(configuration);
        store::forget_old(&*store, held, seq, &election).await;
        Ok(())
    }

    /// Asks for what is missing, unless it is on its way.
    async fn ask(&mut self, missing: Vec<Hash>) -> Result<(), String> {
        let fresh: Vec<_> = missing.into_iter().filter(|hash| !self.asked.contains(hash)).collect();
        let room = WANTED.saturating_sub(self.asked.len());
        let hashes: Vec<_> = fresh.into_iter().take(room).collect();
        if hashes.is_empty() {
            return Ok(());
        }
        self.asked.extend(&hashes);
        let hashes = hashes.iter().map(|hash| hash.0.to_vec()).collect();
        self.send(from_remote::Message::Want(wire::WantBlobs { hashes })).await
    }

    /// A store that is away takes the wanted head when it is back; the link has nothing to do with it.
    fn later(&mut self, error: &StoreError) -> Result<(), String> {
        tracing::warn!(%error, "the head in force could not be kept yet");
        self.again = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::fixture;

    #[tokio::test]
    async fn what_is_on_its_way_is_not_asked_for_again() {
        let home = tempfile::tempdir().unwrap();
        let (plane, _) = fixture::primary(home.path(), false).await;
        let (sender, mut sent) = mpsc::channel(QUEUE);
        let (wanted, asked, leading) = (None, HashSet::new(), Leading::none());
        let mut link = Link { plane, sender, wanted, asked, leading, again: false };
        let [one, two] = ["one", "two"].map(|text| Bytes::from_static(text.as_bytes()));
        let hash = |blob: &Bytes| Hash::of(blob);
        let mut told = || match sent.try_recv() {
            Ok(wire::FromRemote { message: Some(from_remote::Message::Want(want)) }) => want.hashes.len(),
            _ => 0,
        };
        link.ask(vec![hash(&one)]).await.unwrap();
        assert_eq!(told(), 1);
        link.ask(vec![hash(&one), hash(&two)]).await.unwrap();
        assert_eq!(told(), 1, "the other one alone");
        link.ask(vec![hash(&one), hash(&two)]).await.unwrap();
        assert_eq!(told(), 0);
        let blobs = wire::Blobs { blobs: vec![one.to_vec()] };
        link.on_message(to_remote::Message::Blobs(blobs)).await.unwrap();
        link.ask(vec![hash(&one), hash(&two)]).await.unwrap();
        assert_eq!(told(), 1, "what has come may be asked for again");
    }
}
