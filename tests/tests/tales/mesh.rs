//! What a user of `weft up` may rely on, told over real processes and looked at from outside.

mod abandoned;
mod architecture;
mod certificates;
mod check;
mod controlplane;
mod etcd;
mod gateways;
mod held;
mod isolation;
mod join;
mod kills;
mod members;
mod operators;
mod page;
mod restore;
mod robust;
mod rule;
mod sources;
mod stops;
mod webhook;

use weft_tests::harness::Blocks;

/// East takes 127.20, 127.22, ...
static BLOCKS: Blocks = Blocks::from(20);
