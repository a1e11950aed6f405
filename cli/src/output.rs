//! How a command answers: aligned plain text, or JSON. Colour only on a terminal.

use std::{
    io::{IsTerminal, Write},
    time::{SystemTime, UNIX_EPOCH},
};

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
    pub(crate) fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce(&T, Style) -> String) {
        match self.format {
            Format::Text => print(&text(value, self.style())),
            Format::Json if self.terminal => print(&serde_json::to_string_pretty(value).unwrap_or_default()),
            Format::Json => print(&serde_json::to_string(value).unwrap_or_default()),
        }
    }
}

/// Writes to stdout and ends the line; a reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.trim_end_matches('\n').as_bytes());
    let _ = out.write_all(b"\n");
    let _ = out.flush();
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

    /// `text` in its tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
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

/// One field of a table.
pub(crate) struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A field in a tone.
    pub(crate) fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Cell { text: text.into(), tone: Some(tone) }
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
        Cell { text: text.into(), tone: None }
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
}
