//! The gate: a commit is taken whole or refused whole, with every mistake at its place.
//!
//! `weft check` runs this same code offline.

use std::path::Path;

use api::{
    admin::Problem,
    link::{self, Entry, ResourceSet},
    manifest::Diagnostic,
    resource::{
        AuthorizationPolicy, Object, Service,
        service::Application,
        target::{TargetKind, selects},
    },
};
use policies::Surface;

use crate::git::{Checkout, MAX_FILE_BYTES, MAX_FILES};

/// The resources of a checkout, or all that is wrong with it.
pub fn check(checkout: &Checkout) -> Result<ResourceSet, Vec<Problem>> {
    let files: Vec<_> =
        checkout.files.iter().map(|file| (file.path.as_str(), file.text.as_bytes())).collect();
    let refused = checkout.refusals.iter().map(|refusal| Problem {
        file: refusal.file.clone(),
        line: refusal.line,
        column: refusal.column,
        message: refusal.fault.to_string(),
        help: None,
    });
    judge(&files, refused.collect())
}

/// The same for files of a directory, as they are on disk.
pub fn check_dir(path: &Path) -> Vec<Problem> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    if let Err(error) = gather(path, path, &mut files, &mut problems) {
        problems.push(problem(&path.display().to_string(), format!("cannot be read: {error}")));
    }
    files.sort();
    judge(&files, problems).err().unwrap_or_default()
}

fn judge<P: AsRef<str>, B: AsRef<[u8]>>(
    files: &[(P, B)],
    mut problems: Vec<Problem>,
) -> Result<ResourceSet, Vec<Problem>> {
    let mut loaded = link::load(files);
    let expressions = expressions(&loaded.set);
    loaded.diagnostics.extend(expressions);
    loaded.diagnostics.sort();
    problems.extend(loaded.diagnostics.iter().map(Problem::from));
    if problems.is_empty() { Ok(loaded.set) } else { Err(problems) }
}

/// What is wrong with the expressions, each at its own place in its text.
fn expressions(set: &ResourceSet) -> Vec<Diagnostic> {
    let policies = set.resources.values().filter_map(|entry| Some((entry, entry.resource.as_kind()?)));
    policies.flat_map(|(entry, policy)| policy_expressions(set, entry, policy)).collect()
}

fn policy_expressions(
    set: &ResourceSet,
    entry: &Entry,
    policy: &Object<AuthorizationPolicy>,
) -> Vec<Diagnostic> {
    let surface = surface(set, policy);
    let mut diagnostics = Vec::new();
    for (place, rule) in policy.spec.rules.iter().enumerate() {
        let Some(when) = &rule.when else { continue };
        for mistake in policies::check(when, surface).err().into_iter().flatten() {
            let pointer = format!("/spec/rules/{place}/when");
            let at = entry.positions.as_ref().map(|positions| positions.within(&pointer, mistake.offset));
            diagnostics.push(Diagnostic {
                file: entry.origin.file.clone(),
                at: at.unwrap_or_default(),
                code: api::manifest::Code::Expression,
                message: mistake.message,
                help: mistake.help,
            });
        }
    }
    diagnostics
}

/// TCP as soon as one port that the policy guards speaks no HTTP: there a rule on requests would judge nothing.
fn surface(set: &ResourceSet, policy: &Object<AuthorizationPolicy>) -> Surface {
    let guards_tcp = set.all::<Service>().any(|(_, service)| {
        guards(policy, service)
            && service.spec.ports.iter().any(|port| {
                let named = policy.spec.target_refs.iter().find_map(|target| target.section_name.as_deref());
                named.is_none_or(|named| port.name.as_deref() == Some(named))
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
    Problem { file: file.to_owned(), line: 0, column: 0, message, help: None }
}
