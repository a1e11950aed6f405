//! Taking the next connection from a listener.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use crate::logs::Limit;

/// What a failed accept means, mostly no more file descriptors, is over only after a while.
const PAUSE: Duration = Duration::from_millis(50);

static FAILURES: Limit = Limit::new(1);

/// The next connection. A failure to accept is logged, never given up on: the listener outlives it.
pub(crate) async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = tirelessly(|| listener.accept()).await;
    let _ = stream.set_nodelay(true);
    (stream, peer)
}

/// The same of any listener.
pub(crate) async fn tirelessly<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F) -> T {
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if FAILURES.pass(Instant::now()).is_some() {
                    tracing::warn!(%error, "cannot accept a connection; are there file descriptors left?");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
