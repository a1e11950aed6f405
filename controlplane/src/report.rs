//! What this cluster says of itself, and what `wait` makes of everybody's word.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    admin::{
        ClusterStatus, CommitState, EndpointCount, Laggard, ProxyState, ProxyStatus, Role, ServiceStatus,
        SourceStatus, Status, WaitAnswer,
    },
    name::ClusterName,
    wire,
};
use process::shutdown::Shutdown;

use crate::{
    config::{Config, Duty},
    plane::{Commits, Heard, Plane, seconds},
    push::Proxy,
    snapshot::{Reach, Snapshot},
};

/// Several proxies acknowledge at once: one report tells of them all.
const GATHER: Duration = Duration::from_millis(2);

/// Keeps this cluster's word on itself up to date.
pub async fn run(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut snapshots = plane.snapshot.subscribe();
    let mut proxies = plane.registry.proxies();
    let mut away = plane.primary_away.subscribe();
    let mut store = plane.store.away();
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
        }
        tokio::time::sleep(GATHER).await;
        snapshots.mark_unchanged();
        proxies.mark_unchanged();
    }
}

/// Judges the commits anew whenever another cluster speaks.
pub async fn judge(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut reports = plane.reports.subscribe();
    loop {
        settle(&plane);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = reports.changed() => if changed.is_err() { return },
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
    ClusterStatus {
        name: plane.config.cluster.clone(),
        role: plane.config.duty.role(),
        locality: snapshot.place.locality.clone(),
        network: snapshot.place.network.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        effective: commit.is_some()
            && proxies.iter().all(|proxy| proxy.effective || proxy.state == ProxyState::Gone),
        commit,
        primary_away_since: *plane.primary_away.borrow(),
        store_away_since: plane.store.away().borrow().map(seconds),
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
        effective: proxy.refused.is_empty() && proxy.reached.as_deref() == Some(snapshot.commit()),
        refused: proxy.refused.clone(),
        app_ready: proxy.registered.app_ready,
        draining: proxy.registered.draining,
        certificate_not_after: proxy.certificate_not_after as f64,
        version: proxy.version.clone(),
        ejected: proxy.ejected.clone(),
    }
}

fn services(snapshot: &Snapshot) -> Vec<ServiceStatus> {
    let entries = snapshot
        .services
        .values()
        .filter(|entry| entry.reach != Reach::ClusterSet || entry.service != entry.name);
    let mut by_service: BTreeMap<_, ServiceStatus> = BTreeMap::new();
    for entry in entries {
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
    let source = match &plane.config.duty {
        Duty::Primary { source, .. } => {
            let commits = plane.commits.borrow();
            Some(SourceStatus {
                repository: source.address.to_string(),
                branch: source.branch.clone(),
                trouble: commits.trouble.as_ref().map(|(why, _)| why.clone()),
                trouble_since: commits.trouble.as_ref().map(|(_, since)| *since),
                commits: commits.seen.iter().cloned().collect(),
            })
        }
        Duty::Remote { .. } => None,
    };
    Status {
        cluster: plane.config.cluster.clone(),
        role: plane.config.duty.role(),
        trust_domain: plane.authority.trust_domain().to_string(),
        source,
        commit,
        clusters,
        events: plane.events.list(),
    }
}

/// Members that this control plane knows from before it began, and has not heard of since.
fn unheard(plane: &Plane) -> Vec<ClusterName> {
    let (peers, reports) = (plane.peers.borrow(), plane.reports.borrow());
    let unheard = peers.keys().filter(|name| !reports.contains_key(*name) && plane.is_member(name));
    unheard.cloned().collect()
}

/// Marks the newest commit effective once everybody obeys it.
fn settle(plane: &Plane) {
    let commits = plane.commits.borrow();
    let Some(at) = commits.published.len().checked_sub(1) else { return };
    let commit = commits.published[at].1.clone();
    let open = commits.seen.iter().any(|one| one.commit == commit && one.state == CommitState::Rolling);
    let published = commits.published.clone();
    drop(commits);
    if !open || !lagging(plane, &published, at).0.is_empty() {
        return;
    }
    plane.commits.send_modify(|commits| {
        if let Some(one) = commits.seen.iter_mut().find(|one| one.commit == commit) {
            one.state = CommitState::Effective;
            one.effective_after_ms = Some(((plane.now() - one.seen) * 1000.0) as u64);
        }
    });
}

/// Who does not obey the commit at `at` of `published` yet: those that lag, and those that are gone.
fn lagging(plane: &Plane, published: &[(api::head::Seq, String)], at: usize) -> (Vec<Laggard>, Vec<Laggard>) {
    let own = plane.own.borrow().clone();
    let reports = plane.reports.borrow().clone();
    let own = Heard { status: own, away_since: None };
    let obeys = |commit: &Option<String>| {
        let commit = commit.as_ref();
        // The newest place counts: a commit that was returned to stands there twice.
        published.iter().rposition(|(_, known)| Some(known) == commit).is_some_and(|place| place >= at)
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
        for proxy in status.proxies.iter().filter(|proxy| !obeys(&proxy.commit) || !proxy.refused.is_empty())
        {
            let laggard = |why: String| Laggard {
                cluster: status.name.clone(),
                workload: Some(proxy.workload.clone()),
                why,
            };
            match proxy.state {
                ProxyState::Gone => gone.push(laggard(format!(
                    "gone since {}; its certificate ends in {} s",
                    ago(plane, proxy.since),
                    (proxy.certificate_not_after - plane.now()).max(0.0) as u64
                ))),
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

/// Waits until `commit` or a descendant is effective everywhere, or `timeout` is over.
///
/// `descends` says whether a published commit descends from the one that is waited for.
pub async fn wait(
    plane: &Plane,
    commit: &str,
    timeout: Duration,
    strict: bool,
    descends: impl Fn(&str) -> bool,
) -> WaitAnswer {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut commits = plane.commits.subscribe();
    let mut own = plane.own.subscribe();
    let mut reports = plane.reports.subscribe();
    loop {
        let known = commits.borrow_and_update().clone();
        own.mark_unchanged();
        reports.mark_unchanged();
        let mut answer = judge_one(plane, commit, &known, &descends);
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

fn judge_one(plane: &Plane, commit: &str, known: &Commits, descends: &impl Fn(&str) -> bool) -> WaitAnswer {
    let seen = known.seen.iter().find(|one| one.commit == commit);
    let place = known
        .published
        .iter()
        .rposition(|(_, published)| published == commit)
        .or_else(|| known.published.iter().position(|(_, published)| descends(published)));
    let (lagging, gone) = match place {
        Some(at) => lagging(plane, &known.published, at),
        None => {
            let why = match seen.map(|one| one.state) {
                Some(CommitState::Refused) => "the commit was refused; an earlier one stays in force",
                Some(CommitState::Held) => "the commit is held: it removes more than half of all resources",
                _ => "the control plane has not seen the commit yet",
            };
            (vec![Laggard { cluster: plane.config.cluster.clone(), workload: None, why: why.into() }], vec![])
        }
    };
    WaitAnswer {
        commit: commit.to_owned(),
        effective: lagging.is_empty(),
        state: seen.map(|one| one.state),
        errors: seen.map(|one| one.errors.clone()).unwrap_or_default(),
        lagging,
        gone,
    }
}
