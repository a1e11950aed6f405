//! The table: a line a cell, in the terminal as in `docs/reliability.md`, and JSON for machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    process::Command,
};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use weft_tests::harness::{document, machine};

use crate::{
    back::Back,
    cell::Cell,
    fault::{Row, Way},
    flow::Fate,
    rules,
};

/// What was lost, in all ways, and what it cost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    date: String,
    command: String,
    machine: String,
    load_average: f64,
    cells: Vec<Cell>,
    broken: Vec<String>,
    senseless: Vec<String>,
}

impl Report {
    /// Of this day and command, with nothing lost yet.
    pub fn new() -> anyhow::Result<Self> {
        let date = Command::new("date").args(["-u", "+%-d %B %Y"]).env("LC_ALL", "C").output();
        let date = String::from_utf8(date.context("there is no `date`")?.stdout)?.trim().to_owned();
        let words = document::words();
        let command = ["cargo run --release -p weft-tests --bin weft-faults", "--"];
        let command =
            if words.is_empty() { command[0].to_owned() } else { command.join(" ") + " " + &words.join(" ") };
        Ok(Report {
            date,
            command,
            machine: machine::described()?,
            load_average: machine::load_average()?,
            cells: Vec::new(),
            broken: Vec::new(),
            senseless: Vec::new(),
        })
    }

    /// Adds a cell.
    pub fn add(&mut self, cell: Cell) {
        let name = name(cell.row, cell.way);
        self.broken.extend(rules::broken(&cell).into_iter().map(|rule| format!("{name}: {rule}")));
        self.cells.push(cell);
    }

    /// Adds one that makes no sense.
    pub fn leave_out(&mut self, row: Row, way: Way, why: &str) {
        self.senseless.push(format!("{}: {why}", name(row, way)));
    }

    /// The rules that were broken, by which cell.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// For people.
    pub fn text(&self) -> String {
        let Report { date, command, machine, load_average, .. } = self;
        let mut text =
            format!("{date}, by `{command}` on {machine}, load average {load_average} at the start.\n\n");
        text.push_str(HEAD);
        self.cells.iter().for_each(|cell| text.push_str(&line(cell)));
        for (title, all) in
            [("Rules that are broken", &self.broken), ("Not lost in this way", &self.senseless)]
        {
            if !all.is_empty() {
                let _ = writeln!(text, "\n{title}:\n\n* {}", all.join("\n* "));
            }
        }
        text
    }
}

const HEAD: &str = "| lost | how | GETs failed | failover | longest wait | orders not done, twice, lost | back after | long flows | `weft status`, after |
|---|---|---|---:|---:|---|---:|---|---|
";

/// One line of the table.
pub fn line(cell: &Cell) -> String {
    let Cell { row, way, gets, orders, back, flows, told, .. } = cell;
    let failed = failures(&gets.failed, gets.meanwhile);
    let (row, way) = (said(row), said(way));
    let (failover, longest) = (seconds(gets.failover_millis), seconds(gets.longest_millis));
    let undone = failures(&orders.undone, orders.all);
    let orders = format!("{undone}, {}, {}", orders.twice, orders.lost);
    let flows: Vec<_> = flows.iter().filter_map(fate).collect();
    let flows = if flows.is_empty() { "all stand".to_owned() } else { flows.join("; ") };
    let told: Vec<_> = told
        .iter()
        .map(|(what, whom, when)| format!("{what} ({}) {}", whose(whom), seconds(*when)))
        .collect();
    let mark = if rules::broken(cell).is_empty() { "" } else { " **!**" };
    format!(
        "| {row} | {way}{mark} | {failed} | {failover} | {longest} | {orders} | {} | {flows} | {} |\n",
        returned(back),
        told.join("; ")
    )
}

fn name(row: Row, way: Way) -> String {
    format!("{}, {}", said(&row), said(&way))
}

fn said(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn failures(kinds: &BTreeMap<String, usize>, all: usize) -> String {
    let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let kinds = if kinds.is_empty() { "0".to_owned() } else { kinds.join(", ") };
    format!("{kinds} of {all}")
}

fn returned(back: &Back) -> String {
    back.whole().map_or_else(|missing| missing, seconds)
}

/// What became of a flow that did not stand as if nothing were.
fn fate(fate: &Fate) -> Option<String> {
    let Fate { name, silent_millis, broke } = fate;
    match broke {
        Some((when, _)) => Some(format!("{name}: broke after {}", seconds(*when))),
        None if *silent_millis > 1000 => Some(format!("{name}: silent for {}", seconds(*silent_millis))),
        None => None,
    }
}

/// One by its name, several by their number.
fn whose(whom: &BTreeSet<String>) -> String {
    match whom.first() {
        Some(first) if whom.len() == 1 => first.clone(),
        _ => whom.len().to_string(),
    }
}

fn seconds(millis: u64) -> String {
    format!("{:.1} s", millis as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::cell;

    #[test]
    fn a_cell_is_a_line() {
        assert_eq!(
            line(&cell(Way::Reject, 1, 420)),
            "| gateway | reject **!** | 1 503, 7 the answer broke off of 2400 | 0.4 s | 0.0 s | 3 503 of 600, 0, 0 | \
             2.0 s | all stand | proxy away (west-gateway-1) 0.8 s |\n"
        );
    }

    #[test]
    fn what_is_not_back_is_named() {
        let back = Back { serving: None, carrying: Some(1), ruled: None };
        assert_eq!(returned(&back), "not serving, commit not ruling within 60 s");
    }
}
