//! The plain hop and the mTLS pair: Weft beside nginx, and the backend alone for orientation.
//!
//! Weft's side has two authorization rules at each proxy, a route that matches a header, metrics, an access log of
//! 1 % and the trace context passed on; nginx's has an access log of everything, and nothing else.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::ensure;

use crate::{
    compare::{Effort, Series, Way, rounds},
    http, load,
    machine::Programs,
    mesh::{Member, Mesh},
    nginx::{self, Places},
};

/// `127.BLOCK.0.*` is ours.
const BLOCK: u8 = 190;
const GATEWAY_PORT: u16 = 8080;
const PLAIN_HOST: &str = "plain.bench.example";
const PAIR_HOST: &str = "pair.bench.example";

/// The ways' names.
pub const DIRECT: &str = "direct (the backend)";
/// The peer of [`WEFT_PLAIN`].
pub const NGINX_PLAIN: &str = "nginx, plain hop";
/// An ingress in front of a workload without a sidecar.
pub const WEFT_PLAIN: &str = "weft, plain hop";
/// The peer of [`WEFT_PAIR`].
pub const NGINX_PAIR: &str = "nginx, mTLS pair";
/// An ingress and a sidecar.
pub const WEFT_PAIR: &str = "weft, mTLS pair";

/// Measures the plain hop, the pair, or both in one interleaved run.
pub fn measure(
    programs: &Programs,
    dir: &Path,
    (plain, pair): (bool, bool),
    effort: Effort,
) -> anyhow::Result<Vec<Series>> {
    fs::create_dir_all(dir)?;
    let at = |host, port| SocketAddr::new(Ipv4Addr::new(127, BLOCK, 0, host).into(), port);
    let places =
        Places { backend: at(20, 8080), plain: at(30, 8080), client: at(31, 8080), server: at(32, 8443) };
    let backend = nginx::backend(dir, &places)?;
    let nginx_plain = nginx::plain(dir, &places)?;
    let nginx_pair = nginx::pair(dir, &places)?;
    let mesh = Mesh::start(programs, dir, BLOCK, &configuration(places.backend))?;
    let member = |id, namespace, account, host, app| Member { id, namespace, account, host, app };
    let sidecar = mesh.proxy(&member("pair-1", "bench", "pair", 11, Some(places.backend)))?;
    let ingress = mesh.proxy(&member("ingress-1", "weft-system", "ingress", 3, None))?;
    mesh.effective()?;

    let gateway = at(3, GATEWAY_PORT);
    guards(gateway)?;
    let way = |name, to, host, processes| Way { name, to, host, processes };
    let mut ways = vec![way(DIRECT, places.backend, "bench", vec![&backend])];
    if plain {
        ways.push(way(NGINX_PLAIN, places.plain, "bench", vec![&nginx_plain]));
        ways.push(way(WEFT_PLAIN, gateway, PLAIN_HOST, vec![&ingress]));
    }
    if pair {
        ways.push(way(NGINX_PAIR, places.client, "bench", nginx_pair.iter().collect()));
        ways.push(way(WEFT_PAIR, gateway, PAIR_HOST, vec![&ingress, &sidecar]));
    }
    rounds(&ways, effort)
}

fn configuration(backend: SocketAddr) -> Vec<(String, String)> {
    let files = [
        ("mesh.yaml", include_str!("../../bench/weft/mesh.yaml")),
        ("plain.yaml", include_str!("../../bench/weft/plain.yaml")),
        ("pair.yaml", include_str!("../../bench/weft/pair.yaml")),
    ];
    let backend = backend.ip().to_string();
    files.map(|(name, text)| (name.to_owned(), text.replace("@BACKEND_IP@", &backend))).into()
}

/// A fast proxy that guards nothing would be no feat: what the rules and routes do not name must not pass.
fn guards(gateway: SocketAddr) -> anyhow::Result<()> {
    for host in [PLAIN_HOST, PAIR_HOST] {
        let [tier, _] = load::HEADERS;
        let status =
            |method, headers: &[_]| http::call(gateway, method, "/item", headers, "").map(|a| a.status);
        let denied = status("DELETE", &[("host", host), tier])?;
        ensure!(denied == 403, "{host} answers {denied} to what its policy does not allow");
        let unrouted = status("GET", &[("host", host)])?;
        ensure!(unrouted == 404, "{host} answers {unrouted} to what no route matches");
    }
    Ok(())
}
