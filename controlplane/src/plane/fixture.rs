//! A primary for tests of this crate: without a network, and at a time of day that the test sets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use process::world::{Later, Listener, Moment, Stream, World};
use tokio::{sync::watch, time::Instant};

use super::Plane;
use crate::{
    authority::Authority,
    commits::Commits,
    config::{Duty, RawConfig},
    serving::{Begun, assemble},
    snapshot::{Configuration, fixture::inputs_beside},
    store::Embedded,
    vault::Vault,
};

/// When every test begins, seconds since the epoch.
pub(crate) const BEGIN: f64 = 1_800_000_000.0;
/// The lease of the primary's workloads.
pub(crate) const LEASE: Duration = Duration::from_secs(600);

/// A third member, beside the sample's two.
const SOUTH: &str = "apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: south }
spec: { network: south, locality: { region: eu-south, zone: a }, namespaces: [shop] }
";

/// A world in which nothing happens by itself.
#[derive(Debug)]
pub(crate) struct Still {
    begin: Instant,
    passed: Mutex<Duration>,
}

impl Still {
    fn new() -> Arc<Self> {
        Arc::new(Still { begin: Instant::now(), passed: Mutex::default() })
    }

    /// Lets it be so many seconds after [`BEGIN`].
    pub(crate) fn set(&self, seconds: f64) {
        *self.passed.lock().unwrap() = Duration::from_secs_f64(seconds);
    }

    fn passed(&self) -> Duration {
        *self.passed.lock().unwrap()
    }
}

impl World for Still {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(BEGIN) + self.passed()
    }

    fn chance(&self) -> f64 {
        0.5
    }

    fn connect(&self, _: SocketAddr, _: Option<IpAddr>) -> Later<'_, io::Result<Stream>> {
        Box::pin(async { Err(io::ErrorKind::NetworkUnreachable.into()) })
    }

    fn listen(&self, _: SocketAddr) -> Later<'_, io::Result<Listener>> {
        Box::pin(async { Err(io::ErrorKind::AddrNotAvailable.into()) })
    }

    fn moment(&self) -> Moment {
        Moment { of_day: self.now(), counted: self.begin + self.passed() }
    }
}

/// The primary `east`, whose sources are `platform` and `shop`, before anything is in force. One that is `bereft` has lost
/// its store.
pub(crate) async fn primary(home: &Path, bereft: bool) -> (Arc<Plane>, Arc<Still>) {
    let world = Still::new();
    let settings = serde_json::json!({
        "cluster": "east",
        "role": "primary",
        "stateDir": home,
        "address": "127.0.0.1",
        "sources": [
            { "name": "shop", "repository": "/nowhere/shop", "namespaces": ["shop"] },
            { "name": "platform", "repository": "/nowhere/platform", "branch": "live" },
        ],
        "network": "east",
        "locality": { "region": "eu-east", "zone": "a" },
        "leaseSeconds": LEASE.as_secs(),
    });
    let config = serde_json::from_value::<RawConfig>(settings).unwrap().meant().unwrap();
    let Duty::Primary { sources, .. } = &config.duty else { unreachable!("it is said above") };
    let commits = Commits::of(sources.iter().map(|source| source.name.clone()));
    let domain = "shop.example".parse().unwrap();
    let begun = Begun {
        authority: Authority::primary(home, &config.cluster, &domain, &Default::default(), world.unix())
            .unwrap(),
        configuration: Configuration::default(),
        commits: watch::Sender::new(commits),
        vault: Arc::new(Vault::alone(home)),
        bereft,
    };
    let store = Arc::new(Embedded::open(home).unwrap());
    (assemble(config, world.clone(), store, begun).await.unwrap(), world)
}

/// The sample configuration and a third member, as the revision that is called `label` says them.
pub(crate) fn configuration(label: &str) -> Configuration {
    let said = Arc::into_inner(inputs_beside("east", SOUTH).configuration).expect("nobody else holds it");
    Configuration { commit: label.into(), ..said }
}
