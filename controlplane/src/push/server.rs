//! The thin edge of the push protocol: gRPC in, [`Session`] in the middle, gRPC out; and the two calls that sign.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use api::{
    delta::Held,
    digest::Hash,
    head::Seq,
    identity::{CertificateDer, SpiffeId, Verified},
    name::Namespace,
    wire::{self, from_proxy},
};
use federation::token::WorkloadToken;
use process::{
    rpc::{PeerInfo, stub::control_server::Control},
    shutdown::Shutdown,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Account, Action, Enrolled, ProxyStream, RegistryError, Session};
use crate::{
    plane::Plane,
    rivals,
    snapshot::{Registered, Role},
};

/// Frames that wait for a slow reader. One push is outstanding at most, so this bounds its frames under way.
const FRAMES: usize = 16;
/// Ports of one workload.
const MAX_PORTS: usize = 64;
/// How long a stream may be without its Hello: who holds one back is let in by what counted when it opened the stream.
const HELLO: Duration = Duration::from_secs(10);
/// What a proxy says in words is shown to people and told to the primary: so many bytes of each, and so many of them.
const MAX_VERSION: usize = 64;
const MAX_WORDS: usize = 500;
const MAX_REASONS: usize = 32;
const MAX_EJECTED: usize = 256;

/// The `Control` service of one cluster.
pub struct Server {
    plane: Arc<Plane>,
    shutdown: Shutdown,
}

impl Server {
    /// Serves the proxies of `plane`'s cluster.
    pub fn new(plane: Arc<Plane>, shutdown: Shutdown) -> Self {
        Server { plane, shutdown }
    }

    fn leaf_lifetime(&self) -> std::time::Duration {
        let configuration = self.plane.configuration.borrow();
        configuration
            .mesh()
            .map_or(federation::authority::LEAF_LIFETIME, |mesh| mesh.spec.certificates.leaf.get())
    }

    /// The chain, the hash of its leaf, and the seconds that this lives.
    fn sign(&self, id: &SpiffeId, csr: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Hash, u64), Status> {
        let lifetime = self.leaf_lifetime();
        let chain = self
            .plane
            .authority
            .sign_leaf(csr, id, lifetime, self.plane.world.unix())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let leaf = Hash::of(&chain[0]);
        Ok((chain, leaf, lifetime.as_secs()))
    }

    fn signed(&self, id: &SpiffeId, chain: Vec<CertificateDer<'static>>) -> wire::SignedChain {
        let bundle = serde_json::to_vec(&**self.plane.bundle.borrow()).expect("a bundle has a JSON form");
        wire::SignedChain {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            bundle,
            spiffe_id: id.to_string(),
            cluster: self.plane.config.cluster.to_string(),
        }
    }

    /// Who calls, of this cluster, by its certificate.
    fn verified<T>(&self, request: &Request<T>) -> Result<(Arc<Verified>, Hash), Status> {
        let info = request.extensions().get::<PeerInfo>();
        let chain = info.and_then(|info| info.chain.clone());
        let chain =
            chain.ok_or_else(|| Status::unauthenticated("this call needs a certificate of the mesh"))?;
        let verified = self.plane.authority.identity().verify(&chain, self.plane.world.unix());
        let verified = verified.map_err(|rejection| Status::unauthenticated(rejection.to_string()))?;
        if verified.cluster != self.plane.config.cluster {
            return Err(Status::permission_denied(
                "a proxy is served by the control plane of its own cluster",
            ));
        }
        Ok((verified, Hash::of(&chain[0])))
    }

    /// The workload of this cluster that the caller's verified certificate was signed for.
    fn caller<T>(&self, request: &Request<T>) -> Result<(Enrolled, Hash), Status> {
        let (_, leaf) = self.verified(request)?;
        Ok((enrolled(&self.plane, &leaf)?, leaf))
    }

    fn id_of(&self, enrolled: &Enrolled) -> SpiffeId {
        SpiffeId::workload(
            &self.plane.authority.trust_domain(),
            &enrolled.namespace,
            &enrolled.service_account,
        )
    }
}

#[tonic::async_trait]
impl Control for Server {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::SignedChain>, Status> {
        let wire::EnrolRequest { token, csr } = request.into_inner();
        let token: WorkloadToken = self
            .plane
            .authority
            .redeem(&token, self.plane.world.unix())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        self.plane.keep_used(&token.id).await;
        if token.cluster != self.plane.config.cluster {
            return Err(Status::permission_denied(format!("this token is for cluster {}", token.cluster)));
        }
        let mut enrolled = Enrolled {
            workload: token.workload,
            namespace: token.namespace,
            service_account: token.service_account,
            labels: token.labels,
            leaves: Vec::new(),
            lifetime: 0,
        };
        let id = self.id_of(&enrolled);
        let (chain, leaf, lifetime) = self.sign(&id, &csr)?;
        enrolled.leaves.push(leaf);
        enrolled.lifetime = lifetime;
        let now = self.plane.world.moment();
        self.plane
            .registry
            .enrolments
            .begin(enrolled, now)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(self.signed(&id, chain)))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::SignedChain>, Status> {
        let (enrolled, present) = self.caller(&request)?;
        let id = self.id_of(&enrolled);
        let (chain, leaf, lifetime) = self.sign(&id, &request.into_inner().csr)?;
        self.plane
            .registry
            .enrolments
            .renew(&present, leaf, lifetime, self.plane.world.moment())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(self.signed(&id, chain)))
    }

    async fn turn(&self, request: Request<wire::TurnRequest>) -> Result<Response<wire::TurnAnswer>, Status> {
        let (verified, _) = self.verified(&request)?;
        let (domain, cluster) = (self.plane.authority.trust_domain(), &self.plane.config.cluster);
        if verified.id != SpiffeId::control_plane(&domain, cluster) {
            return Err(Status::permission_denied("this is for the control planes of this cluster"));
        }
        let own = rivals::own(&self.plane).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(wire::TurnAnswer { head: own.0.map(Into::into), term: own.1 }))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::ToProxy, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromProxy>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (_, leaf) = self.caller(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a stream begins with Hello, at once"))?;
        let first = first?.and_then(|message| message.message);
        let Some(from_proxy::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("a stream begins with Hello"));
        };
        let (sender, receiver) = mpsc::channel(FRAMES);
        let stream = Follower::begin(self.plane.clone(), &leaf, hello, sender).await?;
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn("proxy stream", stream.run(incoming, shutdown));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }
}

/// The workload that a leaf was signed for, unless it was revoked.
fn enrolled(plane: &Plane, leaf: &Hash) -> Result<Enrolled, Status> {
    let enrolled = plane.registry.enrolments.by_leaf(leaf);
    enrolled.ok_or_else(|| Status::permission_denied(RegistryError::Unknown.to_string()))
}

/// The beginning of a text.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// One proxy's stream.
struct Follower {
    plane: Arc<Plane>,
    stream: ProxyStream,
    account: Account,
    session: Session,
    sender: mpsc::Sender<wire::ToProxy>,
    actions: Vec<Action>,
}

/// The proxy has said farewell, or its stream is of no more use.
struct Ended;

impl Follower {
    async fn begin(
        plane: Arc<Plane>,
        leaf: &Hash,
        hello: wire::Hello,
        sender: mpsc::Sender<wire::ToProxy>,
    ) -> Result<Self, Status> {
        let by = enrolled(&plane, leaf)?;
        let (obeyed, own) = (hello.head.map(Seq::from), plane.configuration.borrow().head);
        if let Some(obeyed) = obeyed.filter(|obeyed| own < Some(*obeyed)) {
            let own = own.map_or("none".to_owned(), |own| own.to_string());
            return Err(Status::unavailable(format!(
                "this control plane is behind: head {obeyed} is obeyed, and it knows {own}"
            )));
        }
        let held =
            hello.held.iter().map(|item| Some((item.name.as_str().into(), Hash::from_slice(&item.hash)?)));
        let held =
            Held(held.collect::<Option<_>>().ok_or_else(|| Status::invalid_argument("a hash has 32 bytes"))?);
        let account = (by.namespace.clone(), by.service_account.clone());
        plane.registry.note_asked(&account, known(&plane, &account, &hello.hosts));
        let siblings = plane.registry.asked().borrow().get(&account).cloned().unwrap_or_default();
        let hosts = hello.hosts.iter().cloned().chain(siblings).take(super::session::MAX_HOSTS).collect();
        let version = cut(hello.version.clone(), MAX_VERSION);
        let node = registered(by, hello).map_err(Status::invalid_argument)?;
        not_a_services(&plane, node.address.ip()).map_err(Status::failed_precondition)?;
        let now = plane.world.moment();
        let stream =
            plane.registry.connect(node.clone(), version, now).await.map_err(|error| match error {
                RegistryError::Store(error) => Status::unavailable(error.to_string()),
                RegistryError::Unknown | RegistryError::Instance(_) => {
                    Status::permission_denied(error.to_string())
                }
                RegistryError::Lives(..) => Status::resource_exhausted(error.to_string()),
            })?;
        if let Err(revoked) = enrolled(&plane, leaf) {
            // In this very moment, before it was there to be taken out.
            let forgotten = plane.registry.forget(vec![stream.instance]).await;
            return Err(forgotten.map_or_else(|error| Status::unavailable(error.to_string()), |()| revoked));
        }
        let snapshot = plane.snapshot.borrow().clone();
        let (session, actions) = Session::begin(node, held, hosts, snapshot);
        Ok(Follower { plane, stream, account, session, sender, actions })
    }

    async fn run(mut self, mut incoming: Streaming<wire::FromProxy>, shutdown: Shutdown) {
        let mut snapshots = self.plane.snapshot.subscribe();
        // What changed between `begin` and now counts as a change.
        snapshots.mark_changed();
        let mut asked = self.plane.registry.asked();
        let mut registered = false;
        let actions = std::mem::take(&mut self.actions);
        let mut open = self.act(actions).await;
        while open.is_ok() {
            open = tokio::select! {
                biased;
                () = shutdown.cancelled() => Err(Ended),
                message = incoming.message() => match message {
                    Ok(Some(wire::FromProxy { message: Some(message) })) => self.on_message(message).await,
                    Ok(Some(wire::FromProxy { message: None })) => Ok(()),
                    Ok(None) | Err(_) => Err(Ended),
                },
                changed = snapshots.changed() => match changed {
                    // The same instance has another stream by now: what is told on this one nobody obeys.
                    Ok(()) if !self.plane.registry.is_newest(&self.stream) => Err(Ended),
                    Ok(()) => {
                        let snapshot = snapshots.borrow_and_update().clone();
                        match snapshot.inputs.workloads.get(&self.stream.instance).cloned() {
                            Some(node) => {
                                registered = true;
                                let actions = self.session.on_snapshot(node, snapshot);
                                self.act(actions).await
                            }
                            // Deregistered while its stream is up: were it to go on, no commit would reach it any
                            // more. It comes again as a new registration.
                            None if registered => Err(Ended),
                            // Not in this snapshot yet: the next one brings it.
                            None => Ok(()),
                        }
                    }
                    Err(_) => Err(Ended),
                },
                changed = asked.changed() => match changed {
                    Ok(()) => {
                        let siblings = asked.borrow_and_update().get(&self.account).cloned().unwrap_or_default();
                        let actions = self.session.on_siblings(&siblings);
                        self.act(actions).await
                    }
                    Err(_) => Err(Ended),
                },
            };
        }
        if self.plane.registry.disconnect(&self.stream, self.plane.world.moment()) {
            self.plane
                .events
                .note(format!("proxy {}", self.stream.instance), "its stream is away; its lease runs");
        }
    }

    async fn on_message(&mut self, message: from_proxy::Message) -> Result<(), Ended> {
        let actions = match message {
            from_proxy::Message::Hello(_) => return Err(Ended),
            from_proxy::Message::Subscribe(subscribe) => {
                let known = known(&self.plane, &self.account, &subscribe.hosts);
                self.plane.registry.note_asked(&self.account, known);
                self.session.on_subscribe(subscribe)
            }
            from_proxy::Message::Ack(ack) => self.session.on_ack(&ack),
            from_proxy::Message::Unkept(unkept) => {
                self.session.on_unkept(&unkept.ack.unwrap_or_default(), cut(unkept.reason, MAX_WORDS))
            }
            from_proxy::Message::Nack(mut nack) => {
                nack.reasons.truncate(MAX_REASONS);
                for reason in &mut nack.reasons {
                    reason.resource = cut(std::mem::take(&mut reason.resource), MAX_WORDS);
                    reason.message = cut(std::mem::take(&mut reason.message), MAX_WORDS);
                }
                self.session.on_nack(&nack)
            }
            from_proxy::Message::Heartbeat(mut heartbeat) => {
                heartbeat.ejected.truncate(MAX_EJECTED);
                for ejected in &mut heartbeat.ejected {
                    ejected.endpoint = cut(std::mem::take(&mut ejected.endpoint), MAX_WORDS);
                    ejected.reason = cut(std::mem::take(&mut ejected.reason), MAX_WORDS);
                }
                let now = self.plane.world.now();
                for news in self.plane.registry.beat(&self.stream, heartbeat, now).await {
                    self.plane.events.note(format!("proxy {}", self.stream.instance), news);
                }
                Vec::new()
            }
            from_proxy::Message::Farewell(_) => {
                self.plane.events.note(format!("proxy {}", self.stream.instance), "said farewell");
                if let Err(error) = self.plane.registry.forget(vec![self.stream.instance.clone()]).await {
                    tracing::warn!(%error, "a farewell could not be kept");
                }
                return Err(Ended);
            }
        };
        self.act(actions).await
    }

    async fn act(&mut self, actions: Vec<Action>) -> Result<(), Ended> {
        for action in actions {
            match action {
                Action::Send(message) => {
                    let sent = self.sender.send(wire::ToProxy { message: Some(message) }).await;
                    sent.map_err(|_| Ended)?;
                }
                Action::Reached(commit) => self.plane.registry.reached(&self.stream, commit),
                Action::Refused(reasons) => {
                    self.plane.events.note(
                        format!("proxy {}", self.stream.instance),
                        format!("refused a push: {}", reasons.join("; ")),
                    );
                    self.plane.registry.refused(&self.stream, reasons);
                }
                Action::Reconciled => self.plane.registry.refused(&self.stream, Vec::new()),
                Action::Unkept(reason) => {
                    let why = format!(
                        "its disk does not keep the last push, which it obeys only until a restart: {reason}"
                    );
                    self.plane.events.note(format!("proxy {}", self.stream.instance), &why);
                    self.plane.registry.unkept(&self.stream, why);
                }
            }
        }
        Ok(())
    }
}

/// Those of `hosts` that mean a service to workloads of `account`.
fn known(plane: &Plane, account: &Account, hosts: &[String]) -> Vec<String> {
    let snapshot = plane.snapshot.borrow();
    hosts.iter().filter(|host| snapshot.service_at(host, &account.0).is_some()).cloned().collect()
}

/// An address that callers know as a service's is not taken from it by a workload's own word. (One that lives there already
/// was first: then it is no service's.)
fn not_a_services(plane: &Plane, address: IpAddr) -> Result<(), String> {
    let snapshot = plane.snapshot.borrow();
    let owner = snapshot.services.iter().find(|(_, service)| service.addresses.contains(&address));
    owner.map_or(Ok(()), |(name, _)| {
        Err(format!(
            "{address} is the virtual address of the Service {name}: a workload needs one of its own"
        ))
    })
}

/// The workload as it is registered: identity and labels by its token, addresses by its own word.
fn registered(enrolled: Enrolled, hello: wire::Hello) -> Result<Registered, String> {
    if hello.ports.len() > MAX_PORTS {
        return Err(format!("a workload has at most {MAX_PORTS} ports"));
    }
    let role = match hello.role() {
        wire::Role::Sidecar => Role::Sidecar,
        wire::Role::Ingress => Role::Ingress,
        wire::Role::EastWest => Role::EastWest,
        wire::Role::Unspecified => return Err("a proxy says its role".into()),
    };
    // Whoever is a gateway gets other workloads' traffic, so it takes more than a workload's own word.
    if role != Role::Sidecar && !enrolled.namespace.is_system() {
        return Err(format!("only workloads of {} are gateways", Namespace::SYSTEM));
    }
    let address = |text: &str| {
        // An ingress says where it is, and its listeners which ports.
        let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
        text.parse::<SocketAddr>()
            .or(alone)
            .map_err(|_| format!("`{text}` is not an address: expected ip:port"))
    };
    let ports = hello.ports.iter().map(|one| {
        let port = u16::try_from(one.port).map_err(|_| format!("{} is no port", one.port))?;
        Ok((port, address(&one.address)?))
    });
    Ok(Registered {
        instance: hello.instance.parse().map_err(|error: api::name::BadName| error.to_string())?,
        workload: enrolled.workload,
        role,
        namespace: enrolled.namespace,
        service_account: enrolled.service_account,
        labels: enrolled.labels,
        address: address(&hello.address)?,
        public_address: Some(hello.public_address.as_str())
            .filter(|text| !text.is_empty())
            .map(address)
            .transpose()?,
        ports: ports.collect::<Result<_, String>>()?,
        zone: Some(hello.zone).filter(|zone| !zone.is_empty()),
        // Until the first heartbeat says so.
        app_ready: false,
        draining: false,
    })
}

#[cfg(test)]
mod tests;
