//! What the simulated mesh must hold, at every step of every seed.

use std::{path::Path, process::Command, sync::Mutex};

use simulation::{Options, many, sabotage::Sabotage};

const SIMULATE: &str = env!("CARGO_BIN_EXE_weft-simulate");

/// The failures of these seeds, by seed, and how often each invariant was judged.
fn failures(
    seeds: std::ops::Range<u64>,
    options: Options,
) -> (Vec<String>, std::collections::BTreeMap<String, u64>) {
    let processes = std::thread::available_parallelism().map_or(1, Into::into);
    let failures = Mutex::new(Vec::new());
    let judged = many(Path::new(SIMULATE), seeds, processes, options, |seed, failure| {
        if let Some(failure) = failure {
            failures.lock().unwrap().push(format!("`tests/sim/simulate --seed {seed}`: {failure}"));
        }
    });
    (failures.into_inner().unwrap(), judged)
}

#[test]
fn a_thousand_seeds_hold() {
    let (failures, judged) = failures(0..1_000, Options::default());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for invariant in ["mixture", "denial", "verdict", "endpoints", "wait", "head", "turn", "trust"] {
        assert!(judged.get(invariant).is_some_and(|count| *count > 1_000), "{invariant} of {judged:?}");
    }
}

#[test]
fn a_seed_is_the_same_again() {
    let told = |seed: &str| {
        let output = Command::new(SIMULATE).args(["--seed", seed]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "seed {seed}: {output:?}");
        output.stdout
    };
    for seed in ["3", "14", "159"] {
        assert!(told(seed) == told(seed), "seed {seed}");
    }
}

#[test]
fn whatever_is_broken_on_purpose_is_noticed() {
    for sabotage in Sabotage::ALL {
        // Most of it shows in every seed; an old bundle only where there was a newer one before a restart.
        let look = |from| failures(from..from + 8, Options { sabotage: Some(sabotage) }).0;
        let noticed = (0..40).step_by(8).map(look).find(|failures| !failures.is_empty()).unwrap_or_default();
        let is_right = |failure: &String| {
            sabotage.breaks().iter().any(|invariant| failure.contains(&format!(": {invariant}: ")))
        };
        assert!(!noticed.is_empty() && noticed.iter().all(is_right), "{sabotage:?}: {noticed:?}");
    }
}
