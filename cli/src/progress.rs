//! What long work is at, on one line of a terminal's stderr; nothing when stderr is no terminal.

use std::io::{IsTerminal, Write};

/// One line that is written over.
pub(crate) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Progress { terminal: std::io::stderr().is_terminal() }
    }

    /// Says what is being done now.
    pub(crate) fn at(&self, what: &str) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.at("");
    }
}
