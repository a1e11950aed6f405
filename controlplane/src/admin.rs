//! The admin API (JSON) and the console page. Every call bears a credential.

mod access;
mod openapi;

use std::{collections::BTreeSet, fmt::Display, net::SocketAddr, sync::Arc, time::Duration};

use api::{
    admin::{ExplainRequest, Failure, JoinTokenRequest, MEANT_FOR, Token, TokenRequest},
    head::CommitId,
    name::{ClusterName, SourceName, WorkloadId},
};
use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::StatusCode,
    middleware::{self, Next},
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
    git::{Address, Bell, Repository, Trouble},
    plane::Plane,
    publish::Accepted,
    report,
};

const DEFAULT_WAIT: u64 = 60;
const LONGEST_WAIT: u64 = 3600;
const TOKEN_TTL: u64 = 600;
const JOIN_TTL: u64 = 3600;
/// A token is handed over at once, or soon: one that lies about for longer is a key left in a door.
const LONGEST_TTL: u64 = 7 * DAY;
const DAY: u64 = 24 * 3600;

/// The repository of each source, and what makes it ask its server at once.
pub type Sources = Arc<[(Arc<Repository>, Bell)]>;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The control plane.
    pub plane: Arc<Plane>,
    /// Who may call.
    pub access: Arc<Access>,
    /// Where configuration comes from (primary).
    pub sources: Sources,
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
        .layer(middleware::from_fn_with_state(api.clone(), meant_for))
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

/// Lets a call pass that is meant for this cluster, or names none.
async fn meant_for(State(api): State<Api>, request: Request, next: Next) -> Response {
    let own = &api.plane.config.cluster;
    match request.headers().get(MEANT_FOR) {
        Some(other) if other != own.as_str() => {
            misdirected(own, String::from_utf8_lossy(other.as_bytes())).into_response()
        }
        _ => next.run(request).await,
    }
}

fn misdirected(own: &ClusterName, other: impl Display) -> Refused {
    let help =
        format!("this is the control plane of {own}: ask that of {other}, by the address of its API (--api)");
    Refused(StatusCode::MISDIRECTED_REQUEST, help)
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
    let histories = Histories { sources: &api.sources, commit: &commit };
    Ok(Json(report::wait(&api.plane, &commit, timeout, asked.strict, histories).await).into_response())
}

/// A commit in the histories of the sources.
struct Histories<'a> {
    sources: &'a Sources,
    commit: &'a CommitId,
}

impl Histories<'_> {
    fn repository(&self, source: &SourceName) -> Option<&Repository> {
        let mut all = self.sources.iter().map(|(repository, _)| &**repository);
        all.find(|repository| repository.source().name == *source)
    }
}

impl report::Lineage for Histories<'_> {
    fn is_on_branch(&self, source: &SourceName) -> bool {
        let is_on = |repository: &Repository| -> Result<bool, Trouble> {
            // Most repositories do not have it at all, which is known without a walk through their history.
            repository.resolve(self.commit.as_str())?;
            repository.descends(self.commit, &repository.head()?)
        };
        self.repository(source).is_some_and(|repository| walk(|| is_on(repository)).unwrap_or(false))
    }

    fn is_behind(&self, source: &SourceName, published: &CommitId) -> bool {
        let repository = self.repository(source);
        repository.is_some_and(|one| walk(|| one.descends(self.commit, published)).unwrap_or(false))
    }
}

/// Reads a history, which may be long, without keeping other tasks of this thread waiting.
fn walk<T>(history: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(history),
        _ => history(),
    }
}

/// The commit that `text` names in a repository of any source; in two of them it may not name two.
async fn resolve(api: &Api, text: &str) -> Result<CommitId, Refused> {
    if api.sources.is_empty() {
        return Err(Refused(StatusCode::CONFLICT, "a remote reads no repository: ask the primary".into()));
    }
    let (sources, asked) = (api.sources.clone(), text.to_owned());
    let resolve_all = move || sources.iter().map(|(one, _)| one.resolve(&asked)).collect::<Vec<_>>();
    let all = tokio::task::spawn_blocking(resolve_all).await.map_err(broken)?;
    let found: BTreeSet<&CommitId> = all.iter().flatten().collect();
    match (found.first(), found.len()) {
        (Some(one), 1) => Ok((*one).clone()),
        (Some(_), _) => Err(bad(format!(
            "`{text}` names commits in several sources: give the id of the one that is meant"
        ))),
        (None, _) => Err(bad(all
            .iter()
            .find_map(|one| one.as_ref().err())
            .map_or_else(String::new, ToString::to_string))),
    }
}

/// A commit that was pushed to a server and is not here yet: the servers are asked at once.
fn expect(api: &Api, text: &str) -> Option<CommitId> {
    let commit = text.parse::<CommitId>().ok()?;
    let servers = api
        .sources
        .iter()
        .filter(|(repository, _)| matches!(repository.source().address, Address::Remote(_)));
    let bells: Vec<&Bell> = servers.map(|(_, bell)| bell).collect();
    bells.iter().for_each(|bell| bell.notify_one());
    (!bells.is_empty()).then_some(commit)
}

async fn explain_request(
    State(api): State<Api>,
    Json(asked): Json<ExplainRequest>,
) -> Result<Json<api::admin::ExplainAnswer>, Refused> {
    if let Some(cluster) = asked.cluster.as_ref().filter(|cluster| **cluster != api.plane.config.cluster) {
        return Err(misdirected(&api.plane.config.cluster, cluster));
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
        expires: expires(&api.plane, asked.ttl_seconds, TOKEN_TTL)?,
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
        expires: expires(&api.plane, asked.ttl_seconds, JOIN_TTL)?,
    };
    Ok(Json(Token { token: authority.issue(&token) }))
}

/// Where the control planes of this cluster listen for what this one listens for at `here`; this one first.
fn everywhere(plane: &Plane, here: SocketAddr) -> Vec<String> {
    let others = plane.config.replicas.iter().filter(|ip| **ip != plane.config.address);
    let others = others.map(|ip| SocketAddr::new(*ip, here.port()));
    std::iter::once(here).chain(others).map(|address| address.to_string()).collect()
}

fn expires(plane: &Plane, ttl: Option<u64>, default: u64) -> Result<u64, Refused> {
    match ttl.unwrap_or(default) {
        ttl @ 1..=LONGEST_TTL => Ok(plane.world.unix().as_secs() + ttl),
        ttl => Err(bad(format!("a token lives from a second to {} days, not {ttl} s", LONGEST_TTL / DAY))),
    }
}

#[derive(Deserialize)]
struct DeregisterQuery {
    #[serde(default)]
    revoke: bool,
}

async fn deregister(
    State(api): State<Api>,
    Path(id): Path<WorkloadId>,
    Query(asked): Query<DeregisterQuery>,
) -> Result<StatusCode, Refused> {
    let registry = &api.plane.registry;
    let instances = registry.instances_of(&id);
    let (found, what) = if asked.revoke {
        (registry.revoke(&id).await.map_err(broken)?, "was revoked by an operator: it has to enrol anew")
    } else {
        let found = !instances.is_empty();
        registry.forget(instances).await.map_err(broken)?;
        (found, "was deregistered by an operator")
    };
    if !found {
        let message = format!("no workload {id} lives in cluster {}", api.plane.config.cluster);
        return Err(Refused(StatusCode::NOT_FOUND, message));
    }
    api.plane.events.note(format!("workload {id}"), what);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct AcceptQuery {
    commit: String,
}

async fn accept(State(api): State<Api>, Query(asked): Query<AcceptQuery>) -> Result<StatusCode, Refused> {
    let commit = resolve(&api, &asked.commit).await?;
    api.plane.events.note(format!("commit {}", commit.short()), "was accepted by an operator");
    api.accepted.accept(commit.to_string());
    // Who waits from now on is not told that it is held, however soon it is judged once more.
    api.plane.commits.send_modify(|commits| commits.let_pass(&commit));
    Ok(StatusCode::NO_CONTENT)
}

async fn console_login(State(api): State<Api>) -> Json<Token> {
    Json(Token { token: api.access.login() })
}
