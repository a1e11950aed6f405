//! Requests over one hop and over a pair: Weft beside its peers, and the backend alone for orientation.
//!
//! Weft's side has two authorization rules at each proxy, a route that matches a header, metrics, an access log of
//! 1 % and the trace context passed on; nginx's has an access log of 1 %, too, the others' nothing at all.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::ensure;

use crate::{
    Bench, Part,
    compare::{ALONE, Comparison, Load, Unit, Way, rounds},
    http, load,
    machine::{Core, Running},
    mesh::{Member, Mesh, Role},
    paced,
    peers::{BODY, Site, Task},
};

/// `127.BLOCK.0.*` is ours.
const BLOCK: u8 = 130;
const GATEWAY_PORT: u16 = 8080;
const PLAIN_HOST: &str = "plain.bench.example";
const PAIR_HOST: &str = "pair.bench.example";
const H2_HOST: &str = "h2.bench.example";

/// Who carries the load, and where it enters.
struct Entry {
    name: &'static str,
    processes: Vec<Running>,
    at: SocketAddr,
    host: &'static str,
}

/// Measures those parts that are wanted.
pub fn measure(bench: &Bench, dir: &Path) -> anyhow::Result<Vec<Comparison>> {
    fs::create_dir_all(dir)?;
    let site = Site { dir, block: BLOCK, name: "" };
    site.certificates()?;
    let (backend, to) = site.backend()?;
    let h2_to = SocketAddr::new(to.ip(), 8082);
    let mesh = Mesh::start(&bench.programs, dir, BLOCK, Core::Load, &configuration(to))?;
    let sidecar = mesh.proxy(&Member::sidecar("pair-1", "bench", "pair", 11, to))?;
    let ingress = mesh.proxy(&Member::gateway("ingress-1", "ingress", 3, Role::Ingress))?;
    mesh.effective()?;
    let gateway = SocketAddr::new(mesh.ip(3), GATEWAY_PORT);
    guards(gateway)?;

    let peers = |task: Task, to: SocketAddr| -> anyhow::Result<Vec<Entry>> {
        let start = |peer| {
            let (process, at) = bench.peers.start(&site, peer, task, to)?;
            Ok(Entry { name: peer.name(), processes: vec![process], at, host: "bench" })
        };
        bench.peers.all().map(start).collect()
    };
    let pairs = || -> anyhow::Result<Vec<Entry>> {
        let start = |peer| {
            let (server, to) = bench.peers.start(&site, peer, Task::Server, to)?;
            let (client, at) = bench.peers.start(&site, peer, Task::Client, to)?;
            Ok(Entry { name: peer.name(), processes: vec![client, server], at, host: "bench" })
        };
        bench.peers.all().map(start).collect()
    };
    let compare = |entries: &[Entry], weft: (&'static str, &[&Running]), about: About, load: Loader| {
        let way = |name, processes, to, host: &'static str| Way {
            name,
            processes,
            load: Box::new(move |seconds| load(to, host, seconds)),
        };
        let direct = if about == H2 { h2_to } else { to };
        let mut ways = vec![way(ALONE, vec![&backend], direct, "bench")];
        let theirs = |entry: &Entry| (entry.at, entry.host, entry.name);
        for entry in entries {
            let (at, host, name) = theirs(entry);
            ways.push(way(name, entry.processes.iter().collect(), at, host));
        }
        ways.push(way("weft", weft.1.to_vec(), gateway, weft.0));
        // The load of HTTP/2 looks at the bytes of its answers itself.
        if about != H2 {
            entries.iter().map(theirs).try_for_each(|(at, host, name)| answers(at, host, name))?;
            answers(gateway, weft.0, "weft")?;
        }
        rounds((about.0, Unit::Request, about.1.to_owned()), &ways, bench.effort)
    };

    let mut all = Vec::new();
    if bench.wants(Part::Plain) {
        all.push(compare(&peers(Task::Plain, to)?, (PLAIN_HOST, &[&ingress]), PLAIN, load::h1)?);
    }
    if bench.wants(Part::H2) {
        all.push(compare(&peers(Task::H2, h2_to)?, (H2_HOST, &[&ingress]), H2, load::h2)?);
    }
    if bench.wants(Part::Mtls) || bench.wants(Part::Latency) {
        let (pairs, weft) = (pairs()?, [&ingress, &sidecar]);
        if bench.wants(Part::Mtls) {
            all.push(compare(&pairs, (PAIR_HOST, &weft), PAIR, load::h1)?);
        }
        if bench.wants(Part::Latency) {
            all.push(compare(&pairs, (PAIR_HOST, &weft), LATENCY, paced::run)?);
        }
    }
    Ok(all)
}

type Loader = fn(SocketAddr, &str, u32) -> anyhow::Result<Load>;

/// What the comparisons are called, and how they are loaded.
type About = (&'static str, &'static str);
const PLAIN: About = ("plain hop", "HTTP/1.1 kept alive on both sides, 64 connections, 1 KiB; `wrk`");
const H2: About = (
    "HTTP/2 hop",
    "HTTP/2 without TLS on both sides, 8 connections with 32 streams each, 1 KiB; `h2load`. nginx by `grpc_pass`",
);
const PAIR: About =
    ("mTLS pair", "two proxies with mutual TLS 1.3 between, both together; else as the plain hop");
const LATENCY: About = (
    "mTLS pair at a fixed rate",
    "2,000 requests/s over 32 connections, open loop: latency counts from the time at which a request was due",
);

fn configuration(backend: SocketAddr) -> Vec<(String, String)> {
    let files = [
        ("mesh.yaml", include_str!("../../bench/weft/mesh.yaml")),
        ("plain.yaml", include_str!("../../bench/weft/plain.yaml")),
        ("pair.yaml", include_str!("../../bench/weft/pair.yaml")),
        ("h2.yaml", include_str!("../../bench/weft/h2.yaml")),
    ];
    let backend = backend.ip().to_string();
    files.map(|(name, text)| (name.to_owned(), text.replace("@BACKEND_IP@", &backend))).into()
}

/// A fast proxy that guards nothing would be no feat: what the rules and routes do not name must not pass.
fn guards(gateway: SocketAddr) -> anyhow::Result<()> {
    for host in [PLAIN_HOST, PAIR_HOST, H2_HOST] {
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

/// What is measured must be the real thing.
fn answers(to: SocketAddr, host: &str, name: &str) -> anyhow::Result<()> {
    let headers: Vec<_> = [("host", host)].into_iter().chain(load::HEADERS).collect();
    let answer = http::call(to, "GET", "/item", &headers, "")?;
    let len = answer.body.len();
    ensure!(answer.status == 200 && len == BODY, "{name} answers {} with {len} bytes", answer.status);
    Ok(())
}
