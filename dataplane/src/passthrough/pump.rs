//! One direction of a flow: copied at first, spliced once it has shown to be bulk.
//!
//! Invariant: what waits for its next byte holds no buffer and no pipe, so that an idle flow costs next to nothing.
//! Invariant: nothing more is read before what was read is written. That is all the back-pressure there is.

use std::{
    cell::RefCell,
    io,
    net::Shutdown,
    task::{Context, Poll, ready},
};

use nix::unistd::{read, write};
use process::metrics::Counter;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    flow::Quiet,
    pipes::{Pipe, Pipes},
};
use crate::liveness::Half;

/// What is read at once: more than a TLS record.
const COPY_BYTES: usize = 32 * 1024;

/// Reads of this size are those of bulk: below, splicing costs more calls than it saves copying.
const LARGE_BYTES: usize = 16 * 1024;

/// So many large reads, one upon the other, make a direction bulk, and so many small ones undo it.
const STREAK: u8 = 4;

thread_local! {
    /// Read into and written from at once; only what a writer does not take has to be kept.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; COPY_BYTES].into());
}

/// What a pump tells of what it does.
#[derive(Clone, Copy)]
pub(super) struct Tally<'a> {
    pub bytes: &'a Counter,
    pub spliced: &'a Counter,
    pub quiet: &'a Quiet,
    /// Who is read from, and who is written to.
    pub halves: [&'a Half<'a>; 2],
}

/// The state of one direction.
pub(super) struct Pump<'a> {
    pipes: &'a Pipes,
    tally: Tally<'a>,
    state: State<'a>,
    bulk: Bulk,
}

enum State<'a> {
    /// The next bytes are awaited.
    Waiting,
    /// Bytes that the writer has not taken yet, and how many of them it has.
    Copied(Vec<u8>, usize),
    /// More is awaited once the pipe is empty.
    Piped(Pipe<'a>),
    Ended,
}

/// Whether a direction is bulk, by the size of what it read lately.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bulk {
    yes: bool,
    /// Reads that spoke against what holds now.
    contrary: u8,
}

impl Bulk {
    fn see(&mut self, count: usize) {
        if (count >= LARGE_BYTES) == self.yes {
            self.contrary = 0;
            return;
        }
        self.contrary += 1;
        if self.contrary == STREAK {
            *self = Bulk { yes: !self.yes, contrary: 0 };
        }
    }
}

impl<'a> Pump<'a> {
    /// A direction that has `first` to write before anything is read.
    pub fn new(first: Vec<u8>, pipes: &'a Pipes, tally: Tally<'a>) -> Self {
        let state = if first.is_empty() { State::Waiting } else { State::Copied(first, 0) };
        Pump { pipes, tally, state, bulk: Bulk::default() }
    }

    /// Goes on until `from` has ended and `to` was told so.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Waiting => match self.bulk.yes.then(|| self.pipes.lend()).flatten() {
                    Some(pipe) => self.state = State::Piped(pipe),
                    None => ready!(self.copy(context, from, to))?,
                },
                State::Copied(bytes, written) => {
                    let rest = &bytes[*written..];
                    let count = ready!(when_writable(context, to, || write_some(to, rest)))?;
                    *written += count;
                    if count == rest.len() {
                        self.state = State::Waiting;
                    }
                    self.told(count, false)?;
                }
                State::Piped(pipe) if pipe.held() > 0 => {
                    let count = ready!(when_writable(context, to, || pipe.empty(to)))?;
                    self.told(count, true)?;
                }
                State::Piped(pipe) => match when_readable(context, from, || pipe.fill(from)) {
                    Poll::Ready(count) => self.seen(count?, to)?,
                    Poll::Pending => {
                        self.state = State::Waiting;
                        return Poll::Pending;
                    }
                },
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once, and writes of it what can be written at once.
    fn copy(&mut self, context: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let count = ready!(when_readable(context, from, || read_some(from, scratch)))?;
            self.seen(count, to)?;
            let bytes = &scratch[..count];
            let written = match write_some(to, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            };
            if written > 0 {
                self.told(written, false)?;
            }
            if written < count {
                self.state = State::Copied(bytes[written..].to_vec(), 0);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// So much was read; nothing is the end, which is passed on if it is a proper one.
    fn seen(&mut self, count: usize, to: &TcpStream) -> io::Result<()> {
        if count > 0 {
            self.bulk.see(count);
            return Ok(());
        }
        if self.tally.halves[0].is_dead() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was acknowledged"));
        }
        self.state = State::Ended;
        match SockRef::from(to).shutdown(Shutdown::Write) {
            // The other side has gone already, as its own direction will tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            ended => ended,
        }
    }

    /// So much was written.
    fn told(&mut self, count: usize, spliced: bool) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.tally.bytes.inc_by(count as u64);
        if spliced {
            self.tally.spliced.inc_by(count as u64);
        }
        self.tally.quiet.broken();
        self.tally.halves[1].spoke();
        Ok(())
    }
}

fn when_readable(
    context: &mut Context<'_>,
    socket: &TcpStream,
    mut what: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(context))?;
        match what() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

fn when_writable(
    context: &mut Context<'_>,
    socket: &TcpStream,
    mut what: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(context))?;
        match what() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

fn read_some(from: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    let whole = bytes.len();
    once(from, Interest::READABLE, whole, || Ok(read(from, bytes)?))
}

fn write_some(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    once(to, Interest::WRITABLE, bytes.len(), || Ok(write(to, bytes)?))
}

/// One call. One that comes short has found the end of what the socket gives or takes now, which is the same as
/// `WouldBlock`, so that it need not be asked again to hear that.
fn once(
    socket: &TcpStream,
    interest: Interest,
    whole: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = None;
    let result = socket.try_io(interest, || {
        let count = call()?;
        done = Some(count);
        if (1..whole).contains(&count) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    });
    done.map_or(result, Ok)
}

/// Ends when `socket` was reset, which a direction that waits for the other socket would not see.
pub(super) async fn broken(socket: &TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => socket.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_what_reads_much_again_and_again() {
        let mut bulk = Bulk::default();
        let mut after = |reads: &[usize]| {
            reads.iter().for_each(|count| bulk.see(*count));
            bulk.yes
        };
        const MUCH: usize = LARGE_BYTES;
        assert!(!after(&[MUCH, MUCH, MUCH, MUCH - 1, MUCH, MUCH, MUCH]), "never four upon each other");
        assert!(after(&[MUCH]));
        assert!(after(&[1, 1, 1, MUCH, 1, 1, 1]), "a pause or two is nothing");
        assert!(!after(&[1]), "messages");
    }
}
