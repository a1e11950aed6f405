//! `weft-faults`: everything that can be lost, lost in every way, under load, in the laboratory; what it cost, and which
//! rules of docs/reliability.md were broken.
//!
//! One shop lives through all of it: a cell begins once the one before it is back, or has had a minute to be. The load
//! and the judgement are in this process, all that is judged in processes of its own.

#[path = "../faults/back.rs"]
mod back;
#[path = "../faults/cell.rs"]
mod cell;
#[path = "../faults/fault.rs"]
mod fault;
#[path = "../faults/flow.rs"]
mod flow;
#[path = "../faults/report.rs"]
mod report;
#[path = "../faults/rules.rs"]
mod rules;
#[path = "../faults/shop.rs"]
mod shop;
#[path = "../faults/told.rs"]
mod told;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use weft_tests::harness::document;

use crate::{
    fault::{Row, Way},
    report::Report,
    shop::Shop,
};

/// What the shop may take to be ready.
const SOON: Duration = Duration::from_secs(60);

/// Loses each part of a mesh in each way, under load, and tells what it cost
///
/// Takes root, `ip`, `nft` and `setpriv` (`scripts/setup lab`), etcd and sshd (`scripts/setup test`), and the release
/// builds of both binaries. A cell takes some 20 seconds, all of them about a quarter of an hour. Fails when a rule is broken.
#[derive(Parser)]
#[command(name = "weft-faults")]
struct Arguments {
    /// Only these losses
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Row>,
    /// Only in these ways
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Write all results there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table between the marks of this document
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::new()?;
    let shop = Shop::up().await;
    for row in chosen(&arguments.only) {
        for way in chosen(&arguments.ways) {
            match row.senseless(way) {
                Some(why) => report.leave_out(row, way, why),
                None => {
                    let cell = cell::run(&shop, row, way).await;
                    print!("{}", report::line(&cell));
                    report.add(cell);
                    arguments.keep(&report)?;
                }
            }
        }
    }
    drop(shop);
    print!("\n{}", report.text());
    match report.broken().len() {
        0 => Ok(()),
        count => bail!("{count} rules are broken"),
    }
}

impl Arguments {
    /// Writes down what is known by now, since so long a run may be broken off.
    fn keep(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(file) = &self.json {
            std::fs::write(file, serde_json::to_string_pretty(report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        if let Some(file) = &self.document {
            document::write_between_marks(file, &format!("\n{}\n", report.text()))?;
        }
        Ok(())
    }
}

/// What was named, or all there is.
fn chosen<T: ValueEnum + Clone>(named: &[T]) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named.to_vec() }
}
