//! Metrics of a process, declared where they are used and scraped from the admin listener.
//!
//! Labels are enums or bounded names, never paths or addresses: a name that comes from outside goes
//! through [`Names`] first.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::registry::Metric;

pub use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
pub use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};
pub use prometheus_client::{collector, encoding, registry};

mod process;

/// The media type of [`Registry::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process. Clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Mutex<registry::Registry>>);

impl Registry {
    /// One that holds the metrics of the process itself: CPU seconds, memory, open files, start time.
    #[allow(clippy::new_without_default, reason = "a second registry is a decision, not a default")]
    pub fn new() -> Self {
        let registry = Self(Arc::default());
        registry.collect(process::Process);
        registry
    }

    /// Adds a metric and gives it back. Counters get the suffix `_total` when they are written.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.lock().register(name, help, metric.clone());
        metric
    }

    /// Adds what is computed anew at each scrape.
    pub fn collect(&self, collector: impl Collector) {
        self.lock().register_collector(Box::new(collector));
    }

    /// All metrics as OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    fn lock(&self) -> MutexGuard<'_, registry::Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bucket bounds of request durations: those OpenTelemetry advises for `http.server.request.duration`, and
/// two below, since a hop in a mesh takes less than a millisecond.
pub const REQUEST_SECONDS: [f64; 16] =
    [0.0005, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Bucket bounds of work behind the scenes: builds, pushes, commits coming into force.
pub const WORK_SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// A histogram of request durations in seconds; as a function, the constructor of a family of them.
pub fn request_seconds() -> Histogram {
    Histogram::new(REQUEST_SECONDS)
}

/// A histogram of seconds of work behind the scenes.
pub fn work_seconds() -> Histogram {
    Histogram::new(WORK_SECONDS)
}

/// Bounds the values of a label: beyond the limit each new name becomes `other`.
pub struct Names {
    limit: usize,
    seen: RwLock<HashSet<Arc<str>>>,
    other: Arc<str>,
}

impl Names {
    /// At most `limit` different names besides `other`.
    pub fn new(limit: usize) -> Self {
        Self { limit, seen: RwLock::default(), other: "other".into() }
    }

    /// The value to label with.
    pub fn admit(&self, name: &str) -> Arc<str> {
        if let Some(seen) = self.seen.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return seen.clone();
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        match seen.get(name) {
            Some(name) => name.clone(),
            None if seen.len() >= self.limit => self.other.clone(),
            None => {
                let name: Arc<str> = name.into();
                seen.insert(name.clone());
                name
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Labels {
        service: Arc<str>,
    }

    #[test]
    fn writes_what_was_registered() {
        let registry = Registry::new();
        let requests: Family<Labels, Counter> = registry.register("requests", "Requests", Family::default());
        let new: fn() -> Histogram = request_seconds;
        let seconds = registry.register(
            "seconds",
            "Durations",
            Family::<Labels, Histogram, _>::new_with_constructor(new),
        );
        let labels = Labels { service: "shop/cart".into() };
        requests.get_or_create(&labels).inc();
        seconds.get_or_create(&labels).observe(0.003);
        let text = registry.text().unwrap();
        for line in [
            "# TYPE requests counter",
            "requests_total{service=\"shop/cart\"} 1",
            "seconds_bucket{le=\"0.002\",service=\"shop/cart\"} 0",
            "seconds_bucket{le=\"0.005\",service=\"shop/cart\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn names_are_bounded() {
        let names = Names::new(2);
        let got = ["a", "b", "c", "a"].map(|name| names.admit(name));
        assert_eq!(got.each_ref().map(|n| &**n), ["a", "b", "other", "a"]);
    }
}
