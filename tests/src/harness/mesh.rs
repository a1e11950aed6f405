//! `weft up` as a value: started by [`Mesh::up`], ended by its drop, which leaves no process behind.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use api::admin::Status;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::{
    Client, Repository, Turn, client, eventually,
    up::{Cluster, Up, Workload},
    weft,
};

/// A mesh that is not ready by then has failed.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// `weft up` ends everything within this.
const END_LIMIT: Duration = Duration::from_secs(30);
/// No command takes longer.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Which blocks of loopback addresses the meshes of one program take, one mesh after the other.
pub struct Blocks(AtomicU8);

impl Blocks {
    /// From `127.first` on.
    pub const fn from(first: u8) -> Self {
        Blocks(AtomicU8::new(first))
    }
}

/// A running mesh.
pub struct Mesh {
    up: Child,
    /// Holds the directory of `weft up`, and what it said.
    holder: Option<TempDir>,
    dir: PathBuf,
    weft: PathBuf,
    block: u8,
    /// How long it took to be ready.
    pub ready_after: Duration,
    /// Processes that the test started beside it.
    beside: Vec<Child>,
    _turn: Turn,
}

impl Mesh {
    /// Starts `weft up --json` with further arguments, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn up(blocks: &Blocks, args: &[&str]) -> Mesh {
        let turn = Turn::take().await;
        let block = blocks.0.fetch_add(2, Ordering::Relaxed);
        Mesh::start(block, args, turn).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    async fn start(block: u8, args: &[&str], turn: Turn) -> anyhow::Result<Mesh> {
        let weft = weft()?;
        let holder = tempfile::tempdir()?;
        let dir = holder.path().join("weft-up");
        let up = launch(&weft, block, &dir, args)?;
        let mut mesh = Mesh {
            up,
            holder: Some(holder),
            dir,
            weft,
            block,
            ready_after: Duration::ZERO,
            beside: Vec::new(),
            _turn: turn,
        };
        mesh.ready().await?;
        Ok(mesh)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let said = self.up.stdout.take().context("stdout is a pipe")?;
        let line = tokio::task::spawn_blocking(move || first_line(said));
        let line = tokio::time::timeout(READY_LIMIT, line).await;
        self.ready_after = began.elapsed();
        let Ok(line) = line else {
            bail!("`weft up` is not ready after {READY_LIMIT:?}:\n{}", self.said());
        };
        let line = line??;
        match serde_json::from_str::<Up>(&line) {
            Ok(up) if up.ready => Ok(()),
            _ => bail!("`weft up` printed {line:?}:\n{}", self.said()),
        }
    }

    /// Ends it from outside, by `weft down`.
    ///
    /// # Panics
    /// When a process of it is left.
    pub async fn down(&mut self) {
        self.weft(&["down"]).await;
        super::eventually("`weft up` itself ends", END_LIMIT, async || match self.up.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert!(self.alive().is_empty(), "`weft down` left {:?}", self.alive());
    }

    /// Starts `weft up` once more on the same directory.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn up_again(&mut self) {
        let up = launch(&self.weft, self.block, &self.dir, &[]);
        self.up = up.unwrap_or_else(|error| panic!("{error:#}"));
        self.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn said(&self) -> String {
        let file = self.dir.parent().map(|holder| holder.join("up.err"));
        file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The second number of east's addresses; west's is one more.
    pub fn block(&self) -> u8 {
        self.block
    }

    /// All of it as it now is.
    pub fn now(&self) -> Up {
        let text = fs::read_to_string(self.dir.join("up.json")).expect("a ready mesh has its up.json");
        serde_json::from_str(&text).expect("what `weft up` prints")
    }

    /// One cluster as it now is.
    pub fn cluster(&self, name: &str) -> Cluster {
        self.now().clusters.into_iter().find(|cluster| cluster.name == name).expect("east or west")
    }

    /// The workloads of a service in a cluster, as they now are.
    pub fn workloads(&self, cluster: &str, service: &str) -> Vec<Workload> {
        self.cluster(cluster).workloads.into_iter().filter(|one| one.service == service).collect()
    }

    /// One workload as it now is.
    pub fn workload(&self, id: &str) -> Workload {
        let all = self.now().clusters.into_iter().flat_map(|cluster| cluster.workloads);
        all.into_iter().find(|one| one.id == id).unwrap_or_else(|| panic!("no workload {id}"))
    }

    /// A client of a cluster's ingress.
    pub fn ingress(&self, cluster: &str) -> Client {
        Client::new(&self.cluster(cluster).ingress)
    }

    /// The repository that rules it.
    pub fn repository(&self) -> Repository {
        Repository::at(&self.dir.join("config"))
    }

    /// Runs `weft` from within the repository.
    pub async fn try_weft(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(&self.weft);
        command.args(args).current_dir(self.repository().path()).stdin(Stdio::null()).kill_on_drop(true);
        command.env_remove("WEFT_API").env_remove("WEFT_TOKEN");
        match tokio::time::timeout(COMMAND_LIMIT, command.output()).await {
            Ok(output) => output.expect("weft can be started"),
            Err(_) => panic!("weft {args:?} takes longer than {COMMAND_LIMIT:?}"),
        }
    }

    /// The same; it has to succeed. Gives what it printed.
    pub async fn weft(&self, args: &[&str]) -> String {
        let output = self.try_weft(args).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "weft {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `weft status` says, as one cluster knows it.
    pub async fn status(&self, cluster: &str) -> Status {
        let text = self.weft(&["status", "--cluster", cluster, "--output", "json"]).await;
        serde_json::from_str(&text).expect("a status")
    }

    /// Commits what was changed and waits until it is effective.
    pub async fn commit(&self, message: &str) -> super::repository::Commit {
        let commit = self.repository().commit(message).await;
        self.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
        commit
    }

    /// Posts to a cluster's admin API.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        cluster: &str,
        path: &str,
        body: &impl serde::Serialize,
    ) -> A {
        let token = self.dir.join(cluster).join("controlplane/admin.token");
        let bearer = format!("Bearer {}", fs::read_to_string(token).expect("it has made its token").trim());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let mut request = client::request("POST", &format!("/api/v1{path}"), &headers);
        *request.body_mut() = serde_json::to_vec(body).expect("a shape of the API").into();
        let answer = Client::new(&self.cluster(cluster).api).send(request, true).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        serde_json::from_slice(&answer.body).expect("a shape of the API")
    }

    /// The proxy's own view, from its admin port.
    pub async fn runtime(&self, admin: &str) -> serde_json::Value {
        Client::new(admin).get("/runtime").await.expect("its admin port answers").json()
    }

    /// Sends a signal to a process of the mesh.
    pub fn signal(&self, pid: i32, signal: Signal) {
        assert!(pid > 1, "the process is dead already");
        kill(Pid::from_raw(pid), signal).expect("the process is there");
    }

    /// SIGKILL.
    pub fn kill(&self, pid: i32) {
        self.signal(pid, Signal::SIGKILL);
    }

    /// Starts what is dead of these workloads, all at once.
    pub async fn start_again(&self, ids: &[String]) {
        let all = ids.iter().map(async |id| self.weft(&["workload", "start", id]).await);
        futures_util::future::join_all(all).await;
    }

    /// Starts `weft` beside the mesh; it ends with it. Gives what it prints.
    pub fn beside(&mut self, args: &[&str]) -> ChildStdout {
        self.start_beside(&self.weft.clone(), args.iter().map(AsRef::as_ref))
    }

    /// Starts a proxy with these settings; it ends with the mesh.
    pub fn proxy_beside(&mut self, config: &Path) {
        let proxy = self.weft.with_file_name("weft-proxy");
        self.start_beside(&proxy, ["--config".as_ref(), config.as_os_str()].into_iter());
    }

    fn start_beside<'a>(&mut self, program: &Path, args: impl Iterator<Item = &'a OsStr>) -> ChildStdout {
        let said = self.dir.join(format!("beside-{}.err", self.beside.len()));
        let mut child = Command::new(program)
            .args(args)
            .current_dir(self.repository().path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(said).expect("a directory"))
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        let stdout = child.stdout.take().expect("stdout is a pipe");
        self.beside.push(child);
        stdout
    }

    /// SIGTERM to the n-th process that was started beside it, which then ends.
    pub async fn end_beside(&mut self, n: usize) {
        self.signal(self.beside[n].id() as i32, Signal::SIGTERM);
        eventually("it ends", END_LIMIT, async || match self.beside[n].try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// The `weft` binary.
    pub fn binary(&self) -> &str {
        self.weft.to_str().expect("a path in UTF-8")
    }

    /// The ids in the order logs of every catalogue.
    pub fn orders(&self) -> Vec<String> {
        let catalogues =
            ["east", "west"].into_iter().flat_map(|cluster| self.workloads(cluster, "catalogue"));
        let logs = catalogues.filter_map(|one| fs::read_to_string(one.dir.join("app/orders.log")).ok());
        logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Waits until a cluster's control plane tells the wished.
    pub async fn status_tells(
        &self,
        cluster: &str,
        what: &str,
        within: Duration,
        told: impl Fn(&Status) -> Result<(), String>,
    ) {
        eventually(what, within, async || told(&self.status(cluster).await)).await;
    }

    /// Processes of this mesh that still live.
    fn alive(&self) -> Vec<(i32, String)> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = pids.filter_map(|pid| {
            let line = command_line(pid)?;
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let dir = self.dir.to_string_lossy();
            (pid != std::process::id() as i32 && (line.contains(&*dir) || cwd.starts_with(&self.dir)))
                .then_some((pid, line))
        });
        ours.collect()
    }

    /// Ends it. Gives what is left, having ended that too.
    fn end(&mut self) -> Vec<String> {
        for child in self.beside.iter_mut().chain([&mut self.up]) {
            // The number of one that has ended may be another's by now.
            if matches!(child.try_wait(), Ok(None)) {
                let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            }
        }
        let deadline = Instant::now() + END_LIMIT;
        let gone = |child: &mut Child| {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    return false;
                }
                std::thread::sleep(super::POLL);
            }
            true
        };
        let mut left = Vec::new();
        if !gone(&mut self.up) {
            left.push("weft up itself".to_owned());
        }
        for child in &mut self.beside {
            let pid = child.id() as i32;
            let line = command_line(pid).unwrap_or_default();
            if !gone(child) {
                left.push(format!("{pid} {line}"));
            }
        }
        for (pid, line) in self.alive() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            left.push(format!("{pid} {line}"));
        }
        left
    }
}

fn launch(weft: &Path, block: u8, dir: &Path, args: &[&str]) -> anyhow::Result<Child> {
    let beside = dir.parent().context("a directory of its own")?;
    let errors = File::options().create(true).append(true).open(beside.join("up.err"))?;
    let mut command = Command::new(weft);
    command.args(["up", "--json", "--block", &block.to_string(), "--dir"]).arg(dir).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    command.spawn().with_context(|| format!("cannot start {}", weft.display()))
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let left = self.end();
        if std::thread::panicking() {
            if let Some(holder) = self.holder.take() {
                eprintln!("the mesh's directory is kept: {}", holder.keep().display());
            }
            return;
        }
        assert!(left.is_empty(), "`weft up` left processes behind: {left:?}");
    }
}

/// How a process was started, while it lives.
fn command_line(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    Some(String::from_utf8_lossy(&line).replace('\0', " "))
}

/// What a program prints first.
pub fn first_line(said: ChildStdout) -> anyhow::Result<String> {
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    Ok(line)
}
