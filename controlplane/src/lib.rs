//! The control plane: Git, store, registry, snapshot, push, admin API.

pub mod admin;
pub mod authority;
pub mod commits;
pub mod config;
pub mod explain;
pub mod follow;
pub mod gate;
pub mod git;
pub mod link;
pub mod metrics;
pub mod ownership;
pub mod plane;
pub mod publish;
pub mod push;
pub mod report;
mod rivals;
mod run;
pub mod serving;
pub mod snapshot;
pub mod store;
pub mod turn;
mod union;
pub mod vault;

pub use run::run;
pub mod webhook;
