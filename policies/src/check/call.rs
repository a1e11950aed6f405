//! Operators and functions.

use cel::common::ast::{CallExpr, IdedExpr, operators};

use super::{Checker, Map, Mistake, Typed, not_yet, text_in};
use crate::{
    attribute::nearest,
    form::{Bool, Int, List, Operator, Relation, Text},
};

/// The functions of CEL's standard library and of the extensions its users know, which a later version brings.
const LATER: &[&str] = &[
    "all",
    "base64",
    "bool",
    "bytes",
    "charAt",
    "cidr",
    "double",
    "duration",
    "dyn",
    "exists",
    "exists_one",
    "existsOne",
    "filter",
    "format",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "has",
    "indexOf",
    "int",
    "ip",
    "isCIDR",
    "isIP",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "map",
    "quote",
    "replace",
    "reverse",
    "split",
    "string",
    "substring",
    "timestamp",
    "trim",
    "type",
    "uint",
    "upperAscii",
];

/// The functions there are.
const FUNCTIONS: &[&str] = &["startsWith", "endsWith", "contains", "matches", "size"];

impl Checker<'_> {
    pub(super) fn call(&mut self, node: &IdedExpr, call: &CallExpr) -> Option<Typed> {
        let relation = |relation| Some((relation, &*call.args));
        let compared = match call.func_name.as_str() {
            operators::EQUALS => relation(Relation::Equal),
            operators::NOT_EQUALS => relation(Relation::NotEqual),
            operators::LESS => relation(Relation::Less),
            operators::LESS_EQUALS => relation(Relation::LessOrEqual),
            operators::GREATER => relation(Relation::Greater),
            operators::GREATER_EQUALS => relation(Relation::GreaterOrEqual),
            _ => None,
        };
        if let Some((relation, [left, right])) = compared {
            return self.comparison(node, relation, left, right);
        }
        match (call.func_name.as_str(), call.target.as_deref(), &*call.args) {
            (operators::LOGICAL_AND, None, [..]) => {
                self.terms(&call.args, "`&&`").map(|terms| Typed::Bool(all(terms)))
            }
            (operators::LOGICAL_OR, None, [..]) => {
                self.terms(&call.args, "`||`").map(|terms| Typed::Bool(any(terms)))
            }
            (operators::LOGICAL_NOT, None, [term]) => Some(Typed::Bool(not(self.bool(term, "`!`")?))),
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                self.conditional(node, condition, yes, no)
            }
            (operators::IN, None, [element, list]) => self.membership(node, element, list).map(Typed::Bool),
            (operators::INDEX, None, [map, key]) => self.lookup(node, map, key).map(Typed::Text),
            (operators::ADD, None, [left, right]) => self.sum(node, left, right),
            (operators::SUBSTRACT, None, [left, right]) => {
                self.arithmetic(Operator::Subtract, "`-`", left, right)
            }
            (operators::MULTIPLY, None, [left, right]) => {
                self.arithmetic(Operator::Multiply, "`*`", left, right)
            }
            (operators::NEGATE, None, [int]) => {
                Some(Typed::Int(Int::Negate(Box::new(self.int(int, "`-`")?))))
            }
            (operators::DIVIDE, None, _) => self.wrong(Mistake::new(self.tree.at(node), not_yet("/"))),
            (operators::MODULO, None, _) => self.wrong(Mistake::new(self.tree.at(node), not_yet("%"))),
            ("size", Some(of), []) | ("size", None, [of]) => self.size(of).map(Typed::Int),
            ("matches", Some(text), [pattern]) => self.matches(text, pattern).map(Typed::Bool),
            (name @ ("startsWith" | "endsWith" | "contains"), Some(text), [part]) => {
                let (text, part) = (self.text(text, &quoted(name)), self.text(part, &quoted(name)));
                let sides = Box::new((text?, part?));
                Some(Typed::Bool(match name {
                    "startsWith" => Bool::StartsWith(sides),
                    "endsWith" => Bool::EndsWith(sides),
                    _ => Bool::Contains(sides),
                }))
            }
            (name, target, _) => self.no_function(node, name, target),
        }
    }

    fn terms(&mut self, args: &[IdedExpr], operator: &str) -> Option<Vec<Bool>> {
        let terms: Vec<Option<Bool>> = args.iter().map(|term| self.bool(term, operator)).collect();
        terms.into_iter().collect()
    }

    fn comparison(
        &mut self,
        node: &IdedExpr,
        by: Relation,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Option<Typed> {
        let sides = (self.any(left), self.any(right));
        Some(Typed::Bool(match (sides.0?, sides.1?) {
            (Typed::Bool(left), Typed::Bool(right)) => Bool::Bools(by, Box::new((left, right))),
            (Typed::Text(left), Typed::Text(right)) => Bool::Texts(by, Box::new((left, right))),
            (Typed::Int(left), Typed::Int(right)) => Bool::Ints(by, Box::new((left, right))),
            (Typed::List(_), Typed::List(_)) | (Typed::Map(_), Typed::Map(_)) => {
                let mistake =
                    Mistake::new(self.tree.at(node), "comparing lists or maps is not yet supported");
                return self.wrong(mistake.help("`in` asks for one value"));
            }
            (left, right) => {
                let message = format!("{} is compared with {}", left.kind(), right.kind());
                return self.wrong(Mistake::new(self.tree.at(node), message));
            }
        }))
    }

    fn conditional(
        &mut self,
        node: &IdedExpr,
        test: &IdedExpr,
        yes: &IdedExpr,
        no: &IdedExpr,
    ) -> Option<Typed> {
        let (test, yes, no) = (self.bool(test, "`?:`"), self.any(yes), self.any(no));
        match (test?, yes?, no?) {
            (test, Typed::Bool(yes), Typed::Bool(no)) => {
                Some(Typed::Bool(Bool::If(Box::new((test, yes, no)))))
            }
            (test, Typed::Text(yes), Typed::Text(no)) => {
                Some(Typed::Text(Text::If(Box::new((test, yes, no)))))
            }
            (test, Typed::Int(yes), Typed::Int(no)) => Some(Typed::Int(Int::If(Box::new((test, yes, no))))),
            (_, yes, no) => {
                let message =
                    format!("`?:` takes two strings, ints or bools, not {} and {}", yes.kind(), no.kind());
                self.wrong(Mistake::new(self.tree.at(node), message))
            }
        }
    }

    fn membership(&mut self, node: &IdedExpr, element: &IdedExpr, list: &IdedExpr) -> Option<Bool> {
        let container = self.any(list);
        if let Some(Typed::Map(map)) = container {
            return match map {
                Map::Headers => self.header_name(element).map(Bool::HasHeader),
                Map::QueryParams => self.key(element, "query parameter").map(Bool::HasParam),
            };
        }
        let element = self.any(element);
        match (element?, container?) {
            (Typed::Text(text), Typed::List(List::Services)) => Some(Bool::IsService(text)),
            (Typed::Text(text), Typed::List(List::Texts(list))) => Some(text_in(text, list)),
            (Typed::Text(text), Typed::List(List::Empty)) => Some(Bool::TextIn(text, Box::default())),
            (Typed::Int(int), Typed::List(List::Ints(list))) => Some(Bool::IntIn(int, list.into())),
            (Typed::Int(int), Typed::List(List::Empty)) => Some(Bool::IntIn(int, Box::default())),
            (element, Typed::List(list)) => {
                let of = match list {
                    List::Services | List::Texts(_) => "strings",
                    List::Ints(_) => "ints",
                    List::Empty => "nothing",
                };
                let message = format!("{} is sought in a list of {of}", element.kind());
                self.wrong(Mistake::new(self.tree.at(node), message))
            }
            (_, other) => self.other_type(list, "`in`", "a list or a map", &other),
        }
    }

    fn lookup(&mut self, node: &IdedExpr, map: &IdedExpr, key: &IdedExpr) -> Option<Text> {
        match self.any(map)? {
            Typed::Map(Map::Headers) => self.header_name(key).map(Text::Header),
            Typed::Map(Map::QueryParams) => self.key(key, "query parameter").map(Text::Param),
            Typed::List(_) => {
                let mistake =
                    Mistake::new(self.tree.at(node), "an element by its index is not yet supported");
                self.wrong(mistake.help("`in` asks whether a list holds a value"))
            }
            other @ (Typed::Bool(_) | Typed::Text(_) | Typed::Int(_)) => {
                self.other_type(map, "`[]`", "a map", &other)
            }
        }
    }

    fn sum(&mut self, node: &IdedExpr, left: &IdedExpr, right: &IdedExpr) -> Option<Typed> {
        let sides = (self.any(left), self.any(right));
        match (sides.0?, sides.1?) {
            (Typed::Text(left), Typed::Text(right)) => Some(Typed::Text(Text::Join(Box::new((left, right))))),
            (Typed::Int(left), Typed::Int(right)) => {
                Some(Typed::Int(Int::Apply(Operator::Add, Box::new((left, right)))))
            }
            (Typed::List(_), Typed::List(_)) => {
                self.wrong(Mistake::new(self.tree.at(node), "joining lists is not yet supported"))
            }
            (left, right) => {
                let message =
                    format!("`+` takes two strings or two ints, not {} and {}", left.kind(), right.kind());
                self.wrong(Mistake::new(self.tree.at(node), message))
            }
        }
    }

    fn arithmetic(
        &mut self,
        operator: Operator,
        sign: &str,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Option<Typed> {
        let sides = (self.int(left, sign), self.int(right, sign));
        Some(Typed::Int(Int::Apply(operator, Box::new((sides.0?, sides.1?)))))
    }

    fn size(&mut self, of: &IdedExpr) -> Option<Int> {
        match self.any(of)? {
            Typed::Text(text) => Some(Int::Length(Box::new(text))),
            Typed::List(List::Services) => Some(Int::Services),
            other @ (Typed::List(_) | Typed::Map(_) | Typed::Bool(_) | Typed::Int(_)) => {
                self.other_type(of, "`size`", "a string or `destination.service`", &other)
            }
        }
    }

    fn matches(&mut self, text: &IdedExpr, pattern: &IdedExpr) -> Option<Bool> {
        let sides = (self.text(text, "`matches`"), self.text(pattern, "`matches`"));
        let (text, Text::Const(literal)) = (sides.0?, sides.1?) else {
            let message = "a pattern that is not a literal is not yet supported";
            return self.wrong(Mistake::new(self.start(pattern), message));
        };
        match self.patterns.compile(&literal) {
            Ok(pattern) => Some(Bool::Matches(text, pattern)),
            Err(why) => {
                self.wrong(Mistake::new(self.tree.at(pattern), format!("not a regular expression: {why}")))
            }
        }
    }

    fn no_function<T>(&mut self, node: &IdedExpr, name: &str, target: Option<&IdedExpr>) -> Option<T> {
        let (at, _) = self.tree.callee(node);
        let name = name.trim_start_matches('.');
        if LATER.contains(&name) {
            return self.wrong(Mistake::new(at, not_yet(name)));
        }
        if FUNCTIONS.contains(&name) {
            let form = if name == "size" { "size(x)".to_owned() } else { format!("x.{name}(\"...\")") };
            let mistake = Mistake::new(at, format!("`{name}` is not called like that"));
            return self.wrong(mistake.help(format!("write `{form}`")));
        }
        // A method of what is itself not yet supported, such as `ip("...").isLoopback()`, is no mistake of its own.
        target.map_or(Some(()), |target| self.any(target).map(|_| ()))?;
        let known = FUNCTIONS.join(", ");
        let help = match nearest(name, FUNCTIONS.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {known}"),
        };
        self.wrong(Mistake::new(at, format!("unknown function `{name}`")).help(help))
    }
}

fn quoted(name: &str) -> String {
    format!("`{name}`")
}

/// `&&` of terms, flat: `(a && b) && c` is `a && b && c`.
fn all(terms: Vec<Bool>) -> Bool {
    let mut flat = Vec::with_capacity(terms.len());
    for term in terms {
        if let Bool::All(inner) = term { flat.extend(inner) } else { flat.push(term) }
    }
    Bool::All(flat.into())
}

/// `||` of terms, flat.
fn any(terms: Vec<Bool>) -> Bool {
    let mut flat = Vec::with_capacity(terms.len());
    for term in terms {
        if let Bool::Any(inner) = term { flat.extend(inner) } else { flat.push(term) }
    }
    Bool::Any(flat.into())
}

fn not(term: Bool) -> Bool {
    if let Bool::Const(value) = term { Bool::Const(!value) } else { Bool::Not(Box::new(term)) }
}
