//! The memory of a sidecar in a mesh of 1,000 services of which it uses 10.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::ensure;
use serde::Serialize;

use crate::{
    http,
    machine::Programs,
    mesh::{Member, Mesh, OUTBOUND},
    nginx::{self, Places},
};

/// `127.BLOCK.0.*` is ours.
const BLOCK: u8 = 192;
const SERVICES: usize = 1000;
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

/// Starts the mesh, one sidecar, and calls from it.
pub fn measure(programs: &Programs, dir: &Path) -> anyhow::Result<Memory> {
    fs::create_dir_all(dir)?;
    let backend = SocketAddr::new(Ipv4Addr::new(127, BLOCK, 0, 20).into(), 8080);
    let places = Places { backend, plain: backend, client: backend, server: backend };
    let _backend = nginx::backend(dir, &places)?;
    let mesh = Mesh::start(programs, dir, BLOCK, &configuration(backend))?;
    let caller =
        Member { id: "caller-1", namespace: "bench", account: "caller", host: 11, app: Some(backend) };
    let sidecar = mesh.proxy(&caller)?;
    mesh.effective()?;
    let idle_kib = sidecar.rss_kib()?;
    let outbound = SocketAddr::new(mesh.ip(caller.host), OUTBOUND);
    for index in (0..SERVICES).step_by(SERVICES / USED) {
        let host = format!("{}.bench:8080", name(index));
        let answer = http::call(outbound, "GET", &format!("http://{host}/"), &[("host", &host)], "")?;
        ensure!(answer.status == 200, "{host} answers {}: {}", answer.status, answer.body);
    }
    let (rss_kib, anonymous_kib) = (sidecar.rss_kib()?, sidecar.anonymous_kib()?);
    let peak_kib = sidecar.peak_kib()?;
    Ok(Memory { services: SERVICES, used: USED, idle_kib, rss_kib, anonymous_kib, peak_kib })
}

fn name(index: usize) -> String {
    format!("service-{index:04}")
}

fn configuration(backend: SocketAddr) -> Vec<(String, String)> {
    let mut files = vec![("mesh.yaml".to_owned(), include_str!("../../bench/weft/mesh.yaml").to_owned())];
    let all: Vec<_> = (0..SERVICES).map(|index| service(index, backend)).collect();
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
