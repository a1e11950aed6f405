//! One fetch: what bounds it, what ends it, and why it failed. Between `gix`, which waits on a thread of its own, and
//! the tasks that speak with the server, bytes go through channels that end when the fetch does.
//!
//! Invariant: nothing that a fetch began outlives it: every wait in it ends with the [`Attempt`].

use std::{
    future::Future,
    io::{self, BufRead, Read, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

/// What one fetch may bring. A configuration's whole history is a fraction of it.
pub(super) const MAX_FETCH_BYTES: u64 = 512 * 1024 * 1024;
/// A server that says nothing for so long hangs.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// Chunks on their way between a task and `gix`, each some KiB.
const CHUNKS: usize = 16;

/// One fetch. Clones are the same one.
#[derive(Clone)]
pub(super) struct Attempt(Arc<Parts>);

struct Parts {
    runtime: Handle,
    ended: CancellationToken,
    interrupt: Arc<AtomicBool>,
    left: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Ends the attempt when it is dropped.
pub(super) struct End(Attempt);

impl Drop for End {
    fn drop(&mut self) {
        self.0.0.interrupt.store(true, Ordering::Relaxed);
        self.0.0.ended.cancel();
    }
}

impl Attempt {
    /// Begins one in the runtime of the caller.
    pub(super) fn begin() -> (Attempt, End) {
        let attempt = Attempt(Arc::new(Parts {
            runtime: Handle::current(),
            ended: CancellationToken::new(),
            interrupt: Arc::default(),
            left: AtomicU64::new(MAX_FETCH_BYTES),
            failure: Mutex::default(),
        }));
        (attempt.clone(), End(attempt))
    }

    /// Runs a task until it or the attempt ends.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ended = self.0.ended.clone();
        self.0.runtime.spawn(async move { ended.run_until_cancelled_owned(work).await });
    }

    /// The runtime that its tasks run in.
    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// What tells `gix` to stop computing.
    pub(super) fn interrupt(&self) -> &AtomicBool {
        &self.0.interrupt
    }

    /// Notes why it failed. The first reason is the one that caused the others.
    pub(super) fn fail(&self, why: String) {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// Why it failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts bytes that came.
    pub(super) fn count(&self, bytes: usize) -> Result<(), String> {
        let take = |left: u64| left.checked_sub(bytes as u64);
        match self.0.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "it sends more than {} MiB: keep configuration in a repository of its own",
                MAX_FETCH_BYTES >> 20
            )),
        }
    }
}

/// Waits for the server, but not for long.
pub(super) async fn patiently<T>(work: impl Future<Output = T>) -> Result<T, String> {
    timeout(SILENCE, work).await.map_err(|_| format!("it has been silent for {} s", SILENCE.as_secs()))
}

/// A task's end of what comes in.
pub(super) type Inlet = mpsc::Sender<Bytes>;

/// What comes in, for a thread that may block. It ends when its [`Inlet`] does.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<Bytes>,
    now: Bytes,
}

/// Both ends of what comes in.
pub(super) fn incoming() -> (Inlet, Incoming) {
    let (inlet, chunks) = mpsc::channel(CHUNKS);
    (inlet, Incoming { chunks, now: Bytes::new() })
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.now.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.now = chunk,
                None => break,
            }
        }
        Ok(&self.now)
    }

    fn consume(&mut self, amount: usize) {
        self.now.advance(amount);
    }
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let taken = self.fill_buf()?.read(into)?;
        self.consume(taken);
        Ok(taken)
    }
}

/// What goes out, from a thread that may block.
pub(super) struct Outgoing(mpsc::Sender<Bytes>);

/// Both ends of what goes out.
pub(super) fn outgoing() -> (Outgoing, mpsc::Receiver<Bytes>) {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    (Outgoing(sender), chunks)
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
