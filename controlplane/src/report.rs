//! What this cluster says of itself, and what `wait` makes of everybody's word.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    admin::{
        ClusterStatus, CommitState, CommitStatus, EndpointCount, Laggard, ProxyState, ProxyStatus, Role,
        ServiceStatus, SourceStatus, Status, WaitAnswer,
    },
    head::CommitId,
    name::{ClusterName, SourceName},
    wire,
};
use process::shutdown::Shutdown;

use crate::{
    commits::{Commits, Published},
    config::{Config, Duty},
    git::Source,
    plane::{Heard, Plane, seconds},
    push::Proxy,
    snapshot::Snapshot,
};

/// Several proxies acknowledge at once: one report tells of them all.
const GATHER: Duration = Duration::from_millis(2);

/// Keeps this cluster's word on itself up to date.
pub async fn run(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut snapshots = plane.snapshot.subscribe();
    let mut proxies = plane.registry.proxies();
    let mut away = plane.primary_away.subscribe();
    let mut store = plane.store.away();
    let known = tokio::time::sleep(plane.unknown_for());
    tokio::pin!(known);
    loop {
        let status = Arc::new(own(&plane));
        plane.own.send_replace(status);
        settle(&plane);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = proxies.changed() => if changed.is_err() { return },
            changed = away.changed() => if changed.is_err() { return },
            changed = store.changed() => if changed.is_err() { return },
            () = &mut known, if !known.is_elapsed() => {}
        }
        tokio::time::sleep(GATHER).await;
        snapshots.mark_unchanged();
        proxies.mark_unchanged();
    }
}

/// Judges the commits anew whenever another cluster speaks, and when one came into force that all obey already.
pub async fn judge(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut reports = plane.reports.subscribe();
    let mut commits = plane.commits.subscribe();
    loop {
        settle(&plane);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = reports.changed() => if changed.is_err() { return },
            changed = commits.changed() => if changed.is_err() { return },
        }
    }
}

/// What is said of a cluster before anything is known of it.
pub fn unknown(config: &Config) -> ClusterStatus {
    ClusterStatus {
        name: config.cluster.clone(),
        role: config.duty.role(),
        locality: config.place.locality.clone(),
        network: config.place.network.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: None,
        effective: false,
        primary_away_since: None,
        store_away_since: None,
        proxies_unknown_until: None,
        away_since: None,
        reported: 0.0,
        intermediate_not_after: 0.0,
        certificate_not_after: 0.0,
        bundle_sequence: 0,
        proxies: vec![],
        services: vec![],
    }
}

fn own(plane: &Plane) -> ClusterStatus {
    let snapshot = plane.snapshot.borrow().clone();
    let proxies: Vec<ProxyStatus> =
        plane.registry.proxies().borrow().values().map(|proxy| proxy_status(proxy, &snapshot)).collect();
    let commit = Some(snapshot.commit().to_owned()).filter(|commit| !commit.is_empty());
    let unknown = plane.unknown_for();
    ClusterStatus {
        name: plane.config.cluster.clone(),
        role: plane.config.duty.role(),
        locality: snapshot.place.locality.clone(),
        network: snapshot.place.network.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        effective: commit.is_some()
            && unknown.is_zero()
            && proxies.iter().all(|proxy| proxy.effective || proxy.state == ProxyState::Gone),
        commit,
        primary_away_since: *plane.primary_away.borrow(),
        store_away_since: plane.store.away().borrow().map(seconds),
        proxies_unknown_until: (!unknown.is_zero()).then(|| plane.now() + unknown.as_secs_f64()),
        away_since: None,
        reported: plane.now(),
        intermediate_not_after: plane.authority.intermediate_not_after().as_secs() as f64,
        certificate_not_after: plane.authority.identity().credentials().validity().end().as_secs() as f64,
        bundle_sequence: plane.bundle.borrow().sequence,
        proxies,
        services: services(&snapshot),
    }
}

fn proxy_status(proxy: &Proxy, snapshot: &Snapshot) -> ProxyStatus {
    let state = match (proxy.connected, proxy.gone) {
        (true, _) => ProxyState::Connected,
        (false, false) => ProxyState::Away,
        (false, true) => ProxyState::Gone,
    };
    let refused: Vec<_> = proxy.refused.iter().chain(&proxy.unkept).cloned().collect();
    ProxyStatus {
        workload: proxy.registered.workload.clone(),
        instance: proxy.registered.instance.to_string(),
        kind: proxy.kind().into(),
        namespace: proxy.registered.namespace.clone(),
        service_account: proxy.registered.service_account.clone(),
        address: match proxy.registered.address {
            // An ingress: its Gateways say the ports.
            address if address.port() == 0 => address.ip().to_string(),
            address => address.to_string(),
        },
        state,
        since: seconds(proxy.since.of_day),
        commit: proxy.reached.clone(),
        effective: refused.is_empty() && proxy.reached.as_deref() == Some(snapshot.commit()),
        refused,
        app_ready: proxy.registered.app_ready,
        draining: proxy.registered.draining,
        certificate_not_after: proxy.certificate_not_after as f64,
        version: proxy.version.clone(),
        ejected: proxy.ejected.clone(),
    }
}

fn services(snapshot: &Snapshot) -> Vec<ServiceStatus> {
    let mut by_service: BTreeMap<_, ServiceStatus> = BTreeMap::new();
    for entry in snapshot.services.values() {
        let status = by_service.entry(entry.service.clone()).or_insert_with(|| ServiceStatus {
            service: entry.service.clone(),
            exported: false,
            endpoints: BTreeMap::new(),
            stale_since: BTreeMap::new(),
        });
        status.exported |= entry.exported;
        let mut counts: BTreeMap<ClusterName, EndpointCount> = BTreeMap::new();
        for endpoint in &entry.endpoints {
            let Ok(cluster) = ClusterName::new(&endpoint.cluster) else { continue };
            let count = counts.entry(cluster.clone()).or_default();
            count.total += 1;
            count.healthy += u32::from(endpoint.health() == wire::Health::Healthy);
            if endpoint.stale_since > 0 {
                status.stale_since.insert(cluster, endpoint.stale_since as f64);
            }
        }
        status.endpoints.extend(counts);
    }
    by_service.into_values().collect()
}

/// Everything that this control plane knows.
pub fn status(plane: &Plane) -> Status {
    let own = plane.own.borrow().clone();
    let others = plane.reports.borrow().clone();
    let mut clusters: Vec<ClusterStatus> = others
        .values()
        .filter(|heard| plane.is_member(&heard.status.name))
        .map(|heard| ClusterStatus { away_since: heard.away_since, ..(*heard.status).clone() })
        .collect();
    let peers = plane.peers.borrow().clone();
    clusters.extend(unheard(plane).into_iter().map(|name| {
        let catalogue = peers.get(&name).cloned().unwrap_or_default();
        let configuration = plane.configuration.borrow();
        ClusterStatus {
            role: Role::Remote,
            locality: configuration.member(&name).and_then(|one| one.locality.clone()).unwrap_or_default(),
            network: catalogue.network.clone(),
            version: String::new(),
            away_since: Some(catalogue.stale_since as f64),
            name,
            ..unknown(&plane.config)
        }
    }));
    let commit = own.commit.clone();
    clusters.push((*own).clone());
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    Status {
        cluster: plane.config.cluster.clone(),
        role: plane.config.duty.role(),
        trust_domain: plane.authority.trust_domain().to_string(),
        sources: sources(plane),
        commit,
        clusters,
        events: plane.events.list(),
    }
}

fn sources(plane: &Plane) -> Vec<SourceStatus> {
    let Duty::Primary { sources, ownership, .. } = &plane.config.duty else { return Vec::new() };
    let commits = plane.commits.borrow();
    let status = |source: &Source| {
        let seen = commits.sources.get(&source.name).cloned().unwrap_or_default();
        let (trouble, trouble_since) = seen.trouble.unzip();
        SourceStatus {
            name: source.name.clone(),
            namespaces: ownership.namespaces(&source.name),
            commit: commits
                .published
                .last()
                .and_then(|last| last.commit_of(&source.name))
                .map(ToString::to_string),
            repository: source.address.to_string(),
            branch: source.branch.clone(),
            trouble,
            trouble_since,
            commits: seen.commits.into(),
        }
    };
    let mut all: Vec<_> = sources.iter().map(status).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Members that this control plane knows from before it began, and has not heard of since.
fn unheard(plane: &Plane) -> Vec<ClusterName> {
    let (peers, reports) = (plane.peers.borrow(), plane.reports.borrow());
    let unheard = peers.keys().filter(|name| !reports.contains_key(*name) && plane.is_member(name));
    unheard.cloned().collect()
}

/// Marks each source's commit in force effective once everybody obeys it.
fn settle(plane: &Plane) {
    let commits = plane.commits.borrow().clone();
    let Some(last) = commits.published.last() else { return };
    for (source, commit) in &last.commits {
        let is_open = |one: &CommitStatus| one.commit == commit.as_str() && one.state == CommitState::Rolling;
        let is_rolling = commits.sources.get(source).is_some_and(|seen| seen.commits.iter().any(is_open));
        let Some(place) = commits.place(source, |known| known == commit).filter(|_| is_rolling) else {
            continue;
        };
        if !lagging(plane, &commits.published, place).0.is_empty() {
            continue;
        }
        plane.commits.send_modify(|commits| {
            let seen = commits.sources.get_mut(source).map(|seen| &mut seen.commits);
            for one in seen.into_iter().flatten().filter(|one| is_open(one)) {
                one.state = CommitState::Effective;
                one.effective_after_ms = Some(((plane.now() - one.seen) * 1000.0) as u64);
            }
        });
    }
}

/// Who does not obey the revision at `at` of `published` yet: those that lag, and those that are gone.
fn lagging(plane: &Plane, published: &[Published], at: usize) -> (Vec<Laggard>, Vec<Laggard>) {
    let own = plane.own.borrow().clone();
    let reports = plane.reports.borrow().clone();
    let own = Heard { status: own, away_since: None };
    let obeys = |commit: &Option<String>| {
        let commit = commit.as_ref();
        // The newest place counts: a revision that was returned to stands there twice.
        published.iter().rposition(|known| Some(&known.label) == commit).is_some_and(|place| place >= at)
    };
    let (mut lagging, mut gone) = (Vec::new(), Vec::new());
    for cluster in unheard(plane) {
        let why = "partitioned: no word from this cluster since this control plane began".to_owned();
        lagging.push(Laggard { cluster, workload: None, why });
    }
    let members = reports.values().filter(|heard| plane.is_member(&heard.status.name));
    for heard in std::iter::once(&own).chain(members) {
        let status = &heard.status;
        let mut late =
            |why: String| lagging.push(Laggard { cluster: status.name.clone(), workload: None, why });
        if let Some(since) = heard.away_since {
            late(format!("partitioned: no word from this cluster since {}", ago(plane, since)));
        } else if !obeys(&status.commit) {
            late("slow: its control plane does not serve the commit yet".into());
        }
        if let Some(until) = status.proxies_unknown_until {
            late(format!(
                "unknown: it began without its store, and proxies that live there may come back for {:.0} s",
                (until - plane.now()).max(1.0)
            ));
        }
        for proxy in status.proxies.iter().filter(|proxy| !obeys(&proxy.commit) || !proxy.refused.is_empty())
        {
            let laggard = |why: String| Laggard {
                cluster: status.name.clone(),
                workload: Some(proxy.workload.clone()),
                why,
            };
            match proxy.state {
                ProxyState::Gone => {
                    let end = match proxy.certificate_not_after {
                        // It has not spoken since this control plane began.
                        0.0 => "when its certificate ends is not known here".to_owned(),
                        end => format!("its certificate ends in {} s", (end - plane.now()).max(0.0) as u64),
                    };
                    gone.push(laggard(format!("gone since {}; {end}", ago(plane, proxy.since))));
                }
                ProxyState::Away => lagging.push(laggard(format!(
                    "partitioned: its stream is away since {}",
                    ago(plane, proxy.since)
                ))),
                ProxyState::Connected if !proxy.refused.is_empty() => {
                    lagging.push(laggard(format!("refused: {}", proxy.refused.join("; "))));
                }
                ProxyState::Connected => lagging.push(laggard("slow: it has not acknowledged yet".into())),
            }
        }
    }
    (lagging, gone)
}

fn ago(plane: &Plane, since: f64) -> String {
    format!("{:.0} s ago", (plane.now() - since).max(0.0))
}

/// What the sources' repositories know of a commit that is waited for.
pub trait Lineage {
    /// Whether the branch of the source has it. Two sources may follow one repository.
    fn is_on_branch(&self, source: &SourceName) -> bool;
    /// Whether `published`, a commit of the source, descends from it.
    fn is_behind(&self, source: &SourceName, published: &CommitId) -> bool;
}

/// A lineage that walks each history once.
struct Remembered<L> {
    lineage: L,
    on_branch: RefCell<BTreeMap<SourceName, bool>>,
    behind: RefCell<BTreeMap<(SourceName, CommitId), bool>>,
}

impl<L: Lineage> Remembered<L> {
    fn new(lineage: L) -> Self {
        Remembered { lineage, on_branch: RefCell::default(), behind: RefCell::default() }
    }

    /// Branches may have moved.
    fn look_again(&self) {
        self.on_branch.borrow_mut().retain(|_, is_on| *is_on);
    }
}

impl<L: Lineage> Lineage for Remembered<L> {
    fn is_on_branch(&self, source: &SourceName) -> bool {
        let mut known = self.on_branch.borrow_mut();
        *known.entry(source.clone()).or_insert_with(|| self.lineage.is_on_branch(source))
    }

    fn is_behind(&self, source: &SourceName, published: &CommitId) -> bool {
        let mut known = self.behind.borrow_mut();
        let asked = (source.clone(), published.clone());
        *known.entry(asked).or_insert_with(|| self.lineage.is_behind(source, published))
    }
}

/// Waits until `commit` or a descendant is effective everywhere, or `timeout` is over.
pub async fn wait(
    plane: &Plane,
    commit: &CommitId,
    timeout: Duration,
    strict: bool,
    lineage: impl Lineage,
) -> WaitAnswer {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut commits = plane.commits.subscribe();
    let mut own = plane.own.subscribe();
    let mut reports = plane.reports.subscribe();
    let lineage = Remembered::new(lineage);
    loop {
        if commits.has_changed().unwrap_or_default() {
            lineage.look_again();
        }
        let known = commits.borrow_and_update().clone();
        own.mark_unchanged();
        reports.mark_unchanged();
        let mut answer = judge_one(plane, commit, &known, &lineage);
        answer.effective &= !strict || answer.gone.is_empty();
        let refused = matches!(answer.state, Some(CommitState::Refused | CommitState::Held));
        if answer.effective || refused && !answer.lagging.is_empty() {
            return answer;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return answer,
            _ = commits.changed() => {}
            _ = own.changed() => {}
            _ = reports.changed() => {}
        }
    }
}

/// The answer of the sources whose commit it is: it is effective when it is in each of them.
fn judge_one(plane: &Plane, commit: &CommitId, known: &Commits, lineage: &impl Lineage) -> WaitAnswer {
    let mut answer = WaitAnswer {
        commit: commit.to_string(),
        effective: false,
        state: None,
        errors: Vec::new(),
        lagging: Vec::new(),
        gone: Vec::new(),
    };
    let mut is_known = false;
    let mut last = None;
    for (source, history) in &known.sources {
        let seen = history.commits.iter().find(|one| one.commit == commit.as_str());
        let exact = known.place(source, |published| published == commit);
        if exact.is_none() && seen.is_none() && !lineage.is_on_branch(source) {
            continue;
        }
        is_known = true;
        let place = exact.or_else(|| {
            let behind = |one: &Published| {
                one.commit_of(source).is_some_and(|published| lineage.is_behind(source, published))
            };
            // Asked of the newest first: where that does not have it, no history has to be walked for the others.
            let first = known.published.iter().rposition(|one| !behind(one)).map_or(0, |before| before + 1);
            (first < known.published.len()).then_some(first)
        });
        // Where one source has it in force and another refuses it, that is what is told.
        if place.is_none() || answer.state.is_none() {
            answer.state = seen.map(|one| one.state);
            answer.errors.extend(seen.iter().flat_map(|one| one.errors.clone()));
        }
        match place {
            Some(place) => last = last.max(Some(place)),
            None => answer.lagging.push(unpublished(plane, seen.map(|one| one.state))),
        }
    }
    if !is_known {
        answer.lagging.push(unpublished(plane, None));
    }
    if let Some(at) = last {
        let (lagging, gone) = lagging(plane, &known.published, at);
        answer.lagging.extend(lagging);
        answer.gone.extend(gone);
    }
    answer.effective = answer.lagging.is_empty();
    answer
}

/// This cluster, since the commit is not in force.
fn unpublished(plane: &Plane, state: Option<CommitState>) -> Laggard {
    let why = match state {
        Some(CommitState::Refused) => "the commit was refused; an earlier one stays in force",
        Some(CommitState::Held) => {
            "the commit is held: it removes more than half of all resources of its source"
        }
        Some(CommitState::Accepted) => {
            "the commit has passed and is not in force yet; `weft status` says what it waits for"
        }
        _ => "the control plane has not seen the commit yet",
    };
    Laggard { cluster: plane.config.cluster.clone(), workload: None, why: why.into() }
}

#[cfg(test)]
mod tests;
