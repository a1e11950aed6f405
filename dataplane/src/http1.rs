//! HTTP/1.1 towards callers: a check of the raw head before hyper, so that both always agree where a message ends.
//!
//! hyper's server drops `Content-Length` beside `Transfer-Encoding` without a word; whoever stands before or
//! behind may see two requests where it saw one. So what is ambiguous never reaches it. A codec of our own
//! would replace hyper here and nowhere else.
//!
//! Invariant: a request that carried `Upgrade`, or a CONNECT, is the last that is read as HTTP from its
//! connection: what follows it is a tunnel, or is never read.

mod framing;
mod guard;

pub use framing::{Broken, Framing};
pub use guard::Guard;

use http::{HeaderMap, HeaderValue, Method, header};

/// The most bytes of a head; larger ones are answered with 431 by hyper, and so are more headers than its own
/// limit of 100: any other limit would cost two allocations a head.
pub const HEAD_BYTES: usize = 64 * 1024;

/// Whether the connection ends with the answer to this request, unless that answer makes it a tunnel.
pub fn is_last(method: &Method, headers: &HeaderMap) -> bool {
    let tunnel = |value: &HeaderValue| !is_h2c(value.as_bytes());
    *method == Method::CONNECT || headers.get_all(header::UPGRADE).iter().any(tunnel)
}

/// Whether an `Upgrade` offers HTTP/2 and nothing else. Some clients do with every request, and nobody here takes it up.
fn is_h2c(protocol: &[u8]) -> bool {
    protocol.trim_ascii().eq_ignore_ascii_case(b"h2c")
}
