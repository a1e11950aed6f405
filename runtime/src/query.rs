//! Query parameters as forms write them: `+` is a space, escapes stand for bytes.

use std::borrow::Cow;

/// A name or value decoded (WHATWG URL, application/x-www-form-urlencoded). Escapes that are none stay as they are.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = (byte == b'%').then(|| tail.get(..2)).flatten();
        let decoded =
            escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (byte, decoded) {
            (_, Some(value)) => {
                out.push(value);
                rest = &tail[2..];
            }
            (b'+', None) => out.push(b' '),
            (other, None) => out.push(other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}
