//! YAML as a tree in which every key and value knows where it stands.
//!
//! Invariant: bounded in depth, nodes and documents; no aliases, so a small file cannot unfold into a large one.

use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput};
use serde_json::Value as Json;

use super::diagnostic::{Code, Position};

/// Deeper than any kind needs.
const MAX_DEPTH: usize = 48;
/// Keys and values of one file.
const MAX_NODES: usize = 200_000;
/// Keys of one mapping, which are compared with each other.
const MAX_KEYS: usize = 2_000;
/// Documents of one file.
const MAX_DOCUMENTS: usize = 2_000;

/// A value and where it begins.
#[derive(Debug)]
pub(crate) struct Node {
    pub at: Position,
    pub value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(crate) enum Value {
    Scalar { text: String, style: ScalarStyle },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key, where it stands, and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: Position,
    pub node: Node,
}

/// What was wrong while the tree was built.
pub(crate) type Fault = (Position, Code, String);

/// The documents of one file that are not empty. A syntax error ends it; what stood before is kept.
pub(crate) fn documents(text: &str, faults: &mut Vec<Fault>) -> Vec<Arc<Node>> {
    let mut builder = Builder { parser: Parser::new_from_str(text), nodes: 0, faults };
    let mut documents = Vec::new();
    if let Err(fault) = builder.stream(&mut documents) {
        faults.push(fault);
    }
    documents
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    nodes: usize,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                Err((position(*error.marker()), Code::Syntax, format!("not YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn stream(&mut self, documents: &mut Vec<Arc<Node>>) -> Result<(), Fault> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), span) if documents.len() == MAX_DOCUMENTS => {
                    return Err((
                        position(span.start),
                        Code::Limit,
                        format!("more than {MAX_DOCUMENTS} documents in one file: split it"),
                    ));
                }
                (Event::DocumentStart(_), span) => {
                    let node = self.node(position(span.start), 0)?;
                    if node.json_scalar() != Some(Json::Null) {
                        documents.push(Arc::new(node));
                    }
                }
                _ => {}
            }
        }
    }

    /// The next node. `fallback` is where a value without any text is said to be: at its key.
    fn node(&mut self, fallback: Position, depth: usize) -> Result<Node, Fault> {
        let (event, span) = self.next()?;
        self.begin(event, span, fallback, depth)
    }

    fn begin(
        &mut self,
        event: Event<'a>,
        span: Span,
        fallback: Position,
        depth: usize,
    ) -> Result<Node, Fault> {
        let at = position(span.start);
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err((
                at,
                Code::Limit,
                format!("deeper than {MAX_DEPTH} levels or more than {MAX_NODES} values in one file"),
            ));
        }
        if let Event::Scalar(_, _, _, Some(_))
        | Event::SequenceStart(_, Some(_))
        | Event::MappingStart(_, Some(_)) = &event
        {
            self.faults.push((
                at,
                Code::Syntax,
                "YAML tags are not read: leave the tag out, and quote what is to be text".into(),
            ));
        }
        match event {
            Event::Scalar(_, ScalarStyle::Plain, _, _) if span.is_empty() => Ok(Node {
                at: fallback,
                value: Value::Scalar { text: String::new(), style: ScalarStyle::Plain },
            }),
            Event::Scalar(text, style, _, _) => {
                Ok(Node { at, value: Value::Scalar { text: text.into_owned(), style } })
            }
            Event::SequenceStart(..) => Ok(Node { at, value: Value::Sequence(self.sequence(at, depth)?) }),
            Event::MappingStart(..) => Ok(Node { at, value: Value::Mapping(self.mapping(depth)?) }),
            Event::Alias(_) => {
                Err((at, Code::Syntax, "YAML aliases are not read: write the value out".into()))
            }
            _ => Err((at, Code::Syntax, "not YAML: a value was expected".into())),
        }
    }

    fn sequence(&mut self, at: Position, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.begin(event, span, at, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (key, key_at) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(text, ..), span) => (text.into_owned(), position(span.start)),
                (_, span) => return Err((position(span.start), Code::Syntax, "a key must be text".into())),
            };
            if entries.len() == MAX_KEYS {
                return Err((key_at, Code::Limit, format!("more than {MAX_KEYS} keys in one mapping")));
            }
            let node = self.node(key_at, depth + 1)?;
            match entries.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    self.faults.push((
                        key_at,
                        Code::DuplicateKey,
                        format!("`{key}` is given twice: also at line {}", first.key_at.line),
                    ));
                }
                None => entries.push(Entry { key, key_at, node }),
            }
        }
    }
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line().max(1) as u32, column: marker.col() as u32 + 1 }
}

impl Node {
    /// The value under `key`, of a mapping.
    pub fn field(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text of a scalar that is text by the core schema of YAML 1.2.
    pub fn text(&self) -> Option<&str> {
        match (&self.value, self.json_scalar()) {
            (Value::Scalar { text, .. }, Some(Json::String(_))) => Some(text),
            _ => None,
        }
    }

    /// A scalar as JSON, by the core schema of YAML 1.2: only plain scalars may be anything but text.
    ///
    /// Numbers that YAML 1.1 and 1.2 read differently (`010`) and what JSON lacks (`.inf`) stay text.
    pub fn json_scalar(&self) -> Option<Json> {
        let Value::Scalar { text, style } = &self.value else { return None };
        if *style != ScalarStyle::Plain {
            return Some(Json::String(text.clone()));
        }
        Some(match text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Json::Null,
            "true" | "True" | "TRUE" => Json::Bool(true),
            "false" | "False" | "FALSE" => Json::Bool(false),
            text => number(text).unwrap_or_else(|| Json::String(text.to_owned())),
        })
    }

    /// What it is, as a message says it.
    pub fn describe(&self) -> String {
        match (&self.value, self.json_scalar()) {
            (Value::Mapping(_), _) => "a mapping".into(),
            (Value::Sequence(_), _) => "a list".into(),
            (_, Some(Json::Null)) => "nothing".into(),
            (_, Some(Json::String(text))) => {
                format!("text `{}`", text.chars().take(40).collect::<String>().trim_end())
            }
            (_, scalar) => format!("`{}`", scalar.unwrap_or_default()),
        }
    }
}

/// A number that needs no interpretation: JSON's own syntax, with an optional `+`.
fn number(text: &str) -> Option<Json> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if !digits.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    serde_json::from_str(digits).ok()
}
