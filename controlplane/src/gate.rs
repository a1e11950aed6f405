//! The gate: a commit is taken whole or refused whole, with every mistake at its place.
//!
//! A source's commit is judged beside the last good ones of the others: what it takes from them is its mistake, what was
//! wrong with them before is not. `weft check` runs this same code offline.

mod unidentified;

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
};

use api::{
    admin::{Problem, Severity},
    head::CommitId,
    link::{self, Extent},
    manifest::{self, Code, Diagnostic, MAX_OBJECTS, Parsed, Placed},
    name::{Namespace, SourceName},
    pattern::ALL_BYTES_MAX,
    resource::{
        AuthorizationPolicy, Kind, Object, Service,
        service::Application,
        target::{TargetKind, TargetRef, selects},
    },
};
use policies::{Mistake, Surface};

use crate::{
    git::{Checkout, MAX_FILE_BYTES, MAX_FILES},
    ownership::Ownership,
};

/// What one commit of a source says, as far as that can be known from it alone.
#[derive(Debug)]
pub struct Tree {
    /// The source.
    pub source: SourceName,
    /// The commit.
    pub commit: CommitId,
    /// Who wrote it: `Name <address>`.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
    parsed: Parsed,
    /// Files that could not be taken.
    refused: Vec<Problem>,
}

impl Tree {
    /// Reads the files of a checkout.
    pub fn read(checkout: &Checkout) -> Tree {
        let files: Vec<_> =
            checkout.files.iter().map(|file| (file.path.as_str(), file.text.as_bytes())).collect();
        let refused = checkout.refusals.iter().map(|refusal| Problem {
            file: refusal.file.clone(),
            line: refusal.line,
            column: refusal.column,
            message: refusal.fault.to_string(),
            help: None,
            severity: Severity::Error,
        });
        Tree {
            source: checkout.source.clone(),
            commit: checkout.commit.clone(),
            author: checkout.author.clone(),
            subject: checkout.subject.clone(),
            parsed: manifest::parse(&files),
            refused: refused.collect(),
        }
    }

    /// What it says.
    pub fn placed(&self) -> &[Placed] {
        &self.parsed.placed
    }
}

/// All errors of `tree`, which refuse it, and its warnings, beside what `others` have in force; `before` is what its own
/// source has.
pub fn judge(tree: &Tree, ownership: &Ownership, others: &[&Placed], before: &[Placed]) -> Vec<Problem> {
    if tree.source != *ownership.rest() && others.iter().all(|other| other.resource.kind() != Kind::Mesh) {
        return vec![no_mesh(ownership.rest())];
    }
    if others.len() + tree.placed().len() > MAX_OBJECTS {
        let message = format!("more than {MAX_OBJECTS} objects in all sources together: remove some");
        return vec![problem(".", message)];
    }
    let mut wrong = mistakes(&tree.parsed, others, Extent::Whole);
    let foreign: HashSet<&str> = others.iter().map(|other| &*other.origin.file).collect();
    if wrong.iter().any(|one| foreign.contains(&*one.file)) {
        let in_force: Vec<&Placed> = others.iter().copied().chain(before).collect();
        let known = mistakes(&Parsed::default(), &in_force, Extent::Whole);
        wrong.retain(|one| !foreign.contains(&*one.file) || !known.contains(one));
    }
    for one in wrong.iter_mut().filter(|one| foreign.contains(&*one.file)) {
        one.help = Some(match one.severity {
            Severity::Error => "it relies on what this commit changes: let it be changed first".into(),
            Severity::Warning => "it relies on what this commit changes".into(),
        });
    }
    wrong.extend(trespasses(tree.placed(), |namespace| {
        let owner = ownership.owner(namespace);
        (*owner != tree.source).then(|| format!("source `{owner}`"))
    }));
    wrong.sort();
    tree.refused.iter().cloned().chain(wrong.iter().map(Problem::from)).collect()
}

/// The errors and warnings of the files of a directory, as they are on disk: those of the whole mesh, or of a source that
/// owns `namespaces` alone. Of what others say nothing is known then, and whatever refers to it may be right.
pub fn check_dir(path: &Path, namespaces: Option<&BTreeSet<Namespace>>) -> Vec<Problem> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    if let Err(error) = gather(path, path, &mut files, &mut problems) {
        problems.push(problem(&path.display().to_string(), format!("cannot be read: {error}")));
    }
    files.sort();
    let parsed = manifest::parse(&files);
    let mut wrong = mistakes(&parsed, &[], namespaces.map_or(Extent::Whole, Extent::Namespaces));
    if let Some(own) = namespaces {
        let is_own = |namespace: Option<&Namespace>| namespace.is_some_and(|one| own.contains(one));
        wrong.extend(trespasses(&parsed.placed, |namespace| {
            (!is_own(namespace)).then(|| "another source".to_owned())
        }));
        wrong.sort();
    }
    problems.extend(wrong.iter().map(Problem::from));
    problems
}

/// What is wrong with references and expressions.
fn mistakes(own: &Parsed, beside: &[&Placed], extent: Extent<'_>) -> Vec<Diagnostic> {
    let mut wrong = link::judge(own, beside, extent);
    let all: Vec<&Placed> = beside.iter().copied().chain(&own.placed).collect();
    wrong.extend(expressions(&all));
    link::bounded(wrong)
}

/// Resources that are another's to say; `owner` names whose a namespace is, unless it is one's own.
fn trespasses(placed: &[Placed], owner: impl Fn(Option<&Namespace>) -> Option<String>) -> Vec<Diagnostic> {
    let trespass = |own: &Placed| {
        let namespace = own.resource.meta().namespace.as_ref();
        let owner = owner(namespace)?;
        let (pointer, message) = match namespace {
            Some(namespace) => {
                ("/metadata/namespace", format!("namespace `{namespace}` is owned by {owner}"))
            }
            None => {
                ("/kind", format!("what a `{}` says is mesh-wide, and owned by {owner}", own.resource.kind()))
            }
        };
        let help = match namespace {
            Some(namespace) if !namespace.is_system() => {
                "commit it there, or let the settings of the control plane give the namespace to this source"
            }
            _ => "commit it there",
        };
        Some(Diagnostic {
            file: own.origin.file.clone(),
            at: own.positions.at(pointer),
            code: Code::Ownership,
            message,
            help: Some(help.into()),
            severity: Severity::Error,
        })
    };
    let mut told: Vec<_> = placed.iter().filter_map(trespass).collect();
    // An object for several clusters is placed in each.
    told.dedup();
    told
}

fn no_mesh(rest: &SourceName) -> Problem {
    let help = "it is judged again as soon as that source has a good commit".to_owned();
    Problem {
        help: Some(help),
        ..problem(".", format!("no `Mesh` is in force yet, which source `{rest}` says"))
    }
}

/// What is wrong with the expressions, each at its own place in its text. It ends once there are as many errors as are
/// told: one expression may have thousands.
fn expressions(placed: &[&Placed]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut pattern_bytes = 0;
    for own in placed {
        if manifest::is_full(&diagnostics, Severity::Error) {
            break;
        }
        if let Some(policy) = own.resource.as_kind() {
            policy_expressions(placed, own, policy, &mut diagnostics, &mut pattern_bytes);
        }
    }
    diagnostics
}

fn policy_expressions(
    placed: &[&Placed],
    own: &Placed,
    policy: &Object<AuthorizationPolicy>,
    diagnostics: &mut Vec<Diagnostic>,
    pattern_bytes: &mut usize,
) {
    let surface = surface(placed, policy);
    for (place, rule) in policy.spec.rules.iter().enumerate() {
        let Some(when) = &rule.when else { continue };
        let pointer = format!("/spec/rules/{place}/when");
        let told = |offset, message, help, severity| Diagnostic {
            file: own.origin.file.clone(),
            at: own.positions.within(&pointer, offset),
            code: Code::Expression,
            message,
            help,
            severity,
        };
        if *pattern_bytes > ALL_BYTES_MAX {
            let message = format!(
                "the patterns of the rules before it take more than {ALL_BYTES_MAX} bytes: repeat less"
            );
            diagnostics.push(told(0, message, None, Severity::Error));
            return;
        }
        let expression = match policies::check(when, surface) {
            Ok(expression) => expression,
            Err(mistakes) => {
                for Mistake { offset, message, help } in mistakes {
                    if manifest::is_full(diagnostics, Severity::Error) {
                        return;
                    }
                    let one = told(offset, message, help, Severity::Error);
                    // A policy that is placed in several clusters is judged in each.
                    if !diagnostics.contains(&one) {
                        diagnostics.push(one);
                    }
                }
                continue;
            }
        };
        *pattern_bytes += expression.pattern_bytes();
        if manifest::is_full(diagnostics, Severity::Warning) {
            continue;
        }
        if let Some(open) = unidentified::let_in_by(placed, policy, expression.reads()) {
            let message = format!(
                "this denies by who calls, and {} `{}` lets in who shows no certificate, and so is nobody",
                Kind::PeerAuthentication,
                open.service_name()
            );
            let help =
                "deny those, too: `!connection.mtls || (...)`; or let these ports be STRICT".to_owned();
            diagnostics.push(told(0, message, Some(help), Severity::Warning));
        }
    }
}

/// TCP as soon as one port that the policy guards speaks no HTTP: there a rule on requests would judge nothing.
fn surface(placed: &[&Placed], policy: &Object<AuthorizationPolicy>) -> Surface {
    let mut services = placed.iter().filter_map(|own| own.resource.as_kind::<Service>());
    let guards_tcp = services.any(|service| {
        guards(policy, service)
            && service.spec.ports.iter().any(|port| {
                let mut targets =
                    policy.spec.target_refs.iter().filter(|target| target.name == service.meta.name);
                let means = |target: &TargetRef| {
                    target.section_name.as_deref().is_none_or(|named| port.name.as_deref() == Some(named))
                };
                (policy.spec.target_refs.is_empty() || targets.any(means))
                    && port.application() == Application::Tcp
            })
    });
    if guards_tcp { Surface::Tcp } else { Surface::Http }
}

fn guards(policy: &Object<AuthorizationPolicy>, service: &Object<Service>) -> bool {
    let home = policy.meta.namespace();
    let same = service.meta.namespace() == home;
    let targets = &policy.spec.target_refs;
    match &policy.spec.selector {
        Some(selector) => same && selects(&selector.match_labels, &service.spec.selector),
        None if targets.is_empty() => same || home.is_system(),
        None => same && targets.iter().any(|t| t.kind == TargetKind::Service && t.name == service.meta.name),
    }
}

fn gather(
    root: &Path,
    dir: &Path,
    files: &mut Vec<(String, Vec<u8>)>,
    problems: &mut Vec<Problem>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        if kind.is_dir() {
            if entry.file_name() != ".git" {
                gather(root, &path, files, problems)?;
            }
        } else if kind.is_symlink() && is_yaml {
            problems.push(problem(&name, "a symbolic link is not followed: commit the file instead".into()));
        } else if is_yaml && entry.metadata()?.len() > MAX_FILE_BYTES {
            problems
                .push(problem(&name, format!("over the limit of {MAX_FILE_BYTES} bytes a file: split it")));
        } else if is_yaml && files.len() >= MAX_FILES {
            problems.push(problem(&name, format!("more than {MAX_FILES} files: split the repository")));
            return Ok(());
        } else if is_yaml {
            files.push((name, std::fs::read(&path)?));
        }
    }
    Ok(())
}

fn problem(file: &str, message: String) -> Problem {
    Problem { file: file.to_owned(), line: 0, column: 0, message, help: None, severity: Severity::Error }
}

#[cfg(test)]
mod tests;
