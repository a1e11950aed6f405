//! The page of each kind under `docs/kinds/`: its table of fields is made from the schema, its examples are read as the
//! gate reads them. `UPDATE_EXPECT=1` writes the tables anew.

use std::{env, fs, path::PathBuf};

use serde_json::{Map, Value as Json};

use super::of;
use crate::{
    manifest::{self, unsupported},
    resource::Kind,
};

const BEGIN: &str = "<!-- fields: made from the schema -->";
const END: &str = "<!-- end of fields -->";

/// One line of the table.
struct Field<'a> {
    path: String,
    required: bool,
    schema: &'a Json,
}

#[test]
fn each_page_tells_of_the_fields_that_the_schema_has() {
    for &kind in Kind::ALL {
        let path = page(kind);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (head, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{kind}: no `{BEGIN}`"));
        let (_, tail) = rest.split_once(END).unwrap_or_else(|| panic!("{kind}: no `{END}`"));
        let made = format!("{head}{BEGIN}\n\n{}\n{END}{tail}", table(kind));
        if env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, &made).unwrap();
        } else {
            assert!(text == made, "{} is not what the schema says: run with UPDATE_EXPECT=1", path.display());
        }
    }
}

#[test]
fn each_example_is_read_without_a_mistake() {
    for &kind in Kind::ALL {
        let text = fs::read_to_string(page(kind)).unwrap();
        let examples: Vec<&str> =
            text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!examples.is_empty(), "{kind} has no example");
        for example in examples {
            let parsed = manifest::parse(&[("example.yaml", example)]);
            assert!(parsed.diagnostics.is_empty(), "{kind}: {:#?}", parsed.diagnostics);
            assert!(example.contains(&format!("kind: {kind}\n")), "{kind} is not in its example");
        }
    }
}

fn page(kind: Kind) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/kinds/{kind}.md"))
}

fn table(kind: Kind) -> String {
    let mut fields = Vec::new();
    let document = of(kind)["properties"].as_object().expect("an object");
    let of_the_kind =
        document.iter().filter(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&name.as_str()));
    for (name, schema) in of_the_kind {
        let required = requires(of(kind), name);
        list(Field { path: name.clone(), required, schema }, &mut fields);
    }
    let lines = fields.iter().map(|field| line(kind, field));
    format!("| field | type | default | |\n|---|---|---|---|\n{}", lines.collect::<String>())
}

/// A field, and all that lie in it.
fn list<'a>(field: Field<'a>, fields: &mut Vec<Field<'a>>) {
    let mut path = field.path.clone();
    let mut inner = field.schema;
    while inner["type"] == "array" {
        path += "[]";
        inner = &inner["items"];
    }
    fields.push(field);
    for (name, schema) in properties(inner) {
        list(Field { path: format!("{path}.{name}"), required: requires(inner, name), schema }, fields);
    }
    for choice in inner["oneOf"].as_array().into_iter().flatten() {
        for (name, schema) in properties(choice) {
            list(Field { path: format!("{path}.{name}"), required: requires(choice, name), schema }, fields);
        }
    }
}

fn properties(schema: &Json) -> impl Iterator<Item = (&String, &Json)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter)
}

fn requires(schema: &Json, name: &str) -> bool {
    schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name))
}

fn line(kind: Kind, field: &Field<'_>) -> String {
    let default = match &field.schema["default"] {
        Json::Null if field.required => "required".to_owned(),
        Json::Null | Json::Object(_) => String::new(),
        Json::Array(items) if items.is_empty() => String::new(),
        Json::String(text) if text.is_empty() => String::new(),
        default => format!("`{}`", default.to_string().replace('"', "")),
    };
    let text = field.schema["description"].as_str().unwrap_or_default();
    let text = text.split("\n\n").next().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
    let later = not_yet(kind, field);
    format!("| `{}` | {} | {default} | {text}{later} |\n", field.path, said(field.schema))
}

/// What of a field is refused as not yet supported.
fn not_yet(kind: Kind, field: &Field<'_>) -> String {
    let pointer = format!("/{}", field.path.replace("[]", "/0").replace('.', "/"));
    if unsupported::known_field(kind, &pointer) {
        return " **Not yet supported.**".to_owned();
    }
    let constants = field.schema["oneOf"].as_array().into_iter().flatten().filter_map(|one| one.get("const"));
    let choices = field.schema["enum"].as_array().into_iter().flatten().chain(constants);
    let refused: Vec<_> = choices.filter(|one| unsupported::value(kind, &pointer, one)).collect();
    let names = refused.iter().map(|one| format!("`{}`", one.as_str().unwrap_or_default()));
    match refused.len() {
        0 => String::new(),
        _ => format!(" Not yet supported: {}.", names.collect::<Vec<_>>().join(", ")),
    }
}

/// The type in words, with its limits.
fn said(schema: &Json) -> String {
    let limit = |name: &str| schema[name].as_u64();
    if let Some(value) = schema.get("const") {
        return format!("`{}`", value.as_str().unwrap_or_default());
    }
    if let Some(choices) = schema["enum"].as_array() {
        return choices
            .iter()
            .map(|one| format!("`{}`", one.to_string().replace('"', "")))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let all: Vec<_> = choices.iter().map(said).collect();
        return if all.iter().all(|one| one == "object") {
            "one of its fields".to_owned()
        } else {
            all.join(", ")
        };
    }
    match schema["type"].as_str().unwrap_or_default() {
        "array" => format!("list of {}", said(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() && schema.get("properties").is_none() => {
            let keys = schema["propertyNames"]["format"].as_str().unwrap_or("string");
            format!("map of {keys} to {}", said(&schema["additionalProperties"]))
        }
        "string" => schema["format"].as_str().unwrap_or("string").to_owned(),
        "integer" => match (limit("minimum"), limit("maximum")) {
            (Some(least), Some(most)) if most < u64::from(u32::MAX) => format!("{least} to {most}"),
            _ => "number".to_owned(),
        },
        other => other.to_owned(),
    }
}
