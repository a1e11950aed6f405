//! libFuzzer's entrance: `weft-fuzz --target=NAME [libFuzzer's own options] CORPUS...`

#![no_main]

use std::{panic, sync::OnceLock, thread};

use fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn choose() {
    let said = std::env::args().find_map(|argument| argument.strip_prefix("--target=").map(str::to_owned));
    let target = TARGETS.iter().find(|target| Some(target.name) == said.as_deref());
    let target = target.unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("--target= is one of {}", names.join(", "))
    });
    let _ = CHOSEN.set(target);
    // The `cel` crate's parser may panic: its caller keeps it in a thread of that name and answers with a mistake.
    let fatal = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some("cel") {
            fatal(panic);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        (target.run)(bytes);
    }
});
