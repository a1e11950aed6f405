//! What is wrong with a commit, and where: file, line and column.

use std::{fmt, sync::Arc};

use saphyr_parser::ScalarStyle;
use serde::{Deserialize, Serialize};

use super::tree::{Node, Value};
use crate::admin::{Problem, Severity};

/// A place in a file; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// From 1; 0 when it is about the whole file or repository.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

/// What sort of mistake it is; stable, for tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Not YAML, or YAML that is not read.
    Syntax,
    /// Too large.
    Limit,
    /// A key twice in one mapping.
    DuplicateKey,
    /// No such kind or apiVersion.
    UnknownKind,
    /// No such field.
    UnknownField,
    /// A field that must be there is not.
    MissingField,
    /// A list where text was expected, and the like.
    WrongType,
    /// The right type, a wrong value.
    BadValue,
    /// Standard, but not implemented.
    NotYetSupported,
    /// Two objects at one key.
    DuplicateObject,
    /// Where the object applies is contradictory or unknown.
    Placement,
    /// What it refers to does not exist.
    UnresolvedReference,
    /// It refers to what it may not.
    Forbidden,
    /// Another source's to say.
    Ownership,
    /// Two things that exclude each other.
    Conflict,
    /// A CEL expression that does not type-check.
    Expression,
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file, relative to the configuration's root.
    pub file: Arc<str>,
    /// Where in it.
    #[serde(flatten)]
    pub at: Position,
    /// What sort.
    pub code: Code,
    /// What is wrong, and what was expected.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Whether it refuses the commit.
    #[serde(default)]
    pub severity: Severity,
}

impl Diagnostic {
    /// Whether it refuses the commit.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    /// `clusters/x.yaml:3:7: what is wrong (what to do)`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warning = if self.is_error() { "" } else { "warning: " };
        match self.at.line {
            0 => write!(out, "{}: {warning}{}", self.file, self.message)?,
            line => write!(out, "{}:{line}:{}: {warning}{}", self.file, self.at.column, self.message)?,
        }
        self.help.iter().try_for_each(|help| write!(out, " ({help})"))
    }
}

impl From<&Diagnostic> for Problem {
    fn from(own: &Diagnostic) -> Self {
        Problem {
            file: own.file.to_string(),
            line: own.at.line,
            column: own.at.column,
            message: own.message.clone(),
            help: own.help.clone(),
            severity: own.severity,
        }
    }
}

/// Where the parts of one object stand. Kept beside the resource, never in it.
#[derive(Clone)]
pub struct Positions {
    pub(crate) tree: Arc<Node>,
    pub(crate) source: Arc<str>,
}

impl fmt::Debug for Positions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Positions({:?})", self.tree.at)
    }
}

impl Positions {
    /// Of an object whose text is not at hand: all of it stands at its first line.
    pub(crate) fn at_line(line: u32) -> Self {
        let node = Node { at: Position { line, column: 1 }, value: Value::Mapping(vec![]) };
        Positions { tree: node.into(), source: "".into() }
    }

    /// Where the value at a JSON pointer (`/spec/rules/0/when`) stands; for a block scalar its first character of
    /// content. Of a pointer that leads nowhere, the deepest part that exists.
    pub fn at(&self, pointer: &str) -> Position {
        let (node, ..) = self.walk(pointer);
        match &node.value {
            Value::Scalar { text, .. } if !text.is_empty() => self.within(pointer, 0),
            _ => node.at,
        }
    }

    /// Whether there is something at a JSON pointer.
    pub fn has(&self, pointer: &str) -> bool {
        self.walk(pointer).2
    }

    /// Where the key at a JSON pointer stands; of a list's item, the item itself.
    pub fn key_at(&self, pointer: &str) -> Position {
        self.walk(pointer).1
    }

    /// Where the byte at `offset` of the text at a JSON pointer stands in the file.
    ///
    /// The text and its source are followed side by side, blind to white space and skipping what only the source
    /// has (quotes, indentation, escapes), so it holds for every style of scalar.
    pub fn within(&self, pointer: &str, offset: usize) -> Position {
        let (node, ..) = self.walk(pointer);
        let Value::Scalar { text, style } = &node.value else { return node.at };
        let mut cursor = Cursor::at(&self.source, node.at);
        match style {
            ScalarStyle::Literal | ScalarStyle::Folded
                if self.source_char(node.at).is_some_and(|c| "|>".contains(c)) =>
            {
                cursor.line_feed()
            }
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => cursor.step(),
            _ => {}
        }
        let mut after = cursor.at;
        for (index, char) in text.char_indices() {
            if char.is_whitespace() {
                if index >= offset {
                    return after;
                }
                continue;
            }
            if !cursor.seek(char) {
                return node.at;
            }
            if index >= offset {
                return cursor.at;
            }
            cursor.step();
            after = cursor.at;
        }
        after
    }

    fn source_char(&self, at: Position) -> Option<char> {
        Cursor::at(&self.source, at).rest.chars().next()
    }

    /// The deepest node there is, where its key stands, and whether it is the one that was asked for.
    fn walk(&self, pointer: &str) -> (&Node, Position, bool) {
        let mut node = &*self.tree;
        let mut key_at = node.at;
        for part in pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            match &node.value {
                Value::Mapping(entries) => match entries.iter().find(|entry| entry.key == part) {
                    Some(entry) => (node, key_at) = (&entry.node, entry.key_at),
                    None => return (node, key_at, false),
                },
                Value::Sequence(items) => match part.parse().ok().and_then(|index: usize| items.get(index)) {
                    Some(item) => (node, key_at) = (item, item.at),
                    None => return (node, key_at, false),
                },
                Value::Scalar { .. } => return (node, key_at, false),
            }
        }
        (node, key_at, true)
    }
}

/// A place in a text that moves on character by character.
struct Cursor<'a> {
    rest: &'a str,
    at: Position,
}

impl<'a> Cursor<'a> {
    fn at(source: &'a str, at: Position) -> Self {
        let line_start: usize =
            source.split_inclusive('\n').take(at.line.saturating_sub(1) as usize).map(str::len).sum();
        let line = &source[line_start..];
        let skipped = line
            .char_indices()
            .nth(at.column.saturating_sub(1) as usize)
            .map_or(line.len(), |(index, _)| index);
        Cursor { rest: &line[skipped..], at }
    }

    fn step(&mut self) {
        let mut chars = self.rest.chars();
        match chars.next() {
            Some('\n') => self.at = Position { line: self.at.line + 1, column: 1 },
            Some(_) => self.at.column += 1,
            None => {}
        }
        self.rest = chars.as_str();
    }

    fn line_feed(&mut self) {
        while self.rest.chars().next().is_some_and(|c| c != '\n') {
            self.step();
        }
        self.step();
    }

    fn seek(&mut self, wanted: char) -> bool {
        while let Some(found) = self.rest.chars().next() {
            if found == wanted {
                return true;
            }
            self.step();
        }
        false
    }
}
