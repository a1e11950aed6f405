//! What a process does when it has little left, and what it tells of itself.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use weft_tests::harness::{Client, Mesh, eventually};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_bug_report_tells_of_every_process_and_holds_no_secret() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let file = mesh.dir().join("report.tar.gz");
    let said = mesh.weft(&["bug-report", "--file", file.to_str().unwrap()]).await;
    assert!(!said.contains("without"), "{said}");

    let report = unpacked(&file);
    let names: Vec<_> = report.iter().map(|(name, _)| name.as_str()).collect();
    for cluster in mesh.now().clusters {
        let proxies = cluster.workloads.iter().map(|one| one.id.as_str()).chain(["ingress", "eastwest"]);
        let runtimes = proxies.map(|proxy| format!("{}/{proxy}/runtime.json", cluster.name));
        let others = ["controlplane/status.json", "controlplane/log.txt", "controlplane/settings.json"]
            .map(|part| format!("{}/{part}", cluster.name));
        for part in runtimes.chain(others) {
            assert!(names.contains(&&*format!("weft-bug-report/{part}")), "{part} in {names:?}");
        }
    }

    let secrets = secrets(mesh.dir());
    assert!(secrets.len() > 60, "a token and a key of every proxy, and more: {}", secrets.len());
    for (from, secret) in &secrets {
        for (name, content) in &report {
            for shape in shapes(secret) {
                let found = content.windows(shape.len()).any(|window| window == shape);
                assert!(!found, "{name} holds what {} keeps", from.display());
            }
        }
    }
}

fn unpacked(file: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(file).unwrap()));
    let parts = archive.entries().unwrap().map(|part| {
        let (mut part, mut content) = (part.unwrap(), Vec::new());
        part.read_to_end(&mut content).unwrap();
        (part.path().unwrap().display().to_string(), content)
    });
    parts.collect()
}

/// Everything below the mesh's directory by which somebody could be somebody else.
fn secrets(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(secrets(&path));
        } else if name.ends_with(".key") || name.ends_with(".sealed") {
            found.push((path.clone(), fs::read(&path).unwrap()));
        } else if name == "token" || name.ends_with(".token") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(
                text.trim().split('.').filter(|part| part.len() > 8).map(|part| (path.clone(), part.into())),
            );
        } else if name.ends_with(".pem") {
            let key = PrivateKeyDer::from_pem_file(&path).unwrap();
            found.push((path.clone(), key.secret_der().to_vec()));
        } else if name == "console.url" {
            let url = fs::read_to_string(&path).unwrap();
            found.push((path.clone(), url.trim().rsplit('=').next().unwrap().into()));
        }
    }
    found
}

/// A secret as it is, in base64 wherever in a longer text it begins, and as hexadecimal digits.
fn shapes(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut shapes = vec![secret.to_vec()];
    for skipped in 0..3 {
        let whole = (secret.len() - skipped) / 3 * 3;
        let part = &secret[skipped..skipped + whole];
        shapes.push(BASE64_STANDARD_NO_PAD.encode(part).into());
        shapes.push(BASE64_URL_SAFE_NO_PAD.encode(part).into());
    }
    shapes.push(secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    shapes
}

/// A process that this test started.
struct Proxy(Child);

impl Proxy {
    /// SIGTERM.
    fn end(&self) -> Instant {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        Instant::now()
    }

    /// How it ends, and how long after it was told to.
    async fn ended(&mut self, told: Instant) -> (ExitStatus, Duration) {
        let ended = eventually("it ends", SOON, async || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        (ended.await, told.elapsed())
    }
}

/// Kills a process of the mesh, and waits until it has let go of all that it had.
async fn gone(mesh: &Mesh, pid: i32) {
    mesh.kill(pid);
    let (stat, threads) = (format!("/proc/{pid}/stat"), format!("/proc/{pid}/task"));
    let threads = || fs::read_dir(&threads).map_or(0, Iterator::count);
    eventually("it is gone", SOON, async || match fs::read_to_string(&stat) {
        Ok(stat) if !stat.contains(") Z ") || threads() > 1 => Err(stat),
        Ok(_) | Err(_) => Ok(()),
    })
    .await;
}

/// Ends a process of the mesh, and starts it by its settings as one whose end can be seen.
async fn own(mesh: &Mesh, pid: i32, program: &str, args: &[&str], config: &Path) -> Proxy {
    gone(mesh, pid).await;
    let program = Path::new(mesh.binary()).with_file_name(program);
    let log = fs::File::create(config.with_file_name("restarted.log")).unwrap();
    let mut command = Command::new(program);
    command.args(args).arg("--config").arg(config).current_dir(mesh.dir()).stdout(Stdio::null()).stderr(log);
    Proxy(command.spawn().unwrap())
}

/// The head of the answer to what is written word for word.
fn asked(address: &str, request: &[u8]) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request).unwrap();
    let head = head(&mut stream);
    (stream, head)
}

fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_sigterm_what_is_under_way_has_its_time_and_then_all_ends() {
    /// `drainSeconds`, unless it is set.
    const GRACE: Duration = Duration::from_secs(5);
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let cluster = mesh.cluster("east");
    let config = mesh.dir().join("east/ingress/config.json");
    let mut ingress = own(&mesh, cluster.gateway_pids.ingress, "weft-proxy", &[], &config).await;
    let client = mesh.ingress("east");
    eventually("the ingress is there again", SOON, async || match client.get("/").await {
        Ok(page) if page.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    let address = cluster.ingress.trim_start_matches("http://").to_owned();
    let begun = |what: &str, length: usize| {
        format!("{what} HTTP/1.1\r\nhost: shop\r\ncontent-length: {length}\r\n\r\n")
    };
    let (mut endless, head_of_it) = asked(&address, begun("GET /ticks", 0).as_bytes());
    assert!(head_of_it.starts_with("HTTP/1.1 200 "), "{head_of_it}");
    let mut order = TcpStream::connect(&address).unwrap();
    order.set_read_timeout(Some(SOON)).unwrap();
    order.write_all(begun("POST /orders", 40).as_bytes()).unwrap();
    order.write_all(&[b' '; 20]).unwrap();
    // Its head has been read once the next request is answered.
    assert_eq!(client.get("/").await.unwrap().status, 200);

    let told = ingress.end();
    eventually("nobody new is let in", SOON, async || match TcpStream::connect(&address) {
        Ok(_) => Err("it connects".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    order.write_all(&[b' '; 20]).unwrap();
    let answer = head(&mut order);
    assert!(
        answer.starts_with("HTTP/1.1 ") && !answer.starts_with("HTTP/1.1 5"),
        "it has its time: {answer}"
    );
    let (status, took) = ingress.ended(told).await;
    assert!(status.success(), "{status}");
    assert!(took < GRACE + Duration::from_secs(3), "{took:?}");
    let mut rest = Vec::new();
    let _ = endless.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "what never ends is broken off, and says so");

    // The control plane of many streams that never end.
    let config = mesh.dir().join("east/controlplane/config.json");
    let mut plane = own(&mesh, cluster.controlplane_pid, "weft", &["controlplane"], &config).await;
    eventually("the proxies are back", SOON, async || {
        let asked = mesh.try_weft(&["status", "--cluster", "east", "--output", "json"]).await;
        let status: api::admin::Status =
            serde_json::from_slice(&asked.stdout).map_err(|error| error.to_string())?;
        let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
        let here = east.proxies.iter().filter(|one| one.state == api::admin::ProxyState::Connected).count();
        if here >= 10 { Ok(()) } else { Err(format!("{here} are")) }
    })
    .await;
    let told = plane.end();
    let (status, took) = plane.ended(told).await;
    assert!(status.success(), "{status}");
    assert!(took < GRACE + Duration::from_secs(3), "{took:?}");
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_never_take_the_last_file_descriptors() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let workload = mesh.workload("east-ratings-1");
    gone(&mesh, workload.sidecar_pid).await;
    let proxy = Path::new(mesh.binary()).with_file_name("weft-proxy");
    let start = format!(
        "ulimit -n 256; exec {} --config {}/config.json 2>{}/restarted.log",
        proxy.display(),
        workload.dir.join("sidecar").display(),
        workload.dir.display()
    );
    let _proxy = Proxy(Command::new("bash").args(["-c", &start]).spawn().unwrap());
    let admin = async |path: &str| {
        let answer = Client::new(&workload.admin).get(path).await?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        if answer.status == 200 { Ok(body) } else { Err(body) }
    };
    eventually("the proxy is ready again", SOON, async || admin("/ready").await).await;

    // All that the proxy may have, and more.
    let address: std::net::SocketAddr = workload.address.parse().unwrap();
    let held: Vec<_> = (0..400).filter_map(|_| TcpStream::connect_timeout(&address, SOON).ok()).collect();
    assert!(held.len() > 128, "{} connections", held.len());
    let metrics = eventually("it refuses connections", SOON, async || {
        let metrics = admin("/metrics").await?;
        let refused = metric(&metrics, "weft_connections_refused_for_fds_total");
        if refused > 0.0 { Ok(metrics) } else { Err(format!("{refused} refused")) }
    })
    .await;
    assert_eq!(metric(&metrics, "process_max_fds"), 256.0);
    assert!(metric(&metrics, "process_open_fds") < 200.0, "{metrics}");
    drop(held);
    mesh.status_tells("east", "the proxy is connected", SOON, |status| {
        let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
        let proxy =
            east.proxies.iter().find(|one| one.workload.as_str() == "east-ratings-1").ok_or("no proxy")?;
        if proxy.state == api::admin::ProxyState::Connected {
            Ok(())
        } else {
            Err(format!("{:?}", proxy.state))
        }
    })
    .await;
}

fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
}
