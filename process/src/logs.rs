//! Logs are events with fields, one line each, on standard error; each place in the code only so many a second.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

mod bounded;

use bounded::Bounded;
pub(crate) use bounded::suppressed;

/// The environment variable that overrides the default filter (`weft=debug,info`).
pub const VARIABLE: &str = "WEFT_LOG";

/// What floods at the levels people ask for. Whoever wants one of them names it.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tokio_util=warn,tonic=warn,tower=warn";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Text,
}

/// Why logging was not set up.
#[derive(Debug, Error)]
pub enum InitError {
    /// A filter that does not parse.
    #[error("the log filter `{0}` (default, or from {VARIABLE}): {1}")]
    Filter(String, #[source] ParseError),
    /// Only once in a process.
    #[error("logs are set up already in this process")]
    Twice,
}

/// Sends the events of this process to standard error, panics among them.
pub fn init(format: Format, default_filter: &str) -> Result<(), InitError> {
    let said = std::env::var(VARIABLE).ok().filter(|said| !said.is_empty());
    let filter = filter(said.as_deref().unwrap_or(default_filter))?;
    tracing::subscriber::set_global_default(subscriber(format, filter, || Lossy(io::stderr().lock())))
        .map_err(|_| InitError::Twice)?;
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

fn filter(said: &str) -> Result<EnvFilter, InitError> {
    // Later directives win over earlier ones for the same target.
    EnvFilter::try_new(format!("{QUIET},{said}")).map_err(|error| InitError::Filter(said.into(), error))
}

fn subscriber<W>(format: Format, filter: EnvFilter, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        Format::Json => {
            let json = lines.json().flatten_event(true).with_current_span(false);
            Box::new(json.map_event_format(|inner| Bounded::new(inner, format)).finish())
        }
        Format::Text => {
            let text = lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
            Box::new(text.map_event_format(|inner| Bounded::new(inner, format)).finish())
        }
    }
}

/// Takes whatever it is given, and nobody waits for its reader; what does not get through is counted. Else whoever logs
/// would hang with the reader, and the subscriber would complain on standard error, and panic where that is what takes
/// nothing: on a full disk, or without a reader.
struct Lossy<W>(W);

/// A pipe that takes anything takes so much at once.
const PIECE: usize = 4096;

/// How long a reader is waited for that was not seen to hang.
const PATIENCE_MS: u8 = 20;

static LOST: AtomicU64 = AtomicU64::new(0);

/// The last event found no room.
static HUNG: AtomicBool = AtomicBool::new(false);

/// How many events standard error did not take.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

impl<W: AsFd> Lossy<W> {
    fn takes(&self) -> bool {
        let patience = if HUNG.load(Relaxed) { 0 } else { PATIENCE_MS };
        let room = match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)], patience) {
            Ok(0) | Err(Errno::EINTR) => false,
            Ok(_) | Err(_) => true, // what is wrong with it, writing tells
        };
        HUNG.store(!room, Relaxed);
        room
    }
}

impl<W: io::Write + AsFd> io::Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let written = if self.takes() { self.0.write(piece) } else { Err(io::ErrorKind::WouldBlock.into()) };
        match written {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                LOST.fetch_add(1, Relaxed);
                Ok(bytes.len())
            }
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How often something in this process panicked.
pub(crate) fn panics() -> u64 {
    PANICS.load(Relaxed)
}

fn panicked(panic: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Relaxed);
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("without a message");
    tracing::error!(thread = std::thread::current().name(), place, panic = message, "panic");
}

/// An error with all that caused it, in one line.
pub fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
        next = error.source();
    }
    line
}

/// Keeps an event that outsiders can cause at will from flooding the log.
pub struct Limit {
    per_second: u32,
    state: Mutex<Window>,
}

struct Window {
    since: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Limit {
    /// At most so many in each second.
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new(Window { since: None, passed: 0, suppressed: 0 }) }
    }

    /// `Some` when one more may be logged at `now`, with how many were suppressed since the last.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut window = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (window.since, window.passed) = (Some(now), 0);
        }
        if window.passed == self.per_second {
            window.suppressed += 1;
            return None;
        }
        window.passed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `log` logs on this thread.
    pub(crate) fn logged(said: &str, format: Format, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(format, filter(said).unwrap(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_their_fields() {
        let line = logged("info", Format::Json, || tracing::info!(revision = "abc", "in force"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["message"], &line["revision"], &line["level"]),
            (&"in force".into(), &"abc".into(), &"INFO".into())
        );
    }

    #[test]
    fn h2_is_heard_only_when_asked_for_by_name() {
        let noise = || tracing::debug!(target: "h2::codec", "frame");
        assert_eq!(logged("trace", Format::Text, noise), "");
        assert!(logged("info,h2=debug", Format::Text, noise).contains("frame"));
    }

    // One test, since both count in the same place.
    #[test]
    fn what_is_not_taken_is_counted_and_nobody_waits_or_fails() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = Lossy(full);
        let before = lost();
        assert!(io::Write::write_all(&mut log, b"a line\n").is_ok() && io::Write::flush(&mut log).is_ok());
        assert_eq!(lost(), before + 1);

        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Lossy(writer);
        let line = [b'x'; 3 * PIECE];
        let before = lost();
        while lost() == before {
            io::Write::write_all(&mut log, &line).unwrap(); // for good, if it waited
        }
        io::Read::read_exact(&mut reader, &mut [0; 4 * PIECE]).unwrap();
        let before = lost();
        io::Write::write_all(&mut log, &line).unwrap();
        assert_eq!(lost(), before, "it reads again");
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(filter("weft=loud").unwrap_err().to_string().starts_with("the log filter `weft=loud`"));
    }

    #[test]
    fn limits_and_tells_how_many_were_left_out() {
        let (limit, start) = (Limit::new(2), Instant::now());
        let passed: Vec<_> = (0..5).map(|_| limit.pass(start)).collect();
        assert_eq!(passed, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.pass(start + Duration::from_secs(1)), Some(3));
    }

    #[derive(Debug, Error)]
    #[error("the view was not kept")]
    struct NotKept(#[source] crate::config::ConfigError);

    #[test]
    fn causes_are_told_once() {
        let full = crate::config::ConfigError::Read("/state".into(), io::Error::other("no space left"));
        assert_eq!(causes(&NotKept(full)), "the view was not kept: /state: no space left");
    }
}
