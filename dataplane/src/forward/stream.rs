//! A stream of bytes to an endpoint, for what is not HTTP.

use std::{rc::Rc, sync::Arc};

use api::endpoint::EndpointId;
use runtime::{Service, ServicePort};

use super::{connect_limit, keep_alive, nowhere, verdict::End};
use crate::{
    account::Exchange,
    balance::{Ask, Pick, Picked, Tried},
    dial::{self, Dialled, Route},
    failure::Failure,
    limit::Over,
    pool::Room,
    proxy::Callee,
    worker::Worker,
};

/// A stream of bytes to an endpoint of a service (`only` that one, where it was asked for), with what happens to
/// connects in vain as for requests.
pub async fn open(
    worker: &Rc<Worker>,
    service: &Service,
    port: &ServicePort,
    callee: &Arc<Callee>,
    only: Option<&EndpointId>,
    exchange: &mut Exchange,
) -> Result<(Dialled, Picked), Failure> {
    let room = Room { load: &callee.load, limit: port.traffic.limit_connections };
    // A stream of bytes is its connection: it waits for none.
    exchange.place = Some(room.place(&worker.pool).ok_or(Over::Connections)?);
    let mut tried = Tried::default();
    let mut last = None;
    loop {
        let ask = Ask { now: worker.proxy.now(), chance: worker.chance(), tried: &tried, may_repeat: false };
        let picked =
            only.map_or_else(|| callee.balancer.pick(&ask), |only| callee.balancer.pick_only(only, &ask));
        let mut picked = match picked {
            Pick::Endpoint(picked) => picked,
            Pick::None(reason) => return Err(nowhere(reason, last)),
        };
        let endpoint = picked.endpoint().clone();
        exchange.endpoint = Some(endpoint.clone());
        let tls = match endpoint.wire.mtls {
            true => dial::tls_config(worker, &endpoint, &service.identities, &[]).map(Some),
            false => Ok(None),
        };
        let timeout = connect_limit(&port.traffic, endpoint.gateway.is_some());
        let dialled = match tls {
            Ok(tls) => {
                let keep_alive = keep_alive(&port.traffic);
                let (address, endpoint) = (endpoint.address, Some(&endpoint));
                let route = Route { address, endpoint, tls, timeout, keep_alive };
                dial::dial(worker, &route).await
            }
            Err(error) => Err(error),
        };
        let error = match dialled {
            Ok(dialled) => {
                exchange.tries = 1;
                exchange.gateway = dialled.gateway.as_ref().map(|gateway| gateway.address);
                exchange.upstream_mtls = dialled.peer.is_some();
                picked.head(worker.proxy.now());
                return Ok((dialled, picked));
            }
            Err(error) => error,
        };
        picked.finished(error.outcome(), worker.proxy.now());
        End::Unconnected(error.outcome()).note(&mut tried, &endpoint);
        let failure = Failure::upstream(503, "connect-failed", error.to_string());
        if !tried.may_connect() {
            return Err(failure);
        }
        last = Some(failure);
    }
}
