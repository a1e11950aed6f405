//! JSON Schemas of every kind, made from the types, and the walk that holds a YAML tree against one.
//!
//! The types are the source. The schemas are kept golden in `api/schemas/` for editors and documentation;
//! the walk (`schema::validate`) reads the same schemas, so that what an editor says is what the gate says.
//!
//! Invariant: no schema takes `null`. A field left empty by mistake (`when:`) must never read as "no condition".

#[cfg(test)]
mod reference;
pub(crate) mod validate;

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use regex::Regex;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};

use crate::{
    manifest::PLACEMENT_LABEL,
    name::{ClusterName, Namespace, ObjectName, ServiceLabel},
    resource::{self, Kind, Scope},
};

static SCHEMAS: LazyLock<BTreeMap<Kind, Json>> =
    LazyLock::new(|| Kind::ALL.iter().map(|kind| (*kind, document(*kind))).collect());

/// Every pattern that a schema holds, compiled once.
static PATTERNS: LazyLock<HashMap<String, Regex>> = LazyLock::new(|| {
    let mut patterns = HashMap::new();
    SCHEMAS.values().for_each(|schema| collect_patterns(schema, &mut patterns));
    patterns
});

/// The JSON Schema (2020-12) of a document of `kind`.
pub fn of(kind: Kind) -> &'static Json {
    &SCHEMAS[&kind]
}

fn collect_patterns(schema: &Json, patterns: &mut HashMap<String, Regex>) {
    match schema {
        Json::Object(fields) => {
            if let Some(Json::String(pattern)) = fields.get("pattern") {
                let regex = Regex::new(pattern).expect("patterns of schemas are constants of this crate");
                patterns.insert(pattern.clone(), regex);
            }
            fields.values().for_each(|field| collect_patterns(field, patterns));
        }
        Json::Array(items) => items.iter().for_each(|item| collect_patterns(item, patterns)),
        _ => {}
    }
}

/// Whether the fields of the kind stand beside `metadata` rather than under `spec`.
pub(crate) fn is_flat(kind: Kind) -> bool {
    kind == Kind::EndpointSlice
}

fn document(kind: Kind) -> Json {
    let mut generator =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut spec = Json::from(resource::spec_schema(kind, &mut generator));
    tidy(&mut spec);
    let description = spec.get("description").cloned().unwrap_or_default();

    let mut properties = Map::new();
    properties.insert("apiVersion".into(), json!({ "type": "string", "enum": kind.api_versions() }));
    properties.insert("kind".into(), json!({ "type": "string", "const": kind.name() }));
    properties.insert("metadata".into(), metadata(kind));
    let mut required = vec![json!("apiVersion"), json!("kind"), json!("metadata")];
    if is_flat(kind) {
        properties.extend(spec["properties"].as_object().cloned().unwrap_or_default());
        required.extend(spec["required"].as_array().cloned().unwrap_or_default());
    } else {
        properties.insert("spec".into(), spec);
        if !matches!(kind, Kind::Namespace | Kind::ServiceExport) {
            required.push(json!("spec"));
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name(),
        "description": description,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn metadata(kind: Kind) -> Json {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut properties = Map::new();
    let name = match kind {
        // A label of host names, and what is exported is called like the Service.
        Kind::Service | Kind::ServiceExport => {
            <ServiceLabel as schemars::JsonSchema>::json_schema(&mut generator)
        }
        // What no other object could name would be no member, and no namespace.
        Kind::Cluster => <ClusterName as schemars::JsonSchema>::json_schema(&mut generator),
        Kind::Namespace => <Namespace as schemars::JsonSchema>::json_schema(&mut generator),
        _ => <ObjectName as schemars::JsonSchema>::json_schema(&mut generator),
    };
    properties.insert("name".into(), name.into());
    let mut required = vec!["name"];
    if kind.scope() == Scope::Namespace {
        properties.insert(
            "namespace".into(),
            <Namespace as schemars::JsonSchema>::json_schema(&mut generator).into(),
        );
        required.push("namespace");
    }
    properties.insert(
        "labels".into(),
        json!({
            "type": "object", "propertyNames": { "format": "LabelKey" },
            "properties": { PLACEMENT_LABEL: {
                "type": "string", "minLength": 1, "maxLength": 4096, "description": "the clusters that it applies in: `east,west`"
            } },
            "additionalProperties": { "type": "string", "format": "LabelValue" },
            "description": "labels; `weft.mesh/clusters: east,west` says in which clusters the object applies"
        }),
    );
    properties.insert(
        "annotations".into(),
        json!({
            "type": "object", "propertyNames": { "format": "LabelKey" },
            "additionalProperties": { "type": "string", "maxLength": 65_536 }
        }),
    );
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// Takes out what the walk and people do not need, and `null` wherever an absent field is meant.
fn tidy(schema: &mut Json) {
    match schema {
        Json::Object(fields) => {
            ["$schema", "title"].iter().for_each(|noise| _ = fields.shift_remove(*noise));
            let format = fields.get("format").and_then(Json::as_str).unwrap_or_default().to_owned();
            if let Some(most) = [("uint16", u64::from(u16::MAX)), ("uint32", u64::from(u32::MAX))]
                .iter()
                .find(|(name, _)| *name == format)
            {
                fields.entry("maximum").or_insert(most.1.into());
            }
            if format.starts_with("uint") || format == "double" {
                fields.shift_remove("format");
            }
            if let Some(Json::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [single] = types.as_slice() {
                    let single = single.clone();
                    fields.insert("type".into(), single);
                }
            }
            if let Some(Json::Array(values)) = fields.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Json::Array(mut choices)) = fields.shift_remove("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                let only = choices.pop().and_then(|choice| choice.as_object().cloned()).unwrap_or_default();
                let description = fields.get("description").cloned();
                fields.extend(only);
                fields.extend(description.map(|text| ("description".to_owned(), text)));
            }
            fields.values_mut().for_each(tidy);
        }
        Json::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    /// `UPDATE_EXPECT=1` rewrites them.
    #[test]
    fn the_golden_schemas_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        for kind in Kind::ALL {
            let path = folder.join(format!("{kind}.json"));
            let made = serde_json::to_string_pretty(of(*kind)).unwrap() + "\n";
            if env::var_os("UPDATE_EXPECT").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &made).unwrap();
            }
            let kept = fs::read_to_string(&path).unwrap_or_default();
            assert!(kept == made, "{} is not what the types say: run with UPDATE_EXPECT=1", path.display());
        }
    }

    #[test]
    fn no_schema_takes_null_or_points_elsewhere() {
        for kind in Kind::ALL {
            let text = of(*kind).to_string();
            for word in ["\"null\"", "$ref", "anyOf", "\"enum\":[]"] {
                assert!(!text.contains(word), "{kind}: {word}");
            }
            collect_patterns(of(*kind), &mut HashMap::new());
        }
    }
}
