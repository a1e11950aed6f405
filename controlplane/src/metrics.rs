//! What a scrape of the control plane tells. Computed anew each time from what the parts share.

use std::sync::Arc;

use api::admin::{CommitState, ProxyState};
use process::metrics::{Registry, collector::Collector, encoding::DescriptorEncoder};
use prometheus_client::{encoding::EncodeMetric, metrics::gauge::ConstGauge};

use crate::plane::Plane;

/// Adds the control plane's metrics to those of the process.
pub fn register(registry: &Registry, plane: &Arc<Plane>) {
    registry.collect(Scrape(plane.clone()));
}

struct Scrape(Arc<Plane>);

impl std::fmt::Debug for Scrape {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let plane = &self.0;
        let own = plane.own.borrow().clone();
        let now = plane.now();
        let count = |state| own.proxies.iter().filter(|proxy| proxy.state == state).count() as i64;
        let snapshot = plane.snapshot.borrow().clone();
        let endpoints: usize = snapshot.services.values().map(|entry| entry.endpoints.len()).sum();
        let commits = plane.commits.borrow().clone();
        let seen = || commits.sources.values().flat_map(|source| &source.commits);
        let refused = seen().filter(|one| one.state == CommitState::Refused).count() as i64;
        let effective = seen().filter(|one| one.effective_after_ms.is_some());
        let last = effective.max_by(|a, b| a.seen.total_cmp(&b.seen));
        let last = last.and_then(|one| one.effective_after_ms).unwrap_or(0) as f64 / 1000.0;
        let away = commits.sources.values().filter_map(|source| Some(now - source.trouble.as_ref()?.1));
        let source_away = away.fold(0.0, f64::max);
        let away = own.primary_away_since.map_or(0.0, |since| now - since);
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("weft_proxies_connected", "Proxies whose stream is up", count(ProxyState::Connected) as f64)?;
        gauge(
            "weft_proxies_away",
            "Proxies whose stream is away and whose lease runs",
            count(ProxyState::Away) as f64,
        )?;
        gauge("weft_proxies_gone", "Proxies whose lease has run out", count(ProxyState::Gone) as f64)?;
        gauge(
            "weft_services",
            "Services that callers of this cluster may reach",
            snapshot.services.len() as f64,
        )?;
        gauge("weft_endpoints", "Endpoints behind them, of all clusters", endpoints as f64)?;
        gauge(
            "weft_commit_effective",
            "1 when every proxy here obeys the commit in force",
            f64::from(u8::from(own.effective)),
        )?;
        gauge("weft_commits_refused", "Commits lately seen that the gate refused", refused as f64)?;
        gauge(
            "weft_commit_effective_seconds",
            "From seen to effective everywhere, of the last commit that was",
            last,
        )?;
        gauge(
            "weft_source_trouble_seconds",
            "Since when a source is away or cannot be read, of all the longest; 0 when all are there",
            source_away,
        )?;
        gauge("weft_primary_away_seconds", "Since when the primary is away; 0 when it is there", away)?;
        gauge(
            "weft_intermediate_seconds_left",
            "Until this cluster can sign no more",
            own.intermediate_not_after - now,
        )
    }
}
