//! `weft check`: the control plane's own gate, offline.

mod tree;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::ensure;
use api::{admin::Problem, name::Namespace};
use clap::Args;

use crate::{
    controlplane,
    output::{Output, line},
};

/// Check a configuration repository as the control plane would
///
/// Reports every mistake with file, line, column and what was expected, and ends with status 1 if there is any. What
/// the mesh lets pass (`Mesh.spec.unresolvedReferences: REPORT`) is a warning, and no reason to fail.
/// Reads the files as they lie in DIR; needs no mesh.
#[derive(Args)]
#[command(after_help = "Examples:
  weft check                                  the current directory
  weft check weft-up/config --output json     for an editor or a CI job
  weft check --namespaces shop,till           of a source that owns these namespaces alone")]
pub(crate) struct Check {
    /// The repository, or the folder of it that the control plane reads
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The namespaces that it owns, where it is one of several sources. What is said of others is refused; what others
    /// would have to say is not known here, so what refers to it passes
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACE,...")]
    namespaces: Option<Vec<Namespace>>,
}

pub(crate) fn run(check: &Check, output: &Output) -> anyhow::Result<ExitCode> {
    ensure!(check.dir.is_dir(), "{} is no directory", check.dir.display());
    let own: Option<BTreeSet<_>> = check.namespaces.as_ref().map(|own| own.iter().cloned().collect());
    let problems = problems(&check.dir, own.as_ref());
    let is_wrong = problems.iter().any(Problem::is_error);
    if !output.is_json() {
        eprint!("{}", problems.iter().map(render_problem).collect::<String>());
    }
    if output.is_json() || !is_wrong {
        output.answer(&problems, |problems, _| count(problems))?;
    } else {
        eprintln!("weft: {}", count(&problems));
    }
    Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What cannot be taken at all, then what is wrong with the rest.
fn problems(dir: &Path, namespaces: Option<&BTreeSet<Namespace>>) -> Vec<Problem> {
    let mut problems = tree::refusals(dir);
    let judged = controlplane::check_dir(dir, namespaces);
    let new: Vec<_> = judged.into_iter().filter(|one| !problems.contains(one)).collect();
    problems.extend(new);
    problems
}

/// `no mistakes found`, `2 mistakes, one warning`.
fn count(problems: &[Problem]) -> String {
    let some = |count: usize, what: &str| match count {
        1 => format!("one {what}"),
        count => format!("{count} {what}s"),
    };
    let errors = problems.iter().filter(|one| one.is_error()).count();
    let mistakes = if errors == 0 { "no mistakes found".to_owned() } else { some(errors, "mistake") };
    match problems.len() - errors {
        0 => mistakes,
        warnings => format!("{mistakes}, {}", some(warnings, "warning")),
    }
}

/// `file:line:column: message`, and what to do on a line of its own.
pub(crate) fn render_problem(problem: &Problem) -> String {
    let file = line(&problem.file);
    let place = match problem.line {
        0 => file,
        number => format!("{file}:{number}:{}", problem.column),
    };
    let help = problem.help.as_ref().map_or(String::new(), |help| format!("  {}\n", line(help)));
    let warning = if problem.is_error() { "" } else { "warning: " };
    format!("{place}: {warning}{}\n{help}", line(&problem.message))
}

#[cfg(test)]
mod tests {
    use api::admin::Severity;

    use super::*;

    #[test]
    fn mistakes_and_warnings_are_counted_each() {
        let said = |severities: &[Severity]| {
            let problem = |severity: &Severity| Problem {
                file: "a.yaml".into(),
                line: 1,
                column: 1,
                message: "there is no Service `shop/a`".into(),
                help: None,
                severity: *severity,
            };
            count(&severities.iter().map(problem).collect::<Vec<_>>())
        };
        use Severity::{Error, Warning};
        assert_eq!(said(&[]), "no mistakes found");
        assert_eq!(said(&[Warning]), "no mistakes found, one warning");
        assert_eq!(said(&[Error]), "one mistake");
        assert_eq!(said(&[Error, Warning, Error, Warning]), "2 mistakes, 2 warnings");
    }

    #[test]
    fn what_the_gate_refuses_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "README"] {
            std::os::unix::fs::symlink("nowhere", dir.path().join(name)).unwrap();
        }
        let told: Vec<_> = problems(dir.path(), None).into_iter().map(|one| one.file).collect();
        for name in ["a.yaml", "README"] {
            assert_eq!(told.iter().filter(|file| *file == name).count(), 1, "{told:?}");
        }
    }

    #[test]
    fn a_mistake_takes_a_line_and_its_help_another_whatever_they_quote() {
        let problem = Problem {
            file: "a\n.yaml".into(),
            line: 3,
            column: 9,
            message: "unknown name `a\x1b[2K\nb.yaml: fine`".into(),
            help: Some("did you\nmean `c`?".into()),
            severity: Severity::Error,
        };
        let said = "a .yaml:3:9: unknown name `a\u{fffd}[2K b.yaml: fine`\n  did you mean `c`?\n";
        assert_eq!(render_problem(&problem), said);
    }
}
