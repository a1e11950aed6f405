//! Regular expressions as all of Weft means them: RE2's syntax, where `\d`, `\w`, `\s` and `\b` are ASCII.
//!
//! The `regex` crate reads these as Unicode and knows set operations inside classes, both of which could match
//! more than was written. So a pattern is rewritten before it is compiled.
//!
//! Invariant: this is the only place where a pattern of the configuration is compiled. What the gate takes, every proxy
//! takes.

use std::{iter::Peekable, str::Chars};

use regex::{Error, Regex, RegexBuilder};

/// Bytes that one compiled pattern, and its cache, may take in a proxy.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Sizes that are tried in turn. The crate does not tell how large a pattern has become, so the first of these that is
/// enough stands for it.
const SIZES: [usize; 4] = [1 << 14, 1 << 16, 1 << 18, COMPILED_BYTES_MAX];

/// Patterns in one [`Budget`]. A person writes a few; one pattern with `|` says what many would.
const COUNT_MAX: usize = 64;

/// Bytes that the patterns of one [`Budget`] may take: 64 common ones take a quarter of it.
const TOGETHER_BYTES_MAX: usize = 4 << 20;

/// Bytes that the patterns of a repository may take, those of its routes and those of its policies each. A file of a
/// megabyte could else ask for a hundred gigabytes, of a gateway that serves others as well.
pub const ALL_BYTES_MAX: usize = 256 << 20;

/// What the patterns of one expression have taken so far. Each has memory wherever it is matched, and a proxy of many
/// tenants matches those of all.
#[derive(Debug, Default)]
pub struct Budget {
    count: usize,
    bytes: usize,
}

impl Budget {
    /// What they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Compiles a pattern that may match anywhere in a text (CEL's `matches`), or says what is wrong with it: that also
    /// when those so far and this one are too many or too large together.
    pub fn compile(&mut self, pattern: &str) -> Result<Regex, String> {
        let rewritten = from_re2(pattern)?;
        self.count += 1;
        if self.count > COUNT_MAX {
            return Err(format!("at most {COUNT_MAX} patterns stand together: join some by `|`"));
        }
        // Once they are too large, the others are not compiled to see by how much.
        if self.bytes <= TOGETHER_BYTES_MAX {
            let (regex, bytes) = build(&rewritten)?;
            self.bytes += bytes;
            if self.bytes <= TOGETHER_BYTES_MAX {
                return Ok(regex);
            }
        }
        Err(format!(
            "with the patterns before it, it takes more than {TOGETHER_BYTES_MAX} bytes: repeat less"
        ))
    }
}

/// Compiles a pattern that must match a text as a whole (Gateway API, `RegularExpression`).
pub fn compile_whole(pattern: &str) -> Result<Regex, String> {
    whole(pattern).map(|(regex, _)| regex)
}

/// The bytes that such a pattern takes.
pub fn weigh_whole(pattern: &str) -> Result<usize, String> {
    whole(pattern).map(|(_, bytes)| bytes)
}

fn whole(pattern: &str) -> Result<(Regex, usize), String> {
    // Groups are balanced after the rewriting, so that nothing in it ends the group around it.
    build(&format!("^(?:{})$", from_re2(pattern)?))
}

/// The compiled pattern, and which of [`SIZES`] it takes.
fn build(rewritten: &str) -> Result<(Regex, usize), String> {
    let mut builder = RegexBuilder::new(rewritten);
    builder.dfa_size_limit(COMPILED_BYTES_MAX);
    for size in SIZES {
        match builder.size_limit(size).build() {
            Ok(regex) => return Ok((regex, size)),
            Err(Error::CompiledTooBig(_)) => {}
            Err(error) => {
                let text = error.to_string();
                let last_line = text.lines().last().unwrap_or_default();
                return Err(last_line.trim_start_matches("error: ").to_owned());
            }
        }
    }
    Err(format!("it takes more than {COMPILED_BYTES_MAX} bytes: repeat less"))
}

/// Where in a pattern the reader is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Outside of classes.
    Text,
    /// At the start of a class, where `-` is itself.
    Start,
    /// In a class, after a character.
    Member,
    /// In a class, after `-`: what follows may be the end of a range.
    Dash,
    /// In a class, after `\w`, `[:alpha:]` or their kin.
    Set,
}

fn from_re2(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut place = Place::Text;
    let mut groups = 0_usize;
    while let Some(char) = chars.next() {
        place = match (char, place) {
            ('\\', _) => {
                let escaped = chars.next().ok_or("a `\\` at the end escapes nothing")?;
                push_escape(&mut out, escaped, place)?
            }
            ('[', Place::Text) => {
                out.push('[');
                out.extend(chars.next_if_eq(&'^'));
                // The first `]` of a class is a member of it.
                match chars.next_if_eq(&']') {
                    Some(_) => {
                        out.push_str("\\]");
                        Place::Member
                    }
                    None => Place::Start,
                }
            }
            ('(', Place::Text) => {
                groups += 1;
                out.push('(');
                push_group(&mut out, &mut chars)?;
                Place::Text
            }
            (')', Place::Text) => {
                groups = groups.checked_sub(1).ok_or("unopened group")?;
                out.push(')');
                Place::Text
            }
            (char, Place::Text) => {
                out.push(char);
                Place::Text
            }
            ('[', _) if chars.peek() == Some(&':') => {
                not_in_a_range(place)?;
                push_posix(&mut out, &mut chars)?;
                Place::Set
            }
            ('[' | '&' | '~', _) => {
                out.extend(['\\', char]);
                Place::Member
            }
            ('-', _) => {
                match chars.peek() {
                    Some('-') => return Err("write `\\-` for a `-` in a class".to_owned()),
                    Some(next) if *next != ']' && place == Place::Set => return Err(in_a_range()),
                    Some(_) | None => {}
                }
                out.push('-');
                if place == Place::Start { Place::Member } else { Place::Dash }
            }
            (']', _) => {
                out.push(']');
                Place::Text
            }
            (char, _) => {
                out.push(char);
                Place::Member
            }
        };
    }
    if groups > 0 {
        return Err("unclosed group".to_owned());
    }
    Ok(out)
}

/// What follows the `(` of a group. Other flags than RE2's would give the rest of the pattern another meaning.
fn push_group(out: &mut String, chars: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    if chars.next_if_eq(&'?').is_none() {
        return Ok(());
    }
    out.push('?');
    let is_named = matches!(chars.peek(), Some('P' | '<'));
    let is_end = |char: char| if is_named { char == '>' } else { matches!(char, ':' | ')') };
    while let Some(char) = chars.next_if(|char| !is_end(*char)) {
        let is_known = if is_named {
            char.is_ascii_alphanumeric() || "_<".contains(char)
        } else {
            "imsU-".contains(char)
        };
        if !is_known {
            let flags = "only a name, or the flags i, m, s and U, may follow `(?`";
            return Err(format!("`{char}` is not supported at the start of a group: {flags}"));
        }
        out.push(char);
    }
    Ok(())
}

/// A class within a class, `[:alpha:]`, whose `[` has been read.
fn push_posix(out: &mut String, chars: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
        "upper", "word", "xdigit",
    ];
    let inner: String = chars.by_ref().take_while(|char| *char != ']').collect();
    let name = inner.strip_prefix(':').and_then(|inner| inner.strip_suffix(':')).unwrap_or_default();
    if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return Err(format!("`[{inner}]` is no class of characters: write `\\[` for a `[` in a class"));
    }
    out.push('[');
    out.push_str(&inner);
    out.push(']');
    Ok(())
}

fn push_escape(out: &mut String, escaped: char, place: Place) -> Result<Place, String> {
    let set = match escaped {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => r"[\t\n\f\r ]",
        'S' => r"[^\t\n\f\r ]",
        'b' if place == Place::Text => {
            out.push_str(r"(?-u:\b)");
            return Ok(Place::Text);
        }
        // Each has a meaning in `regex` that RE2 does not give it, cannot be had on text, or hangs on the tables of
        // Unicode that a binary was built with.
        'B' | '<' | '>' | 'u' | 'U' | 'p' | 'P' | 'b' => {
            return Err(format!("`\\{escaped}` is not supported in a pattern"));
        }
        escaped => {
            out.extend(['\\', escaped]);
            return Ok(if place == Place::Text { Place::Text } else { Place::Member });
        }
    };
    not_in_a_range(place)?;
    out.push_str(set);
    Ok(if place == Place::Text { Place::Text } else { Place::Set })
}

fn not_in_a_range(place: Place) -> Result<(), String> {
    if place == Place::Dash { Err(in_a_range()) } else { Ok(()) }
}

fn in_a_range() -> String {
    "a class of characters is no end of a range: write `\\-` for a `-` beside it".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(pattern: &str) -> Result<Regex, String> {
        Budget::default().compile(pattern)
    }

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    fn matches_whole(pattern: &str, text: &str) -> bool {
        compile_whole(pattern).unwrap().is_match(text)
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
    fn a_class_of_characters_is_no_end_of_a_range() {
        for pattern in [
            r"[+-\w]+",
            r"[a\w-z]",
            r"[+-\D]",
            r"[\s-a]",
            "[+-[:alpha:]]",
            "[[:digit:]-z]",
            r"[]-\w]",
            "[[:x]a]",
        ] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(matches(r"^[-\w]+$", "a-b"));
        assert!(matches(r"^[^-\w]+$", "+"));
        assert!(matches(r"^[\w.-]+$", "a-b.c"));
        assert!(matches(r"^[\w\-.]+$", "a-b.c"));
        assert!(matches("^[a-c[:digit:]-]+$", "b-7"));
    }

    #[test]
    fn groups_have_the_flags_of_re2_alone() {
        for pattern in ["(?x)/v1 # first", "(?u)a", "(?R)a", "(?i-x:a)", "(?=a)", "(?<!a)", r"\p{Greek}"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(matches("(?i)^a(?-i:b)$", "Ab"));
        assert!(matches("^(?P<first>a)(?<second>b)(?:c)$", "abc"));
    }

    #[test]
    fn a_whole_match_is_of_the_whole_pattern() {
        assert!(matches_whole(r"/users/\w{1,64}", "/users/jo"));
        assert!(!matches_whole("a|b", "ab"));
        assert!(!matches_whole("(?m)a", "a\nb"));
        assert!(!matches_whole(r"[\w)]", "ab"));
        for pattern in ["a)|(?:b", "(a", "a)", r"a\", "[a", "(?x)/v1 # first"] {
            assert!(compile_whole(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_is_too_large_or_broken_is_refused() {
        assert!(compile("(").is_err());
        assert!(compile(r"\").is_err());
        assert!(compile("((a{100}){100}){100}").is_err());
    }

    #[test]
    fn patterns_have_a_limit_together() {
        let mut many = Budget::default();
        assert!((0..COUNT_MAX).all(|_| many.compile("^/users/[0-9]+$").is_ok()));
        assert!(many.compile("a").unwrap_err().contains("at most 64 patterns"));
        let mut large = Budget::default();
        let taken = (0..COUNT_MAX).take_while(|_| large.compile("[a-z]{10000}").is_ok()).count();
        assert!((1..=16).contains(&taken), "{taken}");
    }
}
