//! The control plane: Git, store, registry, snapshot, push, admin API.

pub mod git;
pub mod store;
