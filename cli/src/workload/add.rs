//! `weft workload add`: one more workload, in the foreground: a token from its own cluster, the application, a sidecar.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use api::{
    admin::Token,
    name::{ClusterName, Namespace, ObjectName, ServiceAccount, WorkloadId},
};
use clap::Args;
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::{
    local::Member,
    spec::Spec,
    start,
    stop::{deregister, end},
};
use crate::{
    client::Client,
    descriptor,
    mesh::Mesh,
    output::{Output, print},
    pid::Pid,
    process::Process,
    progress::Progress,
    token::pair,
};

/// How long an application may take until it listens; then the sidecar starts all the same, and asks it itself.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const PROXIES_PORT: u16 = 15012;

/// Add a workload of a service: its application beside a sidecar of its own
///
/// Gets a token from the cluster itself, starts COMMAND with PORT (where it has to listen) and http_proxy (its
/// sidecar), and serves as one more endpoint of the service. Stays in the foreground; SIGTERM or Ctrl-C drains it and
/// takes it out of the mesh.
#[derive(Args)]
#[command(after_help = "Examples:
  weft workload add --cluster west --namespace shop --service reviews --address 127.77.0.9 -- ./reviews
  weft workload add --cluster east --namespace shop --service ratings --address 127.77.0.10 \\
       -- weft sample-service --name ratings --version v2 --cluster east")]
pub(crate) struct Add {
    /// The cluster that it joins
    #[arg(long)]
    cluster: ClusterName,
    /// Its namespace
    #[arg(long)]
    namespace: Namespace,
    /// The service that it is an endpoint of: its label `app`
    #[arg(long)]
    service: ObjectName,
    /// An address of this machine that is its own
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// Its version: the label `version`
    #[arg(long, default_value = "v1")]
    version: String,
    /// Its id; otherwise made of cluster, service and address
    #[arg(long)]
    id: Option<WorkloadId>,
    /// Its service account; otherwise the service's name
    #[arg(long)]
    service_account: Option<ServiceAccount>,
    /// The port that the service names as its targetPort
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A further label
    #[arg(long = "label", value_parser = pair, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// Holds its state; otherwise a directory in that of the `weft up`, or ./ID
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the cluster's control plane listens for proxies; otherwise port 15012 beside its API
    #[arg(long, value_name = "IP:PORT")]
    control_plane: Option<String>,
    /// The application
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(add: Add, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let client = mesh.client(Some(&add.cluster))?;
    let mut spec = spec(add, mesh, &client)?;
    for dir in [spec.app_dir(), spec.sidecar_dir()] {
        ensure!(Pid::read(&dir).is_none(), "{0} runs already: `weft workload stop {0}` ends it", spec.id);
    }
    let mut children = Vec::new();
    let done = serve(&mut spec, &client, &mut children, output).await;

    let progress = Progress::new();
    progress.at(&format!("draining {} …", spec.id));
    let ended = end(&member(&spec), Some(&spec)).await;
    children.iter_mut().for_each(|child| drop(child.try_wait()));
    if let Err(error) = deregister(&client, &spec.id).await {
        eprintln!("weft: {} could not be taken out of the registry now, its lease will: {error}", spec.id);
    }
    let done = done?;
    ended.map(|()| done)
}

fn member(spec: &Spec) -> Member {
    Member { proxy: spec.sidecar(), request: spec.token_request() }
}

fn spec(add: Add, mesh: &Mesh, client: &Client) -> anyhow::Result<Spec> {
    let id = match add.id {
        Some(id) => id,
        None => {
            let address = add.address.to_string().replace(['.', ':'], "-");
            format!("{}-{}-{address}", add.cluster, add.service).parse()?
        }
    };
    let dir = match (add.dir, &mesh.up) {
        (Some(dir), _) => dir,
        (None, Some(up)) => descriptor::workload_dir(&up.dir, &add.cluster, &id),
        (None, None) => PathBuf::from(id.as_str()),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let host = client.address().rsplit_once(':').map_or(client.address(), |(host, _)| host);
    let mut labels = BTreeMap::from([
        ("app".to_owned(), add.service.to_string()),
        ("version".to_owned(), add.version.clone()),
    ]);
    labels.extend(add.labels);
    Ok(Spec {
        dir: dir.canonicalize()?,
        id,
        cluster: add.cluster,
        namespace: add.namespace,
        service_account: match add.service_account {
            Some(account) => account,
            None => add.service.as_str().parse()?,
        },
        service: add.service,
        version: add.version,
        labels,
        ip: add.address,
        port: add.port,
        app: SocketAddr::new(add.address, free_port()?),
        command: add.command,
        cwd: Some(std::env::current_dir().context("the current directory is gone")?),
        control_plane: add.control_plane.unwrap_or_else(|| format!("{host}:{PROXIES_PORT}")),
        trace: None,
    })
}

/// A port that is free on every address, since an application may well bind to all of them.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// Starts both and lives until one ends or a signal comes. What was started is in `children`, also on failure.
async fn serve(
    spec: &mut Spec,
    client: &Client,
    children: &mut Vec<Child>,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        done = start_and_watch(spec, client, children, output) => done,
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = hangup.recv() => Ok(ExitCode::SUCCESS),
    }
}

async fn start_and_watch(
    spec: &mut Spec,
    client: &Client,
    children: &mut Vec<Child>,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mut ended = signal(SignalKind::child())?;
    let progress = Progress::new();
    progress.at(&format!("starting {} …", spec.id));
    let token: Token = client.post("/tokens", &spec.token_request()).await?;
    let app = Process { foreground: true, ..spec.app_process()? };
    children.push(app.spawn()?);
    spec.app = listening(spec.app, &mut children[0]).await?;
    spec.write()?;
    let sidecar = spec.sidecar();
    sidecar.give_token(&token.token)?;
    children.push(sidecar.prepare()?.spawn()?);
    start::ready(&member(spec), Some(spec)).await?;
    drop(progress);

    let workload = spec.describe();
    if output.is_json() {
        print(&serde_json::to_string(&workload)?)?;
    } else {
        eprintln!("weft: {} serves {}/{} at {}", spec.id, spec.namespace, spec.service, workload.address);
    }
    loop {
        if let Some(status) = children[0].try_wait()? {
            return Ok(exit_code(status));
        }
        if let Some(status) = children[1].try_wait()? {
            bail!("the sidecar of {} ended ({status}): see {}", spec.id, spec.sidecar_dir().display());
        }
        ended.recv().await;
    }
}

/// Where the application listens: on its own address, or on 127.0.0.1 as many do unless told otherwise.
async fn listening(app: SocketAddr, child: &mut Child) -> anyhow::Result<SocketAddr> {
    let everyones = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), app.port());
    let deadline = Instant::now() + LISTEN_LIMIT;
    loop {
        for address in [app, everyones] {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(address);
            }
        }
        if let Some(status) = child.try_wait()? {
            bail!("the application ended ({status}) before it listened on port {} (PORT)", app.port());
        }
        if Instant::now() >= deadline {
            eprintln!("weft: the application does not listen on port {} (PORT) yet", app.port());
            return Ok(app);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The application's own status; 128 and the signal's number when it was killed, as shells say it.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
