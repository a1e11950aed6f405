//! How a command answers: aligned plain text, or JSON. Colour only on a terminal.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

/// `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned text for people
    #[default]
    Text,
    /// One JSON document, the admin API's own shapes
    Json,
}

/// Where a command's answer goes.
pub(crate) struct Output {
    format: Format,
    /// Whether a person looks at stdout.
    pub(crate) terminal: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Output { format, terminal: std::io::stdout().is_terminal() }
    }

    /// On a terminal in colour, and no wider than it is.
    fn style(&self) -> Style {
        let columns = terminal_size::terminal_size().filter(|_| self.terminal);
        Style { colour: self.terminal, columns: columns.map(|(width, _)| width.0.into()) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Answers with `value` as JSON, or with what `text` makes of it.
    pub(crate) fn answer<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Text => print(&text(value, self.style())),
            Format::Json if self.terminal => print(&escaped(&serde_json::to_string_pretty(value)?)),
            Format::Json => print(&serde_json::to_string(value)?),
        }
    }
}

/// Writes to stdout and ends the line; a reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write_line(&mut io::stdout().lock(), text).context("cannot write to stdout")
}

fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    let line = format!("{}\n", text.trim_end_matches('\n'));
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// What others wrote (authors, proxies, processes), as part of a line of ours. Their control characters would move the
/// cursor, or begin lines that we never said.
pub(crate) fn line(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// The same of what we say in several lines: their ends, and the tabs that Git writes, stay.
pub(crate) fn lines(text: &str) -> String {
    text.chars().map(|one| if matches!(one, '\n' | '\t') { one } else { harmless(one) }).collect()
}

fn harmless(one: char) -> char {
    match (one.is_control(), one.is_whitespace()) {
        (false, _) => one,
        (true, true) => ' ',
        (true, false) => char::REPLACEMENT_CHARACTER,
    }
}

/// JSON leaves some of them as they are (RFC 8259, section 7: it has to escape those below the space alone).
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for one in json.chars() {
        if one.is_control() && one != '\n' {
            out.push_str(&format!("\\u{:04x}", u32::from(one)));
        } else {
            out.push(one);
        }
    }
    out
}

/// Seconds since the epoch.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Time of day, UTC, from seconds since the epoch.
pub(crate) fn clock(seconds: f64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds as i64) {
        Ok(at) => format!("{:02}:{:02}:{:02}Z", at.hour(), at.minute(), at.second()),
        Err(_) => "-".to_owned(),
    }
}

/// The first seven characters of a commit, as Git shows it; of those of several sources, of each.
pub(crate) fn short_commit(commit: &str) -> String {
    let short = |one: &str| match one.split_once('@') {
        Some((source, commit)) => format!("{source}@{}", commit.get(..7).unwrap_or(commit)),
        None => one.get(..7).unwrap_or(one).to_owned(),
    };
    commit.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

/// What a word means, and so its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Faint,
    Strong,
}

/// Whether words are coloured, and how many columns a line may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) colour: bool,
    /// `None` where nobody counts them: in a pipe.
    pub(crate) columns: Option<usize>,
}

impl Style {
    /// As in a pipe.
    pub(crate) const PLAIN: Style = Style { colour: false, columns: None };

    /// `text`, which is one line, in its tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let text = line(text);
        if !self.colour {
            return text;
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Faint => 2,
            Tone::Strong => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One field of a table, which is one line whoever wrote it.
pub(crate) struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A field in a tone.
    pub(crate) fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Cell { text: line(&text.into()), tone: Some(tone) }
    }

    /// Good or bad.
    pub(crate) fn judged(good: bool, text: impl Into<String>) -> Self {
        Cell::toned(if good { Tone::Good } else { Tone::Bad }, text)
    }
}

impl Cell {
    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: line(&text.into()), tone: None }
    }
}

/// Rows of fields under their headings, each column as wide as its widest field.
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
    /// Columns that a narrow terminal can do without, the first to go first.
    expendable: Vec<usize>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let headings = headings.into_iter().map(|text| Cell::toned(Tone::Faint, text)).collect();
        Table { rows: vec![headings], expendable: Vec::new() }
    }

    /// Names columns that are left out, in this order, where they do not fit.
    pub(crate) fn without<const N: usize>(mut self, headings: [&str; N]) -> Self {
        let place = |heading: &str| self.rows[0].iter().position(|cell| cell.text == heading);
        self.expendable = headings.into_iter().filter_map(place).collect();
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The table, two spaces before each line and between columns; nothing at all when it has no rows.
    pub(crate) fn render(&self, style: Style) -> String {
        if self.rows.len() < 2 {
            return String::new();
        }
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0))
            .collect();
        let mut shown: Vec<usize> = (0..widths.len()).collect();
        for left_out in &self.expendable {
            let total: usize = shown.iter().map(|column| widths[*column] + 2).sum();
            if style.columns.is_some_and(|columns| total > columns) {
                shown.retain(|column| column != left_out);
            }
        }
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for column in &shown {
                let cell = &row[*column];
                let text = cell.tone.map_or(cell.text.clone(), |tone| style.paint(tone, &cell.text));
                line.push_str("  ");
                line.push_str(&text);
                line.extend(std::iter::repeat_n(' ', widths[*column] - cell.width()));
            }
            line.truncate(line.trim_end().len());
            line.push('\n');
            line
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_field() {
        let mut table = Table::new(["CLUSTER", "STATE"]);
        table.row(["east".into(), Cell::judged(true, "ok")]);
        table.row(["a-long-name".into(), Cell::judged(false, "away")]);
        let text = "  CLUSTER      STATE\n  east         ok\n  a-long-name  away\n";
        assert_eq!(table.render(Style::PLAIN), text);
        assert!(table.render(Style { colour: true, columns: None }).contains("\x1b[31maway\x1b[0m"));
        assert_eq!(Table::new(["NOTHING"]).render(Style::PLAIN), "");
    }

    #[test]
    fn a_narrow_terminal_does_without_what_it_can_do_without() {
        let mut table = Table::new(["NAME", "WHERE", "SINCE", "STATE"]).without(["SINCE", "WHERE"]);
        table.row(["east-front-1".into(), "127.1.0.11".into(), "4m".into(), "up".into()]);
        let heads = |columns| {
            let style = Style { colour: false, columns: Some(columns) };
            let text = table.render(style);
            text.lines().next().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(heads(80), "NAME WHERE SINCE STATE");
        assert_eq!(heads(38), "NAME WHERE STATE");
        assert_eq!(heads(10), "NAME STATE");
    }

    #[test]
    fn what_others_wrote_cannot_command_the_terminal() {
        assert_eq!(line("a\x1b[2Jb\nc\u{9b}d\te"), "a\u{fffd}[2Jb c\u{fffd}d e");
        assert_eq!(lines("a\x1b[2J\r\n\tb"), "a\u{fffd}[2J \n\tb");
        assert_eq!(line("größer als 5 µs"), "größer als 5 µs");

        let mut table = Table::new(["WHY"]);
        table.row(["slow\n  west ok\x1b[A".into()]);
        assert_eq!(table.render(Style::PLAIN), "  WHY\n  slow   west ok\u{fffd}[A\n");
        let painted = Style { colour: true, columns: None }.paint(Tone::Bad, "a\x1b[0mb");
        assert_eq!(painted, "\x1b[31ma\u{fffd}[0mb\x1b[0m");

        let json = serde_json::to_string_pretty(&["\x7f\u{9b}\x1b"]).unwrap();
        assert_eq!(escaped(&json), "[\n  \"\\u007f\\u009b\\u001b\"\n]");
    }

    #[test]
    fn an_answer_that_cannot_be_written_is_an_error_unless_its_reader_has_gone() {
        struct Broken(ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(write_line(&mut Broken(ErrorKind::BrokenPipe), "a").is_ok());
        let full = write_line(&mut Broken(ErrorKind::StorageFull), "a").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let mut out = Vec::new();
        write_line(&mut out, "a\n\n").unwrap();
        assert_eq!(out, b"a\n");
    }
}
