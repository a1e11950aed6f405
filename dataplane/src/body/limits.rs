//! What ends a response before its own end: the time of the whole request, and the end of what allowed it.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{task::JoinHandle, time::Sleep};

use super::{BodyError, Flow};

/// Comes to its end when one of them is reached.
pub struct Limits {
    deadline: Option<Pin<Box<Sleep>>>,
    revoked: Option<Revoked>,
}

/// Ends with the reason when what allowed a response does so no more.
type Revoked = Pin<Box<dyn Future<Output = String>>>;

/// Which limit was reached.
pub enum End {
    /// The time for the whole exchange is over.
    Deadline,
    /// What allowed it does so no more, for this reason.
    Revoked(String),
}

impl Limits {
    /// Some, where there are any.
    pub fn new(deadline: Option<tokio::time::Instant>, revoked: Option<Revoked>) -> Option<Self> {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        (deadline.is_some() || revoked.is_some()).then_some(Limits { deadline, revoked })
    }
}

impl Future for Limits {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(End::Deadline);
        }
        if let Some(revoked) = &mut self.revoked
            && let Poll::Ready(reason) = revoked.as_mut().poll(context)
        {
            return Poll::Ready(End::Revoked(reason));
        }
        Poll::Pending
    }
}

impl End {
    /// What the reader is told.
    pub fn error(&self) -> BodyError {
        match self {
            End::Deadline => BodyError::Deadline,
            End::Revoked(_) => BodyError::Revoked,
        }
    }
}

/// A flow whose reader may leave it waiting for as long as it likes: a task of its own ends it then, so that what it holds
/// (a connection, a place among the requests of its service) is let go in time.
pub(super) struct Guarded {
    held: Rc<RefCell<Held>>,
    watch: JoinHandle<()>,
}

struct Held {
    flow: Flow,
    ended: Option<End>,
    /// Who waits for more of it.
    reader: Option<Waker>,
}

impl Guarded {
    pub fn new(flow: Flow, limits: Limits) -> Self {
        let held = Rc::new(RefCell::new(Held { flow, ended: None, reader: None }));
        let watched = Rc::downgrade(&held);
        let watch = tokio::task::spawn_local(async move {
            let end = limits.await;
            if let Some(held) = watched.upgrade() {
                held.borrow_mut().end(end);
            }
        });
        Guarded { held, watch }
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.held.borrow_mut().poll_frame(context)
    }

    pub fn is_over(&self) -> bool {
        let held = self.held.borrow();
        held.ended.is_none() && held.flow.source.is_over()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.held.borrow().flow.source.size_hint()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Held {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(end) = &self.ended {
            return Poll::Ready(Some(Err(end.error())));
        }
        let frame = self.flow.poll_frame(context);
        if frame.is_pending() && !self.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker()))
        {
            self.reader = Some(context.waker().clone());
        }
        frame
    }

    fn end(&mut self, end: End) {
        let mut flow = std::mem::take(&mut self.flow);
        flow.end(&end);
        if let Some(exchange) = &flow.exchange {
            exchange.hang_up();
        }
        self.ended = Some(end);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
