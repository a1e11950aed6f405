//! The type checker: a syntax tree becomes a typed form, or all that is wrong with it is said.
//!
//! Invariant: what this checker does not know is a mistake, never a term that is skipped.

mod call;
mod name;

use api::pattern;
use cel::common::ast::{Expr, IdedExpr, ListExpr, LiteralValue};

use crate::{
    attribute::Reads,
    form::{self, Bool, Expression, Int, List, Text},
    syntax::{self, Tree},
};

/// Levels of an expression. A person reads fewer; an evaluator's stack holds more.
const DEPTH_MAX: usize = 64;

/// Something wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Mistake {
    /// The byte of the source where it stands.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, where that can be guessed.
    pub help: Option<String>,
}

impl Mistake {
    pub(crate) fn new(offset: usize, message: impl Into<String>) -> Self {
        Mistake { offset, message: message.into(), help: None }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Mistake { help: Some(help.into()), ..self }
    }
}

/// What kind of port a rule guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// Requests: everything may be read.
    Http,
    /// Connections: there is no `request`.
    Tcp,
}

/// Checks an expression and compiles it, or reports its mistakes in the order in which they stand.
pub fn check(source: &str, surface: Surface) -> Result<Expression, Vec<Mistake>> {
    syntax::apart(|| {
        let tree = syntax::parse(source).map_err(|mistake| vec![mistake])?;
        let mut checker = Checker {
            tree: &tree,
            surface,
            reads: Reads::NONE,
            patterns: pattern::Budget::default(),
            mistakes: Vec::new(),
            depth: 0,
        };
        let root = checker.bool(&tree.root, "a rule");
        let Checker { reads, patterns, mut mistakes, .. } = checker;
        let pattern_bytes = patterns.bytes();
        mistakes.sort_by_key(|mistake| mistake.offset);
        match root {
            Some(root) if mistakes.is_empty() => Ok(Expression { root, reads, pattern_bytes }),
            Some(_) | None => Err(mistakes),
        }
    })
}

/// A checked expression of any type.
enum Typed {
    Bool(Bool),
    Text(Text),
    Int(Int),
    List(List),
    Map(Map),
}

/// The maps there are; only lookups in them are values.
enum Map {
    Headers,
    QueryParams,
}

impl Typed {
    fn kind(&self) -> &'static str {
        match self {
            Typed::Bool(_) => "a bool",
            Typed::Text(_) => "a string",
            Typed::Int(_) => "an int",
            Typed::List(_) => "a list",
            Typed::Map(_) => "a map",
        }
    }
}

struct Checker<'t> {
    tree: &'t Tree<'t>,
    surface: Surface,
    reads: Reads,
    patterns: pattern::Budget,
    mistakes: Vec<Mistake>,
    depth: usize,
}

/// `None` from any of these means that a mistake was noted; the neighbours are checked nevertheless.
impl Checker<'_> {
    fn any(&mut self, node: &IdedExpr) -> Option<Typed> {
        if self.depth == DEPTH_MAX {
            let message = format!("the expression nests deeper than {DEPTH_MAX} levels");
            return self.wrong(Mistake::new(self.start(node), message).help("split it into several rules"));
        }
        self.depth += 1;
        let typed = match &node.expr {
            Expr::Literal(literal) => self.literal(node, literal),
            Expr::Ident(_) => self.name(node),
            Expr::Select(select) if select.test => self.presence(node, select),
            Expr::Select(_) => self.name(node),
            Expr::Call(call) => self.call(node, call),
            Expr::List(list) => self.list(node, list).map(Typed::List),
            Expr::Comprehension(_) => {
                let (at, name) = self.tree.callee(node);
                let message = not_yet(name);
                self.wrong(Mistake::new(at, message))
            }
            Expr::Map(_) => {
                self.wrong(Mistake::new(self.tree.at(node), "a map literal is not yet supported"))
            }
            Expr::Struct(_) => {
                self.wrong(Mistake::new(self.tree.at(node), "a message literal is not yet supported"))
            }
            Expr::Unspecified => self.wrong(Mistake::new(self.tree.at(node), "not an expression")),
        };
        self.depth -= 1;
        typed
    }

    fn bool(&mut self, node: &IdedExpr, wanted_by: &str) -> Option<Bool> {
        match self.any(node)? {
            Typed::Bool(bool) => Some(bool),
            other => self.other_type(node, wanted_by, "a bool", &other),
        }
    }

    fn text(&mut self, node: &IdedExpr, wanted_by: &str) -> Option<Text> {
        match self.any(node)? {
            Typed::Text(text) => Some(text),
            other => self.other_type(node, wanted_by, "a string", &other),
        }
    }

    fn int(&mut self, node: &IdedExpr, wanted_by: &str) -> Option<Int> {
        match self.any(node)? {
            Typed::Int(int) => Some(int),
            other => self.other_type(node, wanted_by, "an int", &other),
        }
    }

    fn literal(&mut self, node: &IdedExpr, literal: &LiteralValue) -> Option<Typed> {
        let later = match literal {
            LiteralValue::Boolean(value) => return Some(Typed::Bool(Bool::Const(*value.inner()))),
            LiteralValue::Int(value) => return Some(Typed::Int(Int::Const(*value.inner()))),
            LiteralValue::String(value) => return Some(Typed::Text(Text::Const(value.inner().into()))),
            LiteralValue::Bytes(_) => "a bytes literal",
            LiteralValue::Double(_) => "a double",
            LiteralValue::UInt(_) => "a uint",
            LiteralValue::Null => "null",
        };
        self.wrong(Mistake::new(self.tree.at(node), format!("{later} is not yet supported")))
    }

    /// A list literal: all strings or all ints.
    fn list(&mut self, node: &IdedExpr, list: &ListExpr) -> Option<List> {
        let elements: Vec<Option<Typed>> = list.elements.iter().map(|element| self.any(element)).collect();
        let (mut texts, mut ints) = (Vec::new(), Vec::new());
        for (typed, element) in elements.into_iter().zip(&list.elements) {
            match typed? {
                Typed::Text(text) => texts.push(text),
                Typed::Int(int) => ints.push(int),
                other @ (Typed::Bool(_) | Typed::List(_) | Typed::Map(_)) => {
                    let message = format!(
                        "a list of strings or ints holds {}, which is not yet supported",
                        other.kind()
                    );
                    return self.wrong(Mistake::new(self.start(element), message));
                }
            }
        }
        match (texts.is_empty(), ints.is_empty()) {
            (true, true) => Some(List::Empty),
            (false, true) => Some(List::Texts(texts)),
            (true, false) => Some(List::Ints(ints)),
            (false, false) => self.wrong(Mistake::new(
                self.tree.at(node),
                "a list holds values of one type, this has strings and ints",
            )),
        }
    }

    fn wrong<T>(&mut self, mistake: Mistake) -> Option<T> {
        self.mistakes.push(mistake);
        None
    }

    fn other_type<T>(&mut self, node: &IdedExpr, wanted_by: &str, wanted: &str, found: &Typed) -> Option<T> {
        let message = format!("{wanted_by} takes {wanted}, this is {}", found.kind());
        self.wrong(Mistake::new(self.start(node), message))
    }

    /// Where an expression begins, its first operand included.
    fn start(&self, node: &IdedExpr) -> usize {
        match &node.expr {
            Expr::Select(select) if !select.test => self.start(&select.operand),
            Expr::Call(call) => match (&call.target, call.args.first()) {
                (Some(target), _) => self.start(target),
                (None, Some(first)) if call.func_name.starts_with(['_', '@']) => self.start(first),
                (None, _) if call.func_name.ends_with('_') => self.tree.at(node),
                (None, _) => self.tree.callee(node).0,
            },
            Expr::Select(_) | Expr::Comprehension(_) => self.tree.callee(node).0,
            Expr::Ident(_) | Expr::List(_) | Expr::Literal(_) => self.tree.at(node),
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => self.tree.at(node),
        }
    }
}

fn not_yet(what: &str) -> String {
    format!("`{what}` is not yet supported")
}

/// `a in [...]`: constants are sorted once, so that a long list costs a short search.
fn text_in(text: Text, list: Vec<Text>) -> Bool {
    let constant = |element: &Text| match element {
        Text::Const(value) => Some(value.clone()),
        Text::Attribute(_) | Text::Header(_) | Text::Param(_) | Text::If(_) | Text::Join(_) => None,
    };
    match list.iter().map(constant).collect::<Option<Vec<Box<str>>>>() {
        Some(mut constants) => {
            constants.sort();
            form::Bool::TextIsOneOf(text, constants.into())
        }
        None => form::Bool::TextIn(text, list.into()),
    }
}
