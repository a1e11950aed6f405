//! Bodies on their way: streamed as they come, replayed from a bounded buffer when a try must be sent again, ended where
//! nothing allows them any more.

mod limits;
mod replay;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Method;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use self::{limits::Guarded, replay::Replay};
pub use self::{
    limits::{End, Limits},
    replay::{REPLAY_BYTES, Replayable},
};
use crate::account::Exchange;

/// A body that this proxy sends, up or down.
pub struct Body(State);

enum State {
    /// Nothing of it has come: its limits are looked at whenever somebody waits for it.
    Asked(Flow, Option<Limits>),
    /// Some of it has come, and the rest may wait for its reader: its limits are watched meanwhile.
    Guarded(Guarded),
    /// One of its limits has ended it.
    Ended(End),
}

/// What comes, and the account of it.
#[derive(Default)]
struct Flow {
    source: Source,
    /// A response's: what is accounted for when its end has come, or it is dropped.
    exchange: Option<Box<Exchange>>,
}

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
        Source::Whole(bytes.into()).into()
    }

    /// What comes, as it comes.
    pub fn incoming(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Body::default();
        }
        Source::Incoming(incoming).into()
    }

    /// With the account that is closed at its end.
    pub fn accounted(mut self, mut exchange: Box<Exchange>) -> Self {
        let State::Asked(flow, _) = &mut self.0 else { return self };
        if flow.source.is_over() || *exchange.method() == Method::HEAD {
            // Nobody asks for what is not there, nor for what is not sent.
            exchange.ended();
        }
        flow.exchange = Some(exchange);
        self
    }

    /// Broken off when one of these says so, whether its reader reads or not.
    pub fn within(self, limits: Option<Limits>) -> Self {
        match self.0 {
            State::Asked(flow, _) => Body(State::Asked(flow, limits)),
            other => Body(other),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Source::Empty.into()
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Body(State::Asked(Flow { source, exchange: None }, None))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            State::Asked(flow, limits) => {
                let frame = flow.poll_frame(context);
                match (&frame, limits) {
                    (Poll::Pending, Some(limits)) => {
                        let end = ready!(Pin::new(limits).poll(context));
                        flow.end(&end);
                        let error = end.error();
                        self.0 = State::Ended(end);
                        return Poll::Ready(Some(Err(error)));
                    }
                    // What was there as a whole, as most are, never asks its limits.
                    (Poll::Ready(Some(Ok(_))), Some(_)) if !flow.source.is_over() => self.0.guard(),
                    _ => {}
                }
                frame
            }
            State::Guarded(guarded) => guarded.poll_frame(context),
            State::Ended(end) => Poll::Ready(Some(Err(end.error()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Asked(flow, _) => flow.source.is_over(),
            State::Guarded(guarded) => guarded.is_over(),
            State::Ended(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Asked(flow, _) => flow.source.size_hint(),
            State::Guarded(guarded) => guarded.size_hint(),
            State::Ended(_) => SizeHint::default(),
        }
    }
}

impl State {
    fn guard(&mut self) {
        if let State::Asked(flow, limits) = self
            && let Some(limits) = limits.take()
        {
            *self = State::Guarded(Guarded::new(std::mem::take(flow), limits));
        }
    }
}

impl Flow {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.source.poll_frame(context));
        if let Some(exchange) = &mut self.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.sent(frame),
                Some(Err(error)) => exchange.broken(error),
                None => exchange.ended(),
            }
            // Who knows its length does not ask for its end.
            if frame.is_some() && (self.source.is_over() || self.source.size_hint().exact() == Some(0)) {
                exchange.ended();
            }
        }
        Poll::Ready(frame)
    }

    /// One of its limits has come.
    fn end(&mut self, end: &End) {
        if let Some(exchange) = &mut self.exchange {
            match end {
                End::Deadline => exchange.overdue(),
                End::Revoked(reason) => exchange.revoked(reason),
            }
        }
    }
}

impl Source {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Source::Empty => Poll::Ready(None),
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Incoming(incoming) => Pin::new(incoming).poll_frame(context).map_err(BodyError::Http),
            Source::Replay(replay) => replay.poll_frame(context),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Source::Empty => true,
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Incoming(incoming) => incoming.is_end_stream(),
            Source::Replay(replay) => replay.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Replay(replay) => replay.size(),
        }
    }
}

impl From<Infallible> for BodyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
