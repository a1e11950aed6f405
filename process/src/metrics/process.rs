//! Metrics of the process itself from `/proc`, by the names that Prometheus clients share.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::{limits, logs};

/// The unit of CPU times in `/proc`, fixed towards programs on every architecture of today (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc` at each scrape. What cannot be read is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut write = |name, help, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some((cpu, start)) = times() {
            write("process_cpu_seconds", "CPU time used, user and system", &ConstCounter::new(cpu))?;
            write("process_start_time_seconds", "Start, seconds since the epoch", &ConstGauge::new(start))?;
        }
        if let Some(bytes) = resident_bytes() {
            write("process_resident_memory_bytes", "Resident memory", &ConstGauge::new(bytes))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            write("process_open_fds", "Open file descriptors", &ConstGauge::new(open.count() as i64))?;
        }
        if let Some(most) = limits::open_files() {
            write("process_max_fds", "File descriptors that may be open", &ConstGauge::new(most as f64))?;
        }
        write(
            "weft_connections_refused_for_fds",
            "Connections given up to leave file descriptors to admin, control and files",
            &ConstCounter::new(limits::refused()),
        )?;
        write(
            "weft_panics",
            "Panics, each of which ended one task, such as a connection",
            &ConstCounter::new(logs::panics()),
        )?;
        write(
            "weft_log_events_suppressed",
            "Log events left out because their place in the code logged too many",
            &ConstCounter::new(logs::suppressed()),
        )?;
        write(
            "weft_log_events_lost",
            "Log events that standard error did not take: its disk is full, or nobody reads it any more",
            &ConstCounter::new(logs::lost()),
        )?;
        Ok(())
    }
}

/// CPU seconds used, and the start in seconds since the epoch.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets, which may hold anything; the third follows the last `)`.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some((seconds(14)? + seconds(15)?, boot + seconds(22)?))
}

fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kibibytes.trim().strip_suffix(" kB")?.parse::<i64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn sees_this_process() {
        let (cpu, start) = times().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - start;
        assert!(cpu >= 0.0 && (-2.0..Duration::from_secs(3600).as_secs_f64()).contains(&age), "{cpu} {age}");
        assert!(resident_bytes().unwrap() > 1 << 20);
    }

    #[test]
    fn writes_them_all() {
        let text = crate::metrics::Registry::new().text().unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        expect_test::expect![[r#"
            [
                "process_cpu_seconds counter",
                "process_start_time_seconds gauge",
                "process_resident_memory_bytes gauge",
                "process_open_fds gauge",
                "process_max_fds gauge",
                "weft_connections_refused_for_fds counter",
                "weft_panics counter",
                "weft_log_events_suppressed counter",
                "weft_log_events_lost counter",
            ]
        "#]]
        .assert_debug_eq(&names);
    }
}
