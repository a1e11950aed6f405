//! The server name of a TLS ClientHello, read from the first bytes of a connection and nothing more.
//!
//! Records and handshake: RFC 8446, sections 4.1.2 and 5.1; the name: RFC 6066, section 3.

/// How far the bytes go.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// The ClientHello is not complete.
    More,
    /// Complete, with its server name in lower case if it gives one.
    Hello(Option<String>),
}

/// Why bytes are no ClientHello.
#[derive(Debug, PartialEq, Eq)]
pub enum NotHello {
    /// Not even a record of TLS.
    NotTls,
    /// Broken, or too large.
    Malformed,
}

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const RECORD_HEADER: usize = 5;
const RECORD_MOST: usize = 1 << 14;

/// Reads a ClientHello that may span records. What is wrong is said as early as it can be seen, and what is decided does
/// not depend on what has come behind it.
pub fn read(bytes: &[u8]) -> Result<Reading, NotHello> {
    let (handshake, more) = handshake(bytes)?;
    if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NotHello::Malformed);
    }
    match length(&handshake) {
        Some(length) if length > super::HELLO_BYTES => Err(NotHello::Malformed),
        Some(length) if handshake.len() >= 4 + length => {
            server_name(Cursor(&handshake[4..4 + length])).map(Reading::Hello).ok_or(NotHello::Malformed)
        }
        // A record that is not of the handshake may not stand in between.
        _ if !more => Err(NotHello::Malformed),
        _ => Ok(Reading::More),
    }
}

/// What a handshake message says of its length, once its head is there.
fn length(handshake: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *handshake.first_chunk()?;
    Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

/// The first handshake message so far, out of its records, and whether the next one may still come.
fn handshake(bytes: &[u8]) -> Result<(Vec<u8>, bool), NotHello> {
    let mut gathered = Vec::new();
    let mut rest = bytes;
    while let Some(&kind) = rest.first() {
        if length(&gathered).is_some_and(|length| gathered.len() >= 4 + length) {
            break;
        }
        if kind != HANDSHAKE_RECORD || rest.get(1).is_some_and(|&major| major != 3) {
            return if rest.len() == bytes.len() { Err(NotHello::NotTls) } else { Ok((gathered, false)) };
        }
        let Some(header) = rest.first_chunk::<RECORD_HEADER>() else { break };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_MOST {
            return Err(NotHello::Malformed);
        }
        let end = (RECORD_HEADER + length).min(rest.len());
        gathered.extend(&rest[RECORD_HEADER..end]);
        rest = &rest[end..];
    }
    Ok((gathered, true))
}

/// The server name of a ClientHello's body; `None` when the body is malformed.
fn server_name(mut hello: Cursor<'_>) -> Option<Option<String>> {
    hello.take(2 + 32)?; // version, random
    hello.vector8()?; // session id
    hello.vector16()?; // cipher suites
    hello.vector8()?; // compression methods
    let mut name = None;
    let mut extensions = if hello.0.is_empty() { Cursor(&[]) } else { hello.vector16()? };
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.u16()?, extensions.vector16()?);
        if kind == SERVER_NAME && name.replace(host_name(content)?).is_some() {
            return None;
        }
    }
    Some(name)
}

/// The one host name of the extension.
fn host_name(mut extension: Cursor<'_>) -> Option<String> {
    let mut list = extension.vector16()?;
    let (kind, name) = (list.u8()?, list.vector16()?);
    let name = std::str::from_utf8(name.0).ok()?;
    let whole = list.0.is_empty() && extension.0.is_empty();
    (whole && kind == HOST_NAME && name.is_ascii() && !name.is_empty()).then(|| name.to_ascii_lowercase())
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<Cursor<'a>> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(Cursor(taken))
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte.0[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes.0[0], bytes.0[1]]))
    }

    fn vector8(&mut self) -> Option<Cursor<'a>> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<Cursor<'a>> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What rustls says first, in records of at most `fragment` bytes.
    fn rustls_hello(name: &str, fragment: Option<usize>) -> Vec<u8> {
        super::super::tests::client_hello(name, fragment)
    }

    /// A ClientHello in one record, with `extensions` after the usual beginning.
    fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        if let Some(extensions) = extensions {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let mut bytes = vec![22, 3, 1];
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.extend([1, 0]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn name_extension(name: &[u8]) -> Vec<u8> {
        let length = |more: usize| ((name.len() + more) as u16).to_be_bytes();
        [&[0, 0], &length(5)[..], &length(3), &[0], &length(0), name].concat()
    }

    fn named(name: &str) -> Result<Reading, NotHello> {
        Ok(Reading::Hello(Some(name.to_owned())))
    }

    #[test]
    fn reads_what_rustls_writes() {
        assert_eq!(read(&rustls_hello("abc.ep.weft.internal", None)), named("abc.ep.weft.internal"));
        assert_eq!(read(&rustls_hello("abc.ep.weft.internal", Some(32))), named("abc.ep.weft.internal"));
    }

    #[test]
    fn every_prefix_asks_for_more() {
        for fragment in [None, Some(32)] {
            let bytes = rustls_hello("abc.ep.weft.internal", fragment);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(Reading::More), "{end} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn what_follows_the_hello_does_not_matter() {
        let bytes = [&rustls_hello("a.b", None)[..], &[23, 3, 3, 0, 1, 9]].concat();
        assert_eq!(read(&bytes), named("a.b"));
    }

    #[test]
    fn edges() {
        let check = |what: &str, bytes: &[u8], expect: Result<Reading, NotHello>| {
            assert_eq!(read(bytes), expect, "{what}");
        };
        let name = name_extension(b"A.Example");
        check("lower case", &hello(Some(&name)), named("a.example"));
        check("no name", &hello(Some(&[0, 43, 0, 1, 0])), Ok(Reading::Hello(None)));
        check("no extensions at all", &hello(None), Ok(Reading::Hello(None)));
        check("two names", &hello(Some(&[&name[..], &name].concat())), Err(NotHello::Malformed));
        check("an empty name", &hello(Some(&name_extension(b""))), Err(NotHello::Malformed));
        check("no ASCII", &hello(Some(&name_extension("ä".as_bytes()))), Err(NotHello::Malformed));
        check("an extension too long", &hello(Some(&[0, 0, 0, 9])), Err(NotHello::Malformed));
        check("HTTP", b"GET / HTTP/1.1\r\n", Err(NotHello::NotTls));
        check("SSL 2", &[0x80, 0x2e, 1], Err(NotHello::NotTls));
        check("another version", &[22, 2], Err(NotHello::NotTls));
        check("an empty record", &[22, 3, 1, 0, 0], Err(NotHello::Malformed));
        check("a record too long", &[22, 3, 1, 0x40, 1], Err(NotHello::Malformed));
        check("another handshake message", &[22, 3, 1, 0, 9, 2], Err(NotHello::Malformed));
        check("a hello too long", &[22, 3, 1, 0, 9, 1, 1, 0, 0], Err(NotHello::Malformed));
        check("broken off by an alert", &[22, 3, 1, 0, 4, 1, 0, 0, 9, 21], Err(NotHello::Malformed));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fall(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
            let _ = read(&[&[22, 3, 1, 1, 0, 1, 0, 0, 200][..], &bytes].concat());
        }

        #[test]
        fn a_changed_byte_makes_nothing_fall(at in 0usize..4000, to in any::<u8>()) {
            let mut bytes = hello(Some(&name_extension(b"abc.ep.weft.internal")));
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = read(&bytes);
        }

        #[test]
        fn records_may_be_cut_anywhere(cuts in prop::collection::vec(1usize..40, 1..200)) {
            let whole = hello(Some(&name_extension(b"abc.ep.weft.internal")));
            let mut rest = &whole[RECORD_HEADER..];
            let mut bytes = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (part, more) = rest.split_at((*cut).min(rest.len()));
                bytes.extend([22, 3, 1, 0, part.len() as u8]);
                bytes.extend(part);
                rest = more;
            }
            prop_assert_eq!(read(&bytes), named("abc.ep.weft.internal"));
        }
    }
}
