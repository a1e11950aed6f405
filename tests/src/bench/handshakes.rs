//! New connections of mutual TLS at a server's half, and connections of a client that has been there before. The servers
//! of the first give no session tickets, since nobody would come back with one.
//!
//! Weft resumes no session: each connection is verified against what is trusted now. So its part of the second table is
//! a full handshake beside the others' resumed ones, which is what that rule costs.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Context;
use api::{identity::SpiffeId, name::ClusterName};
use process::tls::{self, Expect};

use crate::{
    Bench, Part,
    compare::{Comparison, Unit, Way, rounds},
    machine::{Core, Running},
    mesh::{INBOUND, Member, Mesh},
    peers::{Site, Task},
    shakes::{self, Client},
    swarm::{Stand, Swarm},
};

/// `127.BLOCK.0.*` is ours.
const BLOCK: u8 = 132;
/// As the mesh calls the sidecar's port.
const NAME: &str = "8080.pair.bench.svc.weft.internal";

/// Measures those parts that are wanted.
pub fn measure(bench: &Bench, dir: &Path) -> anyhow::Result<Vec<Comparison>> {
    fs::create_dir_all(dir)?;
    let site = Site { dir, block: BLOCK, name: "" };
    site.certificates()?;
    let (_backend, to) = site.backend()?;
    let mesh = Mesh::start(&bench.programs, dir, BLOCK, Core::Load, &configuration(to))?;
    let sidecar = mesh.proxy(&Member::sidecar("pair-1", "bench", "pair", 11, to))?;
    let elsewhere = SocketAddr::new(mesh.ip(12), INBOUND);
    let caller = Stand { id: "caller-1".into(), account: "other".into(), address: elsewhere };
    let swarm = Swarm::start(&mesh, &dir.join("swarm"), vec![caller])?;
    mesh.effective()?;
    let inbound = SocketAddr::new(mesh.ip(11), INBOUND);
    let ours = caller_of(&swarm)?;
    let compare = |title, task| {
        let mut servers = Vec::new();
        for peer in bench.peers.all() {
            let (process, at) = bench.peers.start(&site, peer, task, to)?;
            servers.push((peer.name(), process, at));
        }
        let resumed = task == Task::Server;
        let theirs = Client::of_peers(dir, resumed)?;
        let way = |name, process, at, client| {
            let client: &Client = client;
            Way { name, processes: vec![process], load: Box::new(move |seconds| client.run(at, seconds)) }
        };
        let mut ways: Vec<_> = servers
            .iter()
            .map(|(name, process, at): &(_, Running, _)| way(name, process, *at, &theirs))
            .collect();
        ways.push(way("weft", &sidecar, inbound, &ours));
        let note = format!(
            "{} at a time, each with one request of HTTP/1.1; ECDSA P-256 on both sides, X25519{}",
            shakes::CONNECTIONS,
            if resumed { "; the others resume, Weft never does" } else { "; no session tickets" }
        );
        rounds((title, Unit::Connection, note), &ways, bench.effort)
    };
    let mut all = Vec::new();
    if bench.wants(Part::Handshakes) {
        all.push(compare("new handshakes", Task::Handshakes)?);
    }
    if bench.wants(Part::Resumed) {
        all.push(compare("known clients", Task::Server)?);
    }
    Ok(all)
}

/// What the workload `caller-1` would ask the sidecar by.
fn caller_of(swarm: &Swarm) -> anyhow::Result<Client> {
    let proxy = swarm.proxies.first().context("nobody has enrolled")?;
    let id: SpiffeId = "spiffe://bench.example/ns/bench/sa/pair".parse()?;
    let cluster: ClusterName = "east".parse()?;
    let expect = Expect { ids: vec![id], cluster: Some(cluster) };
    let config = tls::client(&proxy.identity, expect, &["http/1.1"]);
    Ok(Client { config, name: NAME.into(), resumed: false })
}

fn configuration(backend: SocketAddr) -> Vec<(String, String)> {
    let files = [
        ("mesh.yaml", include_str!("../../bench/weft/mesh.yaml")),
        ("pair.yaml", include_str!("../../bench/weft/pair.yaml")),
    ];
    let backend = backend.ip().to_string();
    files.map(|(name, text)| (name.to_owned(), text.replace("@BACKEND_IP@", &backend))).into()
}
