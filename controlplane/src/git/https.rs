//! Smart HTTP for `gix`, over hyper and the one TLS stack of this house: `gix`'s own clients know no certificate of a
//! client, nor authorities from a file, nor an end to their waiting.
//!
//! Redirects are told, not followed: a token goes to the server that the settings name, and to no other.

use std::{
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use gix_transport::client::blocking_io::http::{GetResponse, Http, PostBodyDataKind, PostResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming as Body,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use process::logs::causes;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Mutex, oneshot},
};
use tokio_rustls::TlsConnector;

use super::{
    access::Access,
    address::{Scheme, Server},
    attempt::{Attempt, Incoming, Inlet, incoming, patiently},
};

/// What we ask fits into this many times over: names of commits that are wanted and had.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// The client of one fetch: it holds the credentials as they were when the fetch began.
pub(super) struct Client(Arc<Parts>);

struct Parts {
    server: Server,
    attempt: Attempt,
    tls: Option<TlsConnector>,
    authorization: Option<HeaderValue>,
    /// The connection that the last request left in a good state.
    line: Mutex<Option<Line>>,
}

type Line = SendRequest<Full<Bytes>>;

impl Client {
    /// Reads the files of `access`.
    pub(super) fn new(server: &Server, access: &Access, attempt: Attempt) -> Result<Self, String> {
        let tls = match server.scheme {
            Scheme::Https => Some(TlsConnector::from(Arc::new(access.tls()?))),
            _ => None,
        };
        let authorization = access.authorization()?;
        Ok(Client(Arc::new(Parts {
            server: server.clone(),
            attempt,
            tls,
            authorization,
            line: Mutex::default(),
        })))
    }

    /// Sends a request whose body comes as soon as it is known.
    fn send(
        &self,
        method: Method,
        url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        body: oneshot::Receiver<Vec<u8>>,
    ) -> Result<(Incoming, Incoming), gix::Error> {
        let request = self.0.request(method, url, headers).map_err(gix::Error::from_error)?;
        let (head, headers) = incoming();
        let (inlet, answer) = incoming();
        let parts = self.0.clone();
        self.0.attempt.spawn(async move {
            // Dropped without a body: nobody waits for the answer any more.
            let Ok(body) = body.await else { return };
            let request = request.map(|()| Full::from(body));
            let mut head = Some(head);
            // The reason first, then the end of what is read: whoever reads finds it.
            if let Err(why) = parts.exchange(request, &mut head, &inlet).await {
                parts.attempt.fail(why);
            }
        });
        Ok((headers, answer))
    }
}

impl Parts {
    fn request(
        &self,
        method: Method,
        url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Request<()>, http::Error> {
        let uri: Uri = url.parse()?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let host = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => &self.server.host,
        };
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        for line in headers {
            if let Some((name, value)) = line.as_ref().split_once(':') {
                request = request.header(name, value.trim());
            }
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        request.body(())
    }

    /// One request and all of its answer.
    async fn exchange(
        self: &Arc<Self>,
        request: Request<Full<Bytes>>,
        head: &mut Option<Inlet>,
        body: &Inlet,
    ) -> Result<(), String> {
        let mut line = self.line.lock().await;
        let mut sender = match line.take() {
            Some(kept) if !kept.is_closed() => kept,
            _ => self.connect().await?,
        };
        if sender.ready().await.is_err() {
            sender = self.connect().await?;
        }
        let answer = patiently(sender.send_request(request)).await?;
        let answer = answer.map_err(|error| format!("it broke off: {}", causes(&error)))?;
        self.judge(&answer)?;
        let headers = answer.headers().iter();
        let lines: Vec<u8> = headers
            .flat_map(|(name, value)| [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat())
            .collect();
        if let Some(head) = head.take() {
            let _ = head.send(lines.into()).await; // Nobody may want them any more.
        }
        let mut frames: Body = answer.into_body();
        while let Some(frame) = patiently(frames.frame()).await? {
            let frame = frame.map_err(|error| format!("it broke off: {}", causes(&error)))?;
            let Ok(chunk) = frame.into_data() else { continue };
            self.attempt.count(chunk.len())?;
            if body.send(chunk).await.is_err() {
                return Ok(()); // Whoever asked has read enough.
            }
        }
        *line = Some(sender);
        Ok(())
    }

    /// Whether the answer is what was asked for; else, what to do.
    fn judge(&self, answer: &Response<Body>) -> Result<(), String> {
        let status = answer.status();
        let shown = if self.authorization.is_some() { "those in `tokenFile`" } else { "a `tokenFile`" };
        Err(match status {
            StatusCode::OK => return Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!(
                    "it wants other credentials ({status}): does it know {shown}, and may they read here?"
                )
            }
            StatusCode::NOT_FOUND => {
                format!("it has no such repository, or hides it ({status}): are path and credentials right?")
            }
            status if status.is_redirection() => {
                let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| to.split(['?', '#']).next()).unwrap_or("another place");
                let to: String = to.chars().filter(|c| !c.is_control()).take(200).collect();
                format!("it redirects to {to}: name that place as the repository's URL")
            }
            status => format!("it answers {status}"),
        })
    }

    async fn connect(&self) -> Result<Line, String> {
        let Server { host, port, .. } = &self.server;
        let tcp = patiently(TcpStream::connect((host.as_str(), *port))).await?;
        let tcp =
            tcp.map_err(|error| format!("no connection: {error}; is it up, and is port {port} open?"))?;
        let _ = tcp.set_nodelay(true); // Slower without, no worse.
        let Some(tls) = &self.tls else {
            let there = tcp.peer_addr().map_err(|error| format!("it broke off: {error}"))?;
            return match there.ip().is_loopback() {
                true => self.begin(tcp).await,
                false => Err("http:// is for loopback alone: use https://".into()),
            };
        };
        let name = ServerName::try_from(host.clone()).map_err(|_| format!("`{host}` is no name for TLS"))?;
        match patiently(tls.connect(name, tcp)).await? {
            Ok(stream) => self.begin(stream).await,
            Err(error) => {
                Err(format!("no TLS: {error}; is its authority in `caFile`, or else in the system?"))
            }
        }
    }

    async fn begin(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Line, String> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("it broke off: {error}"))?;
        // Why it broke is told to the request that is under way.
        self.attempt.spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl Http for Client {
    type Headers = Incoming;
    type ResponseBody = Incoming;
    type PostBody = Upload;

    fn get(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<GetResponse<Incoming, Incoming>, gix::Error> {
        let (sender, nothing) = oneshot::channel();
        let _ = sender.send(Vec::new());
        let (headers, body) = self.send(Method::GET, url, headers, nothing)?;
        Ok(GetResponse { headers, body })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _kind: PostBodyDataKind,
    ) -> Result<PostResponse<Incoming, Incoming, Upload>, gix::Error> {
        let (sender, written) = oneshot::channel();
        let (headers, body) = self.send(Method::POST, url, headers, written)?;
        Ok(PostResponse { post_body: Upload { bytes: Vec::new(), done: Some(sender) }, headers, body })
    }

    fn configure(&mut self, _config: &dyn std::any::Any) -> Result<(), gix::Error> {
        Ok(())
    }
}

/// The body of a request; it is sent when this is dropped.
pub(super) struct Upload {
    bytes: Vec<u8>,
    done: Option<oneshot::Sender<Vec<u8>>>,
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            let _ = done.send(std::mem::take(&mut self.bytes));
        }
    }
}
