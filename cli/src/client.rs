//! A small HTTP/1.1 client: the admin API with its bearer token, and plain looks at readiness.

use std::time::Duration;

use api::name::ClusterName;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

use crate::output::line;

/// A status of a mesh of thousands of proxies is some megabytes.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;
/// What any call but `wait` may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Why a call to the admin API failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("`{0}` is no address of an admin API: write http://127.1.0.1:15080")]
    Address(String),
    #[error(
        "cannot reach the control plane at {address} ({why}); is it up? another cluster may know: --cluster NAME"
    )]
    Unreachable { address: String, why: String },
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error(
        "the control plane at {address} answered what this weft does not understand ({why}): are both of one version?"
    )]
    Malformed { address: String, why: String },
}

/// One control plane's admin API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: String,
    token: Option<String>,
    meant_for: Option<ClusterName>,
}

impl Client {
    /// The API at `url`, asked with `token`.
    pub(crate) fn new(url: &str, token: Option<String>) -> Result<Self, Failed> {
        let address = authority(url).ok_or_else(|| Failed::Address(url.to_owned()))?;
        Ok(Client { address: address.to_owned(), token, meant_for: None })
    }

    /// Nothing is asked of another cluster than this, if one is named.
    pub(crate) fn meant_for(self, cluster: Option<&ClusterName>) -> Self {
        Client { meant_for: cluster.cloned(), ..self }
    }

    /// `ip:port`, or `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failed> {
        self.get_within(path, CALL_LIMIT).await
    }

    /// For a call that may take longer.
    pub(crate) async fn get_within<A: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<A, Failed> {
        self.read(self.call(Method::GET, path, Bytes::new(), limit).await?)
    }

    pub(crate) async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, Failed> {
        let body = serde_json::to_vec(body).expect("the API's own shapes are JSON");
        self.read(self.call(Method::POST, path, body.into(), CALL_LIMIT).await?)
    }

    /// A call without body or answer.
    pub(crate) async fn tell(&self, path: &str) -> Result<(), Failed> {
        self.call(Method::POST, path, Bytes::new(), CALL_LIMIT).await.map(drop)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), Failed> {
        self.call(Method::DELETE, path, Bytes::new(), CALL_LIMIT).await.map(drop)
    }

    async fn call(&self, method: Method, path: &str, body: Bytes, limit: Duration) -> Result<Bytes, Failed> {
        let unreachable = |why| Failed::Unreachable { address: self.address.clone(), why };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", api::admin::BASE))
            .header(header::HOST, &self.address)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(cluster) = &self.meant_for {
            request = request.header(api::admin::MEANT_FOR, cluster.as_str());
        }
        let request = request.body(Full::new(body)).map_err(|error| unreachable(error.to_string()))?;
        let (status, body) = fetch(&self.address, request, limit).await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(body);
        }
        let message = match serde_json::from_slice::<api::admin::Failure>(&body) {
            _ if status == StatusCode::UNAUTHORIZED && self.token.is_none() => {
                format!("the control plane at {} asks for a token: --token-file or WEFT_TOKEN", self.address)
            }
            Ok(failure) => line(&failure.error),
            Err(_) => format!("the control plane at {} answered {status}", self.address),
        };
        Err(Failed::Refused { status, message })
    }

    fn read<A: DeserializeOwned>(&self, body: Bytes) -> Result<A, Failed> {
        serde_json::from_slice(&body)
            .map_err(|why| Failed::Malformed { address: self.address.clone(), why: line(&why.to_string()) })
    }
}

/// `host:port` of `http://host:port/`.
pub(crate) fn authority(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("http://")?.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(authority)
}

/// The status of `GET path` at `address`; an error in words when there is no answer within `limit`.
pub(crate) async fn probe(address: &str, path: &str, limit: Duration) -> Result<StatusCode, String> {
    let request = Request::get(path)
        .header(header::HOST, address)
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    fetch(address, request, limit).await.map(|(status, _)| status)
}

/// What `GET path` at `address` answers, as text; an error in words when that is no success.
pub(crate) async fn text(address: &str, path: &str, limit: Duration) -> Result<String, String> {
    let request = Request::get(path)
        .header(header::HOST, address)
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    let (status, body) = fetch(address, request, limit).await?;
    match status.is_success() {
        true => Ok(String::from_utf8_lossy(&body).into_owned()),
        false => Err(format!("answered {status}")),
    }
}

/// One request on a connection of its own.
async fn fetch(
    address: &str,
    request: Request<Full<Bytes>>,
    limit: Duration,
) -> Result<(StatusCode, Bytes), String> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
        connection.abort();
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

/// Escapes what may not stand in a query value or path segment (RFC 3986, section 2.3).
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn addresses_are_urls() {
        assert_eq!(authority("http://127.1.0.1:15080/"), Some("127.1.0.1:15080"));
        for bad in ["127.1.0.1:15080", "https://127.1.0.1:15080", "http://:1", "http://host"] {
            assert_eq!(authority(bad), None, "{bad}");
        }
        assert_eq!(escape("a/b c~1"), "a%2Fb%20c~1");
    }

    /// Answers one request with `answer`, and gives the head that it heard.
    async fn once(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (url, heard)
    }

    #[tokio::test]
    async fn a_call_bears_the_token_and_a_refusal_says_why() {
        let (url, heard) =
            once("HTTP/1.1 404 Not Found\r\ncontent-length: 28\r\n\r\n{\"error\":\"no such workload\"}")
                .await;
        let client = Client::new(&url, Some("secret".into())).unwrap();
        let refused = client.delete("/workloads/a").await.unwrap_err();
        assert!(matches!(&refused, Failed::Refused { status: StatusCode::NOT_FOUND, .. }));
        let heard = heard.await.unwrap();
        assert!(heard.starts_with("DELETE /api/v1/workloads/a HTTP/1.1"), "{heard}");
        assert!(heard.contains("authorization: Bearer secret"), "{heard}");
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_said_with_what_to_do() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let error = client.get::<serde_json::Value>("/status").await.unwrap_err().to_string();
        assert!(error.starts_with("cannot reach the control plane at 127.0.0.1:1"), "{error}");
    }
}
