//! The arithmetic of ejection: for how long, and whose success rate lies too low.

use std::time::Duration;

use super::{mix, unit};

/// Part of an ejection's time that is added at random, so that what was ejected together does not return
/// together.
const JITTER: f64 = 0.1;

/// The time of the `count`th ejection (from 1): base times count, to `max`, with jitter.
pub fn ejection_time(base: Duration, max: Duration, count: u32, seed: u64) -> Duration {
    let time = base.saturating_mul(count).min(max.max(base));
    time + time.mul_f64(JITTER * unit(mix(seed)))
}

/// Below which success rate an endpoint lies too low: mean minus `deviations` times the standard deviation.
pub fn success_threshold(rates: &[f64], deviations: f64) -> f64 {
    let count = rates.len().max(1) as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - deviations * variance.sqrt()
}

/// Whether one more of `total` endpoints may be ejected beside `ejected`: always one, then up to the cap.
pub fn within_cap(ejected: usize, total: usize, cap_percent: u32) -> bool {
    cap_percent > 0 && (ejected == 0 || (ejected + 1) * 100 <= cap_percent as usize * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ejections_grow_to_their_maximum() {
        let time =
            |count| ejection_time(Duration::from_secs(30), Duration::from_secs(300), count, 7).as_secs();
        assert!((30..=33).contains(&time(1)));
        assert!((60..=66).contains(&time(2)));
        assert!((300..=330).contains(&time(10)));
        assert!((300..=330).contains(&time(1000)));
    }

    #[test]
    fn one_bad_host_of_five_lies_below() {
        let threshold = success_threshold(&[1.0, 1.0, 1.0, 1.0, 0.5], 1.9);
        assert!((threshold - 0.52).abs() < 1e-9, "mean 0.9, deviation 0.2: {threshold}");
        assert_eq!(success_threshold(&[0.9; 5], 1.9), 0.9, "equal hosts: nobody lies below");
    }

    #[test]
    fn the_cap_leaves_one_and_then_half() {
        assert!(within_cap(0, 2, 50) && !within_cap(1, 2, 50));
        assert!(within_cap(0, 3, 50) && !within_cap(1, 3, 50));
        assert!(within_cap(1, 4, 50) && !within_cap(2, 4, 50));
        assert!(within_cap(0, 5, 10) && !within_cap(0, 5, 0));
    }
}
