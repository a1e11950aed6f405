//! Accepts connections, HTTP/1.1 or HTTP/2 with prior knowledge, until SIGTERM; then finishes what it began.

use std::{io, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use super::shop::Shop;

/// How long requests may take to finish at the end.
const DRAIN: Duration = Duration::from_secs(4);
/// The pause after a failed accept, so that a process without free descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const CONNECTIONS_LIMIT: usize = 4096;

/// Serves `shop` until SIGTERM or SIGINT.
pub(super) async fn run(listener: TcpListener, shop: Arc<Shop>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (ending, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_LIMIT => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, shop.clone(), ended.clone()))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
    drop(listener);
    ending.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, all).await;
    Ok(())
}

/// One connection. What goes wrong on it is its client's matter.
async fn serve(stream: TcpStream, shop: Arc<Shop>, mut ended: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    // RFC 9113, section 3.4: the preface of HTTP/2 is no valid beginning of an HTTP/1.1 request.
    let mut head = [0; 3];
    let two = tokio::select! {
        peeked = stream.peek(&mut head) => matches!(peeked, Ok(3) if &head == b"PRI"),
        _ = ended.wait_for(|ended| *ended) => return,
    };
    let service = service_fn(move |request| {
        let shop = shop.clone();
        async move { Ok::<_, std::convert::Infallible>(shop.answer(request).await) }
    });
    let io = TokioIo::new(stream);
    macro_rules! until_ended {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = ended.wait_for(|ended| *ended) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }};
    }
    if two {
        until_ended!(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service)
        );
    } else {
        until_ended!(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    }
}
