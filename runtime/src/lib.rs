//! Stages six and seven, pure: compile a view, decide a request. One code for the proxy, the gate and `explain`.
//!
//! Invariant: no `async fn`, no clock, no random number, no network. Chance is an argument.

mod compile;
mod decide;
pub mod locality;
pub mod path;
pub mod route;

pub use compile::{Inbound, Listener, Mesh, Reason, Runtime, Service, ServicePort, Workload};
pub use decide::{At, Decision, Flag, Plan, Refusal, Target, split_authority};
