//! How many retries there may be, and how long to wait before one.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use api::wire::Retry;

use super::{Moment, unit};

const SLOTS: u64 = 10;
const REQUEST: u64 = 1;
const RETRY: u64 = 1 << 24;
const COUNT: u64 = RETRY - 1;

/// The retry budget of a service (GEP-3388): a percentage of its requests over a window, and at least so many
/// a second.
///
/// Ten slots slide over the window; a slot holds its tick, its retries and its requests in one word of
/// 16, 24 and 24 bits, so that no worker ever sees one of them without the others.
#[derive(Debug, Default)]
pub struct Budget {
    slots: [AtomicU64; SLOTS as usize],
}

impl Budget {
    /// Counts a request (not a retry).
    pub fn request(&self, policy: &Retry, now: Moment) {
        self.add(policy, now, REQUEST);
    }

    /// Takes a retry out of the budget, if there is one left.
    #[must_use]
    pub fn take(&self, policy: &Retry, now: Moment) -> bool {
        let tick = tick(policy, now);
        let (requests, retries) = self.counts(tick);
        let window_seconds = policy.budget_window_ms.div_ceil(1000);
        let least = u64::from(policy.budget_min_per_second) * window_seconds;
        let allowed = retries < least.max(requests * u64::from(policy.budget_percent) / 100);
        if allowed {
            self.add(policy, now, RETRY);
        }
        allowed
    }

    fn counts(&self, tick: u64) -> (u64, u64) {
        let fresh = |word: &u64| tick.wrapping_sub(word >> 48) & 0xffff < SLOTS;
        let words = self.slots.iter().map(|slot| slot.load(Relaxed)).filter(fresh);
        words.fold((0, 0), |(q, r), word| (q + (word & COUNT), r + ((word >> 24) & COUNT)))
    }

    fn add(&self, policy: &Retry, now: Moment, one: u64) {
        let tick = tick(policy, now);
        let _ = self.slots[(tick % SLOTS) as usize].fetch_update(Relaxed, Relaxed, |word| {
            let word = if word >> 48 == tick & 0xffff { word } else { (tick & 0xffff) << 48 };
            let full = (word / one) & COUNT == COUNT;
            Some(if full { word } else { word + one })
        });
    }
}

/// The number of the slot that `now` lies in. From `SLOTS` on, so that an untouched slot is never fresh.
fn tick(policy: &Retry, now: Moment) -> u64 {
    let slot_nanos = (policy.budget_window_ms.saturating_mul(1_000_000) / SLOTS).max(1);
    now.as_nanos() / slot_nanos + SLOTS
}

/// The wait before the `retry`th retry (from 1): exponential, with full jitter.
pub fn backoff(policy: &Retry, retry: u32, chance: u64) -> Duration {
    let factor = 1u64.checked_shl(retry.saturating_sub(1)).unwrap_or(u64::MAX);
    let most = policy.backoff_base_ms.saturating_mul(factor).min(policy.backoff_max_ms);
    Duration::from_millis(most).mul_f64(unit(chance))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Retry {
        Retry {
            backoff_base_ms: 25,
            backoff_max_ms: 250,
            budget_percent: 20,
            budget_min_per_second: 10,
            budget_window_ms: 10_000,
            ..Retry::default()
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn takes(budget: &Budget, now: Moment) -> usize {
        (0..5000).take_while(|_| budget.take(&policy(), now)).count()
    }

    #[test]
    fn a_quiet_service_has_ten_retries_a_second() {
        let budget = Budget::default();
        assert_eq!(takes(&budget, at(0)), 100, "ten a second over ten seconds");
        assert_eq!(takes(&budget, at(9)), 0, "all of the window's are spent");
        assert_eq!(takes(&budget, at(10)), 100, "the window has moved on");
    }

    #[test]
    fn a_busy_service_has_a_fifth() {
        let budget = Budget::default();
        for second in 0..10 {
            (0..200).for_each(|_| budget.request(&policy(), at(second)));
        }
        assert_eq!(takes(&budget, at(9)), 400, "20 % of 2000");
        assert_eq!(takes(&budget, at(18)), 0, "one second of requests is left, and the retries");
        assert_eq!(takes(&budget, at(19)), 100);
    }

    #[test]
    fn ticks_wrap_around_without_a_slip() {
        let budget = Budget::default();
        for hours in [0, 17, 18, 19, 100] {
            assert_eq!(takes(&budget, at(hours * 3600 + 1808)), 100, "{hours}");
        }
    }

    #[test]
    fn backoff_doubles_to_its_cap() {
        for (retry, most) in
            [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (64, 250), (65, 250), (999, 250)]
        {
            let longest = backoff(&policy(), retry, u64::MAX).as_secs_f64() * 1000.0;
            assert!((f64::from(most) - longest).abs() < 0.01, "{retry}: {longest}");
            assert_eq!(backoff(&policy(), retry, 0), Duration::ZERO);
        }
    }

    proptest! {
        #[test]
        fn never_more_retries_than_the_budget(requests in 0u64..3000, moves in 0u64..10) {
            let budget = Budget::default();
            (0..requests).for_each(|_| budget.request(&policy(), at(moves)));
            prop_assert_eq!(takes(&budget, at(moves)) as u64, 100.max(requests / 5));
        }
    }
}
