//! How load is shared among priorities, or among the groups of a distribution (Envoy's arithmetic).

use api::wire::{Distribution, Locality};

use super::priority::Place;

/// Percent of its load that a priority can carry: `min(100, overprovisioning * healthy / total)`.
pub fn health(healthy: u64, total: u64, overprovisioning: u32) -> u32 {
    if total == 0 {
        return 0;
    }
    (u64::from(overprovisioning) * healthy / total).min(100) as u32
}

/// The percentages that priorities with `(healthy, total)` endpoints get. They sum to 100 unless there is no
/// priority at all; when nothing is healthy, the first that has endpoints gets all.
pub fn shares(levels: &[(u64, u64)], overprovisioning: u32) -> Vec<u32> {
    let health: Vec<u32> = levels.iter().map(|&(h, t)| health(h, t, overprovisioning)).collect();
    let total = health.iter().sum::<u32>().min(100);
    let mut left = 100;
    let mut shares: Vec<u32> = health
        .iter()
        .map(|&health| {
            let share = (health * 100 + total / 2).checked_div(total).unwrap_or(0).min(left);
            left -= share;
            share
        })
        .collect();
    let first = health.iter().position(|&h| h > 0).or_else(|| levels.iter().position(|&(_, t)| t > 0));
    if let Some(share) = shares.get_mut(first.unwrap_or(0)) {
        *share += left;
    }
    shares
}

/// In which priorities ejections are ignored: total health is below 100 % and less than `threshold` percent
/// of it is healthy. A threshold of 0 turns panic off.
pub fn panics(levels: &[(u64, u64)], overprovisioning: u32, threshold: u32) -> Vec<bool> {
    let total: u32 = levels.iter().map(|&(h, t)| health(h, t, overprovisioning)).sum();
    levels.iter().map(|&(h, t)| total < 100 && h * 100 < u64::from(threshold) * t).collect()
}

/// The percentages of groups with `(percent, healthy, total)`: each has its percent, less what of it is not
/// healthy; what is lost moves to the others. When nothing is healthy they keep their percents.
pub fn distribute(groups: &[(u32, u64, u64)], overprovisioning: u32) -> Vec<u32> {
    let weigh = |alive: bool| -> Vec<u64> {
        let part = |&(percent, h, t): &(u32, u64, u64)| {
            let health = if alive { health(h, t, overprovisioning) } else { 100 * u32::from(t > 0) };
            u64::from(percent) * u64::from(health)
        };
        groups.iter().map(part).collect()
    };
    let alive = weigh(true);
    if alive.iter().any(|&weight| weight > 0) {
        return percents(&alive);
    }
    // Every group that has a percent is dead: whoever is left takes all.
    let rest: Vec<(u64, u64)> =
        groups.iter().map(|&(percent, h, t)| (h * u64::from(percent == 0), t)).collect();
    if rest.iter().any(|&(h, _)| h > 0) {
        return shares(&rest, overprovisioning);
    }
    let kept = weigh(false);
    if kept.iter().any(|&weight| weight > 0) { percents(&kept) } else { shares(&rest, overprovisioning) }
}

/// Weights as percentages that sum to 100; by largest remainder, so that no weight is favoured.
fn percents(weights: &[u64]) -> Vec<u32> {
    let total: u64 = weights.iter().sum();
    let mut percents: Vec<u32> = weights.iter().map(|w| (w * 100 / total) as u32).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(weights[i] * 100 % total));
    let missing = 100 - percents.iter().sum::<u32>() as usize;
    order.into_iter().take(missing).for_each(|i| percents[i] += 1);
    percents
}

/// The rule of a distribution that is meant for `own`: the one for its zone before the one for its region.
pub fn rule_for<'a>(own: &Place, rules: &'a [Distribution]) -> Option<&'a Distribution> {
    let zone = format!("{}/{}", own.region, own.zone);
    let find = |from: &str| rules.iter().find(|rule| rule.from == from);
    find(&zone).or_else(|| find(&own.region))
}

/// The group of `rule` that an endpoint belongs to: its zone's before its region's; `None` when the rule
/// gives it nothing, and it takes load only once no group can.
pub fn group<'a>(rule: &'a Distribution, locality: Option<&Locality>) -> Option<&'a str> {
    let locality = locality?;
    let find = |key: &str| rule.to.get_key_value(key).map(|(key, _)| key.as_str());
    find(&format!("{}/{}", locality.region, locality.zone)).or_else(|| find(&locality.region))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_of_shares() {
        let table: &[(&[u64], &[u32])] = &[
            (&[100, 100], &[100, 0]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[0, 100], &[0, 100]),
            (&[25, 25], &[50, 50]),
            (&[25, 25, 100], &[35, 35, 30]),
            (&[25, 25, 20], &[36, 36, 28]),
            (&[0, 0], &[100, 0]),
            (&[100], &[100]),
            (&[], &[]),
        ];
        for (percents, expect) in table {
            let levels: Vec<_> = percents.iter().map(|&percent| (percent, 100)).collect();
            assert_eq!(&shares(&levels, 140), expect, "{percents:?}");
        }
        assert_eq!(shares(&[(0, 0), (0, 3)], 140), [0, 100], "an empty priority gets nothing");
        assert_eq!(shares(&[(50, 100), (1, 1)], 100), [50, 50], "without overprovisioning");
    }

    #[test]
    fn panic_needs_both_a_sick_mesh_and_a_sick_priority() {
        assert_eq!(panics(&[(1, 4), (4, 4)], 140, 50), [false, false], "the other carries all");
        assert_eq!(panics(&[(1, 4), (1, 4)], 140, 50), [true, true]);
        assert_eq!(panics(&[(2, 4), (0, 4)], 140, 50), [false, true], "half is not below half");
        assert_eq!(panics(&[(0, 4)], 140, 0), [false], "off");
    }

    #[test]
    fn a_distribution_moves_on_from_what_is_dead() {
        let check = |what: &str, groups: &[(u32, u64, u64)], expect: &[u32]| {
            assert_eq!(distribute(groups, 140), expect, "{what}");
        };
        check("as written", &[(50, 2, 2), (50, 2, 2)], &[50, 50]);
        check("enough is left", &[(50, 3, 4), (50, 2, 2)], &[50, 50]);
        check("half is left", &[(50, 1, 2), (50, 2, 2)], &[41, 59]);
        check("one is dead", &[(50, 0, 2), (50, 2, 2)], &[0, 100]);
        check("a group without endpoints", &[(80, 0, 0), (20, 2, 2)], &[0, 100]);
        check("all are dead, others are not", &[(80, 0, 2), (20, 0, 2), (0, 1, 1)], &[0, 0, 100]);
        check("the others wait", &[(80, 2, 2), (20, 2, 2), (0, 1, 1)], &[80, 20, 0]);
        check("all are dead", &[(80, 0, 2), (20, 0, 2)], &[80, 20]);
    }

    #[test]
    fn a_zone_is_named_before_its_region() {
        let to = [("eu/a".to_owned(), 60), ("eu".to_owned(), 40)].into();
        let rules =
            [Distribution { from: "eu".into(), to }, Distribution { from: "eu/a".into(), to: [].into() }];
        let at = |region: &str, zone: &str| Locality {
            region: region.into(),
            zone: zone.into(),
            ..Locality::default()
        };
        assert_eq!(group(&rules[0], Some(&at("eu", "a"))), Some("eu/a"));
        assert_eq!(group(&rules[0], Some(&at("eu", "b"))), Some("eu"));
        assert_eq!(group(&rules[0], Some(&at("us", "a"))), None);
        let own = |zone: &str| Place { region: "eu".into(), zone: zone.into(), ..Place::default() };
        assert_eq!(rule_for(&own("a"), &rules).unwrap().from, "eu/a");
        assert_eq!(rule_for(&own("b"), &rules).unwrap().from, "eu");
    }

    prop_compose! {
        fn level()(total in 0u64..50)(healthy in 0..=total, total in Just(total)) -> (u64, u64) {
            (healthy, total)
        }
    }

    proptest! {
        #[test]
        fn shares_sum_to_100(levels in prop::collection::vec(level(), 1..8), over in 100u32..300) {
            prop_assert_eq!(shares(&levels, over).iter().sum::<u32>(), 100);
        }

        #[test]
        fn the_dead_get_nothing_while_another_lives(levels in prop::collection::vec(level(), 1..8)) {
            let lives = levels.iter().any(|&(healthy, total)| health(healthy, total, 140) > 0);
            for (share, (healthy, _)) in shares(&levels, 140).iter().zip(&levels) {
                prop_assert!(!lives || *healthy > 0 || *share == 0);
            }
        }

        #[test]
        fn distributions_sum_to_100(
            groups in prop::collection::vec((0u32..=100, level()), 1..8), over in 100u32..300,
        ) {
            let groups: Vec<_> = groups.into_iter().map(|(percent, (h, t))| (percent, h, t)).collect();
            prop_assert_eq!(distribute(&groups, over).iter().sum::<u32>(), 100);
        }
    }
}
