//! Documents that are written by hand, but for a part that a command writes.

use std::path::Path;

use anyhow::{Context, ensure};

/// Where that part begins and ends.
const MARKS: [&str; 2] = ["<!-- measured -->\n", "<!-- /measured -->\n"];

/// Puts `generated` between the marks of `document`.
pub fn write_between_marks(document: &Path, generated: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(document).with_context(|| document.display().to_string())?;
    std::fs::write(document, between_marks(&old, generated)?)?;
    Ok(())
}

/// The words that this program was called with. Of absolute paths only their ends: the rest is of one machine.
pub fn words() -> Vec<String> {
    std::env::args().skip(1).map(|word| anywhere(&word).to_owned()).collect()
}

fn anywhere(word: &str) -> &str {
    let end = word.rsplit('/').next().unwrap_or_default();
    if word.starts_with('/') { end } else { word }
}

fn between_marks(old: &str, generated: &str) -> anyhow::Result<String> {
    let [begin, end] = MARKS;
    let (head, rest) = old.split_once(begin).context("the document has no mark `measured`")?;
    let (_, tail) = rest.split_once(end).context("the document has no mark `/measured`")?;
    ensure!(!tail.contains(begin), "the document has two marks `measured`");
    Ok(format!("{head}{begin}{generated}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_absolute_paths_only_their_ends_are_told() {
        assert_eq!(anywhere("/tmp/bench.json"), "bench.json");
        assert_eq!(anywhere("docs/benchmarks.md"), "docs/benchmarks.md");
        assert_eq!(anywhere("--json"), "--json");
    }

    #[test]
    fn only_what_is_between_the_marks_is_written() {
        let [begin, end] = MARKS;
        let old = format!("by hand\n{begin}old\n{end}by hand too\n");
        assert_eq!(between_marks(&old, "new\n").unwrap(), format!("by hand\n{begin}new\n{end}by hand too\n"));
        assert!(between_marks("by hand\n", "new\n").is_err());
    }
}
