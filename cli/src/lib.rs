//! The `weft` command: one file a command.
//!
//! Invariant: what a command has to say goes to stdout, once, as text or JSON; errors and progress go to
//! stderr; the exit status is zero only when what was asked for is so.

mod bug_report;
mod check;
mod client;
mod console;
mod controlplane;
mod descriptor;
mod down;
mod duration;
mod end;
mod explain;
mod join;
mod mesh;
mod output;
mod pid;
mod process;
mod progress;
mod proxy;
mod rollout;
mod sample;
mod status;
mod token;
mod up;
mod wait;
mod workload;

use std::{
    future::Future,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::output::{Format, Output};

/// A multi-cluster service mesh whose configuration lives in Git.
#[derive(Parser)]
#[command(name = "weft", version, max_term_width = 110, after_help = EXAMPLES, arg_required_else_help = true)]
struct Weft {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weft up                          bring up two clusters and a sample application here
  cd weft-up/config                the Git repository that rules them
  git commit -am 'a new rule'      a commit is all that it takes
  weft wait HEAD                   returns when every proxy of both clusters obeys it
  weft status                      what is where, and since when
  weft explain --from shop/front GET reviews:8080 /reviews
                                   which route, endpoints and rule, and where they stand
  weft down                        end it all

The mesh is found by --api, by WEFT_API, or by the `weft up` directory that the current
directory lies in. `weft help COMMAND` says more about each.";

/// What every command takes.
#[derive(Args, Clone, Default)]
struct Global {
    /// The admin API of a control plane (http://127.1.0.1:15080); otherwise the nearest `weft up` directory
    #[arg(long, global = true, help_heading = "Global options", env = "WEFT_API", value_name = "URL")]
    api: Option<String>,
    /// The file that holds the API's token; otherwise WEFT_TOKEN, or the control plane's own file if it runs here
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How to answer
    #[arg(
        long,
        short,
        global = true,
        help_heading = "Global options",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Down(down::Down),
    Wait(wait::Wait),
    Status(status::Show),
    Explain(explain::Explain),
    Console(console::Console),
    BugReport(bug_report::BugReport),
    Rollout(rollout::Rollout),
    Check(check::Check),
    Workload(workload::Workloads),
    Token(token::Token),
    Join(join::Join),
    Controlplane(controlplane::Controlplane),
    SampleService(sample::SampleService),
}

/// Reads the command line, does what it says.
pub fn main() -> ExitCode {
    let Weft { global, command } = Weft::parse();
    let output = Output::new(global.output);
    let done = match command {
        Command::Up(up) => block_on(up::run(up, &output)),
        Command::Down(down) => block_on(down::run(down, &output)),
        Command::Wait(wait) => block_on(wait::run(wait, &global, &output)),
        Command::Status(show) => block_on(status::run(show, &global, &output)),
        Command::Explain(explain) => block_on(explain::run(explain, &global, &output)),
        Command::BugReport(report) => block_on(bug_report::run(report, &global, &output)),
        Command::Console(console) => block_on(console::run(console, &global, &output)),
        Command::Rollout(rollout) => block_on(rollout::run(rollout, &global, &output)),
        Command::Check(check) => check::run(&check, &output),
        Command::Workload(workloads) => block_on(workload::run(workloads, &global, &output)),
        Command::Token(token) => block_on(token::run(token, &global, &output)),
        Command::Join(join) => join::run(&join),
        Command::Controlplane(controlplane) => controlplane::run(controlplane, &global, &output),
        Command::SampleService(service) => block_on(sample::run(service)),
    };
    done.unwrap_or_else(|error| {
        // Where nobody can read it the exit status says it alone.
        let _ = writeln!(io::stderr(), "weft: {}", output::lines(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

/// One thread is enough for a command, and the cheapest to start.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Weft::command().debug_assert();
    }
}
