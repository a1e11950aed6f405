//! What must hold of anything that strangers, peers or authors may send: one target a reader of bytes.
//!
//! A target is a function of bytes that panics when something does not hold. `tests/fuzz/run` lets libFuzzer look for
//! such bytes; `seeds/<target>/` holds where it begins and all that it ever found, which the tests here repeat.

mod cel;
mod facts;
mod framing;
mod hello;
mod manifest;
mod path;
mod spiffe;
mod wire;

/// A reader of bytes, and what must hold of it.
pub struct Target {
    /// Its name on the command line, and of its directory of seeds.
    pub name: &'static str,
    /// Panics when something does not hold of these bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "manifest", run: manifest::run },
    Target { name: "wire", run: wire::run },
    Target { name: "hello", run: hello::run },
    Target { name: "framing", run: framing::run },
    Target { name: "path", run: path::run },
    Target { name: "cel", run: cel::run },
    Target { name: "spiffe", run: spiffe::run },
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn what_was_ever_found_stays_mended() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        for Target { name, run } in TARGETS {
            let files: Vec<_> =
                fs::read_dir(seeds.join(name)).unwrap().map(|one| one.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name} has no seeds");
            for file in files {
                eprintln!("{}", file.display());
                run(&fs::read(&file).unwrap());
            }
        }
    }
}
