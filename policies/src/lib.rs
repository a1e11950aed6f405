//! The policy language of Weft: facts, the CEL checker, evaluation, verdicts.
//!
//! The way of an expression: text → [`check`] (once, at the gate and at each compile of a view) → [`Expression`],
//! a typed tree that holds attributes as enums → [`Expression::evaluate`] against borrowed [`facts::Facts`], for
//! each request. [`Authorizer`] joins the expressions of all policies that guard one workload.
//!
//! Invariant: pure. No clock, no network, no randomness; nothing is allocated for a request that is allowed by
//! default and whose rules read plain attributes.
//! Invariant: evaluation is total. What cannot be evaluated is a [`Fault`], and a fault never opens a door.

pub mod attribute;
pub mod authorize;
mod check;
pub mod facts;
mod form;
pub mod query;
mod read;
mod syntax;

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod tables;

pub use attribute::{Attribute, Reads};
pub use authorize::{
    Action, Authorizer, By, DefaultAction, Judgement, Mode, Policy, Rule, RuleName, Verdict,
};
pub use check::{Mistake, Surface, check};
pub use form::{Expression, Fault};
