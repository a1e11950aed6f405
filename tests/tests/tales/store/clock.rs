//! Control planes and proxies whose clocks are wrong, or are set while they run: libfaketime stands between them and the system's clock.

use std::{
    path::Path,
    time::{Instant, SystemTime},
};

use api::admin::ProxyState;

use super::{replicas::Sidecar, *};

const LEASE: Duration = Duration::from_secs(4);
const HOUR: f64 = 3_600.0;

/// The clock of one process. It says by how much it is wrong; how long something lasts it tells rightly.
struct Clock {
    file: PathBuf,
}

impl Clock {
    /// One that is right.
    fn new(dir: &Path) -> Self {
        let clock = Clock { file: dir.join("clock") };
        clock.set(0.0);
        clock
    }

    /// With what a process starts that goes by it.
    fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }

    /// Makes it wrong by some seconds.
    fn set(&self, wrong: f64) {
        fs::write(&self.file, format!("{wrong:+}")).unwrap();
    }
}

/// Where Debian's package has it.
fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap().flatten();
    let found = places.map(|place| place.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.expect("libfaketime is missing: `scripts/setup test` installs it")
}

/// What the time is, by the system's clock.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_an_hour_takes_nobody_out_and_no_commit_back() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(11, 1), &[]));
    let mut reader = Reader::start(&server);
    let places = [ip(11, 2), ip(11, 3)];
    let primary =
        |places: &[IpAddr]| Primary::among(places, &source, &[server.url()], LEASE.as_secs() as u32);
    let [mut serves, mut other] = [primary(&places), primary(&[places[1], places[0]])];
    let clock = Clock::new(serves.dir.path());
    serves.env = clock.env();
    let mut n = 1;
    let commit = source.commit(n);
    begin(&mut serves, &mut other, &commit).await;
    let _sidecar = Sidecar::start(ip(11, 4), places, &serves.token().await);
    serves.rules(&commit).await;

    for wrong in [HOUR, -HOUR, 0.0] {
        clock.set(wrong);
        // A lease and more after it was seen to be set.
        let mut until = None;
        while until.is_none_or(|until| Instant::now() < until) {
            n += 1;
            let commit = source.commit(n);
            serves.rules(&commit).await;
            reader.said(n);
            reader.sees(n).await;
            let seen = eventually("it is told when the commit was seen", SOON, async || {
                let status = serves.status().await.map_err(|error| error.to_string())?;
                let told = status.sources[0].commits.iter().find(|one| one.commit == commit);
                told.map(|one| one.seen).ok_or_else(|| format!("{:?}", status.sources))
            })
            .await;
            if (seen - now() - wrong).abs() < 60.0 {
                until.get_or_insert(Instant::now() + 2 * LEASE);
            }
            assert!(n < 1_000, "its clock is {} s wrong and not {wrong}", seen - now());
        }
        let events = serves.status().await.unwrap().events;
        assert!(!events.iter().any(|event| event.subject.starts_with("proxy")), "{events:?}");
    }

    // Whoever takes over from one whose clock is wrong goes on from where that one was.
    clock.set(HOUR);
    n += 1;
    serves.rules(&source.commit(n)).await;
    serves.kill();
    n += 1;
    let commit = source.commit(n);
    other.serves(&commit).await;
    other.rules(&commit).await;
    reader.said(n);
    reader.sees(n).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_with_a_wrong_clock_is_back_once_it_is_set() {
    let (own, workload) = (ip(16, 1), ip(16, 2));
    let source = Source::new().await;
    let mut primary = Primary::among(&[own], &source, &[], LEASE.as_secs() as u32);
    primary.start();
    primary.serves(&source.commit(1)).await;
    // Its token is good once: from then on it lives by what it keeps.
    let mut sidecar = Sidecar::start(workload, [own; 2], &primary.token().await);
    let clock = Clock::new(primary.dir.path());
    for (n, wrong, why) in
        [(2, -48.0 * HOUR, "is not valid before"), (3, 48.0 * HOUR, "certificate expired at")]
    {
        let commit = source.commit(n);
        primary.rules(&commit).await;
        clock.set(wrong);
        sidecar.restart(&clock.env());
        eventually("it says what its clock does", SOON, async || {
            let log = sidecar.log();
            if log.contains(why) { Ok(()) } else { Err(log) }
        })
        .await;
        primary.one("it is away", |one| one.state != ProxyState::Connected).await;
        clock.set(0.0);
        primary.rules(&commit).await;
    }
}
