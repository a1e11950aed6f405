//! A running mesh of real processes, looked at from outside: its addresses, its repository, its command line, its
//! logs. Nothing in here knows how Weft works inside, but for the shapes of its admin API.
//!
//! Invariants: nothing waits for luck: every wait names what it waits for and has an end. What a mesh started is
//! gone once its value is dropped, or the drop fails the test.

pub mod client;
pub mod collector;
pub mod disk;
pub mod document;
pub mod etcd;
pub mod explanations;
pub mod git;
pub mod load;
pub mod logs;
pub mod machine;
pub mod mesh;
pub mod prober;
pub mod repository;
pub mod shop;
pub mod stranger;
pub mod ticks;
pub mod turn;
pub mod up;
pub mod webhook;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;

pub use self::{
    client::{Answer, Client, Hop},
    collector::Collector,
    disk::SmallDisk,
    etcd::{EtcdServer, copy},
    load::Load,
    mesh::{Blocks, Mesh},
    prober::Prober,
    repository::Repository,
    stranger::Stranger,
    turn::Turn,
};

/// How often a condition is asked again.
const POLL: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none by the deadline; with the last reason.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) if Instant::now() >= deadline => panic!("not within {within:?}: {what}: {why}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The `weft` binary of the profile that the running program was built with, `weft-proxy` beside it.
pub fn weft() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let mut built = me.ancestors().skip(1).take(2).map(|dir| dir.join("weft"));
    built.find(|weft| weft.is_file() && weft.with_file_name("weft-proxy").is_file()).with_context(|| {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        format!(
            "weft and weft-proxy are not beside {}: `cargo build{release} -p weft-cli -p weft-dataplane` makes them",
            me.display()
        )
    })
}
