//! When to renew a certificate. Pure.

use std::time::Duration;

use api::identity::UnixTime;

/// The share of a certificate's life over which renewals are spread, around its half.
const SPREAD: f64 = 0.1;

/// The instant at which to renew: half the life of the certificate, give or take a twentieth of it, by `jitter`
/// from 0 to 1, so that workloads which started together do not ask together.
pub fn due(not_before: UnixTime, not_after: UnixTime, jitter: f64) -> UnixTime {
    let life = not_after.as_secs().saturating_sub(not_before.as_secs());
    let share = 0.5 + SPREAD * (jitter.clamp(0.0, 1.0) - 0.5);
    let seconds = (life as f64 * share) as u64;
    UnixTime::since_unix_epoch(Duration::from_secs(not_before.as_secs() + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_around_half_life() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for (jitter, wanted) in [(0.0, 1450), (0.5, 1500), (1.0, 1550), (7.0, 1550)] {
            assert_eq!(due(at(1000), at(2000), jitter), at(wanted), "{jitter}");
        }
        assert_eq!(due(at(2000), at(1000), 0.5), at(2000));
    }
}
