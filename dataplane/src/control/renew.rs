//! The next certificate, at half the life of the present one. Connections that stand are not touched by it.
//!
//! Half of a life is over by the clock or by a timer, whichever says so first: a clock may be slow, and no timer goes on while
//! a machine is suspended.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use api::{identity::UnixTime, wire};
use process::{
    logs,
    rpc::stub::control_client::ControlClient,
    shutdown::Shutdown,
    tls::{Key, renewal},
    world::{SharedWorld, World},
};
use tokio::time::{Instant, sleep};

use super::{Pause, channel, enrol::certified};
use crate::proxy::Proxy;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);

type Validity = RangeInclusive<UnixTime>;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The part of its life in which a certificate that was just issued is not renewed, however fast the clock is.
const FRESH: u32 = 20;

/// Renews for as long as the process lives.
pub async fn run(world: SharedWorld, proxy: Arc<Proxy>, shutdown: Shutdown) {
    let work = async {
        loop {
            until_due(&*world, proxy.identity.credentials().validity()).await;
            renewed(&world, &proxy).await;
            let credentials = proxy.identity.credentials();
            let validity = credentials.validity();
            sleep(between(*validity.start(), *validity.end()) / FRESH).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

async fn until_due(world: &dyn World, validity: &Validity) {
    let (chance, began) = (world.chance(), Instant::now());
    while let Some(wait) = before(validity, chance, world.unix(), began.elapsed()) {
        sleep(wait).await;
    }
}

/// How long nothing happens yet, at `now` by the clock and when it was `waited` for already; `None` when it is due. Pure.
fn before(validity: &Validity, chance: f64, now: UnixTime, waited: Duration) -> Option<Duration> {
    let due = renewal::due(*validity.start(), *validity.end(), chance);
    let left = between(now, due).min(between(*validity.start(), due).saturating_sub(waited));
    (!left.is_zero()).then(|| left.min(LOOK))
}

fn between(from: UnixTime, to: UnixTime) -> Duration {
    Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
}

/// Returns when there is a new certificate, however often that must be tried.
async fn renewed(world: &SharedWorld, proxy: &Proxy) {
    let mut pause = Pause::default();
    for address in proxy.config.control_planes.iter().cycle() {
        let tried = tokio::time::timeout(CALL, renew(world, proxy, *address)).await;
        match tried.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(()) => return tracing::info!("the certificate is renewed"),
            Err(error) => tracing::warn!(%address, error, "the certificate is not renewed yet"),
        }
        sleep(pause.next(&**world)).await;
    }
}

async fn renew(world: &SharedWorld, proxy: &Proxy, address: std::net::SocketAddr) -> Result<(), String> {
    let channel = channel(world, &proxy.identity, address, proxy.config.source).await?;
    let key = Key::generate().map_err(|error| error.to_string())?;
    let csr = key.request().map_err(|error| error.to_string())?;
    let answer = ControlClient::new(channel).renew(wire::RenewRequest { csr }).await;
    let signed = answer.map_err(|status| status.message().to_owned())?.into_inner();
    if let Ok(bundle) = serde_json::from_slice(&signed.bundle) {
        // An older bundle than the one in force is no news.
        let _ = proxy.identity.trust(bundle);
    }
    let credentials = certified(key, signed).map_err(|error| error.to_string())?;
    proxy.identity.renew(credentials).map_err(|error| error.to_string())?;
    // What is in memory serves; on disk it only matters for the next start.
    if let Err(error) = proxy.identity.store(&proxy.config.state_dir) {
        tracing::error!(error = logs::causes(&error), "the new certificate cannot be kept on disk");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_life_is_over_when_one_of_the_clocks_says_so() {
        const HOUR: u64 = 3600;
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let wait = |now: u64, waited: u64| {
            before(&(at(100 * HOUR)..=at(124 * HOUR)), 0.5, at(now), Duration::from_secs(waited))
        };
        assert_eq!(wait(100 * HOUR, 0), Some(LOOK));
        assert_eq!(wait(112 * HOUR - 1, 12 * HOUR - 1), Some(Duration::from_secs(1)));
        assert_eq!(wait(112 * HOUR, 12 * HOUR), None);
        assert_eq!(wait(110 * HOUR, 3 * HOUR), Some(LOOK), "issued to the process before");
        assert_eq!(wait(120 * HOUR, 2 * HOUR), None, "the machine was suspended");
        assert_eq!(wait(62 * HOUR - 1, 12 * HOUR - 1), Some(Duration::from_secs(1)), "the clock is slow");
        assert_eq!(wait(62 * HOUR, 12 * HOUR), None, "the clock is slow");
        assert_eq!(wait(900 * HOUR, 0), None, "the clock is fast");
    }
}
