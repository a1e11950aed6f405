//! An HTTP/1.1 client that never retries.

use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longer than anything in the mesh may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends requests to one address.
pub struct Client {
    address: String,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// One entry of `served_by`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Hop {
    /// The service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// Its cluster.
    pub cluster: String,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Who had a part in it.
    pub fn served_by(&self) -> Vec<Hop> {
        serde_json::from_value(self.json()["served_by"].take()).unwrap_or_default()
    }

    /// The clusters in which `service` had a part in it.
    pub fn clusters_of(&self, service: &str) -> BTreeSet<String> {
        clusters_of(&self.served_by(), service)
    }

    /// A header, `""` when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// The clusters of `service` among `hops`.
pub fn clusters_of(hops: &[Hop], service: &str) -> BTreeSet<String> {
    hops.iter().filter(|hop| hop.service == service).map(|hop| hop.cluster.clone()).collect()
}

/// A request without a body.
pub fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).expect("a test's own request")
}

impl Client {
    /// For `http://ip:port` or `ip:port`.
    pub fn new(address: &str) -> Self {
        let address = address.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Client { address, idle: Mutex::default() }
    }

    /// `GET path` on a connection of its own.
    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send(request("GET", path, &[]), true).await
    }

    /// Posts JSON on a connection of its own.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer, String> {
        let mut request = request("POST", path, &[("content-type", "application/json")]);
        *request.body_mut() = Full::new(body.to_string().into());
        self.send(request, true).await
    }

    /// Sends a request, on a fresh connection or on one that was kept. An error when no whole answer comes.
    pub async fn send(&self, mut request: Request<Full<Bytes>>, fresh: bool) -> Result<Answer, String> {
        if !request.headers().contains_key(header::HOST) {
            let host =
                request.uri().authority().map_or(self.address.as_str(), |authority| authority.as_str());
            let host = host.parse().map_err(|_| "no host")?;
            request.headers_mut().insert(header::HOST, host);
        }
        match tokio::time::timeout(LIMIT, self.exchange(request, fresh)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no whole answer within {LIMIT:?}")),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, fresh: bool) -> Result<Answer, String> {
        let head = request.method() == Method::HEAD;
        let mut connection = match self.kept().filter(|_| !fresh) {
            Some(kept) => kept,
            None => self.connect().await.map_err(|error| format!("cannot connect: {error}"))?,
        };
        let response =
            connection.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes();
        if !fresh && !head {
            self.idle.lock().expect("no one panics with it").push(connection);
        }
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// A connection that is not closed; the latest used, so that the others may grow old.
    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().expect("no one panics with it");
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
