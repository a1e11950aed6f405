//! The typed form of an expression, and its evaluation.
//!
//! One enum for each type, so that evaluation has no type errors to meet: the checker has met them all. What is
//! left is what only the values of a request can bring about, a [`Fault`].

use std::{borrow::Cow, cmp::Ordering};

use http::HeaderName;
use regex::Regex;

use crate::{
    attribute::{self, Reads},
    facts::Facts,
    read,
};

/// Bytes of a string that `+` makes: far above what is compared, far below what would hurt.
const JOINED_BYTES_MAX: usize = 64 * 1024;

/// A checked expression of type bool.
#[derive(Debug, Clone)]
pub struct Expression {
    pub(crate) root: Bool,
    pub(crate) reads: Reads,
    pub(crate) pattern_bytes: usize,
}

impl Expression {
    /// Its value, or why it has none.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Result<bool, Fault> {
        self.root.evaluate(facts)
    }

    /// What it reads.
    pub fn reads(&self) -> Reads {
        self.reads
    }

    /// The memory that its patterns take.
    pub fn pattern_bytes(&self) -> usize {
        self.pattern_bytes
    }
}

/// Why an expression has no value for these facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// CEL's ints have 64 bits and do not wrap.
    #[error("integer overflow")]
    Overflow,
    /// A string made by `+` passed the limit.
    #[error("a string of more than {JOINED_BYTES_MAX} bytes was made")]
    TooLong,
    /// `request` was read on a connection that is not HTTP.
    #[error("the connection carries no HTTP request")]
    NoRequest,
}

/// An expression of type bool.
#[derive(Debug, Clone)]
pub(crate) enum Bool {
    Const(bool),
    Mtls,
    Not(Box<Bool>),
    All(Box<[Bool]>),
    Any(Box<[Bool]>),
    If(Box<(Bool, Bool, Bool)>),
    Bools(Relation, Box<(Bool, Bool)>),
    Texts(Relation, Box<(Text, Text)>),
    Ints(Relation, Box<(Int, Int)>),
    /// Invariant: the strings are sorted.
    TextIsOneOf(Text, Box<[Box<str>]>),
    TextIn(Text, Box<[Text]>),
    IntIn(Int, Box<[Int]>),
    IsService(Text),
    HasHeader(HeaderName),
    HasParam(Box<str>),
    StartsWith(Box<(Text, Text)>),
    EndsWith(Box<(Text, Text)>),
    Contains(Box<(Text, Text)>),
    Matches(Text, Regex),
}

/// An expression of type string.
#[derive(Debug, Clone)]
pub(crate) enum Text {
    Const(Box<str>),
    Attribute(attribute::Text),
    Header(HeaderName),
    Param(Box<str>),
    If(Box<(Bool, Text, Text)>),
    Join(Box<(Text, Text)>),
}

/// An expression of type int.
#[derive(Debug, Clone)]
pub(crate) enum Int {
    Const(i64),
    Attribute(attribute::Int),
    /// In code points, as CEL counts.
    Length(Box<Text>),
    Services,
    If(Box<(Bool, Int, Int)>),
    Negate(Box<Int>),
    Apply(Operator, Box<(Int, Int)>),
}

/// An expression of a list type, to be searched or counted.
#[derive(Debug, Clone)]
pub(crate) enum List {
    Services,
    Texts(Vec<Text>),
    Ints(Vec<Int>),
    Empty,
}

/// How two values of one type are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Arithmetic on ints.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
}

impl Bool {
    fn evaluate(&self, facts: &Facts<'_>) -> Result<bool, Fault> {
        Ok(match self {
            Bool::Const(value) => *value,
            Bool::Mtls => facts.connection.mtls,
            Bool::Not(term) => !term.evaluate(facts)?,
            Bool::All(terms) => return decided_by(false, terms, facts),
            Bool::Any(terms) => return decided_by(true, terms, facts),
            Bool::If(parts) => {
                let (condition, yes, no) = &**parts;
                return if condition.evaluate(facts)? { yes.evaluate(facts) } else { no.evaluate(facts) };
            }
            Bool::Bools(relation, sides) => {
                relation.holds(&sides.0.evaluate(facts)?, &sides.1.evaluate(facts)?)
            }
            Bool::Texts(relation, sides) => {
                relation.holds(&*sides.0.evaluate(facts)?, &*sides.1.evaluate(facts)?)
            }
            Bool::Ints(relation, sides) => {
                relation.holds(&sides.0.evaluate(facts)?, &sides.1.evaluate(facts)?)
            }
            Bool::TextIsOneOf(text, sorted) => {
                let text = text.evaluate(facts)?;
                sorted.binary_search_by(|value| (**value).cmp(&text)).is_ok()
            }
            Bool::TextIn(text, list) => {
                let text = text.evaluate(facts)?;
                return found(list.iter().map(|element| Ok(element.evaluate(facts)? == text)));
            }
            Bool::IntIn(int, list) => {
                let int = int.evaluate(facts)?;
                return found(list.iter().map(|element| Ok(element.evaluate(facts)? == int)));
            }
            Bool::IsService(text) => {
                let text = text.evaluate(facts)?;
                facts.destination.guarded.services.iter().any(|service| service.name.as_str() == text)
            }
            Bool::HasHeader(name) => read::request(facts)?.headers.contains_key(name),
            Bool::HasParam(name) => read::param(read::request(facts)?.query, name).is_some(),
            Bool::StartsWith(sides) => sides.0.evaluate(facts)?.starts_with(&*sides.1.evaluate(facts)?),
            Bool::EndsWith(sides) => sides.0.evaluate(facts)?.ends_with(&*sides.1.evaluate(facts)?),
            Bool::Contains(sides) => sides.0.evaluate(facts)?.contains(&*sides.1.evaluate(facts)?),
            Bool::Matches(text, pattern) => pattern.is_match(&text.evaluate(facts)?),
        })
    }
}

/// CEL's `||` (`decisive` = true) and `&&` (false): one decisive term decides, whatever faults beside it and on
/// whichever side; only when none does, a fault is the result.
fn decided_by(decisive: bool, terms: &[Bool], facts: &Facts<'_>) -> Result<bool, Fault> {
    let mut otherwise = Ok(!decisive);
    for term in terms {
        match term.evaluate(facts) {
            Ok(value) if value == decisive => return Ok(decisive),
            Ok(_) => {}
            Err(fault) => otherwise = otherwise.and(Err(fault)),
        }
    }
    otherwise
}

/// Whether any is equal. A list with a faulty element is itself a fault, so all are looked at.
fn found(mut equal: impl Iterator<Item = Result<bool, Fault>>) -> Result<bool, Fault> {
    equal.try_fold(false, |found, equal| Ok(found | equal?))
}

impl Text {
    fn evaluate<'e>(&'e self, facts: &'e Facts<'_>) -> Result<Cow<'e, str>, Fault> {
        match self {
            Text::Const(value) => Ok(Cow::Borrowed(value)),
            Text::Attribute(attribute) => read::text(facts, *attribute),
            Text::Header(name) => Ok(read::header(read::request(facts)?.headers, name)),
            Text::Param(name) => Ok(read::param(read::request(facts)?.query, name).unwrap_or_default()),
            Text::If(parts) => {
                let (condition, yes, no) = &**parts;
                if condition.evaluate(facts)? { yes.evaluate(facts) } else { no.evaluate(facts) }
            }
            Text::Join(sides) => {
                let (left, right) = (sides.0.evaluate(facts)?, sides.1.evaluate(facts)?);
                if left.len() + right.len() > JOINED_BYTES_MAX {
                    Err(Fault::TooLong)
                } else {
                    Ok(left + right)
                }
            }
        }
    }
}

impl Int {
    fn evaluate(&self, facts: &Facts<'_>) -> Result<i64, Fault> {
        match self {
            Int::Const(value) => Ok(*value),
            Int::Attribute(attribute) => read::int(facts, *attribute),
            Int::Length(text) => Ok(text.evaluate(facts)?.chars().count() as i64),
            Int::Services => Ok(facts.destination.guarded.services.len() as i64),
            Int::If(parts) => {
                let (condition, yes, no) = &**parts;
                if condition.evaluate(facts)? { yes.evaluate(facts) } else { no.evaluate(facts) }
            }
            Int::Negate(int) => int.evaluate(facts)?.checked_neg().ok_or(Fault::Overflow),
            Int::Apply(operator, sides) => {
                let (left, right) = (sides.0.evaluate(facts)?, sides.1.evaluate(facts)?);
                let value = match operator {
                    Operator::Add => left.checked_add(right),
                    Operator::Subtract => left.checked_sub(right),
                    Operator::Multiply => left.checked_mul(right),
                };
                value.ok_or(Fault::Overflow)
            }
        }
    }
}

impl Relation {
    /// Strings are ordered by code point, which is the order of their UTF-8 bytes.
    fn holds<T: Ord + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left.cmp(right) == Ordering::Less,
            Relation::LessOrEqual => left.cmp(right) != Ordering::Greater,
            Relation::Greater => left.cmp(right) == Ordering::Greater,
            Relation::GreaterOrEqual => left.cmp(right) != Ordering::Less,
        }
    }
}
