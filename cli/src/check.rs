//! `weft check`: the control plane's own gate, offline.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::ensure;
use api::{admin::Problem, name::Namespace};
use clap::Args;

use crate::{controlplane, output::Output};

/// Check a configuration repository as the control plane would
///
/// Reports every mistake with file, line, column and what was expected, and ends with status 1 if there is any.
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
    let problems = controlplane::check_dir(&check.dir, own.as_ref());
    if problems.is_empty() {
        output.answer(&problems, |_, _| "no mistakes found".to_owned());
        return Ok(ExitCode::SUCCESS);
    }
    if output.is_json() {
        output.answer(&problems, |_, _| String::new());
    } else {
        let count = match problems.len() {
            1 => "one mistake".to_owned(),
            count => format!("{count} mistakes"),
        };
        eprintln!("{}weft: {count}", problems.iter().map(render_problem).collect::<String>());
    }
    Ok(ExitCode::FAILURE)
}

/// `file:line:column: message`, and what to do on a line of its own.
pub(crate) fn render_problem(problem: &Problem) -> String {
    let place = match problem.line {
        0 => problem.file.clone(),
        line => format!("{}:{line}:{}", problem.file, problem.column),
    };
    let help = problem.help.as_ref().map_or(String::new(), |help| format!("  {help}\n"));
    format!("{place}: {}\n{help}", problem.message)
}
