//! One host: a namespace, a thread of the test's own in it, and the processes that run there.

use std::{
    fs::{self, File},
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread::JoinHandle,
};

use futures_util::future::LocalBoxFuture;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
};

use super::{
    Addresses,
    namespace::{Namespace, enter},
};

/// Who a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Root.
    Root,
    /// The user of proxies, which may change its own host's network and nothing else.
    Proxy,
    /// A user that may nothing.
    Plain,
}

/// The user id of proxies.
pub const PROXY_UID: u32 = 1337;

/// The user id of those who may nothing.
const PLAIN_UID: u32 = 1338;

/// Lines that a process had printed last, told where a test has failed: its directory is gone by then.
const TOLD: usize = 25;

type Job = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// A host of the laboratory.
pub struct Host {
    name: String,
    pub(super) network: String,
    /// Where it is.
    pub addresses: Addresses,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    processes: Mutex<Vec<Process>>,
    /// What was killed, and may be started again.
    killed: Mutex<Vec<Start>>,
    pub(super) namespace: Namespace,
}

/// A process on a host; killed when it is dropped.
pub struct Process {
    start: Start,
    name: String,
    child: Child,
}

/// How a process is started.
#[derive(Debug, Clone)]
struct Start {
    user: User,
    program: PathBuf,
    args: Vec<String>,
    dir: PathBuf,
}

impl Host {
    pub(super) fn start(name: &str, network: &str, addresses: Addresses, namespace: Namespace) -> Self {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let inside = namespace.name().to_owned();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || live(&inside, inbox));
        Host {
            name: name.to_owned(),
            network: network.to_owned(),
            addresses,
            jobs: Some(jobs),
            thread: Some(thread.expect("a thread")),
            processes: Mutex::default(),
            killed: Mutex::default(),
            namespace,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something on this host, as an application of it would: what is connected or bound is so from here.
    ///
    /// # Panics
    /// When `work` does.
    pub async fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (done, result) = oneshot::channel();
        let job =
            move || -> LocalBoxFuture<'static, ()> { Box::pin(async move { drop(done.send(work().await)) }) };
        self.give(Box::new(job));
        result.await.unwrap_or_else(|_| panic!("what ran on {} panicked: see above", self.name))
    }

    /// Lets something go on on this host until the laboratory ends.
    pub fn keep<F: Future<Output = ()> + 'static>(&self, work: impl FnOnce() -> F + Send + 'static) {
        self.give(Box::new(move || Box::pin(work())));
    }

    /// Ports of closed connections are used again after a second, not after a minute: whoever begins hundreds a second
    /// would else search for a free one, in the kernel, for longer than what is measured takes.
    pub fn uses_ports_again(&self) {
        self.namespace.sysctl("net/ipv4/tcp_tw_reuse", "1");
    }

    fn give(&self, job: Job) {
        let given = self.jobs.as_ref().map(|jobs| jobs.send(job).is_ok());
        assert_eq!(given, Some(true), "{} has ended", self.name);
    }

    /// A command that runs on this host.
    pub fn command(&self, user: User, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace.name()]);
        let uid = match user {
            User::Root => None,
            User::Proxy => Some(PROXY_UID),
            User::Plain => Some(PLAIN_UID),
        };
        if let Some(uid) = uid {
            command.arg("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={uid}")]).arg("--clear-groups");
            if user == User::Proxy {
                command.args(["--inh-caps=+net_admin", "--ambient-caps=+net_admin"]);
            }
        }
        command.arg(program);
        command
    }

    /// Starts a process that ends with the host. What it says goes to `output.log` in `dir`, which becomes its own.
    pub fn spawn(&self, user: User, program: &Path, args: &[&str], dir: &Path) {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.begin(Start { user, program: program.to_owned(), args, dir: dir.to_owned() });
    }

    fn begin(&self, start: Start) {
        let Start { user, program, args, dir } = &start;
        fs::create_dir_all(dir).expect("a directory of the test's own");
        match user {
            User::Root => {}
            User::Proxy => own(dir, PROXY_UID),
            User::Plain => own(dir, PLAIN_UID),
        }
        let said = File::create(start.output()).expect("a directory of the test's own");
        let mut command = self.command(*user, program);
        command.args(args).current_dir(dir).stdin(Stdio::null());
        command.stdout(said.try_clone().expect("a file")).stderr(said);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let name = format!("{} on {}", program.display(), self.name);
        self.all().push(Process { start, name, child });
    }

    /// What has ended on this host that should run, with its last words.
    pub fn dead(&self) -> Vec<String> {
        self.all().iter_mut().filter_map(Process::last_words).collect()
    }

    /// Sends a signal to all processes on this host.
    pub fn signal(&self, signal: Signal) {
        self.signal_those(signal, |_| true);
    }

    /// Sends a signal to the processes of this program, or of all. How many got it.
    pub fn signal_to(&self, program: Option<&str>, signal: Signal) -> usize {
        self.signal_those(signal, |process| process.runs(program))
    }

    fn signal_those(&self, signal: Signal, which: impl Fn(&Process) -> bool) -> usize {
        let mut all = self.all();
        let those = all.iter_mut().filter(|process| which(process));
        those.map(|process| process.signal(signal)).filter(|got| *got).count()
    }

    /// Ends all processes on this host by a signal, and waits for their ends.
    pub async fn end(&self, signal: Signal) {
        self.signal(signal);
        let ending = std::mem::take(&mut *self.all());
        let wait = move || ending.into_iter().try_for_each(|mut process| process.child.wait().map(drop));
        tokio::task::spawn_blocking(wait).await.expect("it does not panic").expect("a child");
    }

    /// SIGKILL to the processes of this program, or to all; [`again`](Self::again) starts them again.
    pub fn kill(&self, program: Option<&str>) {
        self.signal_to(program, Signal::SIGKILL);
        let killed: Vec<_> = self.all().extract_if(.., |process| process.runs(program)).collect();
        let starts = killed.iter().map(|process| process.start.clone());
        self.killed.lock().expect("no one panics with it").extend(starts);
    }

    /// Starts what was killed.
    pub fn again(&self) {
        let killed = std::mem::take(&mut *self.killed.lock().expect("no one panics with it"));
        killed.into_iter().for_each(|start| self.begin(start));
    }

    fn all(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().expect("no one panics with it")
    }
}

/// The thread of a host.
fn live(inside: &str, mut inbox: mpsc::UnboundedReceiver<Job>) {
    enter(inside).expect("the namespace was just made");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        while let Some(job) = inbox.recv().await {
            spawn_local(job());
        }
    });
}

/// Gives a directory and what lies in it to a user.
fn own(dir: &Path, uid: u32) {
    let all = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in all.chain([dir.to_owned()]) {
        std::os::unix::fs::chown(&path, Some(uid), Some(uid)).expect("it is root's");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.processes.lock().map(|mut all| all.clear()).ok();
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Start {
    fn output(&self) -> PathBuf {
        self.dir.join("output.log")
    }
}

impl Process {
    fn runs(&self, program: Option<&str>) -> bool {
        program.is_none_or(|program| self.start.program.ends_with(program))
    }

    /// Whether it got it: one that has ended gets none, and its number may be another's.
    fn signal(&mut self, signal: Signal) -> bool {
        let lives = matches!(self.child.try_wait(), Ok(None));
        lives && kill(Pid::from_raw(self.child.id() as i32), signal).is_ok()
    }

    fn last_words(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("{} ended ({status}): {}", self.name, self.said_last(5)))
    }

    /// The last lines of what it printed.
    fn said_last(&self, lines: usize) -> String {
        let said = fs::read_to_string(self.start.output()).unwrap_or_default();
        let last: Vec<_> = said.lines().rev().take(lines).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{} said last:\n{}", self.name, self.said_last(TOLD));
        }
    }
}
