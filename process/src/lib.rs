//! What every Weft process does: start, readiness, admin listener, logs, tracked tasks, drain.
//!
//! The edges that both planes share, and nothing of what they decide. One noun a module; each takes a
//! [`shutdown::Shutdown`] where it runs tasks, and sockets from its caller where it listens.

mod accept;
pub mod access_log;
pub mod admin;
pub mod around;
pub mod config;
pub mod files;
pub mod limits;
pub mod logs;
pub mod metrics;
mod queue;
pub mod rpc;
pub mod shutdown;
pub mod tls;
pub mod trace;
pub mod world;
