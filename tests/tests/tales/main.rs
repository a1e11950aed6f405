//! What users of Weft may rely on, told over real processes and looked at from outside. One program, which is linked
//! once; tales run one after the other ([`weft_tests::harness::Turn`]).
//!
//! The binaries have to be built in the profile of the tests: `cargo build --release -p weft-cli -p weft-dataplane`.

mod git;
mod lab;
mod mesh;
mod store;
