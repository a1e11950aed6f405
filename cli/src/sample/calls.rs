//! Calls from one service to another: absolute-form requests to the HTTP proxy, over connections that are kept.

use std::{sync::Mutex, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, StatusCode, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Part;
use crate::client::authority;

/// The port that the sample's services have.
const SERVICE_PORT: u16 = 8080;
/// Longer than all tries of a sidecar together, so that its answer comes before we give up.
const CALL_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT_BYTES: usize = 4 << 20;
const IDLE_LIMIT: usize = 64;

type Connection = SendRequest<Full<Bytes>>;

/// Where calls go out.
pub(super) struct Calls {
    /// `ip:port` of the proxy; without one, services are called directly.
    proxy: Option<String>,
    /// Idle connections to the proxy, the latest used last.
    idle: Mutex<Vec<Connection>>,
}

/// One call.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) to: Part,
    /// With query.
    pub(super) path: &'a str,
    /// What is passed on.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What came back.
pub(super) struct Heard {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Calls {
    /// Through the proxy at `url` (`http://ip:port`).
    pub(super) fn new(url: Option<&str>) -> anyhow::Result<Self> {
        let proxy = match url.filter(|url| !url.is_empty()) {
            Some(url) => Some(
                authority(url)
                    .with_context(|| format!("`{url}` is no proxy: write http://ip:port"))?
                    .to_owned(),
            ),
            None => None,
        };
        Ok(Calls { proxy, idle: Mutex::default() })
    }

    /// Sends it and hears the whole answer; an error says in words why there is none.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Heard, String> {
        match tokio::time::timeout(CALL_LIMIT, self.try_call(&call)).await {
            Ok(heard) => heard,
            Err(_) => Err(format!("no answer within {CALL_LIMIT:?}")),
        }
    }

    async fn try_call(&self, call: &Call<'_>) -> Result<Heard, String> {
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue; // the proxy has closed it meanwhile
            }
            match connection.try_send_request(self.request(call)?).await {
                Ok(response) => return self.hear(response, connection).await,
                Err(mut error) => {
                    // The proxy closed it while we wrote. It never saw the request, or may safely see it twice.
                    if error.take_message().is_none() && !call.method.is_safe() {
                        return Err(error.into_error().to_string());
                    }
                }
            }
        }
        let mut connection = self.connect(call.to).await.map_err(|error| error.to_string())?;
        let response =
            connection.send_request(self.request(call)?).await.map_err(|error| error.to_string())?;
        self.hear(response, connection).await
    }

    async fn hear(
        &self,
        response: hyper::Response<hyper::body::Incoming>,
        connection: Connection,
    ) -> Result<Heard, String> {
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_LIMIT_BYTES).collect().await.map_err(|error| error.to_string())?;
        let mut idle = self.idle.lock().expect("no one panics with it");
        if self.proxy.is_some() && idle.len() < IDLE_LIMIT {
            idle.push(connection);
        }
        Ok(Heard { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    fn take_idle(&self) -> Option<Connection> {
        self.idle.lock().expect("no one panics with it").pop()
    }

    async fn connect(&self, to: Part) -> anyhow::Result<Connection> {
        let address = self.proxy.clone().unwrap_or_else(|| host(to));
        let stream =
            TcpStream::connect(&address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, String> {
        let host = host(call.to);
        let uri = match self.proxy {
            Some(_) => format!("http://{host}{}", call.path),
            None => call.path.to_owned(),
        };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri)
            .body(Full::new(call.body.clone()))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = call.headers.clone();
        let host = host.parse().map_err(|_| "no host".to_owned())?;
        request.headers_mut().insert(header::HOST, host);
        Ok(request)
    }
}

fn host(to: Part) -> String {
    format!("{}:{SERVICE_PORT}", to.name())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    fn get() -> Call<'static> {
        Call {
            method: Method::GET,
            to: Part::Ratings,
            path: "/ratings?a=1",
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_call_is_in_absolute_form_and_a_closed_connection_costs_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = tokio::spawn(async move {
            let mut heads = Vec::new();
            // Two connections: one request answered and the second cut off, then the one that carries it.
            for requests in [vec![true, false], vec![true]] {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answered in requests {
                    let mut buffer = vec![0; 1024];
                    let length = stream.read(&mut buffer).await.unwrap();
                    heads.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                    if answered {
                        stream.write_all(ANSWER).await.unwrap();
                    }
                }
            }
            heads
        });
        let calls = Calls::new(Some(&url)).unwrap();
        for _ in 0..2 {
            assert_eq!(calls.call(get()).await.unwrap().status, StatusCode::OK);
        }
        let heads = proxy.await.unwrap();
        assert_eq!(heads.len(), 3);
        assert!(heads[0].starts_with("GET http://ratings:8080/ratings?a=1 HTTP/1.1\r\n"), "{}", heads[0]);
        assert!(heads[0].contains("host: ratings:8080\r\n"), "{}", heads[0]);
    }

    #[tokio::test]
    async fn no_proxy_is_said_in_words() {
        let calls = Calls::new(Some("http://127.0.0.1:1")).unwrap();
        let error = calls.call(get()).await.err().unwrap();
        assert!(error.starts_with("cannot connect to 127.0.0.1:1"), "{error}");
        assert!(Calls::new(Some("127.0.0.1:1")).is_err());
    }
}
