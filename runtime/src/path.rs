//! Paths are normalised before routing and authorization, so that both see the string that is forwarded.

use std::borrow::Cow;

/// What becomes of `%2F`, `%5C`, NUL and invalid UTF-8 in a path (`Mesh.spec.pathNormalization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathMode {
    /// Refused with 400: what a path means must not depend on who reads it.
    #[default]
    Refuse,
    /// Left escaped. NUL is refused even so: too many readers take it for the end of the path.
    Keep,
    /// Decoded before the segments are judged. NUL and invalid UTF-8 are refused even so.
    Decode,
}

/// Why a path is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not beginning with `/`.
    #[error("the path must begin with `/`")]
    Relative,
    /// A `%` without two hexadecimal digits.
    #[error("a percent escape in the path is not followed by two hexadecimal digits")]
    Escape,
    /// An escaped or literal separator.
    #[error("the path contains an escaped `/` or a `\\`; set Mesh.spec.pathNormalization to let it pass")]
    Separator,
    /// NUL.
    #[error("the path contains NUL, which no Mesh.spec.pathNormalization lets pass; send it without")]
    Nul,
    /// Not UTF-8 after decoding.
    #[error("the path is not UTF-8 after decoding")]
    Encoding,
    /// More `..` than segments.
    #[error("the path climbs above its root")]
    Climbs,
}

/// The path with unreserved escapes decoded, slashes merged and dot segments removed (RFC 3986, 6.2.2).
///
/// A path that is already normal is borrowed. The query is no part of `raw`.
pub fn normalise(raw: &str, mode: PathMode) -> Result<Cow<'_, str>, BadPath> {
    if !raw.starts_with('/') {
        return Err(BadPath::Relative);
    }
    if is_normal(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    let decoded = decode(raw.as_bytes(), mode)?;
    let segments = remove_dots(&decoded)?;
    Ok(Cow::Owned(segments))
}

/// Whether nothing in the path could change: no escape, no `//`, no `.` segment, nothing unusual.
fn is_normal(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        let suspicious = matches!(byte, b'%' | b'\\' | 0) || !byte.is_ascii();
        if suspicious || (before == b'/' && matches!(byte, b'/' | b'.')) {
            return false;
        }
        before = byte;
    }
    true
}

fn decode(path: &[u8], mode: PathMode) -> Result<String, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    // What would be checked for UTF-8 if every escape were decoded: kept escapes count too.
    let mut meant = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        let (byte, escaped) = if byte == b'%' {
            let digits = tail.get(..2).ok_or(BadPath::Escape)?;
            rest = &tail[2..];
            (hex(digits).ok_or(BadPath::Escape)?, true)
        } else {
            rest = tail;
            (byte, false)
        };
        meant.push(byte);
        match (byte, mode) {
            (0, _) => return Err(BadPath::Nul),
            (b'/', _) if !escaped => out.push(byte),
            (b'/' | b'\\', PathMode::Refuse) => return Err(BadPath::Separator),
            (b'/' | b'\\', PathMode::Decode) => out.push(b'/'),
            (b'\\', PathMode::Keep) => push_escaped(&mut out, byte),
            (b'/', PathMode::Keep) => push_escaped(&mut out, byte),
            _ if !escaped && byte.is_ascii() => out.push(byte),
            _ if is_unreserved(byte) => out.push(byte),
            _ => push_escaped(&mut out, byte),
        }
    }
    if std::str::from_utf8(&meant).is_err() && mode != PathMode::Keep {
        return Err(BadPath::Encoding);
    }
    String::from_utf8(out).map_err(|_| BadPath::Encoding)
}

fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

fn hex(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| (digit as char).to_digit(16);
    Some((value(digits[0])? << 4 | value(digits[1])?) as u8)
}

/// RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn remove_dots(path: &str) -> Result<String, BadPath> {
    let mut kept: Vec<&str> = Vec::new();
    let mut trailing = false;
    for segment in path.split('/').skip(1) {
        trailing = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop().ok_or(BadPath::Climbs)?),
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if trailing || kept.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(raw: &str, want: Result<&str, BadPath>) {
        assert_eq!(normalise(raw, PathMode::Refuse).as_deref().map_err(|e| *e), want, "{raw}");
    }

    #[test]
    fn one_string_for_one_meaning() {
        check("/", Ok("/"));
        check("/a/b.c", Ok("/a/b.c"));
        check("/a//b/", Ok("/a/b/"));
        check("/a/./b/../c", Ok("/a/c"));
        check("/a/%2e%2E/admin", Ok("/admin"));
        check("/%61dmin", Ok("/admin"));
        check("/a%20b%c3%a4", Ok("/a%20b%C3%A4"));
        check("/ä", Ok("/%C3%A4"));
        check("/a/..", Ok("/"));
        check("/.hidden", Ok("/.hidden"));
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        check("a", Err(BadPath::Relative));
        check("/a%2Fb", Err(BadPath::Separator));
        check("/a%5cb", Err(BadPath::Separator));
        check("/a\\b", Err(BadPath::Separator));
        check("/a%00", Err(BadPath::Nul));
        check("/%ff", Err(BadPath::Encoding));
        check("/%zz", Err(BadPath::Escape));
        check("/%4", Err(BadPath::Escape));
        check("/../etc", Err(BadPath::Climbs));
    }

    #[test]
    fn the_mesh_may_say_otherwise() {
        assert_eq!(normalise("/a%2fb", PathMode::Keep).unwrap(), "/a%2Fb");
        assert_eq!(normalise("/a%2f..%2fb", PathMode::Decode).unwrap(), "/b");
        for mode in [PathMode::Keep, PathMode::Decode] {
            assert_eq!(normalise("/a%00", mode), Err(BadPath::Nul), "{mode:?}");
        }
    }

    proptest! {
        #[test]
        fn normal_stays_normal(raw in "/[a-z%./2Fe]{0,20}") {
            for mode in [PathMode::Refuse, PathMode::Keep, PathMode::Decode] {
                if let Ok(once) = normalise(&raw, mode) {
                    prop_assert_eq!(normalise(&once, mode).unwrap(), &*once);
                }
            }
        }
    }
}
