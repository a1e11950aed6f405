//! The access log: lines that were serialised already, written in batches away from the request path.
//!
//! Invariant: [`AccessLog::write`] never waits. What does not fit, because the disk is slow, is dropped and
//! counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::logs::Limit;
use crate::metrics::{Counter, Registry};
use crate::queue::Queue;
use crate::shutdown::Shutdown;

/// How much may wait for the disk: some 2,000 lines, which is a batch of 50 ms at 40,000 requests a second.
const CAPACITY_BYTES: usize = 1 << 20;

/// A line is on its way to the file at the latest after this time.
const LINGER: Duration = Duration::from_millis(50);

/// A disk that is full is said this often.
static FAILURES: Limit = Limit::new(1);

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Appended to a file, which is opened anew at SIGHUP, so that it can be rotated away.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// Takes lines. Clones write to the same place.
#[derive(Clone)]
pub struct AccessLog {
    bytes: Arc<Queue<u8>>,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the sink and starts its writer, a task of `shutdown`. When that is cancelled the writer writes
    /// what is there and ends, so it must be a handle that is drained after those that still write lines.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(sink: Sink, shutdown: &Shutdown) -> io::Result<Self> {
        let log = Self { bytes: Arc::new(Queue::new(CAPACITY_BYTES)), dropped: Counter::default() };
        let file = Arc::new(sink.open()?);
        let writer = Writer { log: log.clone(), sink, file };
        let hangup = signal(SignalKind::hangup())?;
        shutdown.spawn("access log", writer.run(hangup, shutdown.clone()));
        Ok(log)
    }

    /// Adds one line, given without its line break.
    pub fn write(&self, line: &[u8]) {
        let fits = self.bytes.offer(line.len() + 1, |bytes| {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        });
        if !fits {
            self.dropped.inc();
        }
    }

    /// How many lines were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Shows the lost lines as `weft_access_log_dropped_total`.
    pub fn register(&self, registry: &Registry) {
        let help = "Access log lines lost to a slow or full disk";
        registry.register("weft_access_log_dropped", help, self.dropped.clone());
    }
}

impl Sink {
    fn open(&self) -> io::Result<File> {
        match self {
            Sink::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
            Sink::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        }
    }
}

struct Writer {
    log: AccessLog,
    sink: Sink,
    file: Arc<File>,
}

impl Writer {
    async fn run(mut self, mut hangup: tokio::signal::unix::Signal, shutdown: Shutdown) {
        let queue = self.log.bytes.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = hangup.recv() => self.reopen(),
                lines = queue.batch(LINGER) => self.write(lines).await,
            }
        }
        self.write(queue.close()).await;
    }

    /// The old file stays in use when the new one cannot be opened.
    fn reopen(&mut self) {
        match self.sink.open() {
            Ok(file) => self.file = Arc::new(file),
            Err(error) => tracing::error!(%error, sink = ?self.sink, "the access log cannot be opened anew"),
        }
    }

    async fn write(&self, lines: Vec<u8>) {
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || match (&*file).write_all(&lines) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, lines.iter().filter(|&&byte| byte == b'\n').count())),
        });
        let Ok(Err((error, lines))) = written.await else { return };
        self.log.dropped.inc_by(lines as u64);
        if FAILURES.pass(Instant::now()).is_some() {
            tracing::error!(%error, lines, "the access log cannot be written; is the disk full?");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn lines_reach_the_file_by_the_end_and_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        for line in ["one", "two"] {
            let shutdown = Shutdown::new();
            let log = AccessLog::open(Sink::File(path.clone()), &shutdown).unwrap();
            log.write(line.as_bytes());
            shutdown.drain(LONG).await.unwrap();
            log.write(b"after the end");
            assert_eq!(log.dropped(), 1);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn lines_reach_the_file_while_running() {
        // A pipe instead of a file: reading it waits for the writer.
        let (reader, writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let shutdown = Shutdown::new();
        let log = AccessLog::open(Sink::File(path.into()), &shutdown).unwrap();
        log.write(b"{\"status\":200}");
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            io::BufRead::read_line(&mut io::BufReader::new(reader), &mut line).map(|_| line)
        });
        assert_eq!(line.await.unwrap().unwrap(), "{\"status\":200}\n");
        drop(writer);
        shutdown.drain(LONG).await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_fit_or_cannot_be_written_is_counted() {
        let shutdown = Shutdown::new();
        let log = AccessLog::open(Sink::File("/dev/full".into()), &shutdown).unwrap();
        log.write(&vec![b'x'; CAPACITY_BYTES]);
        assert_eq!(log.dropped(), 1);
        log.write(b"a");
        log.write(b"b");
        shutdown.drain(LONG).await.unwrap();
        assert_eq!(log.dropped(), 3);
    }

    #[tokio::test]
    async fn opens_anew_after_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("old.log"));
        let shutdown = Shutdown::new();
        let log = AccessLog::open(Sink::File(path.clone()), &shutdown).unwrap();
        std::fs::rename(&path, &old).unwrap();
        let me = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args(["-HUP", &me]).status().unwrap().success());
        let reopened = async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, reopened).await.unwrap();
        log.write(b"new");
        shutdown.drain(LONG).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "");
    }
}
