//! The protocol of one proxy's stream, without IO.
//!
//! Invariant: at most one push is unacknowledged. What changes meanwhile waits, and goes as one push afterwards.
//! Invariant: a commit counts as obeyed only after an acknowledgement whose digests are those of the view of that
//! commit (or of a descendant), recomputed by the proxy.

use std::{collections::VecDeque, sync::Arc};

use api::{
    delta::{Digests, Held, diff, frames},
    digest::Hash,
    wire::{self, to_proxy},
};

use crate::snapshot::{Registered, Snapshot, Subscription};

/// Hosts that one proxy may ask for; an application that calls more names than this is looking for trouble.
pub const MAX_HOSTS: usize = 10_000;

/// Of those, the most that nobody knows. Applications that are told what to call (crawlers, webhooks) call names without end.
const MAX_UNKNOWN: usize = 1_000;

/// What the stream is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this.
    Send(to_proxy::Message),
    /// The proxy now obeys all of this commit.
    Reached(String),
    /// The proxy refused a push, for these reasons.
    Refused(Vec<String>),
    /// What the proxy refused it is not to obey any more.
    Reconciled,
    /// The proxy obeys a push, and a restart would go back behind it, for this reason.
    Unkept(String),
}

/// One proxy's stream.
#[derive(Debug)]
pub struct Session {
    node: Registered,
    subscription: Subscription,
    /// Hosts of the subscription that nobody knew when they were asked for, the oldest first.
    unknown: VecDeque<String>,
    snapshot: Arc<Snapshot>,
    /// What the proxy holds, by its own word or its last acknowledgement.
    held: Held,
    outstanding: Option<Outstanding>,
    /// What it refused: not offered again as long as it would be the same.
    refused: Option<Digests>,
    /// What it obeys, and has not on its disk: counted once it is there.
    unkept: Option<Unkept>,
    version: u64,
}

#[derive(Debug)]
struct Unkept {
    version: u64,
    commit: String,
}

#[derive(Debug)]
struct Outstanding {
    version: u64,
    held: Held,
    digests: Digests,
    commit: String,
    /// Whether something changed since it was sent.
    overtaken: bool,
}

impl Session {
    /// The stream of a proxy that holds `held` already; with what is to be done at once.
    pub fn begin(
        node: Registered,
        held: Held,
        subscription: Subscription,
        snapshot: Arc<Snapshot>,
    ) -> (Self, Vec<Action>) {
        let unknown = VecDeque::new();
        let mut session = Session {
            node,
            subscription,
            unknown,
            snapshot,
            held,
            outstanding: None,
            refused: None,
            unkept: None,
            version: 0,
        };
        let actions = session.advance();
        (session, actions)
    }

    /// A newer snapshot; `node` as it is registered now.
    pub fn on_snapshot(&mut self, node: Registered, snapshot: Arc<Snapshot>) -> Vec<Action> {
        self.node = node;
        self.snapshot = snapshot;
        self.advance()
    }

    /// The proxy asks for hosts, or asks for some no more. Those that nobody knows are answered at once, and the last of
    /// them are remembered all the same: should one come to be, it is pushed.
    pub fn on_subscribe(&mut self, asked: wire::Subscribe) -> Vec<Action> {
        self.subscription.retain(|host| !asked.drop.contains(host));
        let (known, unknown): (Vec<_>, Vec<_>) =
            asked.hosts.into_iter().partition(|host| self.is_known(host));
        let room = MAX_HOSTS.saturating_sub(self.subscription.len());
        self.subscription.extend(known.into_iter().take(room));
        for host in &unknown {
            if self.subscription.len() < MAX_HOSTS && self.subscription.insert(host.clone()) {
                self.unknown.push_back(host.clone());
            }
        }
        while self.unknown.len() > MAX_UNKNOWN {
            let oldest = self.unknown.pop_front();
            if let Some(host) = oldest.filter(|host| !self.is_known(host)) {
                self.subscription.remove(&host);
            }
        }
        let mut actions = self.advance();
        if !unknown.is_empty() {
            actions.push(Action::Send(to_proxy::Message::Unknown(wire::Unknown { hosts: unknown })));
        }
        actions
    }

    fn is_known(&self, host: &str) -> bool {
        self.snapshot.service_at(host, &self.node.namespace).is_some()
    }

    /// What workloads of the same account have asked for: it is told of it before it asks.
    pub fn on_siblings(&mut self, hosts: &Subscription) -> Vec<Action> {
        let before = self.subscription.len();
        let room = MAX_HOSTS.saturating_sub(before);
        self.subscription.extend(hosts.iter().take(room).cloned());
        if self.subscription.len() == before { Vec::new() } else { self.advance() }
    }

    /// The proxy has compiled a push, keeps it and obeys it.
    pub fn on_ack(&mut self, ack: &wire::Ack) -> Vec<Action> {
        if let Some(unkept) = self.unkept.take_if(|unkept| unkept.version == ack.version) {
            return vec![Action::Reached(unkept.commit)];
        }
        self.on_obeyed(ack, |session, _, commit| {
            session.unkept = None;
            Action::Reached(commit)
        })
    }

    /// The proxy has compiled a push and obeys it, and cannot keep it yet.
    pub fn on_unkept(&mut self, ack: &wire::Ack, reason: String) -> Vec<Action> {
        self.on_obeyed(ack, |session, version, commit| {
            session.unkept = Some(Unkept { version, commit });
            Action::Unkept(reason)
        })
    }

    fn on_obeyed(
        &mut self,
        ack: &wire::Ack,
        told: impl FnOnce(&mut Self, u64, String) -> Action,
    ) -> Vec<Action> {
        let Some(outstanding) = self.outstanding.take_if(|outstanding| outstanding.version == ack.version)
        else {
            return Vec::new();
        };
        let said = Hash::from_slice(&ack.config_digest)
            .zip(Hash::from_slice(&ack.endpoint_digest))
            .map(|(config, endpoint)| Digests { config, endpoint });
        if said != Some(outstanding.digests) {
            // It holds something else than we think: begin again from nothing.
            self.held = Held::default();
            return self.advance();
        }
        let Outstanding { version, held, commit, overtaken, .. } = outstanding;
        self.held = held;
        let mut actions = self.reconcile();
        actions.push(told(self, version, commit));
        if overtaken {
            actions.extend(self.advance());
        }
        actions
    }

    /// The proxy refused a push and keeps what it had.
    pub fn on_nack(&mut self, nack: &wire::Nack) -> Vec<Action> {
        let Some(outstanding) = self.outstanding.take_if(|outstanding| outstanding.version == nack.version)
        else {
            return Vec::new();
        };
        self.refused = Some(outstanding.digests);
        let reasons = nack.reasons.iter().map(|reason| format!("{}: {}", reason.resource, reason.message));
        let mut actions = vec![Action::Refused(reasons.collect())];
        if outstanding.overtaken {
            actions.extend(self.advance());
        }
        actions
    }

    fn reconcile(&mut self) -> Vec<Action> {
        self.refused.take().map(|_| Action::Reconciled).into_iter().collect()
    }

    /// Brings the proxy to the present snapshot, if it is not on its way somewhere already.
    fn advance(&mut self) -> Vec<Action> {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.overtaken = true;
            return Vec::new();
        }
        let view = self.snapshot.view(&self.node, &self.subscription);
        let digests = view.digests();
        if self.refused == Some(digests) {
            return Vec::new();
        }
        let commit = self.snapshot.commit().to_owned();
        let delta = diff(&self.held, &view);
        if delta.is_empty() {
            let mut actions = self.reconcile();
            match &mut self.unkept {
                Some(unkept) => unkept.commit = commit,
                None => actions.push(Action::Reached(commit)),
            }
            return actions;
        }
        self.version += 1;
        let push = frames(self.version, delta, digests, &self.snapshot.origin());
        let held = view.held();
        self.outstanding =
            Some(Outstanding { version: self.version, held, digests, commit, overtaken: false });
        push.into_iter().map(|frame| Action::Send(to_proxy::Message::Frame(frame))).collect()
    }
}

#[cfg(test)]
mod tests;
