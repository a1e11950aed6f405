//! Each place in the code that logs may do so only so often, whoever makes it: a peer cannot flood the log.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{Format, Limit};

/// Lines a second from one place: a start of hundreds of workloads is still told in full within seconds, and a flood of
/// one kind stays below a gigabyte a day.
const PER_SECOND: u32 = 50;

static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many events were left out so far.
pub(crate) fn suppressed() -> u64 {
    SUPPRESSED.load(Relaxed)
}

/// Writes events as `inner` does, as long as they are not too many.
pub(super) struct Bounded<F> {
    inner: F,
    format: Format,
    /// As many as there are places in the code.
    places: Mutex<HashMap<Identifier, Limit>>,
}

impl<F> Bounded<F> {
    pub(super) fn new(inner: F, format: Format) -> Self {
        Bounded { inner, format, places: Mutex::default() }
    }

    /// `None` when this one is too many, otherwise how many were since the last that was not.
    fn pass(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(place).or_insert_with(|| Limit::new(PER_SECOND)).pass(now)
    }
}

impl<S, N, F> FormatEvent<S, N> for Bounded<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let about = event.metadata();
        // What is left empty is not written.
        let Some(before) = self.pass(about.callsite(), Instant::now()) else {
            SUPPRESSED.fetch_add(1, Relaxed);
            return Ok(());
        };
        if before > 0 {
            self.tell(&mut writer, before, about)?;
        }
        self.inner.format_event(context, writer, event)
    }
}

impl<F> Bounded<F> {
    fn tell(&self, writer: &mut Writer<'_>, count: u64, about: &Metadata<'_>) -> fmt::Result {
        let (level, target) = (about.level(), about.target());
        match self.format {
            Format::Json => writeln!(
                writer,
                r#"{{"level":"{level}","message":"suppressed {count} events like the next","suppressed":{count},"target":"{target}"}}"#
            ),
            Format::Text => writeln!(writer, "{level} {target}: suppressed {count} events like the next"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::logs::tests::logged;

    #[test]
    fn a_flood_from_one_place_ends_and_silences_no_other() {
        let log = logged("info", Format::Json, || {
            let before = suppressed();
            (0..1000).for_each(|number| tracing::warn!(number, "again"));
            tracing::info!("something else");
            assert!(suppressed() >= before + 800);
        });
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // The second may have changed once or twice meanwhile.
        assert!((51..=201).contains(&lines.len()), "{} lines", lines.len());
        assert_eq!(lines.last().unwrap()["message"], "something else");
    }

    #[test]
    fn what_was_suppressed_is_said_with_the_next() {
        let span =
            tracing::subscriber::with_default(tracing_subscriber::registry(), || tracing::warn_span!("a"));
        let about = span.metadata().unwrap();
        let (bounded, start) = (Bounded::new((), Format::Json), Instant::now());
        let passed = (0..PER_SECOND + 10).filter(|_| bounded.pass(about.callsite(), start).is_some());
        assert_eq!(passed.count(), PER_SECOND as usize);
        let before = bounded.pass(about.callsite(), start + Duration::from_secs(1)).unwrap();
        let mut text = String::new();
        bounded.tell(&mut Writer::new(&mut text), before, about).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((line["suppressed"].as_u64(), line["level"].as_str()), (Some(10), Some("WARN")));
    }
}
