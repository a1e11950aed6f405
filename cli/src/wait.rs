//! `weft wait`: returns when a commit rules every proxy of every cluster.

use std::{path::Path, process::ExitCode, time::Duration};

use api::admin::{Laggard, Problem, WaitAnswer};
use clap::Args;

use crate::{
    Global,
    check::render_problem,
    client::{Client, escape},
    duration,
    mesh::Mesh,
    output::{Cell, Output, Style, Table, Tone, short_commit},
    progress::Progress,
    up::repository,
};

/// What the answer itself may take beyond the time that was asked for.
const ANSWER_SLACK: Duration = Duration::from_secs(5);

/// Wait until a commit is effective on every proxy of every cluster
///
/// No request that begins after this has returned is decided by an older commit. A newer commit that is effective
/// counts too. When the commit is refused, or the time is up, it says why and who lags, and ends with status 1.
#[derive(Args)]
#[command(after_help = "Examples:
  git commit -am 'reviews: only the front may read' && weft wait HEAD
  weft wait 1a2b3c4 --timeout 5s
  weft wait HEAD --strict                     fails also while a proxy is gone")]
pub(crate) struct Wait {
    /// A commit: HEAD, a branch, or an id, also abbreviated
    #[arg(default_value = "HEAD")]
    revision: String,
    /// How long to wait
    #[arg(long, default_value = "60s", value_parser = duration::parse, value_name = "DURATION")]
    timeout: Duration,
    /// Fail while proxies are gone, although they get no traffic from the mesh
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(wait: Wait, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::find(global)?;
    let client = mesh.client(None)?;
    let commit = resolve(&wait.revision, &mesh, &client).await?;
    let progress = Progress::new();
    progress.at(&format!("waiting for {} …", short_commit(&commit)));
    let path = format!(
        "/wait?commit={}&timeout={}&strict={}",
        escape(&commit),
        wait.timeout.as_secs_f64().ceil(),
        wait.strict
    );
    let answer: WaitAnswer = client.get_within(&path, wait.timeout + ANSWER_SLACK).await?;
    drop(progress);

    let done = answer.effective && (answer.gone.is_empty() || !wait.strict);
    if done || output.is_json() {
        output.answer(&answer, text);
    } else {
        eprintln!("weft: {}", text(&answer, Style::PLAIN).trim_end());
    }
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Git knows what HEAD is before the control plane has seen it.
pub(crate) async fn resolve(revision: &str, mesh: &Mesh, client: &Client) -> anyhow::Result<String> {
    let full = matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if full {
        return Ok(revision.to_owned());
    }
    let here = std::env::current_dir().unwrap_or_default();
    if let Some(up) = mesh.up.as_ref().filter(|up| here.starts_with(&up.descriptor.repository)) {
        return repository::resolve(&up.descriptor.repository, revision);
    }
    let status: api::admin::Status = client.get("/status").await?;
    match status.sources.as_slice() {
        [sole] if Path::new(&sole.repository).is_dir() => {
            repository::resolve(Path::new(&sole.repository), revision)
        }
        // One of several, or at a server: this directory may be it, or a clone. Else the control plane resolves what it
        // can.
        _ => Ok(repository::resolve(Path::new("."), revision).unwrap_or_else(|_| revision.to_owned())),
    }
}

fn text(answer: &WaitAnswer, style: Style) -> String {
    let commit = short_commit(&answer.commit);
    let problems = |errors: &[Problem]| errors.iter().map(render_problem).collect::<String>();
    let mut text = if answer.effective {
        style.paint(Tone::Good, &format!("{commit} is effective on every proxy of every cluster")) + "\n"
    } else if !answer.errors.is_empty() {
        format!("{commit} is refused; the last good commit stays in force\n{}", problems(&answer.errors))
    } else {
        format!("{commit} is not effective everywhere\n{}", laggards(&answer.lagging, style))
    };
    if !answer.gone.is_empty() {
        text.push_str("gone, and without traffic from the mesh:\n");
        text.push_str(&laggards(&answer.gone, style));
    }
    text
}

fn laggards(laggards: &[Laggard], style: Style) -> String {
    let mut table = Table::new(["CLUSTER", "PROXY", "WHY"]);
    for laggard in laggards {
        let workload = laggard.workload.as_ref().map_or("(the cluster)", |workload| workload.as_str());
        table.row([laggard.cluster.as_str().into(), Cell::from(workload), laggard.why.as_str().into()]);
    }
    table.render(style)
}

#[cfg(test)]
mod tests {
    use api::admin::Severity;
    use expect_test::expect;

    use super::*;

    fn answer() -> WaitAnswer {
        WaitAnswer {
            commit: "1a2b3c4d5e6f".into(),
            effective: false,
            state: None,
            errors: Vec::new(),
            lagging: Vec::new(),
            gone: Vec::new(),
        }
    }

    #[test]
    fn it_says_who_lags_and_why() {
        let laggard = |workload: Option<&str>, why: &str| Laggard {
            cluster: "west".parse().unwrap(),
            workload: workload.map(|id| id.parse().unwrap()),
            why: why.into(),
        };
        let lagging = vec![
            laggard(Some("west-front-1"), "slow: no answer for 2 s"),
            laggard(None, "no link to the primary"),
        ];
        expect![[r#"
            1a2b3c4 is not effective everywhere
              CLUSTER  PROXY          WHY
              west     west-front-1   slow: no answer for 2 s
              west     (the cluster)  no link to the primary
        "#]]
        .assert_eq(&text(&WaitAnswer { lagging, ..answer() }, Style::PLAIN));
    }

    #[test]
    fn a_refused_commit_is_said_with_its_positions() {
        let errors = vec![Problem {
            file: "shop/policy.yaml".into(),
            line: 12,
            column: 9,
            message: "unknown name `souce`".into(),
            help: Some("did you mean `source`?".into()),
            severity: Severity::Error,
        }];
        expect![[r#"
            1a2b3c4 is refused; the last good commit stays in force
            shop/policy.yaml:12:9: unknown name `souce`
              did you mean `source`?
        "#]]
        .assert_eq(&text(&WaitAnswer { errors, ..answer() }, Style::PLAIN));
    }
}
