//! Expressions: checking is total, and what was accepted means what the `cel` crate's own interpreter reads in it.

use std::{cell::LazyCell, collections::HashMap};

use ::cel::{Context, Program, Value};
use policies::{Expression, Fault, Surface, check, facts::Facts};

use crate::facts::Told;

thread_local! {
    static TOLD: LazyCell<Vec<Told>> = const {
        LazyCell::new(|| {
            let each = [(true, true), (false, true), (true, false), (false, false)];
            each.map(|(peer, http)| Told::new(peer, http, "reviews.shop")).into()
        })
    };
}

/// Texts longer than this are checked and evaluated, and not shown to the interpreter, which is slow.
const INTERPRETED_BYTES: usize = 512;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(source) = str::from_utf8(bytes) else { return };
    for surface in [Surface::Http, Surface::Tcp] {
        match check(source, surface) {
            Err(mistakes) => {
                assert!(!mistakes.is_empty());
                for mistake in mistakes {
                    assert!(source.is_char_boundary(mistake.offset), "{source:?}: {mistake:?}");
                }
            }
            Ok(expression) => TOLD.with(|told| {
                told.iter().for_each(|told| evaluate(source, surface, &expression, &told.facts()));
            }),
        }
    }
}

fn evaluate(source: &str, surface: Surface, expression: &Expression, facts: &Facts<'_>) {
    let value = expression.evaluate(facts);
    if value == Err(Fault::NoRequest) {
        assert!(facts.request.is_none() && surface == Surface::Http, "{source:?} reads a request");
        assert!(expression.reads().request());
    }
    // Lookups are total here, patterns are RE2's, and strings have a limit: there the two differ, as is said.
    let differ = ["request.headers", "request.queryParams"];
    let apart = source.contains("matches") || expression.reads().names().any(|name| differ.contains(&name));
    if apart || value == Err(Fault::TooLong) || source.len() > INTERPRETED_BYTES {
        return;
    }
    assert_eq!(value.ok(), interpreted(source, facts), "{source:?}");
}

/// What an independent reading of the specification makes of it; `None` is a fault.
fn interpreted(source: &str, facts: &Facts<'_>) -> Option<bool> {
    let mut context = Context::default();
    let text = |text: &str| Value::from(text);
    let peer = facts.source.peer;
    let of_peer = |part: fn(&policies::facts::Peer) -> &str| text(peer.map_or("", part));
    let (from, to) = (facts.source.address, facts.destination.address);
    context.add_variable_from_value(
        "source",
        HashMap::from([
            ("principal", of_peer(|peer| &peer.principal)),
            ("trustDomain", of_peer(|peer| peer.trust_domain.as_str())),
            ("namespace", of_peer(|peer| peer.namespace.as_str())),
            ("serviceAccount", of_peer(|peer| peer.service_account.as_str())),
            ("cluster", of_peer(|peer| peer.cluster.as_str())),
            ("ip", text(&from.ip().to_string())),
            ("port", Value::Int(from.port().into())),
        ]),
    );
    let guarded = facts.destination.guarded;
    let services: Vec<Value> = guarded.services.iter().map(|service| text(service.name.as_str())).collect();
    context.add_variable_from_value(
        "destination",
        HashMap::from([
            ("service", Value::from(services)),
            ("namespace", text(guarded.namespace.as_str())),
            ("workload", text(&guarded.workload)),
            ("cluster", text(guarded.cluster.as_str())),
            ("ip", text(&to.ip().to_string())),
            ("port", Value::Int(to.port().into())),
        ]),
    );
    let connection = facts.connection;
    context.add_variable_from_value(
        "connection",
        HashMap::from([
            ("mtls", Value::Bool(connection.mtls)),
            ("sni", text(connection.sni)),
            ("protocol", text(connection.protocol)),
            ("tlsVersion", text(connection.tls_version)),
        ]),
    );
    if let Some(request) = &facts.request {
        let (service, method) = request.grpc();
        let grpc = HashMap::from([("service", text(service)), ("method", text(method))]);
        context.add_variable_from_value(
            "request",
            HashMap::from([
                ("method", text(request.method)),
                ("scheme", text(request.scheme)),
                ("host", text(request.host)),
                ("path", text(request.path)),
                ("rawPath", text(request.raw_path)),
                ("query", text(request.query)),
                ("protocol", text(request.protocol)),
                ("id", text(request.id)),
                ("size", Value::Int(request.size())),
                ("grpc", Value::from(grpc)),
            ]),
        );
    }
    let program = Program::compile(source).unwrap_or_else(|error| panic!("{source:?} was accepted: {error}"));
    match program.execute(&context) {
        Ok(Value::Bool(value)) => Some(value),
        Ok(other) => panic!("{source:?} is no bool: {other:?}"),
        Err(_) => None,
    }
}
