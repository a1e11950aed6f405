//! A client that goes away in the middle of everything leaves the proxies as they were.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use weft_tests::harness::{Mesh, eventually, logs};

use super::BLOCKS;

const STREAMS: usize = 256;
const SOON: Duration = Duration::from_secs(20);
const REQUESTS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_256_streams_in_flight_leaves_the_proxy_serving() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let cluster = mesh.cluster("east");
    let address = cluster.ingress.trim_start_matches("http://").to_owned();
    let log = mesh.dir().join("east").join("ingress");
    let told = || logs::access(&log).iter().filter(|line| line.get("path") == "/ticks").count();

    // Every answer has begun and goes on for ever; then every request is on its way and nothing has come yet.
    assert_eq!(leave(&address, &cluster.ingress, true).await, STREAMS);
    eventually("all are told of", SOON, async || match told() {
        STREAMS => Ok(()),
        count => Err(format!("{count} of {STREAMS}")),
    })
    .await;
    // Too early nothing is on its way, too late all is answered: again until it falls between.
    eventually("some were on their way", SOON, async || {
        leave(&address, &cluster.ingress, false).await;
        let lines = logs::access(&log);
        let gone = |line: &logs::Line| line.get("path") == "/ticks" && line.get("status") == "499";
        if lines.iter().any(gone) { Ok(()) } else { Err(format!("{:?}", lines.last())) }
    })
    .await;

    let ingress = mesh.ingress("east");
    for number in 0..REQUESTS {
        let page = ingress.get("/").await.unwrap();
        assert_eq!(page.status, 200, "request {number}: {page:?}");
    }
    let again = leave(&address, &cluster.ingress, true).await;
    assert_eq!(again, STREAMS, "as many streams as before begin");
}

/// Opens the streams on one connection, and resets it. How many had their answer's head.
async fn leave(address: &str, url: &str, begun: bool) -> usize {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_zero_linger().unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let requests = (0..STREAMS).map(|_| {
        let request = Request::get(format!("{url}/ticks")).body(Empty::<Bytes>::new()).unwrap();
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    // Polled once at least, so that all are written.
    let patience = if begun { SOON } else { Duration::from_millis(1) };
    let answers = tokio::time::timeout(patience, join_all(requests)).await.unwrap_or_default();
    let good = answers.iter().flatten().filter(|answer| answer.status() == 200).count();
    connection.abort();
    let _ = connection.await;
    good
}
