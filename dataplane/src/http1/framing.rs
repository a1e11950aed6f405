//! Where each message of a stream of requests begins and ends, by the letter of RFC 9112.
//!
//! Pure. It is fed the bytes in whatever pieces they come, before hyper sees them.

use std::io::BufRead;

use super::{HEAD_BYTES, is_h2c};

/// The most bytes of a chunk's size line, extensions and its end and all.
const CHUNK_LINE_BYTES: usize = 256;

/// Those of a line's end.
const END: usize = b"\r\n".len();

/// Follows the framing of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    /// The part of a line whose end has not come yet.
    line: Vec<u8>,
    head: Head,
}

/// Why the bytes are refused, and from where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Broken {
    /// The first byte of the piece that must not be passed on.
    pub at: usize,
    /// What it breaks.
    pub rule: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    RequestLine,
    Header,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Tunnel,
}

/// What the head read so far says of the body.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    length: Option<u64>,
    chunked: bool,
    old: bool,
    last: bool,
}

impl Framing {
    /// Takes the next piece of the stream.
    pub fn follow(&mut self, piece: &[u8]) -> Result<(), Broken> {
        let mut at = 0;
        while at < piece.len() {
            let rest = &piece[at..];
            let taken = match self.state {
                State::Tunnel => Ok(rest.len()),
                State::Body(left) => Ok(self.body(left, rest)),
                State::Chunk(left) => Ok(self.chunk(left, rest)),
                _ => self.line(rest),
            };
            at += taken.map_err(|rule| Broken { at, rule })?;
        }
        Ok(())
    }

    /// Whether more of a message is to come that has begun.
    pub fn is_within(&self) -> bool {
        match self.state {
            State::RequestLine | State::Header | State::Tunnel => false,
            State::Body(_) | State::ChunkSize | State::Chunk(_) | State::ChunkEnd | State::Trailer => true,
        }
    }

    fn body(&mut self, left: u64, rest: &[u8]) -> usize {
        let taken = left.min(rest.len() as u64);
        self.state = if taken == left { self.head.next() } else { State::Body(left - taken) };
        taken as usize
    }

    fn chunk(&mut self, left: u64, rest: &[u8]) -> usize {
        let taken = left.min(rest.len() as u64);
        self.state = if taken == left { State::ChunkEnd } else { State::Chunk(left - taken) };
        taken as usize
    }

    /// Takes a line, or what is there of it. Gives how many bytes were taken.
    fn line(&mut self, rest: &[u8]) -> Result<usize, &'static str> {
        let mut unread = rest;
        let taken = unread.skip_until(b'\n').unwrap_or(rest.len());
        let piece = &rest[..taken];
        if piece.last() != Some(&b'\n') {
            self.keep(piece)?;
            return Ok(taken);
        }
        self.state = if self.line.is_empty() {
            self.head.line(self.state, piece)?
        } else {
            self.line.extend_from_slice(piece);
            let line = std::mem::take(&mut self.line);
            self.head.line(self.state, &line)?
        };
        Ok(taken)
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), &'static str> {
        self.line.extend_from_slice(piece);
        let limit = if self.state == State::ChunkSize { CHUNK_LINE_BYTES } else { HEAD_BYTES };
        if self.line.len() > limit {
            return Err("a line is too long");
        }
        match self.line.iter().position(|byte| *byte == b'\r') {
            Some(at) if at + 1 < self.line.len() => Err("a bare CR"),
            _ => Ok(()),
        }
    }
}

impl Head {
    /// The state after a whole line, which ends with LF.
    fn line(&mut self, state: State, line: &[u8]) -> Result<State, &'static str> {
        let line = line.strip_suffix(b"\r\n").ok_or("a bare LF")?;
        if line.contains(&b'\r') {
            return Err("a bare CR");
        }
        match state {
            // An empty line or a few before a request line are to be ignored (RFC 9112, 2.2).
            State::RequestLine if line.is_empty() => self.grow(line, State::RequestLine),
            State::RequestLine => self.request_line(line),
            State::Header if line.is_empty() => self.end(),
            State::Header => {
                self.header(line)?;
                self.grow(line, State::Header)
            }
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if line.is_empty() => Ok(State::ChunkSize),
            State::ChunkEnd => Err("a chunk longer than its size"),
            State::Trailer if line.is_empty() => Ok(self.next()),
            State::Trailer => {
                field(line)?;
                self.grow(line, State::Trailer)
            }
            State::Body(_) | State::Chunk(_) | State::Tunnel => Ok(state),
        }
    }

    fn grow(&mut self, line: &[u8], state: State) -> Result<State, &'static str> {
        self.bytes += line.len() + END;
        if self.bytes > HEAD_BYTES { Err("the head is too long") } else { Ok(state) }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<State, &'static str> {
        self.old = line.ends_with(b" HTTP/1.0");
        self.last = line.starts_with(b"CONNECT ");
        self.grow(line, State::Header)
    }

    fn header(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let (name, value) = field(line)?;
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.last |= !is_h2c(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(value, 10).ok_or("a Content-Length that is no number")?;
                if self.length.is_some_and(|before| before != length) {
                    return Err("differing Content-Length");
                }
                self.length = Some(length);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("a Transfer-Encoding other than chunked");
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<State, &'static str> {
        self.bytes = 0;
        match (self.chunked, self.length) {
            (true, Some(_)) => Err("Transfer-Encoding beside Content-Length"),
            (true, None) if self.old => Err("Transfer-Encoding in HTTP/1.0"),
            (true, None) => Ok(State::ChunkSize),
            (false, Some(length)) if length > 0 => Ok(State::Body(length)),
            (false, _) => Ok(self.next()),
        }
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<State, &'static str> {
        if line.len() + END > CHUNK_LINE_BYTES {
            return Err("the size line of a chunk is too long");
        }
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        match number(size, 16).ok_or("an invalid chunk size")? {
            0 => Ok(State::Trailer),
            size => Ok(State::Chunk(size)),
        }
    }

    /// What follows this message.
    fn next(&mut self) -> State {
        let last = self.last;
        *self = Head::default();
        if last { State::Tunnel } else { State::RequestLine }
    }
}

/// Name and value of a header line.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("a folded header line (obs-fold)");
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a header line without a colon")?;
    let name = &line[..colon];
    if name.is_empty() || name.iter().any(|byte| matches!(byte, b' ' | b'\t')) {
        return Err("a space in or after a header's name");
    }
    Ok((name, line[colon + 1..].trim_ascii()))
}

/// Digits and nothing else, so that no two readers read two numbers.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let digits = (1..=16).contains(&text.len()) && text.iter().all(|byte| char::from(*byte).is_digit(radix));
    if !digits {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The verdict when the bytes come in two pieces, for every way to cut them, must be the same.
    #[track_caller]
    fn check(bytes: &str, expect: Result<(), &'static str>) {
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            let (first, second) = bytes.as_bytes().split_at(cut);
            let verdict =
                framing.follow(first).and_then(|()| framing.follow(second)).map_err(|broken| broken.rule);
            assert_eq!(verdict, expect, "{bytes:?} cut at {cut}");
        }
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nhost: a\r\n";

    #[test]
    fn what_is_ambiguous_is_refused() {
        for (tail, rule) in [
            (
                "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
                "Transfer-Encoding beside Content-Length",
            ),
            ("content-length: 3\r\ncontent-length: 4\r\n\r\n", "differing Content-Length"),
            ("content-length: +3\r\n\r\n", "a Content-Length that is no number"),
            ("content-length: 3, 3\r\n\r\n", "a Content-Length that is no number"),
            ("content-length: 99999999999999999\r\n\r\n", "a Content-Length that is no number"),
            ("transfer-encoding: gzip, chunked\r\n\r\n", "a Transfer-Encoding other than chunked"),
            (
                "transfer-encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                "a Transfer-Encoding other than chunked",
            ),
            ("a: b\nc: d\r\n\r\n", "a bare LF"),
            ("a: b\r\n folded\r\n\r\n", "a folded header line (obs-fold)"),
            ("a: b\rc\r\n\r\n", "a bare CR"),
            ("a : b\r\n\r\n", "a space in or after a header's name"),
            ("nonsense\r\n\r\n", "a header line without a colon"),
            ("transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n", "an invalid chunk size"),
            ("transfer-encoding: chunked\r\n\r\n\r\nabc\r\n", "an invalid chunk size"),
            ("transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n", "a chunk longer than its size"),
            ("transfer-encoding: chunked\r\n\r\n3\nabc\r\n", "a bare LF"),
            ("transfer-encoding: chunked\r\n\r\n0\r\n a: b\r\n\r\n", "a folded header line (obs-fold)"),
        ] {
            check(&format!("{HEAD}{tail}"), Err(rule));
        }
        check("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", Err("Transfer-Encoding in HTTP/1.0"));
    }

    #[test]
    fn what_is_right_passes_one_after_the_other() {
        let all = [
            "GET /a HTTP/1.1\r\nhost: a\r\n\r\n",
            "\r\nPOST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n\n\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3;x=y\r\na\nb\r\nA\r\n0123456789\r\n0\r\nt: v\r\n\r\n",
            "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n\n\n any \r bytes",
        ];
        check(&all.concat(), Ok(()));
    }

    #[test]
    fn a_refused_message_leaves_those_before_it() {
        let good = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
        let broken = Framing::default().follow(format!("{good}{HEAD} x\r\n").as_bytes()).unwrap_err();
        assert_eq!(broken.at, good.len() + HEAD.len());
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("{HEAD}a: {}", "b".repeat(HEAD_BYTES));
        assert!(Framing::default().follow(long.as_bytes()).is_err());
        let many = format!("{HEAD}{}", "a: b\r\n".repeat(HEAD_BYTES / 6));
        assert!(Framing::default().follow(many.as_bytes()).is_err());
    }

    #[test]
    fn size_lines_of_chunks_are_bounded_alike_in_whatever_pieces_they_come() {
        let size = |bytes: usize| {
            let line = format!("0;{}\r\n", "x".repeat(bytes - "0;\r\n".len()));
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n{line}")
        };
        check(&size(CHUNK_LINE_BYTES), Ok(()));
        check(&size(CHUNK_LINE_BYTES + 1), Err("the size line of a chunk is too long"));
    }

    fn message() -> impl Strategy<Value = Vec<u8>> {
        let length = prop::collection::vec(any::<u8>(), 0..40).prop_map(|body| {
            let mut bytes = format!("{HEAD}Content-Length:{}\r\n\r\n", body.len()).into_bytes();
            bytes.extend(body);
            bytes
        });
        let chunked =
            prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4).prop_map(|chunks| {
                let mut bytes = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
                for chunk in chunks {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
                bytes
            });
        prop_oneof![length, chunked]
    }

    proptest! {
        #[test]
        fn any_row_of_messages_passes_in_any_pieces(
            messages in prop::collection::vec(message(), 0..4),
            pieces in prop::collection::vec(1usize..50, 1..30),
        ) {
            let bytes = messages.concat();
            let mut framing = Framing::default();
            let mut rest = &bytes[..];
            for size in pieces.into_iter().cycle().take_while(|_| true) {
                if rest.is_empty() { break; }
                let (piece, more) = rest.split_at(size.min(rest.len()));
                prop_assert_eq!(framing.follow(piece), Ok(()));
                rest = more;
            }
            prop_assert_eq!(framing.state, State::RequestLine);
            prop_assert!(framing.line.is_empty());
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Err(broken) = Framing::default().follow(&bytes) {
                prop_assert!(broken.at < bytes.len());
            }
        }
    }
}
