//! The admin listener of a process: `/metrics`, `/ready`, `/live`, and what its owner adds.
//!
//! Plain HTTP/1.1, meant for an address that only operators and probes reach.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::response::{IntoResponse, Json, Response};
use axum::{Router, routing::get};
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::accept;
use crate::metrics::{CONTENT_TYPE, Registry};
use crate::shutdown::{Shutdown, TaskName};

/// Enough for every scraper and prober and for calls that wait long.
const MAX_CONNECTIONS: usize = 512;

/// The head of a request must be there, and a kept connection be used again, within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest body that a route takes, unless it sets a limit of its own.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What still has to happen until the process is ready. Clones are the same.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<TaskName, usize>>>);

/// One thing that has to happen first; it has happened when this is dropped.
#[must_use = "dropping it says that this is done"]
pub struct Pending {
    name: TaskName,
    readiness: Readiness,
}

impl Readiness {
    /// Not ready before the returned guard is dropped. May be used again later, to say that it is draining.
    pub fn task(&self, name: impl Into<TaskName>) -> Pending {
        let name = name.into();
        *self.lock().entry(name.clone()).or_default() += 1;
        Pending { name, readiness: self.clone() }
    }

    /// The names of what has to happen still. Ready when there are none.
    pub fn pending(&self) -> Vec<TaskName> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.name);
            }
        }
    }
}

/// What the listener answers.
#[derive(Clone)]
pub struct Routes(Router);

impl Routes {
    /// Those of every process.
    pub fn new(registry: &Registry, readiness: &Readiness) -> Self {
        let (registry, readiness) = (registry.clone(), readiness.clone());
        let router = Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(async move || ready(&readiness)))
            .route("/metrics", get(async move || metrics(&registry)));
        Self(router)
    }

    /// With further routes. Handlers may extract `ConnectInfo<SocketAddr>`.
    ///
    /// # Panics
    /// When a path is there already.
    pub fn merge(self, router: Router) -> Self {
        Self(self.0.merge(router))
    }
}

fn ready(readiness: &Readiness) -> Response {
    match readiness.pending() {
        pending if pending.is_empty() => "ready\n".into_response(),
        pending => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "pending": pending }))).into_response()
        }
    }
}

fn metrics(registry: &Registry) -> Response {
    match registry.text() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Serves until `shutdown` is cancelled; requests that are under way then are answered, as tasks of it.
pub async fn run(listener: TcpListener, routes: Routes, shutdown: Shutdown) {
    serve(listener, routes.0.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)), shutdown).await;
}

/// The same for routes of one's own: a bounded number of connections, and heads that come in time. The time and the
/// size of bodies are the routes' to bound.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async { (places.clone().acquire_owned().await, accept::next(&listener).await) };
        let (place, (stream, peer)) = tokio::select! {
            () = shutdown.cancelled() => return,
            next = next => next,
        };
        let connection = converse(stream, peer, router.clone(), shutdown.clone());
        shutdown.spawn("admin connection", async move {
            let _place = place;
            connection.await;
        });
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: Shutdown) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error = crate::logs::causes(&error), "an admin connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    struct Admin {
        address: SocketAddr,
        readiness: Readiness,
        shutdown: Shutdown,
    }

    impl Admin {
        async fn start(more: Router) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (readiness, shutdown) = (Readiness::default(), Shutdown::new());
            let routes = Routes::new(&Registry::new(), &readiness).merge(more);
            shutdown.spawn("admin", run(listener, routes, shutdown.clone()));
            Self { address, readiness, shutdown }
        }

        async fn ask(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let head = format!("{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn ready_once_nothing_is_pending() {
        let admin = Admin::start(Router::new()).await;
        let (first, view) = (admin.readiness.task("credentials"), admin.readiness.task("first view"));
        let again = admin.readiness.task("first view");
        drop((first, again));
        let answer = admin.ask("GET /ready").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with(r#"{"pending":["first view"]}"#),
            "{answer}"
        );
        drop(view);
        assert!(admin.ask("GET /ready").await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn answers_its_own_routes_and_the_owners() {
        let mine = Router::new().route(
            "/drain",
            axum::routing::post(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string()),
        );
        let admin = Admin::start(mine).await;
        assert!(admin.ask("GET /live").await.starts_with("HTTP/1.1 200 "));
        assert!(admin.ask("GET /metrics").await.contains("process_cpu_seconds_total "));
        assert!(admin.ask("POST /drain").await.ends_with("127.0.0.1"));
        assert!(admin.ask("GET /drain").await.starts_with("HTTP/1.1 405 "));
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let admin = Admin::start(Router::new()).await;
        let mut idle = TcpStream::connect(admin.address).await.unwrap();
        assert!(admin.ask("GET /live").await.contains("200"));
        admin.shutdown.drain(LONG).await.unwrap();
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    }
}
