//! One endpoint as its table has it, and how fit that makes it for a new request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{
    endpoint::EndpointId,
    name::BadName,
    wire::{self, Health},
};

use super::{Moment, gateway::Network, live::Live, silence::Patience};

/// Why an endpoint of a view is left out.
#[derive(Debug, thiserror::Error)]
pub enum BadEndpoint {
    /// Its id is none.
    #[error(transparent)]
    Id(#[from] BadName),
    /// Its address is none.
    #[error("endpoint {id}: `{address}` is not an ip:port")]
    Address {
        /// The endpoint.
        id: String,
        /// What stands there.
        address: String,
    },
}

/// How fit an endpoint is for a new request, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    Fine,
    /// Silent for too long.
    Suspect,
    Ejected,
    /// By its keeper's word, its age, or because no gateway to it lives.
    Unfit,
}

impl Grade {
    pub(super) const ALL: [Grade; 4] = [Grade::Fine, Grade::Suspect, Grade::Ejected, Grade::Unfit];
}

/// One port of one instance, as one table has it.
#[derive(Debug)]
pub struct Endpoint {
    /// The label of its server name.
    pub id: EndpointId,
    /// Where its own network reaches it.
    pub address: SocketAddr,
    /// As the view says it.
    pub wire: wire::Endpoint,
    /// Its locality priority as this proxy sees it; 0 is nearest.
    pub priority: u32,
    /// The gateways to it when it is on another network.
    pub gateway: Option<Arc<Network>>,
    pub(super) stale: Option<Stale>,
    pub(super) live: Arc<Live>,
}

/// From when an endpoint counts as stale, and what then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stale {
    pub from: Moment,
    pub drop: bool,
}

/// The part of its weight that a stale endpoint keeps when it is de-weighted.
const STALE_WEIGHT: f64 = 0.25;

impl Endpoint {
    /// Whether all but its own behaviour speaks for it.
    pub(super) fn fit(&self, now: Moment) -> bool {
        self.wire.health() == Health::Healthy
            && !self.stale.is_some_and(|stale| stale.drop && now >= stale.from)
            && self.gateway.as_ref().is_none_or(|gateway| gateway.reachable())
    }

    pub(super) fn grade(&self, now: Moment, patience: Patience<'_>) -> Grade {
        if !self.fit(now) {
            Grade::Unfit
        } else if self.live.ejected(now) {
            Grade::Ejected
        } else {
            self.grade_unejected(now, patience)
        }
    }

    /// The grade of a fit endpoint when ejections are ignored.
    pub(super) fn grade_unejected(&self, now: Moment, patience: Patience<'_>) -> Grade {
        if self.live.suspect(now, patience) { Grade::Suspect } else { Grade::Fine }
    }

    pub(super) fn weight(&self, now: Moment, slow_start: Duration) -> f64 {
        let stale = if self.stale.is_some_and(|stale| now >= stale.from) { STALE_WEIGHT } else { 1.0 };
        let busy = 1.0 + self.live.busy(now);
        f64::from(self.wire.weight.max(1)) * stale * self.live.started_part(now, slow_start) / busy
    }
}
