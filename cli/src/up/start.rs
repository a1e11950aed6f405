//! Starts everything, and waits until all of it is ready and obeys the commit in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};
use api::{
    admin::{JoinTokenRequest, ProxyState, Role, Status, Token},
    name::{ClusterName, WorkloadId},
};
use tokio::{task::JoinSet, time::Instant};

use super::{
    fleet::Fleet,
    layout::{Cluster, Layout},
};
use crate::{
    client::{Client, probe},
    controlplane::local::{process, write_config},
    mesh::ADMIN_TOKEN,
    output::line,
    process::{last_words, weft, write_private},
    progress::Progress,
    workload::local::Member,
};

/// What does not come up within this has failed. Ten seconds is the aim; the rest is for slow machines.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long the ingresses may take to answer once every proxy obeys the commit.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(25);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A process that is to become ready.
struct Awaited {
    /// How people call it.
    name: String,
    /// Where its readiness is asked for.
    address: SocketAddr,
    /// Its state directory.
    dir: PathBuf,
}

/// Starts the mesh of `layout`. What was started is in `fleet`, also when this fails.
pub(crate) async fn start(layout: &Layout, fleet: &mut Fleet, progress: &Progress) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    let primary = &layout.clusters[0];
    let mut proxies = Vec::new();
    for cluster in &layout.clusters {
        progress.at(&format!("starting {} …", cluster.name));
        if cluster.role == Role::Remote {
            join(cluster, &client(primary)?).await?;
        }
        start_controlplane(cluster, layout, fleet)?;
        let members = start_applications(cluster, fleet)?;
        let controlplane = Awaited {
            name: format!("{}'s control plane", cluster.name),
            address: cluster.metrics(),
            dir: cluster.controlplane_dir(),
        };
        ready(&[controlplane], fleet, deadline).await?;
        enrol(&members, &client(cluster)?).await?;
        for member in &members {
            let proxy = &member.proxy;
            fleet.spawn(proxy.prepare()?)?;
            proxies.push(Awaited {
                name: format!("proxy of {}", proxy.workload()),
                address: proxy.admin(),
                dir: proxy.dir().to_owned(),
            });
        }
    }
    progress.at(&format!("waiting for {} proxies …", proxies.len()));
    ready(&proxies, fleet, deadline).await?;
    effective(layout, &client(primary)?, fleet, deadline).await?;
    answering(layout).await;
    Ok(())
}

/// A client of the cluster's admin API; its control plane must have been ready once.
pub(super) fn client(cluster: &Cluster) -> anyhow::Result<Client> {
    let path = cluster.controlplane_dir().join(ADMIN_TOKEN);
    let token = std::fs::read_to_string(&path)
        .with_context(|| format!("the control plane made no {}", path.display()))?;
    Ok(Client::new(&cluster.api(), Some(token.trim().to_owned()))?)
}

/// Gets the remote its one-time token from the primary.
async fn join(cluster: &Cluster, primary: &Client) -> anyhow::Result<()> {
    let request = JoinTokenRequest { cluster: cluster.name.clone(), ttl_seconds: None };
    let token: Token = primary.post("/join-tokens", &request).await?;
    write_private(&cluster.join_token(), &token.token)
}

fn start_controlplane(cluster: &Cluster, layout: &Layout, fleet: &mut Fleet) -> anyhow::Result<()> {
    let dir = cluster.controlplane_dir();
    let mut config = cluster.controlplane_config(&layout.repository());
    if let (Role::Primary, Some(store)) = (cluster.role, &layout.store) {
        config["store"] = store.clone();
    }
    write_config(&dir, &config)?;
    fleet.spawn(process(&cluster.name, &dir)?)
}

/// The applications need nobody, so they start while the control plane does. Gives all proxies to be started.
fn start_applications(cluster: &Cluster, fleet: &mut Fleet) -> anyhow::Result<Vec<Member>> {
    let mut members: Vec<Member> = cluster.gateways().into();
    for spec in cluster.workloads(&weft()?) {
        spec.write()?;
        fleet.spawn(spec.app_process()?)?;
        members.push(Member { proxy: spec.sidecar(), request: spec.token_request() });
    }
    Ok(members)
}

/// Gives each proxy a token; one that still has usable credentials ignores it.
async fn enrol(members: &[Member], client: &Client) -> anyhow::Result<()> {
    let mut tokens = JoinSet::new();
    for (index, member) in members.iter().enumerate() {
        let (client, request) = (client.clone(), member.request.clone());
        tokens.spawn(async move { (index, client.post::<_, Token>("/tokens", &request).await) });
    }
    while let Some(minted) = tokens.join_next().await {
        let (index, token) = minted?;
        members[index].proxy.give_token(&token?.token)?;
    }
    Ok(())
}

/// Waits until `/ready` answers 200 at each address.
async fn ready(who: &[Awaited], fleet: &mut Fleet, deadline: Instant) -> anyhow::Result<()> {
    let mut waiting: Vec<&Awaited> = who.iter().collect();
    loop {
        let mut probes = JoinSet::new();
        for (index, one) in waiting.iter().enumerate() {
            let address = one.address.to_string();
            probes.spawn(async move { (index, probe(&address, "/ready", PROBE_LIMIT).await) });
        }
        let mut silent = BTreeMap::new();
        while let Some(answer) = probes.join_next().await {
            match answer? {
                (_, Ok(status)) if status.is_success() => {}
                (index, Ok(status)) => drop(silent.insert(index, format!("answers {status}"))),
                (index, Err(why)) => drop(silent.insert(index, why)),
            }
        }
        let Some((&first, why)) = silent.first_key_value() else { return Ok(()) };
        fleet.all_alive()?;
        if Instant::now() >= deadline {
            let Awaited { name, address, dir } = waiting[first];
            bail!(
                "{} of {} are not ready; the {name} at {address}: {why}\n{}",
                silent.len(),
                who.len(),
                last_words(dir)
            );
        }
        waiting = silent.keys().map(|&index| waiting[index]).collect();
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the primary has every proxy of every cluster connected and effective.
async fn effective(
    layout: &Layout,
    primary: &Client,
    fleet: &mut Fleet,
    deadline: Instant,
) -> anyhow::Result<()> {
    let mut expected = BTreeMap::new();
    for cluster in &layout.clusters {
        let gateways = cluster.gateways().map(|gateway| gateway.request.workload);
        let workloads = cluster.workloads(&weft()?).into_iter().map(|spec| spec.id);
        expected.insert(cluster.name.clone(), workloads.chain(gateways).collect::<BTreeSet<_>>());
    }
    loop {
        let status: Status = primary.get("/status").await?;
        let missing = missing(&status, &expected);
        let Some(first) = missing.first() else { return Ok(()) };
        fleet.all_alive()?;
        if Instant::now() >= deadline {
            bail!("{} proxies do not obey the commit in force; {first}", missing.len());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Who is not there yet, and what of it is known.
fn missing(status: &Status, expected: &BTreeMap<ClusterName, BTreeSet<WorkloadId>>) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, workloads) in expected {
        let cluster = status.clusters.iter().find(|cluster| cluster.name == *name);
        for workload in workloads {
            let proxy = cluster.and_then(|c| c.proxies.iter().find(|proxy| proxy.workload == *workload));
            let why = match proxy {
                None => "is not connected".to_owned(),
                Some(proxy) if proxy.state != ProxyState::Connected => {
                    "has lost its control plane".to_owned()
                }
                Some(proxy) if !proxy.refused.is_empty() => {
                    format!("refused: {}", line(&proxy.refused.join("; ")))
                }
                Some(proxy) if !proxy.effective => "is still being told".to_owned(),
                Some(proxy) if proxy.kind == "sidecar" && !proxy.app_ready => {
                    "has an application that does not answer".to_owned()
                }
                Some(_) => continue,
            };
            missing.push(format!("{workload} {why}"));
        }
    }
    missing
}

/// Endpoints follow the configuration by a moment: asks each ingress for the front page until it comes. A
/// repository that one has changed may well refuse it, so this is no condition.
async fn answering(layout: &Layout) {
    let deadline = Instant::now() + ANSWER_LIMIT;
    for cluster in &layout.clusters {
        let ingress = cluster.ingress().to_string();
        loop {
            let answer = probe(&ingress, "/", PROBE_LIMIT).await;
            if answer.as_ref().is_ok_and(|status| !status.is_server_error()) {
                break;
            }
            if Instant::now() >= deadline {
                let what = answer.map_or_else(|why| why, |status| format!("it answers {status}"));
                eprintln!("weft: no front page yet at the ingress of {}: {what}", cluster.name);
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;

    fn expect(workloads: &[&str]) -> BTreeMap<ClusterName, BTreeSet<WorkloadId>> {
        let workloads = workloads.iter().map(|id| id.parse().unwrap()).collect();
        BTreeMap::from([("east".parse().unwrap(), workloads)])
    }

    #[tokio::test]
    async fn who_is_not_ready_is_named_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(crate::process::LOG), "the port is taken\n").unwrap();
        let awaited = Awaited {
            name: "proxy of east-front-1".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            dir: dir.path().to_owned(),
        };
        let error = ready(&[awaited], &mut Fleet::default(), Instant::now()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 1 are not ready; the proxy of east-front-1 at 127.0.0.1:1: "),
            "{error}"
        );
        assert!(error.ends_with("\n    the port is taken\n"), "{error}");
    }

    #[test]
    fn ready_means_that_every_proxy_is_there_and_obeys() {
        let mut status = sample();
        assert_eq!(missing(&status, &expect(&["east-front-1"])), Vec::<String>::new());
        assert_eq!(missing(&status, &expect(&["east-front-9"])), ["east-front-9 is not connected"]);
        let proxy = &mut status.clusters[0].proxies[0];
        proxy.effective = false;
        assert_eq!(missing(&status, &expect(&["east-front-1"])), ["east-front-1 is still being told"]);
        let proxy = &mut status.clusters[0].proxies[0];
        (proxy.effective, proxy.app_ready) = (true, false);
        assert_eq!(
            missing(&status, &expect(&["east-front-1"])),
            ["east-front-1 has an application that does not answer"]
        );
    }
}
