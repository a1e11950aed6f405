//! Regular expressions as CEL means them: RE2's syntax, where `\d`, `\w`, `\s` and `\b` are ASCII.
//!
//! The `regex` crate reads these as Unicode and knows set operations inside classes, both of which could match
//! more than was written. So a pattern is rewritten before it is compiled.

use regex::{Regex, RegexBuilder};

/// Bytes that one compiled pattern, and its cache, may take in a proxy.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Compiles a pattern, or says what is wrong with it.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(&from_re2(pattern)?)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .build();
    compiled.map_err(|error| {
        let text = error.to_string();
        let last_line = text.lines().last().unwrap_or_default();
        last_line.trim_start_matches("error: ").to_owned()
    })
}

fn from_re2(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(char) = chars.next() {
        match (char, in_class) {
            ('\\', _) => match chars.next() {
                Some(escaped) => push_escape(&mut out, escaped, in_class)?,
                None => out.push('\\'),
            },
            ('[', false) => {
                in_class = true;
                out.push('[');
                out.extend(chars.next_if_eq(&'^'));
                // The first `]` of a class is a member of it.
                if chars.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ('[', true) if chars.peek() == Some(&':') => {
                // A POSIX class, `[:alpha:]`, ends with its own bracket.
                out.push('[');
                for inner in chars.by_ref() {
                    out.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            ('[' | '&' | '~', true) => out.extend(['\\', char]),
            ('-', true) if chars.peek() == Some(&'-') => {
                return Err("write `\\-` for a `-` in a class".to_owned());
            }
            (']', true) => {
                in_class = false;
                out.push(']');
            }
            (char, _) => out.push(char),
        }
    }
    Ok(out)
}

fn push_escape(out: &mut String, escaped: char, in_class: bool) -> Result<(), String> {
    match (escaped, in_class) {
        ('d', _) => out.push_str("[0-9]"),
        ('D', _) => out.push_str("[^0-9]"),
        ('w', _) => out.push_str("[0-9A-Za-z_]"),
        ('W', _) => out.push_str("[^0-9A-Za-z_]"),
        ('s', _) => out.push_str(r"[\t\n\f\r ]"),
        ('S', _) => out.push_str(r"[^\t\n\f\r ]"),
        ('b', false) => out.push_str(r"(?-u:\b)"),
        // Either has a meaning in `regex` that RE2 does not give it, or cannot be had on text.
        ('B' | '<' | '>' | 'u' | 'U', _) | ('b', true) => {
            return Err(format!("`\\{escaped}` is not supported in a pattern"));
        }
        (escaped, _) => out.extend(['\\', escaped]),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test]
    fn classes_are_ascii() {
        assert!(matches(r"^\d+$", "123"));
        assert!(!matches(r"^\d+$", "١٢٣"), "Arabic digits");
        assert!(!matches(r"^[\w-]+$", "é"));
        assert!(!matches(r"^\s$", "\u{a0}"), "no-break space");
        assert!(matches(r"\bcat\b", "écaté, a cat"));
        assert!(!matches("(?i)^[[:alpha:]]+$", "é"));
    }

    #[test]
    fn classes_know_no_set_operations() {
        assert!(matches("^[a&&b]$", "&"));
        assert!(matches("^[a[b]$", "["));
        assert!(matches("^[]a]+$", "]a"));
        assert!(matches("^[^]a]$", "b"));
        assert!(compile("[+--]").is_err());
    }

    #[test]
    fn what_is_too_large_or_broken_is_refused() {
        assert!(compile("(").is_err());
        assert!(compile(r"\").is_err());
        assert!(compile("((a{100}){100}){100}").is_err());
    }
}
