//! `weft bug-report`: what somebody else needs to understand what happens in a mesh, in one file, without its secrets.
//!
//! Invariant: files that hold keys or tokens are not read for it, and nothing is copied as it is: what goes in went
//! through [`redact`].

mod archive;
mod redact;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::archive::Archive;
use crate::{
    Global,
    client::{Client, text},
    mesh::Mesh,
    output::{Output, line, now},
};

/// How long one process may take to answer one question.
const ANSWER: Duration = Duration::from_secs(3);
/// Processes that are asked at once.
const AT_ONCE: usize = 16;
/// The end of a log that goes in.
const LOG_BYTES: u64 = 512 * 1024;
/// Settings are smaller; what is larger is no settings file.
const SETTINGS_BYTES: u64 = 1 << 20;

/// Gather versions, settings, status, metrics, proxies' runtimes and recent logs in one file, without secrets
#[derive(Args)]
#[command(after_help = "\
What goes in: of each cluster that can be reached its status with the events of late, and of each process
of a `weft up` directory its settings, its metrics, the runtime that a proxy obeys, and the end of its log.
Keys, tokens, passwords, cookies and whatever looks like one of them are left out, and access logs
altogether. Look into the file before you hand it on: names, addresses and policies are in it.

Examples:
  weft bug-report
  weft bug-report --file /tmp/report.tar.gz")]
pub(crate) struct BugReport {
    /// Where to write it; otherwise weft-bug-report-TIME.tar.gz here
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What is said of the report.
#[derive(Debug, Serialize)]
struct Made {
    file: PathBuf,
    parts: usize,
    /// What could not be had, and why.
    missing: BTreeMap<String, String>,
}

pub(crate) async fn run(report: BugReport, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::find(global)?;
    let file = report.file.unwrap_or_else(|| format!("weft-bug-report-{}.tar.gz", now() as u64).into());
    let made = make(&mesh, file).await?;
    output.answer(&made, |made, _| {
        format!("{} parts in {}\n{}", made.parts, made.file.display(), without(&made.missing))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each part that could not be had.
fn without(missing: &BTreeMap<String, String>) -> String {
    missing.iter().map(|(part, why)| line(&format!("  without {part}: {why}")) + "\n").collect()
}

/// Makes the whole file or none.
async fn make(mesh: &Mesh, file: PathBuf) -> anyhow::Result<Made> {
    let gathered = gather(mesh, Archive::create(&file)?).await;
    if gathered.is_err() {
        let _ = fs::remove_file(&file);
    }
    let (parts, missing) = gathered?;
    Ok(Made { file, parts, missing })
}

/// How many parts there are, and what is missing; an error when that is all.
async fn gather(mesh: &Mesh, mut archive: Archive) -> anyhow::Result<(usize, BTreeMap<String, String>)> {
    let mut missing = BTreeMap::new();
    let mut sources = sources(mesh).into_iter();
    let mut asked = JoinSet::new();
    loop {
        for source in sources.by_ref().take(AT_ONCE.saturating_sub(asked.len())) {
            asked.spawn(source.parts());
        }
        let Some(parts) = asked.join_next().await else { break };
        for (name, content) in parts? {
            match content {
                Ok(content) => archive.add(&name, &content)?,
                Err(why) => drop(missing.insert(name, redact::text(&why))),
            }
        }
    }
    ensure!(!archive.is_empty(), "nothing could be gathered\n{}", without(&missing).trim_end());
    let about = json!({
        "weft": env!("CARGO_PKG_VERSION"),
        "made": now(),
        "system": fs::read_to_string("/proc/version").unwrap_or_default().trim(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "missing": missing,
    });
    archive.add("about.json", &pretty(about))?;
    Ok((archive.finish()?, missing))
}

/// Where parts come from.
enum Source {
    /// A control plane's admin API, or why it cannot be asked.
    Api { name: String, client: anyhow::Result<Client> },
    /// A process of this machine, by its directory.
    Process { name: String, dir: PathBuf },
}

/// One file of the report, or why it is missing.
type Part = (String, Result<String, String>);

fn sources(mesh: &Mesh) -> Vec<Source> {
    let Some(up) = &mesh.up else {
        return vec![Source::Api { name: "controlplane".into(), client: mesh.client(None) }];
    };
    let mut sources = Vec::new();
    for cluster in &up.descriptor.clusters {
        let name = cluster.name.as_str();
        let dir = up.dir.join(name);
        let client = mesh.client(Some(&cluster.name));
        sources.push(Source::Api { name: format!("{name}/controlplane"), client });
        for part in ["controlplane", "ingress", "eastwest"] {
            sources.push(Source::Process { name: format!("{name}/{part}"), dir: dir.join(part) });
        }
        for workload in folders(&dir.join("workloads")) {
            let id = workload.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sources.push(Source::Process { name: format!("{name}/{id}"), dir: workload.join("sidecar") });
        }
    }
    sources
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

impl Source {
    async fn parts(self) -> Vec<Part> {
        match self {
            Source::Api { name, client } => vec![(format!("{name}/status.json"), status(client).await)],
            Source::Process { name, dir } => process(&name, &dir).await,
        }
    }
}

async fn status(client: anyhow::Result<Client>) -> Result<String, String> {
    let client = client.map_err(|error| format!("{error:#}"))?;
    let status = client.get_within::<Value>("/status", ANSWER).await;
    status.map(pretty).map_err(|error| error.to_string())
}

async fn process(name: &str, dir: &Path) -> Vec<Part> {
    let settings = end_of(&dir.join("config.json"), SETTINGS_BYTES)
        .and_then(|text| serde_json::from_str::<Value>(&text).map_err(|error| error.to_string()));
    let address = |field: &str| settings.as_ref().ok().and_then(|settings| settings[field].as_str());
    let mut parts = Vec::new();
    if let Some(metrics) = address("metrics").or(address("admin")) {
        let answer = text(metrics, "/metrics", ANSWER).await;
        parts.push((format!("{name}/metrics.txt"), answer.map(|text| redact::text(&text))));
    }
    // A control plane's admin address is its API, which is asked apart.
    if let (Some(admin), None) = (address("admin"), address("metrics")) {
        let answer = text(admin, "/runtime", ANSWER).await;
        let runtime = answer.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        parts.push((format!("{name}/runtime.json"), runtime.map(pretty)));
    }
    let log = end_of(&dir.join("output.log"), LOG_BYTES);
    parts.push((format!("{name}/log.txt"), log.map(|text| redact::text(&text))));
    parts.push((format!("{name}/settings.json"), settings.map(pretty)));
    parts
}

fn pretty(mut value: Value) -> String {
    redact::value(&mut value);
    format!("{value:#}\n")
}

/// The last whole lines of a file.
fn end_of(path: &Path, bytes: u64) -> Result<String, String> {
    let read = || {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut end = Vec::new();
        file.take(bytes).read_to_end(&mut end)?;
        // What was cut begins with the first whole line.
        let cut = if length > bytes {
            end.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1)
        } else {
            0
        };
        Ok(String::from_utf8_lossy(&end[cut..]).into_owned())
    };
    read().map_err(|error: std::io::Error| error.to_string())
}

#[cfg(test)]
mod tests;
