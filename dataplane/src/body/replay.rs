//! A request's body that may have to be sent again: a bounded part of it is kept for another try.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::{Body, BodyError, Source};

/// The most bytes of a request's body that are kept for another try.
pub const REPLAY_BYTES: usize = 64 * 1024;
/// What keeping a frame costs beside its bytes: a caller may send them one by one.
const FRAME_BYTES: usize = 128;

/// A request's body, from which each try gets one of its own.
#[derive(Clone)]
pub struct Replayable(Option<Rc<RefCell<Shared>>>);

struct Shared {
    incoming: Incoming,
    size: SizeHint,
    kept: Vec<Kept>,
    kept_bytes: usize,
    /// More came than is kept, so no other try can have it all.
    overflowed: bool,
    ended: bool,
    /// Bytes that came in all.
    bytes: u64,
    /// The present try; a body of an earlier one reads nothing any more.
    turn: u32,
    /// How much of what is kept the present try has had.
    next: usize,
    /// There will be no other try.
    settled: bool,
    /// The caller's side broke, which is nobody's fault up there.
    client_failed: bool,
}

enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

pub(super) struct Replay {
    shared: Rc<RefCell<Shared>>,
    turn: u32,
}

impl Replayable {
    /// From what comes.
    pub fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Replayable(None);
        }
        let size = incoming.size_hint();
        let overflowed = size.lower() > REPLAY_BYTES as u64;
        Replayable(Some(Rc::new(RefCell::new(Shared {
            incoming,
            size,
            kept: Vec::new(),
            kept_bytes: 0,
            overflowed,
            ended: false,
            bytes: 0,
            turn: 0,
            next: 0,
            settled: false,
            client_failed: false,
        }))))
    }

    /// No body.
    pub fn none() -> Self {
        Replayable(None)
    }

    /// The body of the next try.
    pub fn body(&self) -> Body {
        let Some(shared) = &self.0 else { return Body::default() };
        let turn = {
            let mut shared = shared.borrow_mut();
            shared.next = 0;
            shared.turn += 1;
            shared.turn
        };
        Body::from(Source::Replay(Replay { shared: shared.clone(), turn }))
    }

    /// Another try is about to follow: what was sent until now reads nothing any more. Without this the last try could,
    /// until the next one begins, take away what that would lack.
    pub fn supersede(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().turn += 1;
        }
    }

    /// The present try is the last: nothing more is kept than what it has yet to have.
    pub fn settle(&self) {
        if let Some(shared) = &self.0 {
            let mut shared = shared.borrow_mut();
            shared.settled = true;
            shared.forget();
        }
    }

    /// Whether another try can have all of it.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let shared = shared.borrow();
            shared.bytes == 0 || !shared.overflowed
        })
    }

    /// Whether all of it will be kept, as far as it is known.
    pub fn stays_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| !shared.borrow().overflowed)
    }

    /// Whether it was the caller who broke off.
    pub fn client_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.borrow().client_failed)
    }

    /// How many bytes came.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.borrow().bytes)
    }
}

impl Replay {
    pub fn is_over(&self) -> bool {
        let shared = self.shared.borrow();
        shared.turn == self.turn && shared.ended && shared.next >= shared.kept.len()
    }

    /// Its size, as far as it is known.
    pub fn size(&self) -> SizeHint {
        self.shared.borrow().size
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let shared = &mut *self.shared.borrow_mut();
        if shared.turn != self.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = shared.kept.get(shared.next) {
            let frame = kept.frame();
            shared.next += 1;
            shared.forget();
            return Poll::Ready(Some(Ok(frame)));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut shared.incoming).poll_frame(context)) {
            None => {
                shared.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                shared.client_failed = true;
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                shared.keep(&frame);
                shared.next = shared.kept.len();
                shared.ended = shared.incoming.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Shared {
    /// Lets go of what was kept, once nobody is left who could want it.
    fn forget(&mut self) {
        if self.settled && self.next >= self.kept.len() {
            self.kept = Vec::new();
            self.next = 0;
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.bytes += length as u64;
        if self.overflowed || self.settled {
            return;
        }
        let trailers = frame.trailers_ref().map_or(0, |map| {
            map.iter().map(|(name, value)| name.as_str().len() + value.len() + FRAME_BYTES).sum()
        });
        self.kept_bytes += length + trailers + FRAME_BYTES;
        if self.kept_bytes > REPLAY_BYTES + FRAME_BYTES {
            self.overflowed = true;
            self.kept = Vec::new();
            return;
        }
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => self.kept.push(Kept::Data(data.clone())),
            (None, Some(trailers)) => self.kept.push(Kept::Trailers(trailers.clone())),
            (None, None) => {}
        }
    }
}

impl Kept {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Kept::Data(data) => Frame::data(data.clone()),
            Kept::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }
}
