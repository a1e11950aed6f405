//! Which endpoint is how near, and how much of the load each distance takes. The proxy balances by this, and
//! `explain` tells by it.

pub mod load;
pub mod priority;

pub use priority::Place;
