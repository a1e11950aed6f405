//! The decision: which policies rule, in which order, and with what reason.
//!
//! Three steps, and the first that decides wins: a matching DENY denies; where an ALLOW policy guards the workload,
//! a rule of one must match, else deny; otherwise the mesh's default. A rule that cannot be evaluated matches in a
//! DENY and does not in an ALLOW. A policy in DRY_RUN has no part in the verdict.

use std::{fmt, sync::Arc};

use crate::{Expression, Reads, facts::Facts};

/// What a matching rule of a policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It denies.
    Deny,
    /// It allows; what no rule of any ALLOW policy matches is denied.
    Allow,
    /// It is only noted.
    Audit,
}

/// Whether a policy is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Enforce,
    /// It only tells what it would have denied.
    DryRun,
}

/// What holds where no policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// All is allowed.
    Allow,
    /// Nothing is.
    Deny,
}

/// A policy that guards this workload.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// What its rules do.
    pub action: Action,
    /// Whether it is in force.
    pub mode: Mode,
    /// Any of them may match; without any it matches nothing.
    pub rules: Vec<Rule>,
    /// The commit that last changed it.
    pub commit: String,
}

/// One rule of a policy.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name; without one it is called by its place, `#1`.
    pub name: String,
    /// When it matches; without this always.
    pub when: Option<Expression>,
}

/// All policies that guard one workload, made ready to judge.
#[derive(Debug)]
pub struct Authorizer {
    enforced: Set,
    dry_run: Set,
    audit: Vec<Guard>,
    default: DefaultAction,
}

/// The rules of one mode, flat and in the order of their policies.
#[derive(Debug, Default)]
struct Set {
    deny: Vec<Guard>,
    allow: Vec<Guard>,
    /// The ALLOW policies, those without rules too.
    allowing: Arc<[RuleName]>,
}

#[derive(Debug)]
struct Guard {
    when: Option<Expression>,
    rule: Arc<RuleName>,
}

/// Which rule it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// The rule in it.
    pub rule: String,
    /// The commit that last changed the policy.
    pub commit: String,
}

/// What came out, and all that is to be told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What is in force.
    pub verdict: Verdict,
    /// The rules of AUDIT policies that matched.
    pub audits: Vec<By>,
    /// Why it would have been denied, had the policies in DRY_RUN been in force; empty when it was denied anyway.
    pub dry_runs: Vec<By>,
}

/// Allowed or denied, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow(By),
    /// It does not.
    Deny(By),
}

/// The reason of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A rule matched.
    Rule {
        /// Which one.
        rule: Arc<RuleName>,
        /// It could not be evaluated, which counts as a match where it is not an ALLOW.
        faulted: bool,
    },
    /// There are ALLOW policies, and no rule of theirs matched.
    NoRuleMatched {
        /// Which ones, with the commit that last changed each; their `rule` is empty.
        policies: Arc<[RuleName]>,
    },
    /// No policy decides; the mesh's default holds.
    Default,
}

impl Authorizer {
    /// Makes policies ready. Their order is that in which reasons are found.
    pub fn new(policies: Vec<Policy>, default: DefaultAction) -> Self {
        let mut authorizer =
            Authorizer { enforced: Set::default(), dry_run: Set::default(), audit: Vec::new(), default };
        let (mut allowing, mut allowing_dry) = (Vec::new(), Vec::new());
        for policy in policies {
            let (set, names) = match policy.mode {
                Mode::Enforce => (&mut authorizer.enforced, &mut allowing),
                Mode::DryRun => (&mut authorizer.dry_run, &mut allowing_dry),
            };
            match (policy.action, policy.mode) {
                (Action::Deny, Mode::Enforce | Mode::DryRun) => set.deny.extend(guards(policy)),
                (Action::Allow, Mode::Enforce | Mode::DryRun) => {
                    let (name, commit) = (policy.name.clone(), policy.commit.clone());
                    names.push(RuleName { policy: name, rule: String::new(), commit });
                    set.allow.extend(guards(policy));
                }
                (Action::Audit, Mode::Enforce) => authorizer.audit.extend(guards(policy)),
                (Action::Audit, Mode::DryRun) => {}
            }
        }
        authorizer.enforced.allowing = allowing.into();
        authorizer.dry_run.allowing = allowing_dry.into();
        authorizer
    }

    /// Judges a request or a connection.
    pub fn judge(&self, facts: &Facts<'_>) -> Judgement {
        let verdict = self.verdict(facts);
        let dry_runs = match &verdict {
            Verdict::Allow(by) => self.would_deny(by, facts),
            Verdict::Deny(_) => Vec::new(),
        };
        let audits = self.audit.iter().filter_map(|guard| guard.matches(facts, true)).collect();
        Judgement { verdict, audits, dry_runs }
    }

    /// What all its rules read together.
    pub fn reads(&self) -> Reads {
        let sets =
            [&self.enforced.deny, &self.enforced.allow, &self.dry_run.deny, &self.dry_run.allow, &self.audit];
        let guards = sets.into_iter().flatten();
        guards
            .filter_map(|guard| guard.when.as_ref())
            .fold(Reads::NONE, |reads, when| reads.union(when.reads()))
    }

    fn verdict(&self, facts: &Facts<'_>) -> Verdict {
        let Set { deny, allow, allowing } = &self.enforced;
        if let Some(by) = deny.iter().find_map(|guard| guard.matches(facts, true)) {
            return Verdict::Deny(by);
        }
        if !allowing.is_empty() {
            return match allow.iter().find_map(|guard| guard.matches(facts, false)) {
                Some(by) => Verdict::Allow(by),
                None => Verdict::Deny(By::NoRuleMatched { policies: allowing.clone() }),
            };
        }
        match self.default {
            DefaultAction::Allow => Verdict::Allow(By::Default),
            DefaultAction::Deny => Verdict::Deny(By::Default),
        }
    }

    /// What the policies in DRY_RUN would have denied of what is allowed.
    fn would_deny(&self, allowed: &By, facts: &Facts<'_>) -> Vec<By> {
        let Set { deny, allow, allowing } = &self.dry_run;
        let mut denials: Vec<By> = deny.iter().filter_map(|guard| guard.matches(facts, true)).collect();
        let asks_for_allow = match allowed {
            By::Rule { .. } => false,
            By::NoRuleMatched { .. } | By::Default => !allowing.is_empty(),
        };
        if asks_for_allow && !allow.iter().any(|guard| guard.matches(facts, false).is_some()) {
            denials.push(By::NoRuleMatched { policies: allowing.clone() });
        }
        denials
    }
}

fn guards(policy: Policy) -> impl Iterator<Item = Guard> {
    let Policy { name, rules, commit, .. } = policy;
    rules.into_iter().enumerate().map(move |(index, rule)| {
        let called = if rule.name.is_empty() { format!("#{}", index + 1) } else { rule.name };
        let rule_name = RuleName { policy: name.clone(), rule: called, commit: commit.clone() };
        Guard { when: rule.when, rule: Arc::new(rule_name) }
    })
}

impl Guard {
    fn matches(&self, facts: &Facts<'_>, fault_matches: bool) -> Option<By> {
        let faulted = match self.when.as_ref().map(|when| when.evaluate(facts)) {
            None | Some(Ok(true)) => false,
            Some(Ok(false)) => return None,
            Some(Err(_)) if fault_matches => true,
            Some(Err(_)) => return None,
        };
        Some(By::Rule { rule: self.rule.clone(), faulted })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allow(by) => write!(out, "allow by {by}"),
            Verdict::Deny(by) => write!(out, "deny by {by}"),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Rule { rule, faulted: false } => write!(out, "{} rule {}", rule.policy, rule.rule),
            By::Rule { rule, faulted: true } => {
                write!(out, "{} rule {}, which could not be evaluated", rule.policy, rule.rule)
            }
            By::NoRuleMatched { policies } => {
                let names: Vec<_> = policies.iter().map(|one| one.policy.as_str()).collect();
                write!(out, "no rule of {}", names.join(", "))
            }
            By::Default => out.write_str("default"),
        }
    }
}
