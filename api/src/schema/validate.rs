//! Holds a tree against a schema, tells everything that is wrong, and gives what is right as JSON.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value as Json};

use super::PATTERNS;
use crate::{
    manifest::{
        diagnostic::{Code, Position},
        report::Report,
        tree::{Entry, Node, Value},
        unsupported,
    },
    name::{
        ClusterName, Hostname, Namespace, NetworkName, ObjectName, ServiceAccount, ServiceLabel, TrustDomain,
    },
    resource::{Cidr, Duration, Kind, route::HeaderName},
};

/// What of `node` conforms to `schema`. What does not is reported and left out, or filled in where something must
/// stand, so that the rest can be read on and judged.
pub(crate) fn validate(kind: Kind, node: &Node, schema: &Json, report: &mut Report) -> Option<Json> {
    Walk { kind, report, pointer: String::new() }.value(node, schema)
}

struct Walk<'a, 'r> {
    kind: Kind,
    report: &'a mut Report<'r>,
    pointer: String,
}

impl Walk<'_, '_> {
    fn value(&mut self, node: &Node, schema: &Json) -> Option<Json> {
        if let Some(choices) = schema["oneOf"].as_array() {
            return match choices.iter().all(|choice| choice.get("const").is_some()) {
                true => self.one_of(node, choices.iter().map(|choice| &choice["const"])),
                false => self.tagged(node, choices),
            };
        }
        match (&node.value, type_of(schema)) {
            (Value::Mapping(entries), "object") => self.mapping(node.at, entries, schema),
            (Value::Sequence(items), "array") => self.sequence(node.at, items, schema),
            (Value::Scalar { .. }, kind) if !matches!(kind, "object" | "array") => self.scalar(node, schema),
            _ => self.wrong_type(node, schema),
        }
    }

    fn mapping(&mut self, at: Position, entries: &[Entry], schema: &Json) -> Option<Json> {
        let no_fields = Map::new();
        let known = schema["properties"].as_object().unwrap_or(&no_fields);
        let mut object = Map::new();
        for entry in entries {
            let field = known
                .get(&entry.key)
                .or_else(|| schema.get("additionalProperties").filter(|rest| rest.is_object()));
            let outer = self.enter(&entry.key);
            match field {
                Some(_) if !self.key_conforms(entry, schema) => {}
                Some(_) if unsupported::known_field(self.kind, &self.pointer) => self.unknown(entry, known),
                Some(field) => {
                    let value = self.value(&entry.node, field);
                    object.extend(value.map(|value| (entry.key.clone(), value)));
                }
                None => self.unknown(entry, known),
            }
            self.pointer.truncate(outer);
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|entry| entry.key == name) {
                self.missing(at, name, &known[name]);
            }
            // A name is never made up: it is what others refer to.
            if !self.pointer.starts_with("/metadata") && !object.contains_key(name) {
                object.insert(name.to_owned(), filler(&known[name]));
            }
        }
        if schema["minProperties"].as_u64().is_some_and(|least| (entries.len() as u64) < least) {
            self.bad(at, "must not be empty".into(), schema);
        }
        Some(Json::Object(object))
    }

    fn sequence(&mut self, at: Position, items: &[Node], schema: &Json) -> Option<Json> {
        let count = items.len() as u64;
        if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
            self.bad(at, format!("must have at least {least}, has {count}"), schema);
        }
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
            self.bad(at, format!("must have at most {most}, has {count}"), schema);
            return None;
        }
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let outer = self.enter(&index.to_string());
            let value = self.value(item, &schema["items"]);
            list.push(value.unwrap_or_else(|| filler(&schema["items"])));
            self.pointer.truncate(outer);
        }
        Some(Json::Array(list))
    }

    fn scalar(&mut self, node: &Node, schema: &Json) -> Option<Json> {
        let value = node.json_scalar()?;
        if !has_type(&value, schema) {
            return self.wrong_type(node, schema);
        }
        if unsupported::value(self.kind, &self.pointer, &value) {
            return self.unsupported_value(node, &value);
        }
        if let Some(allowed) = schema["enum"].as_array() {
            return self.one_of(node, allowed.iter());
        }
        let complaint = match &value {
            Json::String(text) => text_complaint(text, schema),
            Json::Number(number) => number_complaint(number, schema),
            _ => None,
        };
        match complaint {
            Some(complaint) => {
                self.bad(node.at, complaint, schema);
                None
            }
            None => Some(value),
        }
    }

    fn one_of<'s>(&mut self, node: &Node, allowed: impl Iterator<Item = &'s Json> + Clone) -> Option<Json> {
        let Some(value) = node.json_scalar() else { return self.wrong_choice(node, allowed) };
        if unsupported::value(self.kind, &self.pointer, &value) {
            return self.unsupported_value(node, &value);
        }
        match allowed.clone().any(|choice| *choice == value) {
            true => Some(value),
            false => self.wrong_choice(node, allowed),
        }
    }

    /// An object whose `type` says which of the choices it is.
    fn tagged(&mut self, node: &Node, choices: &[Json]) -> Option<Json> {
        let Value::Mapping(_) = &node.value else { return self.wrong_type(node, &choices[0]) };
        let tags = choices.iter().map(|choice| &choice["properties"]["type"]["const"]);
        let Some(tag) = node.field("type") else {
            self.missing(node.at, "type", &Json::Null);
            return None;
        };
        let outer = self.enter("type");
        let chosen = self.one_of(&tag.node, tags);
        self.pointer.truncate(outer);
        let choice =
            choices.iter().find(|choice| Some(&choice["properties"]["type"]["const"]) == chosen.as_ref())?;
        self.value(node, choice)
    }

    fn enter(&mut self, part: &str) -> usize {
        let outer = self.pointer.len();
        self.pointer.push('/');
        self.pointer.push_str(&part.replace('~', "~0").replace('/', "~1"));
        outer
    }

    fn key_conforms(&mut self, entry: &Entry, schema: &Json) -> bool {
        let complaint = schema.get("propertyNames").and_then(|rule| text_complaint(&entry.key, rule));
        complaint.iter().for_each(|complaint| self.bad(entry.key_at, complaint.clone(), &Json::Null));
        complaint.is_none()
    }

    fn unknown(&mut self, entry: &Entry, known: &Map<String, Json>) {
        let (code, message, help) = match unsupported::field(self.kind, &self.pointer) {
            Some(refusal) => (
                Code::NotYetSupported,
                format!("`{}` {}", entry.key, refusal.says),
                Some(refusal.help.to_owned()),
            ),
            None => {
                let help = match nearest(&entry.key, known.keys().map(String::as_str)) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("known here: {}", list(known.keys().map(String::as_str))),
                };
                (Code::UnknownField, format!("unknown field `{}`", entry.key), Some(help))
            }
        };
        self.report.tell(&self.pointer, entry.key_at, code, message, help);
    }

    fn missing(&mut self, at: Position, name: &str, schema: &Json) {
        let message = match (name, self.pointer.as_str()) {
            ("namespace", "/metadata") => format!("`namespace` is missing: every {} lies in one", self.kind),
            _ => format!("`{name}` is missing"),
        };
        self.report.tell(
            &format!("{}/{name}", self.pointer),
            at,
            Code::MissingField,
            message,
            help_of(schema),
        );
    }

    fn wrong_type(&mut self, node: &Node, schema: &Json) -> Option<Json> {
        let mut message = format!("expected {}, found {}", expected(schema), node.describe());
        if type_of(schema) == "string" && !matches!(node.json_scalar(), Some(Json::Null) | None) {
            message.push_str(": quote it");
        }
        self.report.tell(&self.pointer, node.at, Code::WrongType, message, help_of(schema));
        None
    }

    fn wrong_choice<'s>(&mut self, node: &Node, allowed: impl Iterator<Item = &'s Json>) -> Option<Json> {
        let allowed: Vec<String> = allowed.map(plain).collect();
        let names = || allowed.iter().map(String::as_str);
        let message = format!("expected {}, found {}", list(names()), node.describe());
        let help =
            node.text().and_then(|text| nearest(text, names())).map(|name| format!("did you mean `{name}`?"));
        let code = if matches!(node.json_scalar(), Some(Json::String(_) | Json::Number(_))) {
            Code::BadValue
        } else {
            Code::WrongType
        };
        self.report.tell(&self.pointer, node.at, code, message, help);
        None
    }

    fn unsupported_value(&mut self, node: &Node, value: &Json) -> Option<Json> {
        let field = self.pointer.rsplit('/').next().unwrap_or_default();
        let message = format!("`{field}: {}` is not yet supported", plain(value));
        self.report.tell(&self.pointer, node.at, Code::NotYetSupported, message, None);
        None
    }

    fn bad(&mut self, at: Position, complaint: String, schema: &Json) {
        let help = help_of(schema).filter(|help| !complaint.contains(help.as_str()));
        self.report.tell(&self.pointer, at, Code::BadValue, complaint, help);
    }
}

/// Something that conforms to `schema`, to stand where what was said does not. Never accepted: it was reported.
fn filler(schema: &Json) -> Json {
    if let Some(first) = schema["oneOf"].get(0) {
        return filler(first);
    }
    let said = schema.get("const").or_else(|| schema["enum"].get(0)).or_else(|| schema.get("default"));
    if let Some(said) = said {
        return said.clone();
    }
    match (type_of(schema), schema["format"].as_str()) {
        ("object", _) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
            required.map(|name| (name.to_owned(), filler(&schema["properties"][name]))).collect()
        }
        ("array", _) => Json::Array(Vec::new()),
        ("integer" | "number", _) => schema.get("minimum").cloned().unwrap_or_else(|| 0.into()),
        ("boolean", _) => false.into(),
        (_, Some("Duration")) => "1s".into(),
        (_, Some("SocketAddr")) => "127.0.0.1:1".into(),
        (_, Some("ip")) => "127.0.0.1".into(),
        (_, Some("Cidr")) => "127.0.0.0/8".into(),
        _ => "a".into(),
    }
}

fn type_of(schema: &Json) -> &str {
    schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or("string")
}

fn has_type(value: &Json, schema: &Json) -> bool {
    let is = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => false,
    };
    match &schema["type"] {
        Json::Array(names) => names.iter().filter_map(Json::as_str).any(is),
        _ => is(type_of(schema)),
    }
}

fn expected(schema: &Json) -> &'static str {
    match (&schema["type"], type_of(schema)) {
        (Json::Array(_), _) => "a whole number or text",
        (_, "object") => "a mapping",
        (_, "array") => "a list",
        (_, "integer") => "a whole number",
        (_, "number") => "a number",
        (_, "boolean") => "`true` or `false`",
        _ => "text",
    }
}

fn help_of(schema: &Json) -> Option<String> {
    schema["description"].as_str().map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn text_complaint(text: &str, schema: &Json) -> Option<String> {
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        return Some(if least == 1 {
            "must not be empty".into()
        } else {
            format!("must have at least {least} characters")
        });
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        return Some(format!("must have at most {most} characters, has {length}"));
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|pattern| !PATTERNS[*pattern].is_match(text)) {
        return Some(format!("`{}` does not match `{pattern}`", text.chars().take(80).collect::<String>()));
    }
    format_complaint(text, schema["format"].as_str()?)
}

/// Asks the parser that the format is named after.
fn format_complaint(text: &str, format: &str) -> Option<String> {
    fn complaint<T, E: ToString>(parsed: Result<T, E>) -> Option<String> {
        parsed.err().map(|error| error.to_string())
    }
    match format {
        "Namespace" => complaint(Namespace::new(text)),
        "NamespaceOrAll" if text == "*" => None,
        "NamespaceOrAll" => complaint(Namespace::new(text)),
        "ObjectName" => complaint(ObjectName::new(text)),
        "ServiceLabel" => complaint(ServiceLabel::new(text)),
        "ServiceAccount" => complaint(ServiceAccount::new(text)),
        "ClusterName" => complaint(ClusterName::new(text)),
        "NetworkName" => complaint(NetworkName::new(text)),
        "TrustDomain" => complaint(TrustDomain::new(text)),
        "Hostname" => complaint(Hostname::new(text)),
        "Duration" => complaint(text.parse::<Duration>()),
        "Cidr" => complaint(text.parse::<Cidr>()),
        "HeaderName" => complaint(HeaderName::new(text)),
        "SocketAddr" => text.parse::<SocketAddr>().err().map(|_| format!("`{text}` is not an IP address and port: write `127.2.0.2:15443`")),
        "ip" => text.parse::<IpAddr>().err().map(|_| format!("`{text}` is not an IP address")),
        "LabelKey" => (!is_label_key(text)).then(|| format!("`{text}` is not the key of a label: `name` or `prefix.example/name`")),
        "LabelValue" => (!is_label_value(text))
            .then(|| format!("`{text}` is not the value of a label: at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit")),
        _ => None,
    }
}

fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|prefix| ObjectName::new(prefix).is_ok()) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(text: &str) -> bool {
    let is_edge = |b: u8| b.is_ascii_alphanumeric();
    text.is_empty()
        || text.len() <= 63
            && text.bytes().all(|b| is_edge(b) || b"-_.".contains(&b))
            && text.bytes().next().is_some_and(is_edge)
            && text.bytes().last().is_some_and(is_edge)
}

fn number_complaint(number: &serde_json::Number, schema: &Json) -> Option<String> {
    let value = number.as_f64()?;
    let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    if least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most) {
        return None;
    }
    Some(match (least, most) {
        (Some(least), Some(most)) => format!("must be {least} to {most}, is {number}"),
        (Some(least), None) => format!("must be at least {least}, is {number}"),
        _ => format!("must be at most {}, is {number}", most.unwrap_or_default()),
    })
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `a`, `b` or `c`.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".into(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The name that was probably meant: the same but for case, or few changes away.
pub(crate) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase();
    names
        .map(|name| (distance(&text, &name.to_lowercase()), name))
        .filter(|(changes, name)| *changes <= 1 + name.len() / 5)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance, of texts cut to 64 characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
