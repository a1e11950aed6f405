//! Bodies on their way: streamed as they come, replayed from a bounded buffer when a try must be sent again.

use std::{
    cell::RefCell,
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::account::Exchange;

/// The most bytes of a request's body that are kept for another try.
pub const REPLAY_BYTES: usize = 64 * 1024;
/// What keeping a frame costs beside its bytes: a caller may send them one by one.
const FRAME_BYTES: usize = 128;

/// A body that this proxy sends, up or down.
#[derive(Default)]
pub struct Body {
    source: Source,
    /// A response's: what is accounted for when its end has come, or it is dropped.
    exchange: Option<Box<Exchange>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ends with the reason when what allowed it does so no more.
    revoked: Option<Revoked>,
}

type Revoked = Pin<Box<dyn Future<Output = String>>>;

#[derive(Default)]
enum Source {
    #[default]
    Empty,
    Whole(Bytes),
    Incoming(Incoming),
    Replay(Replay),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side's end of it.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// A newer try has taken the request over.
    #[error("another try has taken over this request")]
    Superseded,
    /// The time for the whole exchange is over.
    #[error("the request's time is over")]
    Deadline,
    /// What allowed it does so no more.
    #[error("no longer allowed")]
    Revoked,
}

impl Body {
    /// These bytes.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Body { source: Source::Whole(bytes.into()), ..Body::default() }
    }

    /// What comes, as it comes.
    pub fn incoming(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Body::default();
        }
        Body { source: Source::Incoming(incoming), ..Body::default() }
    }

    /// With the account that is closed at its end.
    pub fn accounted(mut self, mut exchange: Box<Exchange>) -> Self {
        if self.source_is_over() {
            // Nobody asks for what is not there.
            exchange.ended();
        }
        self.exchange = Some(exchange);
        self
    }

    /// Broken off when this is over.
    pub fn until(mut self, deadline: Option<tokio::time::Instant>) -> Self {
        self.deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        self
    }

    /// Broken off when this ends, with its reason.
    pub fn while_allowed(mut self, revoked: Option<Revoked>) -> Self {
        self.revoked = revoked;
        self
    }

    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Incoming(incoming) => Pin::new(incoming).poll_frame(context).map_err(BodyError::Http),
            Source::Replay(replay) => replay.poll_frame(context),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // First: of a source that always has more nothing would else end it.
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.exchange.iter_mut().for_each(|exchange| exchange.overdue());
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        if let Some(revoked) = &mut self.revoked
            && let Poll::Ready(reason) = revoked.as_mut().poll(context)
        {
            self.revoked = None;
            self.exchange.iter_mut().for_each(|exchange| exchange.revoked(&reason));
            return Poll::Ready(Some(Err(BodyError::Revoked)));
        }
        let frame = ready!(self.poll_source(context));
        if let Some(exchange) = &mut self.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.sent(frame),
                Some(Err(_)) => exchange.broken(),
                None => exchange.ended(),
            }
        }
        if frame.is_some()
            && self.source_is_over()
            && let Some(exchange) = &mut self.exchange
        {
            exchange.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source_is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Replay(replay) => replay.shared.borrow().size,
        }
    }
}

impl Body {
    fn source_is_over(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Incoming(incoming) => incoming.is_end_stream(),
            Source::Replay(replay) => replay.is_over(),
        }
    }
}

/// A request's body, from which each try gets one of its own.
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
    /// The caller's side broke, which is nobody's fault up there.
    client_failed: bool,
}

enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

struct Replay {
    shared: Rc<RefCell<Shared>>,
    turn: u32,
    next: usize,
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
            shared.turn += 1;
            shared.turn
        };
        let source = Source::Replay(Replay { shared: shared.clone(), turn, next: 0 });
        Body { source, ..Body::default() }
    }

    /// Another try is about to follow: what was sent until now reads nothing any more. Without this the last try could,
    /// until the next one begins, take away what that would lack.
    pub fn supersede(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().turn += 1;
        }
    }

    /// Whether another try can have all of it.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let shared = shared.borrow();
            shared.bytes == 0 || !shared.overflowed
        })
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
    fn is_over(&self) -> bool {
        let shared = self.shared.borrow();
        shared.ended && self.next >= shared.kept.len()
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let shared = &mut *self.shared.borrow_mut();
        if shared.turn != self.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = shared.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(kept.frame())));
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
                self.next = shared.kept.len();
                shared.ended = shared.incoming.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Shared {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.bytes += length as u64;
        if self.overflowed {
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

impl From<Infallible> for BodyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
