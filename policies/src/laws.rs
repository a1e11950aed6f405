//! Laws that hold for all policies, expressions and facts.

use std::collections::HashMap;

use cel::{Context, Program, Value};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Action, Authorizer, DefaultAction, Expression, Mode, Policy, Rule, Surface, Verdict, check,
    facts::{Facts, Peer},
    fixture::Told,
};

const BIGGEST: &str = "9223372036854775807";

/// Facts with and without an identity, on HTTP and not.
fn told() -> impl Strategy<Value = Told> {
    let peers = select(vec!["", "from=shop/front@west", "from=bank/catalogue"]);
    let requests = select(vec!["tcp", "GET /", "POST /admin x-user:ann", "GET /reviews/1?page=2"]);
    (peers, requests).prop_map(|(peer, request)| Told::new(&format!("{peer} {request}")))
}

/// The text of an expression of type bool, faulty ones among them.
fn bool_source() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(vec!["true", "false", "connection.mtls"]).prop_map(String::from),
        (text_source(), relation(), text_source()).prop_map(|(a, by, b)| format!("{a} {by} {b}")),
        (int_source(), relation(), int_source()).prop_map(|(a, by, b)| format!("{a} {by} {b}")),
        (text_source(), vec(text_source(), 0..4))
            .prop_map(|(a, list)| format!("{a} in [{}]", list.join(", "))),
        text_source().prop_map(|text| format!("{text} in destination.service")),
        (text_source(), select(vec!["startsWith", "endsWith", "contains"]), text_source())
            .prop_map(|(a, function, b)| format!("{a}.{function}({b})")),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), select(vec!["&&", "||", "==", "!="]), inner.clone())
                .prop_map(|(a, operator, b)| format!("({a}) {operator} ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a}) ? ({b}) : ({c})")),
        ]
    })
}

fn text_source() -> impl Strategy<Value = String> {
    let words =
        ["\"\"", "\"shop\"", "\"front\"", "\"é\"", "\"reviews\"", "source.namespace", "source.cluster"];
    let more = ["source.serviceAccount", "request.method", "request.path", "\"a\" + source.namespace"];
    select([&words[..], &more[..]].concat()).prop_map(|word| format!("({word})"))
}

fn int_source() -> impl Strategy<Value = String> {
    let leaf = select(vec!["0", "1", "-1", "7", BIGGEST, "-9223372036854775808", "source.port"]);
    let leaf =
        prop_oneof![leaf.prop_map(String::from), text_source().prop_map(|text| format!("size({text})"))];
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            (inner.clone(), select(vec!["+", "-", "*"]), inner.clone())
                .prop_map(|(a, by, b)| format!("({a} {by} {b})")),
            inner.prop_map(|a| format!("-({a})")),
        ]
    })
}

fn relation() -> impl Strategy<Value = &'static str> {
    select(vec!["==", "!=", "<", "<=", ">", ">="])
}

fn expression(source: &str) -> Expression {
    check(source, Surface::Http).unwrap_or_else(|mistakes| panic!("{source}: {mistakes:?}"))
}

fn policy(action: Action) -> impl Strategy<Value = Policy> {
    let when = proptest::option::weighted(0.9, bool_source().prop_map(|source| expression(&source)));
    let rules = vec(when.prop_map(|when| Rule { name: String::new(), when }), 0..3);
    rules.prop_map(move |rules| Policy {
        name: format!("shop/{action:?}"),
        action,
        mode: Mode::Enforce,
        rules,
        commit: "c0ffee".into(),
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    vec(prop_oneof![policy(Action::Deny), policy(Action::Allow), policy(Action::Audit)], 0..3)
}

fn default_action() -> impl Strategy<Value = DefaultAction> {
    select(vec![DefaultAction::Allow, DefaultAction::Deny])
}

fn allows(policies: Vec<Policy>, default: DefaultAction, facts: &Facts<'_>) -> bool {
    match Authorizer::new(policies, default).judge(facts).verdict {
        Verdict::Allow(_) => true,
        Verdict::Deny(_) => false,
    }
}

/// What the `cel` crate's own interpreter makes of an expression: an independent reading of the specification.
fn by_interpreter(source: &str, facts: &Facts<'_>) -> Option<bool> {
    let peer = |part: fn(&Peer) -> &str| Value::from(facts.source.peer.map_or("", part));
    let (guarded, mut context) = (facts.destination.guarded, Context::default());
    let services: Vec<Value> = guarded.services.iter().map(|service| service.name.as_str().into()).collect();
    let source_map = HashMap::from([
        ("namespace", peer(|peer| peer.namespace.as_str())),
        ("serviceAccount", peer(|peer| peer.service_account.as_str())),
        ("cluster", peer(|peer| peer.cluster.as_str())),
        ("port", Value::Int(facts.source.address.port().into())),
    ]);
    context.add_variable_from_value("source", source_map);
    context.add_variable_from_value("destination", HashMap::from([("service", Value::from(services))]));
    context
        .add_variable_from_value("connection", HashMap::from([("mtls", Value::Bool(facts.connection.mtls))]));
    if let Some(request) = &facts.request {
        let request =
            HashMap::from([("method", Value::from(request.method)), ("path", Value::from(request.path))]);
        context.add_variable_from_value("request", request);
    }
    match Program::compile(source).unwrap().execute(&context) {
        Ok(Value::Bool(value)) => Some(value),
        Ok(other) => panic!("{source} is {other:?}"),
        Err(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evaluation_agrees_with_an_interpreter(source in bool_source(), told in told()) {
        let facts = told.facts();
        prop_assert_eq!(expression(&source).evaluate(&facts).ok(), by_interpreter(&source, &facts));
    }

    #[test]
    fn checking_is_total(text in "[a-z. ()\\[\\]\"'=&|!?:0-9+é\\\\{},<>-]{0,40}") {
        if let Err(mistakes) = check(&text, Surface::Http) {
            prop_assert!(!mistakes.is_empty());
            prop_assert!(mistakes.iter().all(|mistake| text.is_char_boundary(mistake.offset)));
        }
    }

    #[test]
    fn checking_any_text_is_total(text in any::<String>()) {
        let mistakes = check(&text, Surface::Tcp).err().unwrap_or_default();
        prop_assert!(mistakes.iter().all(|mistake| text.is_char_boundary(mistake.offset)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn adding_a_deny_never_allows_more(
        policies in policies(), deny in policy(Action::Deny), at in 0usize..4, default in default_action(), told in told(),
    ) {
        let facts = told.facts();
        let mut more = policies.clone();
        more.insert(at.min(policies.len()), deny);
        prop_assert!(allows(policies, default, &facts) || !allows(more, default, &facts));
    }

    #[test]
    fn a_dry_run_changes_no_verdict_and_tells_the_truth(
        policies in policies(), dry in policy(Action::Deny), default in default_action(), told in told(),
    ) {
        let facts = told.facts();
        let enforced = [policies.clone(), vec![dry.clone()]].concat();
        let tried = [policies.clone(), vec![Policy { mode: Mode::DryRun, ..dry }]].concat();
        let before = Authorizer::new(policies.clone(), default).judge(&facts);
        let judgement = Authorizer::new(tried, default).judge(&facts);
        prop_assert_eq!(&judgement.verdict, &before.verdict);
        let would_allow = allows(policies, default, &facts) && judgement.dry_runs.is_empty();
        prop_assert_eq!(would_allow, allows(enforced, default, &facts));
    }
}
