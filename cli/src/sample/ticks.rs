//! Bodies: whole ones, and one that sends a line each second for as long as someone reads, to watch a long stream.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Interval, interval};

/// What the sample answers with.
pub(super) enum Answer {
    /// All at once.
    Whole(Option<Bytes>),
    /// A line a second.
    Ticks { interval: Interval, count: u64 },
}

impl Answer {
    pub(super) fn ticks() -> Self {
        Answer::Ticks { interval: interval(Duration::from_secs(1)), count: 0 }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Ticks { interval, count } => interval.poll_tick(cx).map(|_| {
                *count += 1;
                Some(Ok(Frame::data(format!("{count}\n").into())))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Answer::Ticks { .. } => SizeHint::new(),
        }
    }
}
