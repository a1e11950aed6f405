//! Whether what was allowed when it began still is: for connections, tunnels and long answers, which may outlive the
//! policies and the trust that let them begin.

use std::{rc::Rc, sync::Arc, time::SystemTime};

use api::identity::{UnixTime, Verified};
use http::{HeaderMap, HeaderValue, request::Parts};
use runtime::{Decision, Flag, Runtime};

use crate::{
    caller::{Caller, Side},
    headers::CLIENT_CERT,
    request::read::{self, Asked},
    worker::Worker,
};

/// What a request was judged by, kept for as long as what it began goes on.
#[derive(Clone)]
pub struct Terms {
    /// The runtime that judged it last.
    pub judged_by: Arc<Runtime>,
    /// Its head, as it was judged.
    pub parts: Parts,
    /// What it asked for.
    pub authority: HeaderValue,
    /// The normalised path.
    pub path: String,
    /// Its id.
    pub id: HeaderValue,
    /// When it came.
    pub time: SystemTime,
    /// The application's port, where it is inbound.
    pub port: u16,
    /// Whether its host was known to be unknown.
    pub absent: bool,
    /// Who is at a tunnel's other end, over mTLS, and when that was verified.
    pub upstream: Option<(Arc<Verified>, UnixTime)>,
}

impl Terms {
    /// With the headers that it was judged by, but for the certificate that an inbound request was sent on with: of that
    /// the caller had `claimed` this.
    pub fn sent_with(mut self: Box<Self>, headers: HeaderMap, claimed: Option<HeaderValue>) -> Box<Self> {
        self.parts.headers = headers;
        match claimed {
            Some(claimed) => drop(self.parts.headers.insert(CLIENT_CERT, claimed)),
            None => drop(self.parts.headers.remove(CLIENT_CERT)),
        }
        self
    }

    /// Ends, with the reason, when the request would not be let through any more.
    pub async fn revoked(self: Box<Self>, worker: Rc<Worker>, caller: Rc<Caller>) -> String {
        let judged_by = Some(self.judged_by.clone());
        let upstream_is_believed = || match &self.upstream {
            Some((peer, at)) => peer.still_holds(&worker.proxy.identity.bundle(), *at),
            None => Ok(()),
        };
        let judge = |runtime: &Runtime| {
            upstream_is_believed().map_err(|rejection| rejection.to_string())?;
            self.judge(&caller, runtime)
        };
        revoked(&worker, &caller, judged_by, judge).await
    }

    /// Why the request would not be let through any more.
    pub fn judge(&self, caller: &Caller, runtime: &Runtime) -> Result<(), String> {
        let asked = Asked {
            authority: self.authority.clone(),
            path: (&self.path).into(),
            query: self.parts.uri.query().unwrap_or_default(),
        };
        let facts = read::read_facts(caller, self.port, runtime, (&self.id, self.time), &self.parts, &asked);
        let inbound = matches!(caller.side, Side::Inbound { .. });
        match runtime.decide(caller.side.at(self.absent, self.port), &facts, 0) {
            // A route that has changed since takes nothing back: only the application's own side and policies do.
            Decision::Refuse(refusal) if inbound || refusal.flag == Flag::Denied => {
                Err(refusal.reason.into_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Ends, with the reason, when the caller's chain would not be believed any more (another root, a revoked
/// intermediate, a cluster that left) or when `judge` says so of a runtime that comes into force. That the caller's
/// certificate has expired since is no such reason: it was good when the connection was made.
pub async fn revoked(
    worker: &Worker,
    caller: &Caller,
    mut judged_by: Option<Arc<Runtime>>,
    judge: impl Fn(&Runtime) -> Result<(), String>,
) -> String {
    let mut changes = worker.proxy.changes();
    loop {
        let newer = worker.proxy.state().map(|state| state.runtime.clone());
        if let Some(runtime) =
            newer.filter(|newer| !judged_by.as_ref().is_some_and(|by| Arc::ptr_eq(by, newer)))
        {
            if let Err(reason) = caller.is_believed(&worker.proxy.identity).and_then(|()| judge(&runtime)) {
                return reason;
            }
            judged_by = Some(runtime);
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
