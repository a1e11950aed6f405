//! What a user of `weft up` may rely on, told over real processes and looked at from outside.
//!
//! Meshes run one after the other, whatever number of threads the tests have. The binaries have to be built in the
//! profile of the tests: `cargo build --release -p weft-cli -p weft-dataplane`.

#[path = "mesh/abandoned.rs"]
mod abandoned;
#[path = "mesh/architecture.rs"]
mod architecture;
#[path = "mesh/certificates.rs"]
mod certificates;
#[path = "mesh/check.rs"]
mod check;
#[path = "mesh/controlplane.rs"]
mod controlplane;
#[path = "mesh/etcd.rs"]
mod etcd;
#[path = "mesh/gateways.rs"]
mod gateways;
#[path = "mesh/isolation.rs"]
mod isolation;
#[path = "mesh/kills.rs"]
mod kills;
#[path = "mesh/members.rs"]
mod members;
#[path = "mesh/page.rs"]
mod page;
#[path = "mesh/restore.rs"]
mod restore;
#[path = "mesh/robust.rs"]
mod robust;
#[path = "mesh/rule.rs"]
mod rule;
#[path = "mesh/sources.rs"]
mod sources;
#[path = "mesh/stops.rs"]
mod stops;

use weft_tests::harness::Blocks;

/// East takes 127.20, 127.22, ...
static BLOCKS: Blocks = Blocks::from(20);
