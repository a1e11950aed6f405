//! Stage five on the way: what is pushed to whom, and what came back.
//!
//! [`Session`] is the protocol of one proxy without IO; [`server`] turns frames into its events and its actions
//! into frames.

mod registry;
pub mod server;
mod session;

pub use registry::{Account, Asked, Enrolled, Proxy, ProxyStream, Registry, RegistryError};
pub use session::{Action, Session};

/// The largest message of a proxy: a `Hello` that names some 40,000 resources.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
