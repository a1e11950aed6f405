//! The memory of a sidecar in meshes of 10, 1,000 and 10,000 services, of which it uses 10.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::ensure;
use serde::Serialize;

use crate::{
    http,
    machine::{Core, Programs},
    mesh::{Member, Mesh, OUTBOUND},
    peers::Site,
};

/// `127.BLOCK.0.*` is ours.
const BLOCK: u8 = 133;
const SIZES: [usize; 3] = [10, 1000, 10_000];
const USED: usize = 10;
const SERVICES_IN_A_FILE: usize = 100;

/// Resident memory in KiB.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Services of the mesh.
    pub services: usize,
    /// Services that the sidecar asked for.
    pub used: usize,
    /// Before its first request.
    pub idle_kib: u64,
    /// After one request to each service that it uses.
    pub rss_kib: u64,
    /// Of it what no file backs; the rest is mostly the program's text.
    pub anonymous_kib: u64,
    /// The most that it ever had.
    pub peak_kib: u64,
}

/// A mesh of each size, one sidecar in it, and its calls.
pub fn measure(programs: &Programs, dir: &Path) -> anyhow::Result<Vec<Memory>> {
    SIZES.iter().map(|size| one(programs, &dir.join(size.to_string()), *size)).collect()
}

fn one(programs: &Programs, dir: &Path, services: usize) -> anyhow::Result<Memory> {
    fs::create_dir_all(dir)?;
    let (_backend, backend) = Site { dir, block: BLOCK, name: "" }.backend()?;
    let mesh = Mesh::start(programs, dir, BLOCK, Core::Load, &configuration(services, backend))?;
    let caller = Member::sidecar("caller-1", "bench", "caller", 11, backend);
    let sidecar = mesh.proxy(&caller)?;
    mesh.effective()?;
    let idle_kib = sidecar.rss_kib()?;
    let outbound = SocketAddr::new(mesh.ip(caller.host), OUTBOUND);
    for index in (0..services).step_by(services / USED) {
        let host = format!("{}.bench:8080", name(index));
        let answer = http::call(outbound, "GET", &format!("http://{host}/"), &[("host", &host)], "")?;
        ensure!(answer.status == 200, "{host} answers {}: {}", answer.status, answer.body);
    }
    let (rss_kib, anonymous_kib) = (sidecar.rss_kib()?, sidecar.anonymous_kib()?);
    Ok(Memory { services, used: USED, idle_kib, rss_kib, anonymous_kib, peak_kib: sidecar.peak_kib()? })
}

fn name(index: usize) -> String {
    format!("service-{index:05}")
}

fn configuration(services: usize, backend: SocketAddr) -> Vec<(String, String)> {
    let mut files = vec![("mesh.yaml".to_owned(), include_str!("../../bench/weft/mesh.yaml").to_owned())];
    let all: Vec<_> = (0..services).map(|index| service(index, backend)).collect();
    for (index, chunk) in all.chunks(SERVICES_IN_A_FILE).enumerate() {
        files.push((format!("services-{index}.yaml"), chunk.join("---\n")));
    }
    files
}

fn service(index: usize, backend: SocketAddr) -> String {
    let (name, ip, port) = (name(index), backend.ip(), backend.port());
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: bench }}\n\
         spec: {{ ports: [{{ name: http, port: 8080 }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: bench, labels: {{ kubernetes.io/service-name: {name} }} }}\n\
         addressType: IPv4\nendpoints: [{{ addresses: [\"{ip}\"] }}]\n\
         ports: [{{ name: http, port: {port} }}]\n"
    )
}
