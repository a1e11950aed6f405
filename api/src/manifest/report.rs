//! Collects what is wrong with one document, or with one object once it is read.

use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic, Position, Positions};

/// More are not told: a commit with so many is wrong as a whole.
pub(crate) const MAX_DIAGNOSTICS: usize = 1_000;

/// The mistakes of one document.
pub(crate) struct Report<'a> {
    pub file: &'a Arc<str>,
    pub positions: &'a Positions,
    /// The pointers at which something was wrong.
    pub flaws: Vec<String>,
    pub diagnostics: &'a mut Vec<Diagnostic>,
}

impl Report<'_> {
    /// Tells a mistake at `pointer`, which stands at `at`.
    ///
    /// What follows from an earlier mistake inside the same value is not told: a port that was left out because
    /// it was no number is not missing too.
    pub fn add(&mut self, pointer: &str, at: Position, code: Code, message: String, help: Option<String>) {
        let follows = |flaw: &String| {
            flaw.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let second = !matches!(code, Code::UnknownField | Code::MissingField | Code::DuplicateKey);
        if second && self.flaws.iter().any(follows) || self.diagnostics.len() >= MAX_DIAGNOSTICS {
            return;
        }
        self.flaws.push(pointer.to_owned());
        self.diagnostics.push(Diagnostic { file: self.file.clone(), at, code, message, help });
    }

    /// The same for a value that is there: at the value.
    pub fn value(&mut self, pointer: &str, code: Code, message: impl Into<String>) {
        self.add(pointer, self.positions.at(pointer), code, message.into(), None);
    }
}
