//! HTTP/1.1: hyper behind the guard sees the messages that a strict reader sees, and no other. Whoever could make the
//! two differ could hide a request in another's body.

use std::{
    cell::{LazyCell, RefCell},
    convert::Infallible,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use dataplane::http1::{Framing, Guard, is_last};
use http::{Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Runtime,
};

/// The first byte says in pieces of which size the rest comes.
pub(crate) fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let size = usize::from(*piece).max(1);
    let whole = Framing::default().follow(bytes);
    let mut framing = Framing::default();
    let in_pieces = bytes.chunks(size).try_for_each(|piece| framing.follow(piece));
    assert_eq!(whole.is_ok(), in_pieces.is_ok(), "{whole:?} at once, {in_pieces:?} in pieces of {size}");
    if let Err(broken) = whole {
        assert!(broken.at < bytes.len());
    }

    let (expected, seen) = (strictly(bytes), by_hyper(bytes, size));
    let count = seen.len();
    for (at, seen) in seen.into_iter().enumerate() {
        let Some(expected) = expected.get(at) else {
            panic!("message {at} is none: {seen:?}");
        };
        assert_eq!(seen.method, expected.method, "message {at}");
        if expected.target.starts_with('/') && !expected.target.contains('#') {
            assert_eq!(seen.target, expected.target, "message {at}");
        }
        match &seen.body {
            Some(_) => assert_eq!(seen.body, expected.body, "message {at}"),
            // Broken off: what a strict reader might take is refused, and nothing after it is read.
            None => assert_eq!(at + 1, count, "there is more after message {at}, which broke off"),
        }
    }
}

/// One request; its body if it came whole.
#[derive(Debug, PartialEq)]
struct Message {
    method: String,
    target: String,
    body: Option<Vec<u8>>,
}

thread_local! {
    static ASYNC: LazyCell<Runtime> = const {
        LazyCell::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("no file descriptors left?"))
    };
}

fn by_hyper(bytes: &[u8], size: usize) -> Vec<Message> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
            let (method, target) = (head.method.to_string(), head.uri.to_string());
            seen.borrow_mut().push(Message { method, target, body });
            let mut response = Response::new(Empty::<Bytes>::new());
            if is_last(&head.method, &head.headers) {
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let stream = Guard::new(Pieces { bytes: bytes.to_vec(), at: 0, size });
    ASYNC.with(|runtime| {
        // What breaks off is an error, and what came before it counts.
        let _ = runtime.block_on(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    });
    Rc::into_inner(seen).map(RefCell::into_inner).unwrap_or_default()
}

/// Bytes that come in pieces; what is written goes nowhere.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    size: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = (self.at + self.size.min(buffer.remaining())).min(self.bytes.len());
        buffer.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The messages up to the first that RFC 9112 leaves open to more than one reading. Only its heads are httparse's.
fn strictly(bytes: &[u8]) -> Vec<Message> {
    let (mut rest, mut messages) = (bytes, Vec::new());
    while let Some((message, after)) = next(rest) {
        let ended = message.body.is_none();
        messages.push(message);
        match after {
            Some(after) if !ended => rest = after,
            _ => break,
        }
    }
    messages
}

/// One message, and what follows it unless that is no HTTP any more.
fn next(mut rest: &[u8]) -> Option<(Message, Option<&[u8]>)> {
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let (head, after) = rest.split_at(end);
    let bare = |at: usize| head[at] == b'\n' && (at == 0 || head[at - 1] != b'\r');
    if (0..head.len()).any(bare) {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?.is_complete().then_some(())?;
    let values = |name: &str| {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii()).collect::<Vec<_>>()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let (body, after) = match (&lengths[..], &codings[..]) {
        ([], []) => (Some(Vec::new()), after),
        ([first, others @ ..], []) if others.iter().all(|other| number(other) == number(first)) => {
            let length = number(first)?;
            match after.split_at_checked(length) {
                Some((body, after)) => (Some(body.to_vec()), after),
                None => (None, after),
            }
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1) => {
            match chunks(after) {
                Some((body, after)) => (Some(body), after),
                None => (None, after),
            }
        }
        _ => return None,
    };
    let (method, target) = (request.method?.to_owned(), request.path?.to_owned());
    let last = method == "CONNECT" || !values("upgrade").is_empty();
    Some((Message { method, target, body }, (!last).then_some(after)))
}

fn number(text: &[u8]) -> Option<usize> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| str::from_utf8(text).ok()?.parse().ok())?
}

/// A chunked body with its trailers, and what follows.
fn chunks(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (line, after) = line(rest)?;
        let size = line.split(|byte| *byte == b';').next()?;
        let digits = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
        let size = usize::from_str_radix(str::from_utf8(size).ok().filter(|_| digits)?, 16).ok()?;
        if size == 0 {
            rest = after;
            break;
        }
        let (chunk, after) = after.split_at_checked(size)?;
        body.extend(chunk);
        rest = after.strip_prefix(b"\r\n")?;
    }
    loop {
        let (trailer, after) = line(rest)?;
        if trailer.is_empty() {
            return Some((body, after));
        }
        rest = after;
    }
}

/// A line that ends with CR LF and holds neither.
fn line(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let line = rest[..end].strip_suffix(b"\r")?;
    (!line.contains(&b'\r')).then(|| (line, &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a guard that refuses all that comes would hold as well. The last message of a seed is not seen: the connection
    /// is closed before it is answered.
    #[test]
    fn what_is_right_is_seen() {
        let check = |seed: &[u8], method: &str, target: &str, body: &str| {
            let (size, bytes) = seed.split_first().unwrap();
            let message = Message { method: method.into(), target: target.into(), body: Some(body.into()) };
            assert_eq!(by_hyper(bytes, usize::from(*size)).first(), Some(&message));
        };
        check(include_bytes!("../seeds/framing/get"), "GET", "/a", "");
        check(include_bytes!("../seeds/framing/length"), "POST", "/", "hello");
        check(include_bytes!("../seeds/framing/chunked"), "POST", "/", "a\nb0123456789");
    }
}
