//! The primary's end: every remote's stream arrives here.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use api::{
    admin::ClusterStatus,
    digest::Hash,
    head::SignedHead,
    identity::{CertificateDer, SpiffeId, Verified},
    name::ClusterName,
    wire::{self, from_remote, to_remote},
};
use federation::{
    authority::INTERMEDIATE_LIFETIME,
    token::{BadToken, JoinToken},
};
use process::{
    rpc::{PeerInfo, stub::federation_server::Federation},
    shutdown::Shutdown,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{BLOB_BATCH_BYTES, GATHER, PATIENCE, QUEUE, grow_stale, learn};
use crate::{
    authority::TrustError,
    plane::{Heard, Plane},
};

/// Blobs that one message may ask for.
const MAX_WANTED: usize = 10_000;

/// The `Federation` service of the primary.
pub struct Server {
    plane: Arc<Plane>,
    shutdown: Shutdown,
}

impl Server {
    /// Serves the remotes of the mesh.
    pub fn new(plane: Arc<Plane>, shutdown: Shutdown) -> Self {
        Server { plane, shutdown }
    }

    fn sign(&self, csr: &[u8], cluster: &ClusterName) -> Result<Vec<Vec<u8>>, Status> {
        let signed = certified(&self.plane, csr, cluster)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let roots =
            self.plane.bundle.borrow().roots.iter().map(|root| root.der().to_vec()).collect::<Vec<_>>();
        Ok(std::iter::once(signed.to_vec()).chain(roots).collect())
    }
}

/// An intermediate for `cluster`, which lives as long as the `Mesh` says.
fn certified(
    plane: &Plane,
    csr: &[u8],
    cluster: &ClusterName,
) -> Result<CertificateDer<'static>, TrustError> {
    let lifetime = plane.configuration.borrow().mesh().map(|mesh| mesh.spec.certificates.intermediate.get());
    plane.authority.sign_intermediate(
        csr,
        cluster,
        lifetime.unwrap_or(INTERMEDIATE_LIFETIME),
        plane.world.unix(),
    )
}

#[tonic::async_trait]
impl Federation for Server {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::Joined>, Status> {
        let wire::JoinRequest { token, intermediate_csr } = request.into_inner();
        let (authority, now) = (&self.plane.authority, self.plane.world.unix());
        let refused = |error: BadToken| Status::permission_denied(error.to_string());
        // Before it is used up: what is missing can be committed, and the token be shown again.
        let JoinToken { cluster, .. } = authority.check(&token, now).map_err(refused)?;
        if self.plane.configuration.borrow().member(&cluster).is_none() {
            return Err(Status::failed_precondition(format!(
                "cluster {cluster} is in no commit in force: commit a Cluster of that name first"
            )));
        }
        let token: JoinToken = authority.redeem(&token, now).map_err(refused)?;
        self.plane.keep_used(&token.id).await;
        let intermediate = self.sign(&intermediate_csr, &token.cluster)?;
        self.plane.events.note(format!("cluster {}", token.cluster), "joined");
        let bundle = serde_json::to_vec(&**self.plane.bundle.borrow()).expect("a bundle has a JSON form");
        Ok(Response::new(wire::Joined { intermediate, bundle, cluster: token.cluster.to_string() }))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<wire::ToRemote, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<wire::FromRemote>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let chain = request.extensions().get::<PeerInfo>().and_then(|info| info.chain.clone());
        let chain = chain
            .ok_or_else(|| Status::unauthenticated("a link needs the certificate of a control plane"))?;
        let mut incoming = request.into_inner();
        let first = timeout(PATIENCE, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a link begins with RemoteHello"))??;
        let Some(from_remote::Message::Hello(hello)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("a link begins with RemoteHello"));
        };
        // By what is trusted now, not by what was when the stream was opened.
        let verified = self.plane.authority.identity().verify(&chain, self.plane.world.unix());
        let verified = verified.map_err(|rejection| Status::unauthenticated(rejection.to_string()))?;
        let SpiffeId::ControlPlane { cluster, .. } = verified.id.clone() else {
            return Err(Status::permission_denied("only a control plane opens a link"));
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let superseded = self.plane.links.open(&cluster);
        let link =
            Link { plane: self.plane.clone(), hub: Hub::new(cluster, hello), verified, superseded, sender };
        self.shutdown.spawn("link", link.run(incoming, self.shutdown.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }
}

/// The links of all remotes. Of each remote one counts, the newest: the network may hold back the older one's words.
#[derive(Debug, Default)]
pub struct Links(Mutex<BTreeMap<ClusterName, CancellationToken>>);

impl Links {
    /// A new link of `cluster`, which ends the one before it; with what says when it is superseded itself.
    fn open(&self, cluster: &ClusterName) -> CancellationToken {
        let superseded = CancellationToken::new();
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = links.insert(cluster.clone(), superseded.clone()) {
            before.cancel();
        }
        superseded
    }
}

/// What one remote has been told. Pure: the world goes in, what has to be sent comes out.
#[derive(Debug)]
struct Hub {
    cluster: ClusterName,
    head: Option<Hash>,
    bundle_sequence: u64,
    catalogues: BTreeMap<ClusterName, Hash>,
    statuses: BTreeMap<ClusterName, Hash>,
}

/// What remotes are to know, at one instant.
struct World {
    head: Option<SignedHead>,
    bundle_sequence: u64,
    bundle: wire::Bundle,
    catalogues: BTreeMap<ClusterName, Arc<wire::Catalogue>>,
    statuses: BTreeMap<ClusterName, Arc<ClusterStatus>>,
}

impl Hub {
    fn new(cluster: ClusterName, hello: wire::RemoteHello) -> Self {
        let held = hello
            .catalogues
            .iter()
            .filter_map(|one| Some((ClusterName::new(&one.cluster).ok()?, Hash::from_slice(&one.digest)?)));
        Hub {
            cluster,
            head: Hash::from_slice(&hello.head),
            bundle_sequence: hello.bundle_sequence,
            catalogues: held.collect(),
            statuses: BTreeMap::new(),
        }
    }

    /// What brings the remote from what it was told to `world`. Trust comes first.
    fn sync(&mut self, world: &World) -> Vec<to_remote::Message> {
        let mut messages = Vec::new();
        if world.bundle_sequence > self.bundle_sequence {
            self.bundle_sequence = world.bundle_sequence;
            messages.push(to_remote::Message::Bundle(world.bundle.clone()));
        }
        if let Some(head) = &world.head {
            let hash = Hash::of(head.bytes());
            if self.head != Some(hash) {
                self.head = Some(hash);
                messages.push(to_remote::Message::Head(wire::SignedHead {
                    head: head.bytes().to_vec(),
                    signature: head.signature().to_vec(),
                    statement: head.statement().to_vec(),
                }));
            }
        }
        let others = world.catalogues.iter().filter(|(name, _)| **name != self.cluster);
        for (name, catalogue) in others {
            let digest = catalogue_digest(catalogue);
            if self.catalogues.insert(name.clone(), digest) != Some(digest) {
                messages.push(to_remote::Message::Catalogue((**catalogue).clone()));
            }
        }
        let gone: Vec<_> =
            self.catalogues.keys().filter(|name| !world.catalogues.contains_key(*name)).cloned().collect();
        for name in gone {
            self.catalogues.remove(&name);
            messages.push(to_remote::Message::Gone(wire::CatalogueGone { cluster: name.to_string() }));
        }
        for (name, status) in world.statuses.iter().filter(|(name, _)| **name != self.cluster) {
            let json = serde_json::to_vec(&**status).expect("a status has a JSON form");
            let digest = Hash::of(&json);
            if self.statuses.insert(name.clone(), digest) != Some(digest) {
                messages.push(to_remote::Message::Status(wire::ClusterStatus {
                    cluster: name.to_string(),
                    json,
                }));
            }
        }
        messages
    }
}

/// The hash of a catalogue, its age included: one that grows stale is sent again.
pub(super) fn catalogue_digest(catalogue: &wire::Catalogue) -> Hash {
    use prost::Message;
    Hash::of(&catalogue.encode_to_vec())
}

/// One remote's stream.
struct Link {
    plane: Arc<Plane>,
    hub: Hub,
    verified: Arc<Verified>,
    /// Whether a newer link of the same remote is up: what arrives here still, late, says nothing any more.
    superseded: CancellationToken,
    sender: mpsc::Sender<wire::ToRemote>,
}

struct Ended;

impl Link {
    async fn run(mut self, mut incoming: Streaming<wire::FromRemote>, shutdown: Shutdown) {
        let cluster = self.hub.cluster.clone();
        self.plane.events.note(format!("cluster {cluster}"), "its link is up");
        let mut heads = self.plane.store.watch_head();
        let mut snapshots = self.plane.snapshot.subscribe();
        let mut bundles = self.plane.bundle.subscribe();
        // Whoever was expelled since it was verified.
        bundles.mark_changed();
        let mut owns = self.plane.own.subscribe();
        let mut reports = self.plane.reports.subscribe();
        let mut peers = self.plane.peers.subscribe();
        let mut open = self.sync().await;
        while open.is_ok() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.superseded.cancelled() => break,
                message = incoming.message() => {
                    open = match message {
                        Ok(Some(wire::FromRemote { message: Some(message) })) => self.on_message(message).await,
                        Ok(Some(wire::FromRemote { message: None })) => Ok(()),
                        Ok(None) | Err(_) => Err(Ended),
                    };
                    continue;
                }
                _ = heads.changed() => {}
                _ = bundles.changed() => {
                    if let Err(rejection) = self.verified.still_holds(&self.plane.bundle.borrow(), self.plane.world.unix()) {
                        self.plane.events.note(format!("cluster {cluster}"), format!("its link is ended: {rejection}"));
                        break;
                    }
                }
                _ = snapshots.changed() => {}
                _ = owns.changed() => {}
                _ = reports.changed() => {}
                _ = peers.changed() => {}
            }
            open = self.sync().await;
            tokio::time::sleep(GATHER).await;
        }
        self.end(&cluster);
    }

    /// What it offered stays, with its age; unless a newer link is up already.
    fn end(&self, cluster: &ClusterName) {
        if !self.counts() {
            return;
        }
        let now = self.plane.now();
        self.plane
            .events
            .note(format!("cluster {cluster}"), "its link is down; what it offered stays, with its age");
        self.plane.reports.send_modify(|reports| {
            if let Some(heard) = Arc::make_mut(reports).get_mut(cluster).filter(|_| self.counts()) {
                heard.away_since = Some(now);
            }
        });
        grow_stale(&self.plane, |name| name == cluster && self.counts());
    }

    /// Whether this is the newest link. It is asked while what the link says is written down: what the newest one said
    /// is never overwritten by an older one.
    fn counts(&self) -> bool {
        !self.superseded.is_cancelled()
    }

    async fn sync(&mut self) -> Result<(), Ended> {
        let world = world(&self.plane);
        for message in self.hub.sync(&world) {
            self.send(message).await?;
        }
        Ok(())
    }

    async fn send(&self, message: to_remote::Message) -> Result<(), Ended> {
        let sent = timeout(PATIENCE, self.sender.send(wire::ToRemote { message: Some(message) })).await;
        sent.map_err(|_| Ended)?.map_err(|_| Ended)
    }

    async fn on_message(&mut self, message: from_remote::Message) -> Result<(), Ended> {
        match message {
            from_remote::Message::Hello(_) => return Err(Ended),
            from_remote::Message::Catalogue(catalogue) => {
                // A cluster speaks for itself alone.
                if catalogue.cluster == self.hub.cluster.as_str() {
                    learn(&self.plane, catalogue, || self.counts());
                }
            }
            from_remote::Message::Want(want) => self.send_blobs(&want.hashes).await?,
            from_remote::Message::Status(status) => {
                match serde_json::from_slice::<ClusterStatus>(&status.json) {
                    Ok(status) if status.name == self.hub.cluster => {
                        let heard = Heard { status: Arc::new(status), away_since: None };
                        let cluster = self.hub.cluster.clone();
                        self.plane.reports.send_if_modified(|reports| {
                            let counts = self.counts();
                            if counts {
                                Arc::make_mut(reports).insert(cluster, heard);
                            }
                            counts
                        });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, cluster = %self.hub.cluster, "its status cannot be read")
                    }
                }
            }
            from_remote::Message::Renew(_) if !self.plane.is_member(&self.hub.cluster) => return Err(Ended),
            from_remote::Message::Renew(renew) => {
                match certified(&self.plane, &renew.csr, &self.hub.cluster) {
                    Ok(certificate) => {
                        let chain = vec![certificate.to_vec()];
                        self.send(to_remote::Message::Intermediate(wire::Intermediate { chain })).await?;
                    }
                    Err(error) => {
                        tracing::warn!(%error, cluster = %self.hub.cluster, "its intermediate was not renewed")
                    }
                }
            }
        }
        Ok(())
    }

    async fn send_blobs(&self, hashes: &[Vec<u8>]) -> Result<(), Ended> {
        let hashes: Vec<_> =
            hashes.iter().take(MAX_WANTED).filter_map(|hash| Hash::from_slice(hash)).collect();
        let found = self.plane.store.get(hashes).await.map_err(|error| {
            tracing::warn!(%error, "blobs for a remote could not be read");
            Ended
        })?;
        let mut batch = wire::Blobs::default();
        let mut size = 0;
        for blob in found.into_iter().flatten() {
            if size > 0 && size + blob.len() > BLOB_BATCH_BYTES {
                self.send(to_remote::Message::Blobs(std::mem::take(&mut batch))).await?;
                size = 0;
            }
            size += blob.len();
            batch.blobs.push(blob.to_vec());
        }
        self.send(to_remote::Message::Blobs(batch)).await
    }
}

fn world(plane: &Plane) -> World {
    let bundle = plane.bundle.borrow().clone();
    let json = serde_json::to_vec(&*bundle).expect("a bundle has a JSON form");
    // Signing fails only where this is no primary, and then nobody links here.
    let (signature, statement) = plane.authority.sign_bundle(&json).unwrap_or_default();
    let mut catalogues = (**plane.peers.borrow()).clone();
    catalogues.insert(plane.config.cluster.clone(), Arc::new(plane.snapshot.borrow().catalogue()));
    let mut statuses: BTreeMap<_, _> =
        plane.reports.borrow().iter().map(|(name, heard)| (name.clone(), heard.status.clone())).collect();
    statuses.insert(plane.config.cluster.clone(), plane.own.borrow().clone());
    World {
        head: plane.store.watch_head().borrow().clone(),
        bundle_sequence: bundle.sequence,
        bundle: wire::Bundle { bundle: json, signature, statement },
        catalogues,
        statuses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::fixture;

    fn west() -> ClusterName {
        "west".parse().unwrap()
    }

    /// A link of west to the primary.
    fn link(plane: &Arc<Plane>) -> Link {
        let identity = plane.authority.identity();
        let verified = identity.verify(identity.credentials().chain(), plane.world.unix()).unwrap();
        let hub = Hub::new(west(), wire::RemoteHello::default());
        let superseded = plane.links.open(&west());
        Link { plane: plane.clone(), hub, verified, superseded, sender: mpsc::channel(QUEUE).0 }
    }

    /// West says of itself that it obeys `label`, and that its gateway is called so too.
    async fn says(link: &mut Link, label: &str) {
        let status = ClusterStatus {
            name: west(),
            commit: Some(label.into()),
            ..crate::report::unknown(&link.plane.config)
        };
        let json = serde_json::to_vec(&status).unwrap();
        let catalogue =
            wire::Catalogue { cluster: "west".into(), gateways: vec![label.into()], ..Default::default() };
        for message in [
            from_remote::Message::Status(wire::ClusterStatus { cluster: "west".into(), json }),
            from_remote::Message::Catalogue(catalogue),
        ] {
            assert!(link.on_message(message).await.is_ok());
        }
    }

    /// What the primary knows of west: the commit, since when it is away, its gateway and since when that is stale.
    fn known(plane: &Plane) -> (String, Option<f64>, String, bool) {
        let heard = plane.reports.borrow()[&west()].clone();
        let catalogue = plane.peers.borrow()[&west()].clone();
        (
            heard.status.commit.clone().unwrap(),
            heard.away_since,
            catalogue.gateways[0].clone(),
            catalogue.stale_since > 0,
        )
    }

    /// Found by the simulated network: what a slow way held back on the older link replaced what the newer one had
    /// said, and no `wait` ended any more.
    #[tokio::test]
    async fn late_words_of_an_older_link_and_its_end_say_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (plane, _) = fixture::primary(home.path(), false).await;
        let mut old = link(&plane);
        says(&mut old, "one").await;
        assert_eq!(known(&plane), ("one".into(), None, "one".into(), false));
        let mut new = link(&plane);
        says(&mut new, "two").await;
        says(&mut old, "one").await;
        old.end(&west());
        assert_eq!(known(&plane), ("two".into(), None, "two".into(), false));
        new.end(&west());
        assert_eq!(known(&plane), ("two".into(), Some(fixture::BEGIN), "two".into(), true));
    }

    #[tokio::test]
    async fn a_newer_link_ends_the_older_one_of_the_same_remote_alone() {
        let links = Links::default();
        let (west, south) = (links.open(&west()), links.open(&"south".parse().unwrap()));
        assert!(!west.is_cancelled());
        let newer = links.open(&"west".parse().unwrap());
        assert!(west.is_cancelled() && !newer.is_cancelled() && !south.is_cancelled());
    }
}
