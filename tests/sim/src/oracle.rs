//! What must hold at every step, and what was seen so far that it is judged by.
//!
//! The oracle looks at each control plane and each proxy whenever something of it changes. It knows what happened in
//! truth: the order of commits, who was killed when, and true time, whatever the clocks say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use api::{digest::Hash, head::Seq, identity::Bundle, name::InstanceId, wire};
use controlplane::plane::Plane;
use policies::facts::{Connection, Destination, Facts, Peer, Request, Source};
use runtime::{At, Decision, Runtime};

use crate::repository::{Commit, Repository, marks};

/// How long a proxy may be away; the least that settings allow would be 3 s.
pub const LEASE: Duration = Duration::from_secs(5);
/// What the oracle sees may be later than what it judges by so much.
const SLACK: Duration = Duration::from_millis(50);
/// A proxy that came back from being gone is brought to the present within this time.
const RETURN: Duration = Duration::from_secs(3);
/// Of two control planes that serve a cluster and see each other one lets go within this time: it notices after some
/// seconds that the store is away, and asks once a second.
const RIVALRY: Duration = Duration::from_secs(12);
/// A link of a cluster that was removed has ended after this time: its other end is told so, or falls silent.
const EXPULSION: Duration = Duration::from_secs(15);

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Oracle {
    failure: Option<String>,
    /// The newest mark that a workload has acknowledged.
    acknowledged: BTreeMap<String, u32>,
    /// The commit that each life of a proxy obeyed last.
    obeyed: BTreeMap<String, usize>,
    /// What every bundle of a sequence says.
    bundles: BTreeMap<u64, Hash>,
    /// The newest bundle of each party.
    trusted: BTreeMap<String, u64>,
    heads: BTreeMap<String, Seq>,
    configurations: BTreeMap<String, usize>,
    /// The newest commit that a control plane of each cluster had in force.
    led: BTreeMap<String, usize>,
    /// Who is registered in each cluster, by instance: the workload.
    registered: BTreeMap<String, BTreeMap<InstanceId, String>>,
    /// Instances that went by farewell or by an operator's word.
    dismissed: BTreeSet<String>,
    /// Since when the stream of an instance is away, in truth.
    away: BTreeMap<InstanceId, Option<Duration>>,
    /// Those whose lease was over when the control plane in charge of a cluster ended.
    expired: BTreeMap<String, BTreeSet<InstanceId>>,
    /// Endpoints that each cluster offers, by the control plane that says so, and those that it offers no more.
    offered: BTreeMap<String, BTreeMap<String, Offer>>,
    withdrawn: BTreeMap<String, BTreeSet<String>>,
    /// What each cluster knows of each other one.
    known: BTreeMap<(String, String), BTreeSet<String>>,
    /// When a control plane last had nobody behind a service.
    emptied: BTreeMap<(String, String), Duration>,
    /// Since when a life of a proxy has had somebody behind a service.
    filled: BTreeMap<(String, String), Duration>,
    contacts: BTreeMap<String, Contact>,
    /// Since when two control planes serve a cluster although they see each other.
    rivals: BTreeMap<String, Duration>,
    /// Since when the primary does not count a cluster as a member.
    removed: BTreeMap<String, Duration>,
    /// Chains of clusters and roots that may be removed: they must not verify when the bundle has them no more.
    pub chains: BTreeMap<String, Vec<api::identity::CertificateDer<'static>>>,
    /// The root that an operator adds and removes again.
    pub foreign_root: Option<Hash>,
    /// How often each invariant was judged on something that could have broken it.
    pub judged: BTreeMap<&'static str, u64>,
}

/// What one control plane of a cluster says that it offers.
#[derive(Debug, Default)]
struct Offer {
    endpoints: BTreeSet<String>,
    /// It has let go since.
    ended: bool,
}

/// When a control plane last had the stream of a workload.
#[derive(Debug, Clone, Default)]
struct Contact {
    cluster: String,
    last: Option<Duration>,
    since: Duration,
    was_gone: bool,
    connected: bool,
}

/// What is seen of a control plane.
pub struct SeenPlane<'a> {
    /// Its machine.
    pub name: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// Whether it is not one that was replaced, and does not know it yet.
    pub in_charge: bool,
    /// What it serves.
    pub plane: &'a Plane,
}

/// What is seen of a proxy.
pub struct SeenProxy<'a> {
    /// Its workload.
    pub workload: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// Its life.
    pub instance: &'a str,
    /// What it obeys.
    pub runtime: &'a Runtime,
    /// Whom it trusts.
    pub identity: &'a process::tls::Identity,
    /// The view on its disk.
    pub kept: Option<(api::delta::View, api::delta::Origin)>,
    /// Whether that may have had no room for what it obeys.
    pub full: bool,
}

impl Oracle {
    /// The first thing that was wrong.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Something is wrong.
    pub fn fail(&mut self, invariant: &str, what: String) {
        self.failure.get_or_insert_with(|| format!("{invariant}: {what}"));
    }

    fn judge(&mut self, invariant: &'static str, holds: bool, what: impl FnOnce() -> String) {
        *self.judged.entry(invariant).or_default() += 1;
        if !holds {
            self.fail(invariant, what());
        }
    }

    /// An instance goes by its own word or an operator's.
    pub fn dismiss(&mut self, instance: &str) {
        self.dismissed.insert(instance.to_owned());
    }

    /// A control plane begins a new turn: by its design every lease begins anew. Of the registrations of before, those
    /// that `lost` names have not outlived the one before it; and where a lease was over, that one may have taken the
    /// workload out in its last moment, and not told so.
    pub fn plane_begins(&mut self, seen: &SeenPlane<'_>, now: Duration, lost: impl Fn(&str) -> bool) {
        // Catalogues are kept on disk twice a second at most, so what was learnt last may be lost.
        self.known.retain(|(knower, _), _| knower != seen.name);
        if !seen.in_charge {
            return;
        }
        let expired = self.expired.remove(seen.cluster).unwrap_or_default();
        let registered = self.registered.entry(seen.cluster.to_owned()).or_default();
        let present = seen.plane.registry.workloads().borrow().clone();
        registered.retain(|instance, _| {
            !lost(instance.as_str()) && (!expired.contains(instance) || present.contains_key(instance))
        });
        for instance in registered.keys() {
            self.away.insert(instance.clone(), Some(now));
        }
        for contact in self.contacts.values_mut().filter(|contact| contact.cluster == seen.cluster) {
            contact.connected = false;
        }
    }

    /// Who leads begins with `begins`, and no other one of its cluster that led has obeyed more.
    pub fn leader_begins(&mut self, repository: &Repository, seen: &SeenPlane<'_>) {
        let begins = repository.find(&seen.plane.configuration.borrow().commit).map(|commit| commit.index);
        let newest = self.led.get(seen.cluster).copied();
        self.judge("head", begins >= newest, || {
            format!("{} begins with commit {begins:?}, and {newest:?} was in force", seen.name)
        });
    }

    /// Looks at a proxy.
    pub fn see_proxy(&mut self, repository: &Repository, now: Duration, seen: &SeenProxy<'_>) {
        let Some(commit) = repository.find(&seen.runtime.revision) else {
            return self.fail("revision", format!("{} obeys {:?}", seen.instance, seen.runtime.revision));
        };
        self.one_revision(seen, commit);
        let least = self.acknowledged.get(seen.workload).copied().unwrap_or_default();
        self.judge("denial", commit.mark >= least, || {
            format!(
                "{} obeys commit {} again, and had acknowledged mark {least}",
                seen.instance, commit.index
            )
        });
        let before = self.obeyed.insert(seen.instance.to_owned(), commit.index).unwrap_or_default();
        self.judge("head", commit.index >= before, || {
            format!("{} went back from commit {before} to {}", seen.instance, commit.index)
        });
        for inbound in seen.runtime.inbound() {
            let denies = is_denied(seen.runtime, inbound.port);
            self.judge("verdict", denies == commit.denies, || {
                format!("{} obeys commit {} and denies: {denies}", seen.instance, commit.index)
            });
        }
        let party = format!("proxy {}", seen.workload);
        self.trust(&party, seen.identity, &seen.identity.bundle(), now);
        let members = &seen.runtime.bundle.clusters;
        let strangers: Vec<_> = seen
            .runtime
            .endpoints
            .values()
            .flat_map(|set| &set.endpoints)
            .filter(|endpoint| !members.contains_key(endpoint.cluster.as_str()))
            .map(|endpoint| endpoint.cluster.clone())
            .collect();
        // The bundle goes ahead of the commit that it is of, so this is judged once the commit has come.
        let settled = members.keys().all(|member| commit.members.contains(member.as_str()));
        if settled && members.len() == commit.members.len() {
            self.judge("trust", strangers.is_empty(), || {
                format!("{} has endpoints of {strangers:?}, which are no members", seen.instance)
            });
        }
        for (service, set) in &seen.runtime.endpoints {
            let key = (seen.instance.to_owned(), service.to_string());
            if !set.endpoints.is_empty() {
                self.filled.entry(key).or_insert(now);
                continue;
            }
            if let Some(filled) = self.filled.remove(&key) {
                let emptied = self.emptied.get(&(seen.cluster.to_owned(), service.to_string()));
                let justified = emptied.is_some_and(|at| *at + RETURN >= filled);
                self.judge("endpoints", justified, || {
                    format!(
                        "{} has nobody behind {service} any more, and its control plane had",
                        seen.instance
                    )
                });
            }
        }
    }

    fn one_revision(&mut self, seen: &SeenProxy<'_>, commit: &Commit) {
        if seen.full {
            return;
        }
        let Some((view, _)) = &seen.kept else {
            return self.fail("disk", format!("{} obeys what is not on its disk", seen.instance));
        };
        if view.digests() != seen.runtime.digests {
            return self.fail("disk", format!("{} obeys another view than that on its disk", seen.instance));
        }
        let mut found = BTreeSet::new();
        for item in view.items.values() {
            found.extend(marks(&item.body));
        }
        let one = found.is_empty() || found == BTreeSet::from([commit.mark]);
        self.judge("mixture", one, || {
            format!(
                "{} obeys commit {} with mark {}, and holds {found:?}",
                seen.instance, commit.index, commit.mark
            )
        });
    }

    /// `party` tells others of `bundle`, and verifies by `identity`.
    fn trust(&mut self, party: &str, identity: &process::tls::Identity, bundle: &Bundle, now: Duration) {
        let before = self.trusted.insert(party.to_owned(), bundle.sequence).unwrap_or_default();
        self.judge("trust", bundle.sequence >= before, || {
            format!("{party} went back from bundle {before} to {}", bundle.sequence)
        });
        if bundle.sequence == before {
            return;
        }
        let said = Hash::of(format!("{bundle:?}").as_bytes());
        let first = *self.bundles.entry(bundle.sequence).or_insert(said);
        self.judge("trust", first == said, || format!("two bundles have the sequence {}", bundle.sequence));
        let right = api::identity::UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000) + now);
        let bundle = identity.bundle();
        let roots: Vec<_> = bundle.roots.iter().map(api::identity::RootCertificate::hash).collect();
        let chains: Vec<_> = self
            .chains
            .iter()
            .map(|(name, chain)| {
                let belongs = match name.as_str() {
                    "foreign" => self.foreign_root.is_some_and(|root| roots.contains(&root)),
                    cluster => bundle.clusters.contains_key(cluster),
                };
                (name.clone(), belongs, identity.verify(chain, right).is_ok())
            })
            .collect();
        for (name, belongs, believed) in chains {
            self.judge("trust", believed == belongs, || {
                format!(
                    "{party} believes {name}: {believed}, and bundle {} has it: {belongs}",
                    bundle.sequence
                )
            });
        }
    }

    /// Looks at a control plane.
    pub fn see_plane(&mut self, repository: &Repository, now: Duration, seen: &SeenPlane<'_>) {
        self.acknowledgements(repository, seen.plane);
        if seen.in_charge {
            self.registry(now, seen.cluster, seen.plane);
        }
        self.heads(repository, seen);
        let (identity, told) = (seen.plane.authority.identity(), seen.plane.bundle.borrow().clone());
        self.trust(&format!("control plane {}", seen.name), identity, &told, now);
        self.snapshot(now, seen);
        self.peers(seen);
        if seen.in_charge {
            self.removals(now, seen.cluster, seen.plane);
        }
    }

    /// A control plane has let go of its cluster.
    pub fn plane_lets_go(&mut self, name: &str, cluster: &str) {
        let all = self.offered.entry(cluster.to_owned()).or_default();
        all.entry(name.to_owned()).or_default().ended = true;
    }

    /// The control plane in charge of a cluster ends, or lets go.
    pub fn turn_ends(&mut self, cluster: &str, now: Duration) {
        let is_over = |instance: &&InstanceId| {
            self.away.get(*instance).copied().flatten().is_some_and(|since| now - since + SLACK >= LEASE)
        };
        let over = self.registered.get(cluster).into_iter().flat_map(BTreeMap::keys).filter(is_over);
        let over = over.cloned().collect();
        self.expired.insert(cluster.to_owned(), over);
    }

    /// Whether two serve a cluster that see each other.
    pub fn see_rivals(&mut self, cluster: &str, both: bool, now: Duration) {
        if !both {
            self.rivals.remove(cluster);
            return;
        }
        let since = *self.rivals.entry(cluster.to_owned()).or_insert(now);
        self.judge("turn", now - since < RIVALRY, || {
            format!("two serve {cluster} and see each other since {:?}", now - since)
        });
    }

    fn acknowledgements(&mut self, repository: &Repository, plane: &Plane) {
        for proxy in plane.registry.proxies().borrow().values() {
            let reached = proxy.reached.as_deref().and_then(|commit| repository.find(commit));
            if let Some(commit) = reached {
                let newest = self.acknowledged.entry(proxy.registered.workload.to_string()).or_default();
                *newest = commit.mark.max(*newest);
            }
        }
    }

    fn registry(&mut self, now: Duration, cluster: &str, plane: &Plane) {
        let proxies = plane.registry.proxies().borrow().clone();
        for (instance, proxy) in proxies.iter() {
            let workload = proxy.registered.workload.to_string();
            let away = self.away.entry(instance.clone()).or_default();
            *away = if proxy.connected { None } else { Some(away.unwrap_or(now)) };
            let contact = self.contacts.entry(workload).or_default();
            cluster.clone_into(&mut contact.cluster);
            if proxy.connected {
                if !contact.connected {
                    contact.was_gone = contact.last.is_none_or(|last| now - last + SLACK >= LEASE);
                    contact.since = now;
                }
                (contact.connected, contact.last) = (true, Some(now));
            }
        }
        for (workload, contact) in self.contacts.iter_mut().filter(|(_, contact)| contact.cluster == cluster)
        {
            let of = |proxy: &&controlplane::push::Proxy| proxy.registered.workload.as_str() == workload;
            let connected = proxies.values().filter(of).any(|proxy| proxy.connected);
            if contact.connected && !connected {
                contact.last = Some(now);
            }
            contact.connected = connected;
        }
        let present: BTreeMap<_, _> = plane
            .registry
            .workloads()
            .borrow()
            .iter()
            .map(|(instance, one)| (instance.clone(), one.workload.to_string()))
            .collect();
        let before = self.registered.insert(cluster.to_owned(), present.clone()).unwrap_or_default();
        for instance in present.keys().filter(|instance| !before.contains_key(*instance)) {
            self.dismissed.remove(instance.as_str());
        }
        for (instance, workload) in before.iter().filter(|(instance, _)| !present.contains_key(*instance)) {
            let superseded = present.values().any(|other| other == workload);
            let away = self.away.get(instance).copied().flatten().map(|since| now.saturating_sub(since));
            let expired = away.is_some_and(|away| away + SLACK >= LEASE);
            if !superseded && let Some(contact) = self.contacts.get_mut(workload) {
                // Its next life is new to the control plane, however soon it comes.
                contact.last = None;
            }
            let justified = superseded || expired || self.dismissed.contains(instance.as_str());
            self.judge("endpoints", justified, || {
                format!("{instance} was taken out of {cluster}, and was away for {away:?} only")
            });
        }
    }

    fn heads(&mut self, repository: &Repository, seen: &SeenPlane<'_>) {
        let name = seen.name;
        if let Some(head) = seen.plane.store.watch_head().borrow().as_ref() {
            let seq = head.head().seq();
            let before = *self.heads.entry(name.to_owned()).or_insert(seq);
            self.judge("head", seq >= before, || format!("{name} went back from head {before} to {seq}"));
            self.heads.insert(name.to_owned(), seq.max(before));
        }
        let id = seen.plane.configuration.borrow().commit.clone();
        if let Some(commit) = repository.find(&id) {
            let before = self.configurations.insert(name.to_owned(), commit.index).unwrap_or_default();
            self.judge("head", commit.index >= before, || {
                format!("{name} went back from commit {before} to {}", commit.index)
            });
            let newest = self.led.entry(seen.cluster.to_owned()).or_default();
            *newest = commit.index.max(*newest);
        }
    }

    fn snapshot(&mut self, now: Duration, seen: &SeenPlane<'_>) {
        let SeenPlane { name, cluster, plane, .. } = *seen;
        let snapshot = plane.snapshot.borrow().clone();
        for (name, entry) in &snapshot.services {
            if entry.endpoints.is_empty() {
                self.emptied.insert((cluster.to_owned(), name.to_string()), now);
            }
        }
        let offered = ids(&snapshot.catalogue());
        let withdrawn = self.withdrawn.entry(cluster.to_owned()).or_default();
        let all = self.offered.entry(cluster.to_owned()).or_default();
        // Of two that serve, one of which does not know it yet, either may be heard after the other.
        for (other, offer) in &*all {
            let before = &offer.endpoints;
            match other == name {
                true => withdrawn.extend(before.difference(&offered).cloned()),
                false => withdrawn.extend(before.symmetric_difference(&offered).cloned()),
            }
        }
        all.retain(|_, other| !other.ended);
        all.insert(name.to_owned(), Offer { endpoints: offered, ended: false });
    }

    fn peers(&mut self, seen: &SeenPlane<'_>) {
        let SeenPlane { name, cluster, plane, .. } = *seen;
        let peers = plane.peers.borrow().clone();
        let members: BTreeSet<String> =
            plane.bundle.borrow().clusters.keys().map(ToString::to_string).collect();
        for (peer, catalogue) in peers.iter() {
            let key = (name.to_owned(), peer.to_string());
            let now_known = ids(catalogue);
            // What it begins with is what it had on its disk.
            let Some(before) = self.known.insert(key, now_known.clone()) else { continue };
            let withdrawn = self.withdrawn.get(peer.as_str()).cloned().unwrap_or_default();
            let lost: Vec<_> =
                before.iter().filter(|id| !now_known.contains(*id) && !withdrawn.contains(*id)).collect();
            self.judge("endpoints", lost.is_empty(), || {
                format!("{name} lost {lost:?} of {peer}, which {peer} still offers")
            });
            let news = now_known.iter().any(|id| !before.contains(id));
            let expelled = self.removed.contains_key(peer.as_str()) && !members.contains(peer.as_str());
            self.judge("trust", !(cluster == "east" && news && expelled), || {
                format!("{cluster} learnt from {peer}, which is no member any more")
            });
        }
    }

    fn removals(&mut self, now: Duration, cluster: &str, plane: &Plane) {
        if cluster != "east" {
            return;
        }
        let bundle = plane.bundle.borrow().clone();
        let known: Vec<String> = self.chains.keys().filter(|name| *name != "foreign").cloned().collect();
        for name in known {
            if bundle.clusters.contains_key(name.as_str()) {
                self.removed.remove(&name);
                continue;
            }
            let since = *self.removed.entry(name.clone()).or_insert(now);
            let linked =
                plane.reports.borrow().get(name.as_str()).is_some_and(|heard| heard.away_since.is_none());
            self.judge("trust", !linked || now - since < EXPULSION, || {
                format!("{name} is linked although it is no member since {:?}", now - since)
            });
        }
    }

    /// `wait` has said that `commit` is effective; `obeyed` is what living proxies obey: workload,
    /// cluster, instance and commit.
    pub fn effective(
        &mut self,
        repository: &Repository,
        now: Duration,
        commit: &Commit,
        obeyed: &[[String; 4]],
    ) {
        for [workload, cluster, instance, revision] in obeyed {
            let Some(obeys) = repository.find(revision) else { continue };
            let contact = self.contacts.get(workload).cloned().unwrap_or_default();
            let left = self.dismissed.contains(instance);
            let gone = !contact.connected && contact.last.is_none_or(|last| now - last + SLACK >= LEASE);
            let returns = contact.connected && contact.was_gone && now - contact.since < RETURN;
            let expelled = self.removed.contains_key(cluster);
            self.judge("wait", obeys.mark >= commit.mark || gone || left || returns || expelled, || {
                format!(
                    "commit {} was called effective, and {workload} obeys {} (contact {contact:?})",
                    commit.index, obeys.index
                )
            });
        }
    }
}

fn ids(catalogue: &wire::Catalogue) -> BTreeSet<String> {
    catalogue.services.iter().flat_map(|service| &service.endpoints).map(|one| one.id.clone()).collect()
}

/// Whether a proxy would turn away a read by the front.
fn is_denied(runtime: &Runtime, port: u16) -> bool {
    let peer = Peer {
        trust_domain: crate::repository::TRUST_DOMAIN.parse().expect("a trust domain"),
        namespace: "shop".parse().expect("a namespace"),
        service_account: "front".parse().expect("an account"),
        cluster: "east".parse().expect("a cluster"),
        principal: "spiffe://shop.example/ns/shop/sa/front".into(),
    };
    let address: SocketAddr = ([10, 0, 0, 1], 1).into();
    let headers = http::HeaderMap::new();
    let request = Request {
        method: "GET",
        scheme: "http",
        host: "reviews",
        path: "/",
        raw_path: "/",
        query: "",
        protocol: "HTTP/1.1",
        id: "",
        headers: &headers,
        time: SystemTime::UNIX_EPOCH,
    };
    let facts = Facts {
        source: Source { peer: Some(&peer), address },
        destination: Destination { guarded: &runtime.workload.guarded, address },
        request: Some(request),
        connection: Connection { mtls: true, sni: "", protocol: "http/1.1", tls_version: "TLSv1.3" },
    };
    match runtime.decide(At::Inbound { port }, &facts, 0) {
        Decision::Forward(_) => false,
        Decision::Refuse(_) | Decision::Answer { .. } | Decision::Unknown { .. } => true,
    }
}
