//! What happened in one simulation, line by line, in virtual time.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt::{self, Display},
    sync::Arc,
};

use crate::network::Network;

/// Lines that are kept: enough for minutes of a small mesh.
const KEPT: usize = 20_000;

/// The lines until now.
#[derive(Debug)]
pub struct Trace {
    network: Arc<Network>,
    lines: RefCell<VecDeque<String>>,
}

impl Trace {
    /// No line yet.
    pub fn new(network: Arc<Network>) -> Self {
        Trace { network, lines: RefCell::default() }
    }

    /// Adds a line.
    pub fn line(&self, text: impl Display) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(format!("{:9.3} {text}", self.network.elapsed().as_secs_f64()));
    }

    /// All lines.
    pub fn lines(&self) -> Vec<String> {
        self.lines.borrow().iter().cloned().collect()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.borrow().iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}
