//! The machine that something is measured on: what a figure means depends on it. Reads Linux's `/proc`.

use std::fs;

use anyhow::Context;

/// The load average up to which a machine counts as quiet.
pub const QUIET: f64 = 0.7;

/// Of the last minute.
pub fn load_average() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc: is this Linux?")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Processor, cores and kernel, in words.
pub fn described() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let model = text.lines().find(|line| line.starts_with("model name"));
    let processor = model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
    // Not those that this process may use: who measures has pinned itself.
    let cores = text.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{processor}, {cores} cores, Linux {}", kernel.trim()))
}
