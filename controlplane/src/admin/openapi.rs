//! The API's own description, made from the types that it speaks.

use api::admin::{
    ExplainAnswer, ExplainRequest, Failure, JoinTokenRequest, Status, Token, TokenRequest, WaitAnswer,
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

/// The OpenAPI 3.1 document.
pub(super) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let paths = json!({
        "/api/v1/status": { "get": call("All that this control plane knows of the mesh", &[], None, Some(refer::<Status>(&mut generator)), &mut generator) },
        "/api/v1/wait": { "get": call(
            "Answers when the commit, or a descendant, is effective everywhere, or when the time is up",
            &[("commit", "full or abbreviated id, branch or HEAD", true), ("timeout", "seconds, 60 by default", false), ("strict", "whether proxies that are gone count", false)],
            None, Some(refer::<WaitAnswer>(&mut generator)), &mut generator) },
        "/api/v1/explain": { "post": call("What would happen to a request", &[], Some(refer::<ExplainRequest>(&mut generator)), Some(refer::<ExplainAnswer>(&mut generator)), &mut generator) },
        "/api/v1/tokens": { "post": call("A one-time token for one workload of this cluster", &[], Some(refer::<TokenRequest>(&mut generator)), Some(refer::<Token>(&mut generator)), &mut generator) },
        "/api/v1/join-tokens": { "post": call("A one-time token for one remote cluster (primary only)", &[], Some(refer::<JoinTokenRequest>(&mut generator)), Some(refer::<Token>(&mut generator)), &mut generator) },
        "/api/v1/workloads/{id}": {
            "parameters": [{ "in": "path", "name": "id", "description": "as `weft workload list` names it", "required": true, "schema": { "type": "string" } }],
            "delete": call("Deregisters a workload", &[("revoke", "whether its certificate may not be renewed any more either", false)], None, None, &mut generator) },
        "/api/v1/rollout/accept": { "post": call("Lets a held commit pass", &[("commit", "the commit", true)], None, None, &mut generator) },
        "/api/v1/console-logins": { "post": call("A one-time login for the console", &[], None, Some(refer::<Token>(&mut generator)), &mut generator) },
    });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Weft admin API", "version": env!("CARGO_PKG_VERSION") },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn refer<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn call(
    summary: &str,
    query: &[(&str, &str, bool)],
    body: Option<Value>,
    answer: Option<Value>,
    generator: &mut SchemaGenerator,
) -> Value {
    let parameters: Vec<_> = query
        .iter()
        .map(|(name, description, required)| {
            json!({ "in": "query", "name": name, "description": description, "required": required, "schema": { "type": "string" } })
        })
        .collect();
    let good = match answer {
        Some(schema) => {
            json!({ "200": { "description": "done", "content": { "application/json": { "schema": schema } } } })
        }
        None => json!({ "204": { "description": "done" } }),
    };
    let failure = refer::<Failure>(generator);
    let mut responses = good;
    responses["default"] = json!({ "description": "what is wrong and what to do", "content": { "application/json": { "schema": failure } } });
    let mut call = json!({ "summary": summary, "parameters": parameters, "responses": responses });
    if let Some(schema) = body {
        call["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    call
}
