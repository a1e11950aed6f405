//! The backend and the peers: nginx with one worker each, as `tests/bench/nginx/*.conf` say.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use crate::{
    http,
    machine::{Core, Running, output, pinned},
};

/// Bytes of every answer.
pub const BODY: usize = 1024;

const START: Duration = Duration::from_secs(10);
const CERTIFICATE_NAME: &str = "bench.weft.internal";

/// Who listens where.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The backend.
    pub backend: SocketAddr,
    /// The plain hop.
    pub plain: SocketAddr,
    /// The pair's first half.
    pub client: SocketAddr,
    /// The pair's second half.
    pub server: SocketAddr,
}

/// The backend, on the load's core.
pub fn backend(dir: &Path, places: &Places) -> anyhow::Result<Running> {
    start("backend", include_str!("../../bench/nginx/backend.conf"), Core::Load, dir, places, places.backend)
}

/// The peer of the plain hop.
pub fn plain(dir: &Path, places: &Places) -> anyhow::Result<Running> {
    start("plain", include_str!("../../bench/nginx/plain.conf"), Core::Proxies, dir, places, places.plain)
}

/// The peer of the mTLS pair: client's half and server's half.
pub fn pair(dir: &Path, places: &Places) -> anyhow::Result<[Running; 2]> {
    certificates(dir)?;
    let server = start(
        "server",
        include_str!("../../bench/nginx/server.conf"),
        Core::Proxies,
        dir,
        places,
        places.server,
    )?;
    let client = start(
        "client",
        include_str!("../../bench/nginx/client.conf"),
        Core::Proxies,
        dir,
        places,
        places.client,
    )?;
    Ok([client, server])
}

fn start(
    name: &str,
    template: &str,
    core: Core,
    dir: &Path,
    places: &Places,
    listens: SocketAddr,
) -> anyhow::Result<Running> {
    let text = template
        .replace("@DIR@", &dir.display().to_string())
        .replace("@BODY@", &"x".repeat(BODY))
        .replace("@BACKEND@", &places.backend.to_string())
        .replace("@PLAIN@", &places.plain.to_string())
        .replace("@CLIENT@", &places.client.to_string())
        .replace("@SERVER@", &places.server.to_string());
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, text)?;
    let mut command = pinned(core, "nginx");
    command.arg("-p").arg(dir).arg("-e").arg(dir.join(format!("{name}.error.log"))).arg("-c").arg(&file);
    let mut running = Running::start(&format!("nginx ({name})"), command, &dir.join(format!("{name}.log")))?;
    running.wait(START, || http::call(listens, "GET", "/", &[("host", "bench")], "").is_ok())?;
    Ok(running)
}

/// A root and one P-256 leaf for both halves.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    let openssl = |args: &str| {
        let mut command = Command::new("openssl");
        output(command.args(args.split(' ')).current_dir(dir)).map(drop)
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout root.key -out root.pem -days 2 -subj /CN=root"))?;
    openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN={CERTIFICATE_NAME}"))?;
    fs::write(dir.join("leaf.ext"), format!("subjectAltName=DNS:{CERTIFICATE_NAME}\n"))?;
    openssl(
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    )
}
