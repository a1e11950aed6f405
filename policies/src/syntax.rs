//! From text to CEL's syntax tree, by the parser of the `cel` crate, with positions as byte offsets.

use cel::{
    common::ast::{IdedExpr, SourceInfo},
    parser::Parser,
};

use crate::check::Mistake;

/// Bytes of one expression. It also bounds how deep the parser's recursion can go.
const EXPRESSION_BYTES_MAX: usize = 8 * 1024;

/// Address space for the parser, which recurses for each link of a chain such as `a.b.c`; only what is touched
/// is ever backed by memory.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// A syntax tree and where its nodes stand.
pub(crate) struct Tree<'s> {
    pub(crate) root: IdedExpr,
    source: &'s str,
    positions: SourceInfo,
}

/// Runs `work` where neither deep recursion nor a panic of the parser's can harm the process.
pub(crate) fn apart<T: Send>(
    work: impl FnOnce() -> Result<T, Vec<Mistake>> + Send,
) -> Result<T, Vec<Mistake>> {
    let failed = |_| vec![Mistake::new(0, "the expression cannot be parsed; write it in a simpler way")];
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work);
        thread
            .map_err(|error| Box::new(error) as Box<_>)
            .and_then(|thread| thread.join())
            .unwrap_or_else(|e| Err(failed(e)))
    })
}

/// Parses one expression.
pub(crate) fn parse(source: &str) -> Result<Tree<'_>, Mistake> {
    if source.len() > EXPRESSION_BYTES_MAX {
        let message =
            format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes, this has {}", source.len());
        return Err(Mistake::new(0, message).help("split it into several rules"));
    }
    if source.trim().is_empty() {
        return Err(Mistake::new(0, "the expression is empty").help("a rule without `when` matches all"));
    }
    match Parser::new().parse_with_source_info(source) {
        Ok((root, positions)) => Ok(Tree { root, source, positions }),
        Err(errors) => {
            // What follows the first error is mostly the parser's own confusion.
            let syntax = |error: &&cel::ParseError| error.msg.starts_with("Syntax error: ");
            let first = errors.errors.iter().find(syntax).or(errors.errors.first());
            Err(first.map_or_else(|| Mistake::new(0, "not an expression"), |error| mistake(source, error)))
        }
    }
}

fn mistake(source: &str, error: &cel::ParseError) -> Mistake {
    let (line, column) = error.pos;
    if line <= 0 {
        return Mistake::new(0, "the expression nests too deeply").help("split it into several rules");
    }
    let offset = offset_of(source, line as usize, column as usize);
    let mistake = Mistake::new(offset, in_our_words(&error.msg));
    match source[offset..].trim_start() {
        rest if rest.starts_with('=') => mistake.help("`==` compares"),
        rest if rest.starts_with("and ") => mistake.help("CEL writes `&&`"),
        rest if rest.starts_with("or ") => mistake.help("CEL writes `||`"),
        _ => mistake,
    }
}

/// The parser's message without its list of all that could have stood there.
fn in_our_words(message: &str) -> String {
    let message = message.trim_start_matches("Syntax error: ");
    let message = message.split(" expecting ").next().unwrap_or(message);
    if message.ends_with("'<EOF>'") {
        return "the expression ends too early".to_owned();
    }
    let found = ["token recognition error at: ", "mismatched input ", "extraneous input "];
    match found.iter().find_map(|start| message.strip_prefix(start)) {
        Some(found) => format!("unexpected {}", found.replace("\\n", " ")),
        None => message.to_owned(),
    }
}

/// The byte at a line and a column, both counted from 1, columns in characters.
fn offset_of(source: &str, line: usize, column: usize) -> usize {
    let start: usize = source.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let in_line = source[start..].char_indices().nth(column.saturating_sub(1));
    in_line.map_or(source.len(), |(offset, _)| start + offset)
}

impl Tree<'_> {
    /// Where the token of a node begins: an operator, a literal, the `.` of a field, the `(` of a call.
    pub(crate) fn at(&self, node: &IdedExpr) -> usize {
        let offset = self.positions.offset_for(node.id).map_or(0, |(start, _)| start as usize);
        (0..=offset.min(self.source.len())).rev().find(|at| self.source.is_char_boundary(*at)).unwrap_or(0)
    }

    /// Where the field begins whose `.` is the node's token.
    pub(crate) fn field_at(&self, node: &IdedExpr) -> usize {
        let dot = self.at(node);
        let after = self.source[dot..].trim_start_matches('.');
        self.source.len() - after.trim_start().len()
    }

    /// Where the name before the `(` of a call begins, and that name: macros are known by it alone.
    pub(crate) fn callee(&self, node: &IdedExpr) -> (usize, &str) {
        let before = self.source[..self.at(node)].trim_end();
        let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let name = &before[before.trim_end_matches(is_part).len()..];
        (before.len() - name.len(), name)
    }
}
