//! The pipes of one worker, through which the kernel moves bytes from socket to socket without a copy.
//!
//! Invariant: no more than [`MOST`] exist at once, and none is lent that holds a byte. One that is dropped with bytes in
//! it, because its flow broke off, is closed.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, SpliceFFlags, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

/// Pipes of one worker. A flow holds one only while its bytes come without a pause, or while its reader holds it up.
pub(super) const MOST: usize = 128;

/// Asked for at once. A pipe holds 16 pieces, each as large as the network made it, so it mostly is full before.
const AT_ONCE: usize = 1 << 20;

/// What one worker has.
#[derive(Debug, Default)]
pub(super) struct Pipes(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    clean: Vec<Ends>,
    lent: usize,
}

#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

/// A pipe that one direction of one flow has to itself, until it is dropped.
#[derive(Debug)]
pub(super) struct Pipe<'a> {
    home: &'a Pipes,
    ends: Option<Ends>,
    held: usize,
}

impl Pipes {
    /// An empty pipe; none when all are lent, or the process has no descriptors left.
    pub fn lend(&self) -> Option<Pipe<'_>> {
        let mut shelf = self.shelf();
        if shelf.lent == MOST {
            return None;
        }
        let made = || {
            let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
            Some(Ends { out, into })
        };
        let ends = shelf.clean.pop().or_else(made)?;
        shelf.lent += 1;
        Some(Pipe { home: self, ends: Some(ends), held: 0 })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are lent, and how many lie here.
    #[cfg(test)]
    pub fn count(&self) -> (usize, usize) {
        let shelf = self.shelf();
        (shelf.lent, shelf.clean.len())
    }
}

impl Pipe<'_> {
    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what `from` has; 0 at its end. Only for an empty pipe: then a refusal means that the socket is.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let into = self.ends().map(|ends| &ends.into)?;
        let count = from.try_io(Interest::READABLE, || moved(from, into))?;
        self.held += count;
        Ok(count)
    }

    /// Gives `to` as much as it takes.
    pub fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let out = self.ends().map(|ends| &ends.out)?;
        let count = to.try_io(Interest::WRITABLE, || moved(out, to))?;
        self.held = self.held.saturating_sub(count);
        Ok(count)
    }

    fn ends(&self) -> io::Result<&Ends> {
        self.ends.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        let mut shelf = self.home.shelf();
        shelf.lent -= 1;
        if self.held == 0 {
            shelf.clean.extend(self.ends.take());
        }
    }
}

fn moved(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd) -> io::Result<usize> {
    loop {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        match splice(&from, None, &to, None, AT_ONCE, flags) {
            Err(Errno::EINTR) => {}
            moved => return Ok(moved?),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[test]
    fn no_more_are_lent_than_there_may_be() {
        let pipes = Pipes::default();
        let all: Vec<_> = std::iter::from_fn(|| pipes.lend()).collect();
        assert_eq!((all.len(), pipes.count()), (MOST, (MOST, 0)));
        drop(all);
        assert_eq!(pipes.count(), (0, MOST));
        let again = pipes.lend();
        assert_eq!((again.is_some(), pipes.count()), (true, (1, MOST - 1)), "a clean one is lent again");
    }

    #[tokio::test]
    async fn a_pipe_is_given_back_clean_or_closed() {
        let (mut writer, from) = pair().await;
        let (to, mut reader) = pair().await;
        let pipes = Pipes::default();
        writer.write_all(b"first").await.unwrap();
        from.readable().await.unwrap();
        let mut pipe = pipes.lend().unwrap();
        assert_eq!((pipe.fill(&from).unwrap(), pipe.held()), (5, 5));
        assert_eq!(pipe.fill(&from).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!((pipe.empty(&to).unwrap(), pipe.held()), (5, 0));
        drop(pipe);
        assert_eq!(pipes.count(), (0, 1));

        writer.write_all(b"lost").await.unwrap();
        from.readable().await.unwrap();
        let mut pipe = pipes.lend().unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 4);
        drop(pipe);
        assert_eq!(pipes.count(), (0, 0), "what one flow left must never come out in another");

        drop(writer);
        from.readable().await.unwrap();
        assert_eq!(pipes.lend().unwrap().fill(&from).unwrap(), 0);
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"first");
    }
}
