//! Runs the tables of `testdata`, which are also the documentation of the language.

use std::fmt::Write;

use expect_test::expect_file;

use crate::{
    Action, Authorizer, DefaultAction, Fault, Mode, Policy, Rule, Surface, attribute::KNOWN, check,
    fixture::Told,
};

/// Rows `VALUE | EXPRESSION`, judged with the `facts` above them.
#[test]
fn values() {
    let (mut told, mut rows) = (Told::new(""), 0);
    for line in rows_of(include_str!("../testdata/values.txt")) {
        if let Some(words) = line.strip_prefix("facts") {
            told = Told::new(words);
            continue;
        }
        let (expected, source) = line.split_once(" | ").unwrap_or_else(|| panic!("not a row: {line}"));
        let expression =
            check(source, Surface::Http).unwrap_or_else(|mistakes| panic!("{source}: {mistakes:?}"));
        let value = match expression.evaluate(&told.facts()) {
            Ok(value) => value.to_string(),
            Err(Fault::Overflow) => "overflow".into(),
            Err(Fault::TooLong) => "too long".into(),
            Err(Fault::NoRequest) => "no request".into(),
        };
        assert_eq!(value, expected.trim(), "{source}");
        rows += 1;
    }
    assert!(rows >= 60, "only {rows} rows were read");
}

/// `default`, then policies with their rules, then `judge FACTS => VERDICT`; a new `default` begins anew.
#[test]
fn verdicts() {
    let (mut default, mut policies, mut rows) = (DefaultAction::Allow, Vec::<Policy>::new(), 0);
    for line in rows_of(include_str!("../testdata/verdicts.txt")) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "default" => {
                default = if rest == "DENY" { DefaultAction::Deny } else { DefaultAction::Allow };
                policies.clear();
            }
            "policy" => policies.push(policy(rest)),
            "rule" => policies.last_mut().expect("a policy comes before its rules").rules.push(rule(rest)),
            "judge" => {
                let (words, expected) = rest.split_once("=>").expect("judge FACTS => VERDICT");
                assert_eq!(judged(&policies, default, words), expected.trim(), "{line}");
                rows += 1;
            }
            _ => panic!("not a row: {line}"),
        }
    }
    assert!(rows >= 25, "only {rows} rows were read");
}

fn judged(policies: &[Policy], default: DefaultAction, words: &str) -> String {
    let judgement = Authorizer::new(policies.to_vec(), default).judge(&Told::new(words).facts());
    let mut text = judgement.verdict.to_string();
    for by in &judgement.audits {
        write!(text, " · audit by {by}").unwrap();
    }
    for by in &judgement.dry_runs {
        write!(text, " · would deny by {by}").unwrap();
    }
    text
}

fn policy(words: &str) -> Policy {
    let mut words = words.split(' ');
    let name = words.next().unwrap().to_owned();
    let action = match words.next() {
        Some("DENY") => Action::Deny,
        Some("ALLOW") => Action::Allow,
        Some("AUDIT") => Action::Audit,
        other => panic!("{name}: {other:?} is no action"),
    };
    let mode = if words.next() == Some("DRY_RUN") { Mode::DryRun } else { Mode::Enforce };
    Policy { name, action, mode, rules: Vec::new(), commit: "c0ffee".into() }
}

fn rule(text: &str) -> Rule {
    let (name, when) = text.split_once(':').expect("rule NAME: EXPRESSION");
    let when = Some(when.trim()).filter(|when| !when.is_empty());
    Rule { name: name.into(), when: when.map(|when| check(when, Surface::Http).expect(when)) }
}

/// Rows `> EXPRESSION` or `tcp> EXPRESSION`, each followed by its mistakes under their places. `UPDATE_EXPECT=1`
/// writes them; read what it wrote.
#[test]
fn mistakes() {
    let table = include_str!("../testdata/mistakes.txt");
    let mut out = String::new();
    for line in table.lines().filter(|line| !line.starts_with(' ')) {
        writeln!(out, "{line}").unwrap();
        let row = [("> ", Surface::Http), ("tcp> ", Surface::Tcp)];
        let row = row.iter().find_map(|(mark, surface)| Some((mark, line.strip_prefix(mark)?, *surface)));
        let Some((mark, source, surface)) = row else { continue };
        let mistakes =
            check(source, surface).err().unwrap_or_else(|| panic!("nothing is wrong with {source}"));
        for mistake in mistakes {
            let column = mark.len() + source[..mistake.offset].chars().count();
            writeln!(out, "{:column$}^ {}", "", mistake.message).unwrap();
            if let Some(help) = mistake.help {
                writeln!(out, "{:column$}  help: {help}", "").unwrap();
            }
        }
    }
    expect_file!["../testdata/mistakes.txt"].assert_eq(&out);
}

#[test]
fn every_name_is_readable_or_not_yet_supported() {
    for (name, attribute) in KNOWN {
        let uses = ["== \"\"", "== 0", "|| false", "[\"x\"] == \"\""].map(|rest| format!("{name} {rest}"));
        let uses = uses.into_iter().chain([format!("\"x\" in {name}")]);
        let read = uses.filter_map(|source| check(&source, Surface::Http).ok()).next();
        match read {
            Some(expression) => {
                assert_eq!(expression.reads().names().collect::<Vec<_>>(), [name]);
                assert!(expression.reads().contains(attribute));
                assert_eq!(expression.reads().request(), name.starts_with("request."));
            }
            None => {
                let mistakes = check(name, Surface::Http).unwrap_err();
                assert_eq!(mistakes[0].message, format!("`{name}` is not yet supported"));
            }
        }
    }
}

#[test]
fn an_offset_counts_bytes_and_lines() {
    let source = "source.namespace == \"é\"\n  && source.nme == \"x\"";
    let mistakes = check(source, Surface::Http).unwrap_err();
    assert_eq!(&source[mistakes[0].offset..][..10], "source.nme");
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let chain = |link: &str, times: usize| format!("{}true", link.repeat(times));
    let deep = ["!(", "(", "1+", "true == ", "a.", "[", "source.ip.x("];
    for source in deep.map(|link| chain(link, 4000)).into_iter().chain(deep.map(|link| chain(link, 600))) {
        assert!(check(&source, Surface::Http).is_err());
    }
    assert!(check(&chain("!", 4000), Surface::Http).is_ok(), "an even number of `!` is none");
    let wide = vec!["source.port != 1"; 400].join(" && ");
    assert!(check(&wide, Surface::Http).is_ok(), "a wide rule is not a deep one");
}

#[test]
fn the_patterns_of_one_expression_have_a_limit() {
    let chain = |pattern: &str, times| vec![format!("request.path.matches({pattern:?})"); times].join(" || ");
    assert!(check(&chain("^/users/[0-9]+$", 64), Surface::Http).is_ok());
    let many = check(&chain("a", 65), Surface::Http).unwrap_err();
    assert!(many[0].message.contains("at most 64 patterns"), "{many:?}");
    assert!(check(&chain("[a-z]{10000}", 32), Surface::Http).is_err());
}

fn rows_of(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}
