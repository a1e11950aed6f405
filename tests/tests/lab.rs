//! What holds on real networks, told in the laboratory of namespaces.
//!
//! It takes root, `ip` and `nft` (`scripts/setup lab`), which is why these tales are a program of their own: whoever
//! may not do that can still run the others. The binaries have to be built in the profile of the tests.

#[path = "lab/capture.rs"]
mod capture;
#[path = "lab/hosts.rs"]
mod hosts;
#[path = "lab/partitions.rs"]
mod partitions;
