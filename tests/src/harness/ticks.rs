//! One long HTTP/2 stream: the sample's `/ticks`, which says a line each second for as long as someone reads.

use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};

/// Reads it through an ingress, `http://ip:port`, and returns only when something is wrong with it: its end, or nothing
/// heard for as long as `silence`. Tells of each tick.
pub async fn listen(ingress: &str, silence: Duration, heard: impl FnMut()) -> anyhow::Error {
    match try_listen(ingress, silence, heard).await {
        Ok(()) => anyhow!("it came to its end"),
        Err(error) => error,
    }
}

async fn try_listen(ingress: &str, silence: Duration, mut heard: impl FnMut()) -> anyhow::Result<()> {
    let stream = TcpStream::connect(ingress.trim_start_matches("http://")).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("{ingress}/ticks")).body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "it answered {}", response.status());
    let mut body = response.into_body();
    while let Some(frame) = timeout(silence, body.frame()).await.context("it fell silent")? {
        frame?;
        heard();
    }
    Ok(())
}
