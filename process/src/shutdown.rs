//! Tracked tasks: every task has a name, an owner and an end.
//!
//! A [`Shutdown`] is handed to whatever runs. It says when to stop, and proves who has stopped: each task
//! holds a guard, and the drop of the guard is the proof, whichever runtime or thread the task ran on.
//!
//! Invariant: a task of a child is also a task of its parents, so draining a parent waits for all below it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{any::Any, fmt, io};

use futures_util::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The name of a task, for people. Many tasks may bear one name.
pub type TaskName = Cow<'static, str>;

/// Says when to stop, and knows who has not stopped yet. Clones are the same handle.
#[derive(Clone)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: Arc<Tasks>,
}

/// The tasks of one handle.
struct Tasks {
    /// How many live tasks bear each name.
    live: Mutex<BTreeMap<TaskName, usize>>,
    /// Told whenever `live` becomes empty.
    empty: Notify,
    panics: AtomicU64,
    failed: OnceLock<&'static str>,
    parent: Option<Arc<Tasks>>,
}

/// Is dropped when a vital task has ended.
struct VitalEnd {
    name: &'static str,
    shutdown: Shutdown,
}

/// Counts as one live task until it is dropped: for what is not a future, such as a thread or a connection.
#[must_use = "dropping it says that the task has ended"]
pub struct Hold {
    name: TaskName,
    tasks: Arc<Tasks>,
}

/// Tasks that did not end within the deadline of a drain, by name, with how many of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished(pub Vec<(TaskName, usize)>);

impl Shutdown {
    /// A handle without parents.
    #[allow(clippy::new_without_default, reason = "an end of its own is a decision, not a default")]
    pub fn new() -> Self {
        Self { token: CancellationToken::new(), tasks: Tasks::below(None) }
    }

    /// A handle that is cancelled with this one, or earlier and alone.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tasks: Tasks::below(Some(self.tasks.clone())) }
    }

    /// Spawns a tracked task on the present runtime. It is not stopped by force: it must watch
    /// [`Shutdown::cancelled`]. A panic is logged with the task's name, counted, and passed on to the handle.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn<F>(&self, name: impl Into<TaskName>, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(watched(self.hold(name), task))
    }

    /// The same for a task without which the others are of no use. Should it end before it is told to, by a panic too,
    /// all are told to stop, and [`Shutdown::failed`] names it: what lives on without it would look well and do nothing.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let end = VitalEnd { name, shutdown: self.clone() };
        self.spawn(name, async move {
            let _end = end;
            task.await;
        });
    }

    /// The vital task that ended too early, if one did.
    pub fn failed(&self) -> Option<&'static str> {
        self.tasks.failed.get().copied()
    }

    /// The same for futures that stay on their thread.
    ///
    /// # Panics
    /// Outside of a tokio `LocalSet` or local runtime.
    pub fn spawn_local<F>(&self, name: impl Into<TaskName>, task: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        tokio::task::spawn_local(watched(self.hold(name), task))
    }

    /// A future that counts as a task from now until it has ended or is dropped, wherever it is run.
    pub fn track<F: Future>(&self, name: TaskName, task: F) -> impl Future<Output = F::Output> + use<F> {
        watched(self.hold(name), task)
    }

    /// Counts as a task until it is dropped.
    pub fn hold(&self, name: impl Into<TaskName>) -> Hold {
        let name = name.into();
        self.tasks.begin(&name);
        Hold { name, tasks: self.tasks.clone() }
    }

    /// Tells all tasks of this handle and its children to stop. Returns at once; may be called again.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Whether the tasks have been told to stop.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the tasks are told to stop.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The same, as a future that owns what it needs.
    pub fn cancelled_owned(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// Tells the tasks to stop and waits until all have ended, at most for `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.cancel();
        tokio::time::timeout(deadline, self.tasks.ended()).await.map_err(|_| Unfinished(self.tasks.live()))
    }

    /// How many tasks of this handle and its children have ended by a panic.
    pub fn panics(&self) -> u64 {
        self.tasks.panics.load(Ordering::Relaxed)
    }
}

/// As large as `task` itself: as an `async fn` it would have room for it twice.
fn watched<F: Future>(hold: Hold, task: F) -> impl Future<Output = F::Output> + use<F> {
    AssertUnwindSafe(task).catch_unwind().map(move |ended| {
        ended.unwrap_or_else(|panic| {
            hold.tasks.panicked(&hold.name, panic.as_ref());
            resume_unwind(panic)
        })
    })
}

impl Drop for VitalEnd {
    fn drop(&mut self) {
        if !self.shutdown.is_cancelled() && self.shutdown.tasks.failed.set(self.name).is_ok() {
            tracing::error!(task = self.name, "a vital task has ended: all is stopped");
            self.shutdown.cancel();
        }
    }
}

impl Tasks {
    fn below(parent: Option<Arc<Tasks>>) -> Arc<Self> {
        let (panics, failed) = (AtomicU64::new(0), OnceLock::new());
        Arc::new(Self { live: Mutex::default(), empty: Notify::new(), panics, failed, parent })
    }

    fn lineage(&self) -> impl Iterator<Item = &Tasks> {
        std::iter::successors(Some(self), |tasks| tasks.parent.as_deref())
    }

    fn begin(&self, name: &TaskName) {
        for tasks in self.lineage() {
            *tasks.lock().entry(name.clone()).or_default() += 1;
        }
    }

    fn end(&self, name: &TaskName) {
        for tasks in self.lineage() {
            let mut live = tasks.lock();
            if let Some(count) = live.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    live.remove(name);
                }
            }
            if live.is_empty() {
                tasks.empty.notify_waiters();
            }
        }
    }

    fn panicked(&self, name: &str, panic: &(dyn Any + Send)) {
        let message = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("without a message");
        tracing::error!(task = name, panic = message, "a task panicked");
        for tasks in self.lineage() {
            tasks.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn ended(&self) {
        loop {
            // Registered before looking, so that an end in between is not missed.
            let mut empty = pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            empty.await;
        }
    }

    fn live(&self) -> Vec<(TaskName, usize)> {
        self.lock().iter().map(|(name, count)| (name.clone(), *count)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskName, usize>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tasks.end(&self.name);
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("still running at the deadline:")?;
        for (at, (name, count)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match count {
                1 => write!(f, "{comma} {name}")?,
                _ => write!(f, "{comma} {name} x{count}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Unfinished {}

/// The status of a process that was told twice to end, as shells count a death by SIGTERM.
const ENDED_AT_ONCE: i32 = 128 + 15;

/// From now on the first SIGTERM or SIGINT cancels `end`, so that the process drains, and the second ends it at once, after
/// its `last` act.
/// SIGHUP ends nothing: who keeps a log opens it anew, and what else can change while a process runs is followed without
/// being told.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn end_by_signal(end: Shutdown, last: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut asked = signals()?;
    let mut told = false;
    let mut last = Some(last);
    let mut hangup = signal(SignalKind::hangup())?;
    // Tracked by nobody: it lives as long as the process.
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                name = asked.next() => name,
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: an access log is opened anew; settings are read at the start alone");
                    continue;
                }
            };
            // Others may have told it to drain before.
            if std::mem::replace(&mut told, true) {
                tracing::warn!(signal = name, "told again: ending at once");
                if let Some(last) = last.take() {
                    last();
                }
                std::process::exit(ENDED_AT_ONCE);
            }
            tracing::info!(signal = name, "draining; the same again ends it at once");
            end.cancel();
        }
    });
    Ok(())
}

/// The signals that ask a process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// From this call on, neither SIGTERM nor SIGINT ends the process by itself any more.
fn signals() -> io::Result<Signals> {
    Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
}

impl Signals {
    /// The next one's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests;
