//! Collects what is wrong with one document, or with one object once it is read.

use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic, Position, Positions};
use crate::admin::Severity;

/// More of a severity are not told: a commit with so many is wrong as a whole.
pub const MAX_DIAGNOSTICS: usize = 1_000;

/// The mistakes of one document.
pub(crate) struct Report<'a> {
    pub file: &'a Arc<str>,
    pub positions: &'a Positions,
    /// The pointers at which something was wrong.
    pub flaws: Vec<String>,
    pub diagnostics: &'a mut Vec<Diagnostic>,
    /// What the patterns of routes take that were read so far, in this document and before it.
    pub pattern_bytes: usize,
}

/// Whether more of a severity would not be told.
pub fn is_full(told: &[Diagnostic], severity: Severity) -> bool {
    told.len() >= MAX_DIAGNOSTICS
        && told.iter().filter(|one| one.severity == severity).count() >= MAX_DIAGNOSTICS
}

// What is full is asked first: to find where a mistake stands, and whether it follows from another, takes time that
// grows with the file, and a file may hold very many.
impl Report<'_> {
    /// Tells a mistake at `pointer`, which stands at `at`, unless it only follows from an earlier one.
    pub fn add(&mut self, pointer: &str, at: Position, code: Code, message: String, help: Option<String>) {
        if !self.is_full(Severity::Error) && !self.follows(pointer, code) {
            self.tell(pointer, at, code, message, help);
        }
    }

    /// Tells a mistake that follows from nothing.
    pub fn tell(&mut self, pointer: &str, at: Position, code: Code, message: String, help: Option<String>) {
        if !self.is_full(Severity::Error) {
            self.flaws.push(pointer.to_owned());
            self.push(Severity::Error, at, code, message, help);
        }
    }

    /// Tells what is let pass at `pointer`, unless it follows from a mistake. It explains no other away.
    pub fn warn(&mut self, pointer: &str, code: Code, message: String, help: Option<String>) {
        if !self.is_full(Severity::Warning) && !self.follows(pointer, code) {
            self.push(Severity::Warning, self.positions.at(pointer), code, message, help);
        }
    }

    fn push(&mut self, severity: Severity, at: Position, code: Code, message: String, help: Option<String>) {
        let file = self.file.clone();
        self.diagnostics.push(Diagnostic { file, at, code, message, help, severity });
    }

    /// Whether more would not be told.
    pub fn is_full(&self, severity: Severity) -> bool {
        is_full(self.diagnostics, severity)
    }

    /// What is wrong inside a value explains what is wrong with the value: a port that was no number and left out
    /// is not missing too. What is wrong with a field that says how its neighbours are read explains them.
    fn follows(&self, pointer: &str, code: Code) -> bool {
        let inside = |flaw: &str| {
            flaw.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        let steers = |flaw: &str| {
            let field = flaw.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/'));
            matches!(field, Some("type" | "kind" | "group" | "namespace")) && !parent.is_empty()
        };
        match code {
            Code::MissingField => self.flaws.iter().any(|flaw| flaw == pointer),
            _ => self.flaws.iter().any(|flaw| inside(flaw) || steers(flaw)),
        }
    }

    /// [`Report::add`] for a value that is there: at the value.
    pub fn value(&mut self, pointer: &str, code: Code, message: impl Into<String>) {
        if !self.is_full(Severity::Error) && !self.follows(pointer, code) {
            self.tell(pointer, self.positions.at(pointer), code, message.into(), None);
        }
    }
}
