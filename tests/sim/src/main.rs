//! `weft-simulate [--seeds N] [--from SEED]` runs seeds; `weft-simulate --seed SEED` tells what happens in one.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use clap::Parser;
use simulation::{Options, many, run, sabotage::Sabotage};

/// As in the proxy: a seed allocates enough to be the quicker for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stands in for the system's random numbers where the standard library asks for them: the order of its hash maps, and
/// by them the order in which tokio wakes those who wait for the same, would else differ from run to run.
/// Keys are made from other numbers.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut chance = simulation::chance::Chance::new(CALLS.fetch_add(1, Relaxed));
    for at in 0..length {
        // SAFETY: by getrandom(2) `buffer` has room for `length` bytes.
        unsafe { buffer.add(at).write(chance.next() as u8) };
    }
    length as isize
}

/// Meshes on a simulated network, judged at every step.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one, with all that happens in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Of the one seed, only what failed and how often each invariant was judged.
    #[arg(long)]
    brief: bool,
    /// How many at a time; as many as there are processors by default.
    #[arg(long)]
    processes: Option<usize>,
    /// Breaks something on purpose, to see that it is noticed.
    #[arg(long)]
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let options = Options { sabotage: arguments.sabotage };
    match arguments.seed {
        Some(seed) => one(seed, arguments.brief, options),
        None => all(&arguments, options),
    }
}

fn one(seed: u64, brief: bool, options: Options) -> ExitCode {
    let outcome = run(seed, options);
    if brief {
        outcome.judged.iter().for_each(|(name, count)| println!("{name} {count}"));
        outcome.failure.iter().for_each(|failure| println!("fails {failure}"));
        return ExitCode::SUCCESS;
    }
    outcome.trace.iter().for_each(|line| println!("{line}"));
    match outcome.failure {
        Some(failure) => {
            println!("seed {seed} fails: {failure}");
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed} holds for {:?}; judged {:?}", outcome.simulated, outcome.judged);
            ExitCode::SUCCESS
        }
    }
}

fn all(arguments: &Arguments, options: Options) -> ExitCode {
    let begun = Instant::now();
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let processes = std::thread::available_parallelism().map_or(1, Into::into);
    let processes = arguments.processes.unwrap_or(processes);
    let seeds = arguments.from..arguments.from + arguments.seeds;
    let itself = std::env::current_exe().expect("a program has a path");
    let judged = many(&itself, seeds, processes, options, |seed, failure| {
        if let Some(failure) = failure {
            failed.fetch_add(1, Relaxed);
            println!("seed {seed} fails: {failure}");
        }
        let done = done.fetch_add(1, Relaxed) + 1;
        if done.is_multiple_of(1_000) {
            eprintln!("{done} seeds after {:?}", begun.elapsed());
        }
    });
    let failed = failed.load(Relaxed);
    println!("{} seeds in {:?}: {failed} fail; judged {judged:?}", arguments.seeds, begun.elapsed());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
