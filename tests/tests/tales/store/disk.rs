//! Control planes and proxies whose disk is full for a while.

use std::time::Instant;

use api::admin::{CommitState, ProxyState, ProxyStatus};

use super::{replicas::Sidecar, *};

impl Primary {
    /// The same with its state on a small disk, and no room at all for its log.
    fn on_a_small_disk(mut self) -> Self {
        self.log = "/dev/full".into();
        self.disk = Some(SmallDisk::mount(&self.dir.path().join("state"), 8 << 20));
        self
    }

    fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("it was given one")
    }
}

impl Source {
    /// A commit that needs more than the room that a file has left.
    fn large_commit(&self, n: u16) -> String {
        let service = |i| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{i}, namespace: a, labels: {{ n: \"{n}\" }} }}\n\
                 spec: {{ ports: [{{ name: http, port: 80 }}] }}\n"
            )
        };
        fs::write(self.path().join("more.yaml"), (0..2_000).map(service).collect::<String>()).unwrap();
        self.commit(n)
    }
}

/// Commits rule again as soon as there is room, and nothing but commits has waited.
async fn waits_for_room(primary: &mut Primary, source: &Source, [own, workload]: [IpAddr; 2]) {
    primary.start();
    let first = source.commit(1);
    primary.serves(&first).await;
    let _sidecar = Sidecar::start(workload, [own; 2], &primary.token().await);
    primary.rules(&first).await;

    primary.disk().fill();
    let second = source.large_commit(2);
    let status = primary
        .tells("why the commit waits", |status| {
            status.events.iter().any(|event| event.message.contains("No space left"))
        })
        .await;
    assert_eq!(status.commit, Some(first.clone()));
    let waits = status.sources[0].commits.iter().find(|one| one.commit == second);
    assert_eq!(waits.map(|one| one.state), Some(CommitState::Accepted));
    primary.rules(&first).await;
    primary.disk().empty();
    primary.rules(&second).await;

    // Killed with no room left, and started when there is some.
    primary.disk().fill();
    let third = source.large_commit(3);
    primary
        .tells("the next one waits", |status| {
            let known = status.sources[0].commits.iter().find(|one| one.commit == third);
            known.is_some_and(|one| one.state == CommitState::Accepted)
        })
        .await;
    primary.kill();
    primary.disk().empty();
    primary.start();
    primary.rules(&third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_a_commit_waiting_and_nothing_else() {
    let source = Source::new().await;
    let mut primary = Primary::among(&[ip(12, 1)], &source, &[], 4).on_a_small_disk();
    waits_for_room(&mut primary, &source, [ip(12, 1), ip(12, 2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_beside_etcd_keeps_a_commit_waiting_and_nothing_else() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(13, 3), &[]));
    let mut reader = Reader::start(&server);
    let mut primary = Primary::among(&[ip(13, 1)], &source, &[server.url()], 4).on_a_small_disk();
    waits_for_room(&mut primary, &source, [ip(13, 1), ip(13, 2)]).await;
    reader.said(3);
    reader.sees(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_on_a_full_disk_obeys_stays_in_service_and_is_waited_for() {
    const LEASE: Duration = Duration::from_secs(4);
    let (own, workload) = (ip(14, 1), ip(14, 2));
    let source = Source::new().await;
    let mut primary = Primary::among(&[own], &source, &[], LEASE.as_secs() as u32);
    primary.start();
    let first = source.commit(1);
    primary.serves(&first).await;
    let sidecar = Sidecar::start_on_a_small_disk(workload, [own; 2], &primary.token().await);
    primary.rules(&first).await;

    sidecar.disk().fill();
    let (until, mut n, mut last) = (Instant::now() + 2 * LEASE, 1, String::new());
    while Instant::now() < until {
        n += 1;
        last = source.commit(n);
        let in_force = format!("\"in force\",\"revision\":\"{last}\"");
        eventually(&format!("{last} is in force"), SOON, async || {
            let log = sidecar.log();
            if log.contains(&in_force) { Ok(()) } else { Err(log) }
        })
        .await;
        let lacks_room = |one: &ProxyStatus| {
            let told = one.refused.iter().any(|why| why.contains("only until a restart: No space left"));
            told && !one.effective && one.state == ProxyState::Connected
        };
        primary.one("it is here, and lacks room", lacks_room).await;
    }
    let log = sidecar.log();
    assert_eq!(log.matches("the control stream stands").count(), 1, "{log}");
    sidecar.disk().empty();
    primary.rules(&last).await;
}
