//! `weft sample-service`: one service of the sample shop, a real HTTP server in a small process.
//!
//! front calls catalogue and reviews, reviews calls ratings, all through the HTTP proxy that `http_proxy` names.
//! The same binary plays every part: which one, `--name` says.

mod calls;
mod server;
mod shop;
mod ticks;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use self::{calls::Calls, shop::Shop};

/// Serve one service of the sample shop (`weft up` starts them)
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct SampleService {
    /// Which service
    #[arg(long, value_enum)]
    name: Part,
    /// Its version, as `served_by` tells it
    #[arg(long, default_value = "v1")]
    version: String,
    /// Its cluster, as `served_by` tells it
    #[arg(long)]
    cluster: String,
    /// Where to listen; otherwise on PORT at every address
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The port when --listen says none
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// The proxy that all calls go through
    #[arg(long = "proxy", env = "http_proxy", value_name = "URL")]
    proxy: Option<String>,
    /// Where catalogue appends orders
    #[arg(long, default_value = "orders.log")]
    orders: PathBuf,
}

/// A service of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Front,
    Catalogue,
    Reviews,
    Ratings,
}

impl Part {
    /// Its name as a host.
    fn name(self) -> &'static str {
        match self {
            Part::Front => "front",
            Part::Catalogue => "catalogue",
            Part::Reviews => "reviews",
            Part::Ratings => "ratings",
        }
    }
}

/// One entry of `served_by`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Hop {
    service: Part,
    version: String,
    cluster: String,
}

pub(crate) async fn run(service: SampleService) -> anyhow::Result<ExitCode> {
    let address = service.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, service.port).into());
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let hop = Hop { service: service.name, version: service.version, cluster: service.cluster };
    let shop = Shop::new(hop, Calls::new(service.proxy.as_deref())?, service.orders);
    server::run(listener, Arc::new(shop)).await?;
    Ok(ExitCode::SUCCESS)
}
