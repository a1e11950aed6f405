//! Names: which attribute is meant, and what to say when none is.

use cel::common::ast::{Expr, IdedExpr, SelectExpr};
use http::HeaderName;

use super::{Checker, Map, Mistake, Surface, Typed, not_yet};
use crate::{
    attribute::{Attribute, children, lookup, nearest_name},
    form::{Bool, Int, List, Text},
};

/// What CEL's extensions put their functions and types under.
const LIBRARIES: &[&str] =
    &["base64", "cel", "google", "lists", "math", "optional", "regex", "sets", "strings"];

impl Checker<'_> {
    /// `a`, `a.b`, `a.b.c`; or a field of something that has none.
    pub(super) fn name(&mut self, node: &IdedExpr) -> Option<Typed> {
        match path(node) {
            Some(path) => self.resolve(node, &path),
            None => {
                let Expr::Select(select) = &node.expr else { return None };
                let operand = self.any(&select.operand)?;
                let message = format!("{} has no field `{}`", operand.kind(), select.field);
                self.wrong(Mistake::new(self.tree.field_at(node), message))
            }
        }
    }

    /// `has(a.b)`, which only claims will need: what else is absent reads as empty.
    pub(super) fn presence(&mut self, node: &IdedExpr, select: &SelectExpr) -> Option<Typed> {
        let (at, _) = self.tree.callee(node);
        if let Some(mut path) = path(&select.operand) {
            path.push(&select.field);
            if path.starts_with(&["request", "auth"]) {
                return self.resolve(&select.operand, &path);
            }
        }
        self.wrong(Mistake::new(at, not_yet("has")).help("what is absent reads as \"\": compare with that"))
    }

    /// A header's name as a key: a literal in lower case.
    pub(super) fn header_name(&mut self, node: &IdedExpr) -> Option<HeaderName> {
        let (at, key) = (self.tree.at(node), self.key(node, "header")?);
        if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let help = format!("write \"{}\"", key.to_ascii_lowercase());
            return self.wrong(Mistake::new(at, "header keys are written in lower case").help(help));
        }
        let name = HeaderName::from_bytes(key.as_bytes());
        name.ok().or_else(|| self.wrong(Mistake::new(at, format!("{key:?} is not the name of a header"))))
    }

    /// A key into a map: a literal.
    pub(super) fn key(&mut self, node: &IdedExpr, of: &str) -> Option<Box<str>> {
        match self.text(node, &format!("the key of a {of}"))? {
            Text::Const(key) => Some(key),
            Text::Attribute(_) | Text::Header(_) | Text::Param(_) | Text::If(_) | Text::Join(_) => {
                let message = format!("the key of a {of} that is not a literal is not yet supported");
                self.wrong(Mistake::new(self.start(node), message))
            }
        }
    }

    fn resolve(&mut self, node: &IdedExpr, path: &[&str]) -> Option<Typed> {
        let start = self.start(node);
        if path[0] == "request" && self.surface == Surface::Tcp {
            let mistake = Mistake::new(start, "`request` does not exist on TCP");
            return self.wrong(
                mistake.help("a rule that guards a TCP port reads source, destination and connection"),
            );
        }
        let known = (1..=path.len()).rev().find_map(|cut| {
            let name = path[..cut].join(".");
            Some((cut, lookup(&name)?, name))
        });
        let Some((cut, attribute, name)) = known else { return self.wrong(unknown(start, path)) };
        let Some(typed) = value_of(attribute) else { return self.wrong(Mistake::new(start, not_yet(&name))) };
        if cut == path.len() {
            self.reads.add(&name);
            return Some(typed);
        }
        let mistake = Mistake::new(start, format!("`{name}` is {} and has no fields", typed.kind()));
        self.wrong(match typed {
            Typed::Map(_) => mistake.help(format!("write `{name}[\"{}\"]`", path[cut])),
            Typed::Bool(_) | Typed::Text(_) | Typed::Int(_) | Typed::List(_) => mistake,
        })
    }
}

/// The segments of a name. A leading dot only says that the name is complete, as all ours are.
fn path(node: &IdedExpr) -> Option<Vec<&str>> {
    match &node.expr {
        Expr::Ident(root) => Some(vec![root.trim_start_matches('.')]),
        Expr::Select(select) if !select.test => {
            let mut path = path(&select.operand)?;
            path.push(&select.field);
            Some(path)
        }
        Expr::Select(_) | Expr::Call(_) | Expr::Comprehension(_) | Expr::List(_) => None,
        Expr::Literal(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => None,
    }
}

/// `None` for what is known but not yet supported.
fn value_of(attribute: Attribute) -> Option<Typed> {
    Some(match attribute {
        Attribute::Text(text) => Typed::Text(Text::Attribute(text)),
        Attribute::Int(int) => Typed::Int(Int::Attribute(int)),
        Attribute::Mtls => Typed::Bool(Bool::Mtls),
        Attribute::Services => Typed::List(List::Services),
        Attribute::Headers => Typed::Map(Map::Headers),
        Attribute::QueryParams => Typed::Map(Map::QueryParams),
        Attribute::Later(_) => return None,
    })
}

fn unknown(start: usize, path: &[&str]) -> Mistake {
    if LIBRARIES.contains(&path[0]) {
        return Mistake::new(start, not_yet(path[0]));
    }
    let name = path.join(".");
    let members = children(&name);
    if !members.is_empty() {
        let help = format!("it holds {}", members.join(", "));
        return Mistake::new(start, format!("`{name}` is not a value by itself")).help(help);
    }
    let group =
        (0..path.len()).rev().map(|cut| path[..cut].join(".")).find(|group| !children(group).is_empty());
    let group = group.unwrap_or_default();
    let known = children(&group).join(", ");
    let known =
        if group.is_empty() { format!("known are {known}") } else { format!("`{group}` holds {known}") };
    Mistake::new(start, format!("unknown name `{name}`")).help(match nearest_name(&name) {
        Some(near) => format!("did you mean `{near}`? {known}"),
        None => known,
    })
}
