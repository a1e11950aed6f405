//! Who may know whom. What is written in ARCHITECTURE.md holds because this test says so.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Each crate of the house and the neighbours that its normal dependencies may name.
const MAY_KNOW: [(&str, &[&str]); 11] = [
    ("api", &[]),
    ("policies", &["api"]),
    ("federation", &["api"]),
    ("process", &["api"]),
    ("runtime", &["api", "policies"]),
    // `policies` for the facts that a request is judged by.
    ("dataplane", &["api", "policies", "runtime", "process"]),
    ("controlplane", &["api", "policies", "runtime", "federation", "process"]),
    ("cli", &["api", "policies", "runtime", "federation", "process", "controlplane"]),
    ("tests", &["api", "policies", "runtime", "federation", "process", "controlplane", "dataplane", "cli"]),
    ("fuzz", &["api", "policies", "runtime", "dataplane"]),
    ("simulation", &["api", "policies", "runtime", "federation", "process", "controlplane", "dataplane"]),
];

/// Crates that only one place may use.
const KEPT_INSIDE: [(&str, &str); 3] = [
    ("gix", "controlplane/src/git"),
    ("redb", "controlplane/src/store"),
    ("etcd_client", "controlplane/src/store"),
];

/// What may not be read in a pure crate: no clock, no chance, no network, no waiting.
const IMPURE: [&str; 7] =
    ["async fn", "tokio::", "SystemTime::now", "Instant::now", "UnixTime::now", "std::net::Tcp", "rand::"];
const PURE: [&str; 4] = ["runtime/src", "policies/src", "controlplane/src/snapshot", "api/src"];

/// The ends of files that are tests and nothing else.
const OF_TESTS: [&str; 3] = ["tests.rs", "fixture.rs", "scripted.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn nobody_knows_whom_they_may_not() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root());
    let metadata: Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), MAY_KNOW.len(), "a crate is missing in this test");
    for package in packages {
        let name = package["name"].as_str().unwrap().trim_start_matches("weft-");
        let (_, allowed) = MAY_KNOW.iter().find(|(one, _)| *one == name).expect("a crate of the house");
        let dependencies = package["dependencies"].as_array().unwrap();
        let normal = dependencies.iter().filter(|one| one["kind"].is_null());
        let known: BTreeSet<_> =
            normal.filter_map(|one| one["name"].as_str()?.strip_prefix("weft-")).collect();
        let strangers: Vec<_> = known.iter().filter(|one| !allowed.contains(one)).collect();
        assert!(strangers.is_empty(), "{name} may not know {strangers:?}");
    }
}

#[test]
fn what_is_kept_inside_stays_inside() {
    for (file, text) in sources(&root()) {
        for (name, place) in KEPT_INSIDE {
            let used =
                [format!("{name}::"), format!("use {name};")].iter().any(|use_| text.contains(use_.as_str()));
            let inside =
                file.starts_with(place) || file == format!("{place}.rs") || file.starts_with("tests/");
            assert!(!used || inside, "{file} uses {name}, which belongs in {place}");
        }
    }
}

#[test]
fn pure_code_reads_no_clock_draws_no_number_and_waits_for_nobody() {
    let pure = |file: &str| PURE.iter().any(|pure| file.starts_with(pure));
    for (file, code) in code().into_iter().filter(|(file, _)| pure(file)) {
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{file} is to be pure and has {found:?}: {line}");
        }
    }
}

#[test]
fn no_queue_is_without_a_limit() {
    for (file, code) in code() {
        assert!(!code.contains("unbounded_channel"), "{file} has a queue without a limit");
    }
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    for (file, text) in sources(&root()) {
        for place in [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")] {
            assert!(!text.contains(place), "{file} names {place}");
        }
    }
}

/// What the products are made of, without their tests: path and content.
fn code() -> Vec<(String, String)> {
    let mut code = sources(&root());
    code.retain(|(file, _)| {
        file.ends_with(".rs")
            && !file.starts_with("tests/")
            && !OF_TESTS.iter().any(|end| file.ends_with(end))
    });
    for (_, text) in &mut code {
        // Of the end alone: a module that is for tests may be declared anywhere.
        let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        text.truncate(end);
    }
    code
}

/// The text files of the repository that are under version control or could be: path from its root, and content.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && name != "target" && name != ".git" && name != "weft-up" {
                folders.push(path);
            } else if [".rs", ".toml", ".md", ".yaml", ".json", ".proto"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                let place = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.push((place, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}
