//! The test harness of Weft: a mesh as a value, tales as tests.

pub mod harness;
pub mod lab;
