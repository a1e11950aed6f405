//! The admin API (JSON) and the console page. Every call bears a credential.

mod access;
mod openapi;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{
    admin::{ExplainRequest, Failure, JoinTokenRequest, Token, TokenRequest},
    head::CommitId,
    name::WorkloadId,
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{delete, get, post},
};
use federation::token::{JoinToken, TokenId, WorkloadToken};
use process::shutdown::Shutdown;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch};

pub use access::Access;

use crate::{
    config::Duty,
    explain::explain,
    git::{Address, Bell, Repository},
    plane::Plane,
    publish::Accepted,
    report,
};

const DEFAULT_WAIT: u64 = 60;
const LONGEST_WAIT: u64 = 3600;
const TOKEN_TTL: u64 = 600;
const JOIN_TTL: u64 = 3600;
/// A token is handed over at once, or soon: one that lies about for longer is a key left in a door.
const LONGEST_TTL: u64 = 7 * 24 * 3600;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The control plane.
    pub plane: Arc<Plane>,
    /// Who may call.
    pub access: Arc<Access>,
    /// The configuration's source, and what makes it ask its server (primary).
    pub source: Option<(Arc<Repository>, Bell)>,
    /// Held commits that an operator let pass (primary).
    pub accepted: Arc<Accepted>,
}

/// Serves the API and the console until `shutdown`.
pub async fn run(listener: TcpListener, api: Api, shutdown: Shutdown) {
    let guarded = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/wait", get(wait))
        .route("/api/v1/explain", post(explain_request))
        .route("/api/v1/tokens", post(token))
        .route("/api/v1/join-tokens", post(join_token))
        .route("/api/v1/workloads/{id}", delete(deregister))
        .route("/api/v1/rollout/accept", post(accept))
        .route("/api/v1/console-logins", post(console_login))
        .route("/api/v1/openapi.json", get(|| async { Json(openapi::document()) }))
        .route("/", get(|| async { Html(include_str!("admin/console.html")) }))
        .layer(middleware::from_fn_with_state(api.clone(), access::check))
        .with_state(api);
    process::admin::serve(listener, guarded, shutdown).await;
}

/// Tells every caller who serves instead, until `shutdown`.
pub async fn stand_by(listener: TcpListener, rival: watch::Receiver<Option<String>>, shutdown: Shutdown) {
    let told = async move || {
        let why = match &*rival.borrow() {
            Some(rival) => {
                format!("this control plane stands by while another one of its cluster serves: ask {rival}")
            }
            None => "this control plane waits for its store: are its servers there?".to_owned(),
        };
        Refused(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    process::admin::serve(listener, Router::new().fallback(told), shutdown).await;
}

/// A call that did not succeed.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Failure { error: self.1 })).into_response()
    }
}

fn bad(error: impl ToString) -> Refused {
    Refused(StatusCode::BAD_REQUEST, error.to_string())
}

fn broken(error: impl ToString) -> Refused {
    Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn status(State(api): State<Api>) -> Json<api::admin::Status> {
    Json(report::status(&api.plane))
}

#[derive(Deserialize)]
struct WaitQuery {
    commit: String,
    timeout: Option<u64>,
    #[serde(default)]
    strict: bool,
}

async fn wait(State(api): State<Api>, Query(asked): Query<WaitQuery>) -> Result<Response, Refused> {
    let commit = match resolve(&api, &asked.commit).await {
        Err(unknown) => expect(&api, &asked.commit).ok_or(unknown)?,
        Ok(commit) => commit,
    };
    let timeout = Duration::from_secs(asked.timeout.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT));
    let repository = api.source.as_ref().map(|(repository, _)| repository.clone());
    let descends = |published: &str| {
        let ids = commit.parse::<CommitId>().ok().zip(published.parse::<CommitId>().ok());
        let (Some(repository), Some((ancestor, descendant))) = (&repository, ids) else { return false };
        repository.descends(&ancestor, &descendant).unwrap_or(false)
    };
    Ok(Json(report::wait(&api.plane, &commit, timeout, asked.strict, descends).await).into_response())
}

/// The full id of the commit that `text` names.
async fn resolve(api: &Api, text: &str) -> Result<String, Refused> {
    let Some((repository, _)) = api.source.clone() else {
        return Err(Refused(StatusCode::CONFLICT, "a remote reads no repository: ask the primary".into()));
    };
    let text = text.to_owned();
    let found = tokio::task::spawn_blocking(move || repository.resolve(&text)).await.map_err(broken)?;
    found.map(|commit| commit.to_string()).map_err(bad)
}

/// A commit that was pushed to a server and is not here yet: the server is asked at once.
fn expect(api: &Api, text: &str) -> Option<String> {
    let (repository, bell) = api.source.as_ref()?;
    let commit = text.parse::<CommitId>().ok()?;
    matches!(repository.source().address, Address::Remote(_)).then(|| {
        bell.notify_one();
        commit.to_string()
    })
}

async fn explain_request(
    State(api): State<Api>,
    Json(asked): Json<ExplainRequest>,
) -> Result<Json<api::admin::ExplainAnswer>, Refused> {
    if let Some(cluster) = asked.cluster.as_ref().filter(|cluster| **cluster != api.plane.config.cluster) {
        return Err(bad(format!(
            "this is the control plane of {}: ask that of {cluster}",
            api.plane.config.cluster
        )));
    }
    let snapshot = api.plane.snapshot.borrow().clone();
    explain(&snapshot, &asked).map(Json).map_err(bad)
}

async fn token(State(api): State<Api>, Json(asked): Json<TokenRequest>) -> Result<Json<Token>, Refused> {
    let authority = &api.plane.authority;
    let vouched = authority.identity().bundle().clusters.get(&api.plane.config.cluster).cloned();
    if !vouched.is_some_and(|vouch| vouch.covers(&asked.namespace)) {
        return Err(bad(format!(
            "cluster {} may not vouch for namespace {}: name it in `Cluster.spec.namespaces`",
            api.plane.config.cluster, asked.namespace
        )));
    }
    let token = WorkloadToken {
        id: TokenId::random().map_err(broken)?,
        cluster: api.plane.config.cluster.clone(),
        namespace: asked.namespace,
        service_account: asked.service_account,
        labels: asked.labels,
        workload: asked.workload,
        root: authority.root_hash().ok_or_else(|| broken("there is no root"))?,
        control_planes: everywhere(&api.plane, api.plane.config.proxies),
        expires: expires(&api.plane, asked.ttl_seconds, TOKEN_TTL),
    };
    Ok(Json(Token { token: authority.issue(&token) }))
}

async fn join_token(
    State(api): State<Api>,
    Json(asked): Json<JoinTokenRequest>,
) -> Result<Json<Token>, Refused> {
    let Duty::Primary { federation, .. } = &api.plane.config.duty else {
        return Err(Refused(StatusCode::CONFLICT, "only the primary lets clusters join".into()));
    };
    let authority = &api.plane.authority;
    let token = JoinToken {
        id: TokenId::random().map_err(broken)?,
        cluster: asked.cluster,
        primary: api.plane.config.cluster.clone(),
        root: authority.root_hash().ok_or_else(|| broken("there is no root"))?,
        addresses: everywhere(&api.plane, *federation),
        expires: expires(&api.plane, asked.ttl_seconds, JOIN_TTL),
    };
    Ok(Json(Token { token: authority.issue(&token) }))
}

/// Where the control planes of this cluster listen for what this one listens for at `here`; this one first.
fn everywhere(plane: &Plane, here: SocketAddr) -> Vec<String> {
    let others = plane.config.replicas.iter().filter(|ip| **ip != plane.config.address);
    let others = others.map(|ip| SocketAddr::new(*ip, here.port()));
    std::iter::once(here).chain(others).map(|address| address.to_string()).collect()
}

fn expires(plane: &Plane, ttl: Option<u64>, default: u64) -> u64 {
    plane.world.unix().as_secs() + ttl.unwrap_or(default).min(LONGEST_TTL)
}

async fn deregister(State(api): State<Api>, Path(id): Path<WorkloadId>) -> Result<StatusCode, Refused> {
    let instances = api.plane.registry.instances_of(&id);
    if instances.is_empty() {
        return Err(Refused(
            StatusCode::NOT_FOUND,
            format!("no workload {id} lives in cluster {}", api.plane.config.cluster),
        ));
    }
    api.plane.registry.forget(instances).await.map_err(broken)?;
    api.plane.events.note(format!("workload {id}"), "was deregistered by an operator");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct AcceptQuery {
    commit: String,
}

async fn accept(State(api): State<Api>, Query(asked): Query<AcceptQuery>) -> Result<StatusCode, Refused> {
    let commit = resolve(&api, &asked.commit).await?;
    api.plane.events.note(format!("commit {}", &commit[..12]), "was accepted by an operator");
    api.accepted.accept(commit);
    Ok(StatusCode::NO_CONTENT)
}

async fn console_login(State(api): State<Api>) -> Json<Token> {
    Json(Token { token: api.access.login() })
}
