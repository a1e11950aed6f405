//! `weft wait`: returns when a commit rules every proxy of every cluster.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use api::admin::{CommitState, Laggard, Problem, SourceStatus, WaitAnswer};
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
/// The control plane lets nobody wait for longer at once.
const LONGEST_TURN: Duration = Duration::from_secs(3600);

/// Wait until a commit is effective on every proxy of every cluster
///
/// No request that begins after this has returned is decided by an older commit. A newer commit that is effective
/// counts too. When the commit is refused, or the time is up, it says why and who lags, and ends with status 1.
///
/// HEAD is that of the repository you are in, where that rules the mesh or is a clone of what does; anywhere else it is
/// the last commit of the branch that rules.
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
    let answer = ask(&client, &commit, &wait).await?;
    drop(progress);

    let done = answer.effective && (answer.gone.is_empty() || !wait.strict);
    if done || output.is_json() {
        output.answer(&answer, text)?;
    } else {
        eprintln!("weft: {}", text(&answer, Style::PLAIN).trim_end());
    }
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks again until the time is over, or waiting does not help.
async fn ask(client: &Client, commit: &str, wait: &Wait) -> anyhow::Result<WaitAnswer> {
    let began = Instant::now();
    loop {
        let turn = wait.timeout.saturating_sub(began.elapsed()).min(LONGEST_TURN);
        let path = format!(
            "/wait?commit={}&timeout={}&strict={}",
            escape(commit),
            turn.as_secs_f64().ceil(),
            wait.strict
        );
        let answer: WaitAnswer = client.get_within(&path, turn + ANSWER_SLACK).await?;
        let refused = matches!(answer.state, Some(CommitState::Refused | CommitState::Held));
        if answer.effective || refused || began.elapsed() >= wait.timeout {
            return Ok(answer);
        }
    }
}

/// Git knows what HEAD is before the control plane has seen it.
pub(crate) async fn resolve(revision: &str, mesh: &Mesh, client: &Client) -> anyhow::Result<String> {
    let full = matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if full {
        return Ok(revision.to_owned());
    }
    let here = std::env::current_dir().unwrap_or_default();
    if mesh.up.as_ref().is_some_and(|up| here.starts_with(&up.descriptor.repository)) {
        return repository::resolve(&here, revision);
    }
    let status: api::admin::Status = client.get("/status").await?;
    match status.sources.as_slice() {
        [sole] if Path::new(&sole.repository).is_dir() => resolve_at(&here, revision, sole),
        // One of several, or at a server: this directory may be it, or a clone. Else the control plane resolves what it
        // can.
        _ => Ok(repository::resolve(&here, revision).unwrap_or_else(|_| revision.to_owned())),
    }
}

/// Here, where `here` lies in a clone of the source, whose commit may not be pushed yet; otherwise in the source itself.
fn resolve_at(here: &Path, revision: &str, source: &SourceStatus) -> anyhow::Result<String> {
    if let Ok(commit) = repository::resolve(here, revision) {
        if is_clone(here, &commit, source) {
            return Ok(commit);
        }
        eprintln!("weft: you are in no clone of {}: `{revision}` is taken from there", source.repository);
    }
    repository::resolve(Path::new(&source.repository), &of_branch(revision, &source.branch))
}

/// Whether what led to `commit` here is the source's history: it holds the commit in force, or began as the source did.
fn is_clone(here: &Path, commit: &str, source: &SourceStatus) -> bool {
    let has = |repository: &Path, commit: &str| repository::resolve(repository, commit).is_ok();
    source.commit.as_ref().is_some_and(|in_force| has(here, in_force))
        || repository::beginning(here, commit).is_some_and(|first| has(Path::new(&source.repository), &first))
}

/// HEAD of a source is its branch, whatever is checked out there.
fn of_branch(revision: &str, branch: &str) -> String {
    match revision.strip_prefix("HEAD") {
        Some(rest) if rest.is_empty() || rest.starts_with(['~', '^', '@']) => {
            format!("refs/heads/{branch}{rest}")
        }
        _ => revision.to_owned(),
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

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

    fn git(dir: &Path, args: &str) {
        let mut words = vec!["-c", "user.name=Ada", "-c", "user.email=ada@localhost"];
        words.extend(["-c", "commit.gpgsign=false"].into_iter().chain(args.split(' ')));
        repository::git(dir, &words).unwrap();
    }

    /// Below a directory: the source's repository of two commits, and a stranger's of one.
    fn repositories() -> (tempfile::TempDir, SourceStatus) {
        let root = tempfile::tempdir().unwrap();
        for name in ["source", "stranger"] {
            git(root.path(), &format!("init --quiet --initial-branch=main {name}"));
            git(&root.path().join(name), &format!("commit --quiet --allow-empty -m {name}"));
        }
        let repository = root.path().join("source");
        git(&repository, "commit --quiet --allow-empty -m second");
        let commit = repository::resolve(&repository, "main").unwrap();
        let source = SourceStatus {
            repository: repository.display().to_string(),
            commit: Some(commit),
            ..crate::status::tests::sample().sources.remove(0)
        };
        (root, source)
    }

    #[test]
    fn head_is_that_of_the_clone_one_stands_in_pushed_or_not() {
        let (root, mut source) = repositories();
        git(root.path(), "clone --quiet source mine");
        let mine = root.path().join("mine");
        let head = |source: &SourceStatus| resolve_at(&mine, "HEAD", source).unwrap();
        assert_eq!(Some(head(&source)), source.commit);

        git(&mine, "commit --quiet --allow-empty -m mine");
        let unpushed = repository::resolve(&mine, "HEAD").unwrap();
        assert_eq!(head(&source), unpushed);

        // The source has gone on, and nothing of that was fetched.
        git(Path::new(&source.repository), "commit --quiet --allow-empty -m third");
        source.commit = repository::resolve(Path::new(&source.repository), "main").ok();
        assert_eq!(head(&source), unpushed);
        let theirs = source.commit.clone().unwrap();
        assert_eq!(resolve_at(&mine, &theirs[..10], &source).unwrap(), theirs, "what only the source has");
    }

    #[test]
    fn head_is_the_branch_that_rules_where_one_stands_in_no_clone() {
        let (root, source) = repositories();
        let stranger = root.path().join("stranger");
        git(Path::new(&source.repository), "checkout --quiet -b aside HEAD~1");
        for elsewhere in [root.path(), stranger.as_path()] {
            assert_eq!(resolve_at(elsewhere, "HEAD", &source).ok(), source.commit);
        }
        let first = repository::resolve(Path::new(&source.repository), "aside").unwrap();
        assert_eq!(resolve_at(root.path(), "HEAD~1", &source).unwrap(), first);
        assert_eq!(of_branch("HEADLESS", "main"), "HEADLESS");
    }

    #[tokio::test]
    async fn it_waits_for_as_long_as_it_was_told_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = [answer(), WaitAnswer { effective: true, ..answer() }];
        let heard = tokio::spawn(async move {
            let mut heard = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                heard.push(String::from_utf8_lossy(&head[..length]).lines().next().unwrap().to_owned());
                let body = serde_json::to_string(&answer).unwrap();
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heard
        });
        let wait = Wait { revision: "HEAD".into(), timeout: 2 * LONGEST_TURN, strict: false };
        assert!(ask(&Client::new(&url, None).unwrap(), "1a2b3c4", &wait).await.unwrap().effective);
        let turn = "GET /api/v1/wait?commit=1a2b3c4&timeout=3600&strict=false HTTP/1.1";
        assert_eq!(heard.await.unwrap(), [turn, turn]);
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
