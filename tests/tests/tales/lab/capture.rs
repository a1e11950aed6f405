//! Applications that know nothing of the mesh, on hosts whose traffic is captured.

use std::{io, net::IpAddr, path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use weft_tests::{
    harness::{eventually, logs},
    lab::{
        Host, Mesh, SOON, User, answers,
        mesh::{Workload, name_yourself},
    },
};

/// Longer than anything in the mesh may take.
const LIMIT: Duration = Duration::from_secs(10);

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"fd00:96::10\"]
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: store, namespace: shop }
spec:
  selector: { app: store }
  clusterIP: 10.96.0.20
  ports: [{ name: db, port: 3306, appProtocol: tcp }, { name: any, port: 7000 }]
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: { name: store, namespace: shop }
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: store, namespace: shop }
spec:
  targetRefs: [{ group: \"\", kind: Service, name: store }]
  action: ALLOW
  rules: [{ name: front, when: 'source.serviceAccount == \"front\"' }]
";

/// Who answers a request to an address, as any client would send it.
async fn get(host: &Host, address: &str) -> Result<String, String> {
    host.get(address, "/").await
}

/// A server that speaks first, and gives back in capitals what it was told, once it was told all.
fn banner(host: &Host, port: u16) {
    let (name, address) = (host.name().to_owned(), host.addresses.v4);
    host.keep(move || async move {
        let listener = TcpListener::bind((address, port)).await.expect("the host is new");
        while let Ok((mut stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::task::spawn_local(async move {
                let talk = async {
                    stream.write_all(format!("welcome to {name}\n").as_bytes()).await?;
                    let mut said = String::new();
                    stream.read_to_string(&mut said).await?;
                    stream.write_all(said.to_uppercase().as_bytes()).await?;
                    stream.shutdown().await
                };
                let _: io::Result<()> = talk.await;
            });
        }
    });
}

/// What a server says that speaks first; then what it says to `words`, sent before this end is closed.
async fn talk(host: &Host, address: &str, words: &'static str) -> io::Result<String> {
    let address = address.to_owned();
    host.run(move || async move {
        let talk = async {
            let mut stream = TcpStream::connect(address).await?;
            let mut said = vec![0; 7];
            stream.read_exact(&mut said).await?;
            stream.write_all(words.as_bytes()).await?;
            stream.shutdown().await?;
            stream.read_to_end(&mut said).await?;
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        timeout(LIMIT, talk).await?
    })
    .await
}

async fn front(mesh: &mut Mesh) -> String {
    let front = Workload::of("front").captured(json!({ "excludeOutboundPorts": [9000] }));
    mesh.workload("east", &front, |_| {}).await
}

/// Waits until somebody answers at an address.
async fn answered(host: &Host, address: &str, who: &str) {
    answers(who, async || get(host, address).await).await;
}

#[tokio::test]
async fn an_unmodified_client_reaches_a_service_by_its_address() {
    let mut mesh = Mesh::up(SHOP).await;
    let web = Workload::of("web").serving(8080).captured(json!({ "excludeInboundPorts": [9000] }));
    let near = mesh.workload("east", &web, |host| name_yourself(host, 8080)).await;
    mesh.workload("west", &web, |host| name_yourself(host, 8080)).await;
    let front = front(&mut mesh).await;
    let stranger = mesh.lab.host("east", "stranger").name().to_owned();
    let (front, stranger) = (&mesh.lab[&front], &mesh.lab[&stranger]);
    let (address, address6) = (mesh.lab[&near].addresses.v4, mesh.lab[&near].addresses.v6);

    answered(front, "10.96.0.10:80", &near).await;
    assert_eq!(get(front, "[fd00:96::10]:80").await, Ok(near.clone()), "by its other address");
    assert_eq!(
        get(front, &format!("{address}:8080")).await,
        Ok(near.clone()),
        "by its endpoint's own address"
    );

    // All that came was the front's, over mTLS; who is no member is not let in.
    let lines = eventually("the requests are told of", SOON, async || {
        let lines = logs::access(&mesh.dir(&near).join("proxy"));
        if lines.len() >= 3 { Ok(lines) } else { Err(format!("{} are", lines.len())) }
    })
    .await;
    for line in lines {
        assert_eq!(line.get("source"), "spiffe://lab.example/ns/shop/sa/front", "{line:?}");
    }
    for address in [format!("{address}:8080"), format!("[{address6}]:8080")] {
        assert!(get(stranger, &address).await.is_err(), "plaintext at {address}, where mTLS is STRICT");
    }

    // What is left alone is reached as if there were no mesh.
    name_yourself(&mesh.lab[&near], 9000);
    answered(stranger, &format!("{address}:9000"), &near).await;
    assert_eq!(get(stranger, &format!("[{address6}]:9000")).await, Ok(near.clone()));
    assert_eq!(get(front, &format!("{address}:9000")).await, Ok(near.clone()));

    front.knows("west-web-1").await;
    let cut = mesh.lab.partition(front.name(), &near).reject();
    assert_eq!(get(front, "10.96.0.10:80").await.as_deref(), Ok("west-web-1"), "fails over as ever");
    cut.heal();
}

#[tokio::test]
async fn what_no_one_knows_is_passed_on_unless_only_the_known_may_be_called() {
    let mut mesh = Mesh::up(SHOP).await;
    let [outside, spared] = ["outside", "spared"].map(|name| mesh.lab.host("west", name).name().to_owned());
    mesh.lab.public(&outside);
    mesh.lab.public(&spared);
    let alone = format!("{}/32", mesh.lab[&spared].addresses.v4);
    let settings = json!({ "excludeOutboundPorts": [9000], "excludeAddresses": [alone] });
    let front = mesh.workload("east", &Workload::of("front").captured(settings), |_| {}).await;
    let (front, outside, spared) = (&mesh.lab[&front], &mesh.lab[&outside], &mesh.lab[&spared]);
    name_yourself(outside, 80);
    banner(outside, 25);
    let address = IpAddr::from(outside.addresses.v4);

    answered(front, &format!("{address}:80"), "outside").await;
    assert_eq!(talk(front, &format!("{address}:25"), "ehlo").await.unwrap(), "welcome to outside\nEHLO");

    mesh.repository().edit("mesh.yaml", "lab.example }", "lab.example, outbound: REGISTRY_ONLY }");
    mesh.commit("Only the known may be called").await;
    assert!(get(front, &format!("{address}:80")).await.unwrap_err().starts_with("502"), "HTTP is answered");
    let refused = talk(front, &format!("{address}:25"), "ehlo").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset, "the rest is told at once");

    // What is left alone is not asked about: by its port, by its address, and names of hosts over either protocol.
    name_yourself(outside, 9000);
    answered(front, &format!("{address}:9000"), "outside").await;
    name_yourself(spared, 80);
    answered(front, &format!("{}:80", spared.addresses.v4), "spared").await;
    banner(outside, 53);
    assert_eq!(talk(front, &format!("{address}:53"), "who").await.unwrap(), "welcome to outside\nWHO");
    outside.keep(move || async move {
        let socket = UdpSocket::bind((address, 53)).await.expect("the host is new");
        let mut asked = [0; 16];
        while let Ok((length, who)) = socket.recv_from(&mut asked).await {
            let _ = socket.send_to(&asked[..length], who).await;
        }
    });
    answers("who?", async || {
        let asked = front.run(move || async move {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).await?;
            socket.send_to(b"who?", (address, 53)).await?;
            let mut answer = [0; 16];
            let length = timeout(Duration::from_millis(500), socket.recv(&mut answer)).await??;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        });
        asked.await.map_err(|error: io::Error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_reached_through_mtls_from_another_cluster() {
    let mut mesh = Mesh::up(SHOP).await;
    let store = Workload::of("store").serving(3306).serving(7000);
    let far = mesh
        .workload("west", &store, |host| {
            banner(host, 3306);
            banner(host, 7000);
        })
        .await;
    let front = front(&mut mesh).await;
    let other = mesh.workload("east", &Workload::of("other").captured(json!({})), |_| {}).await;
    let (front, other) = (&mesh.lab[&front], &mesh.lab[&other]);

    let welcome = format!("welcome to {far}\nSELECT 1");
    for port in [3306, 7000] {
        let address = format!("10.96.0.20:{port}");
        eventually("the store answers", SOON, async || match talk(front, &address, "select 1").await {
            Ok(said) if said == welcome => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert!(talk(other, "10.96.0.20:3306", "select 1").await.is_err(), "it is denied to others");

    let log = mesh.dir(&far).join("proxy");
    let told = async |source: &str| {
        let wanted = format!("spiffe://lab.example/ns/shop/sa/{source}");
        eventually("the connection is told of", SOON, async || {
            let found = logs::access(&log).into_iter().rev().find(|line| line.get("source") == wanted);
            found.ok_or_else(|| format!("no line of {source}"))
        })
        .await
    };
    let (allowed, denied) = (told("front").await, told("other").await);
    assert_eq!((allowed.get("protocol"), allowed.get("mtls")), ("tcp".into(), "true".into()), "{allowed:?}");
    assert_eq!((allowed.get("bytesIn"), allowed.get("flag")), ("8".into(), String::new()), "{allowed:?}");
    assert_eq!(allowed.get("policy"), "shop/store", "{allowed:?}");
    assert_eq!(denied.get("flag"), "denied", "{denied:?}");
}

fn rules(host: &Host) -> String {
    let output = host.command(User::Root, Path::new("nft")).args(["list", "ruleset"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_rules_of_capture_are_one_table_that_comes_and_goes_as_a_whole() {
    let mut mesh = Mesh::up(SHOP).await;
    let front = front(&mut mesh).await;
    let host = &mesh.lab[&front];
    let first = rules(host);
    assert!(first.contains("redirect to :15001") && first.contains("redirect to :15006"), "{first}");

    let config = mesh.dir(&front).join("proxy/config.json");
    let capture = |args: &[&str]| {
        let proxy = weft_tests::harness::weft().unwrap().with_file_name("weft-proxy");
        host.command(User::Plain, &proxy).args(["capture"]).args(args).output().unwrap()
    };
    let refused = String::from_utf8(capture(&["remove"]).stderr).unwrap();
    assert!(refused.contains("CAP_NET_ADMIN"), "{refused}");

    let root = |args: &[&str]| {
        let proxy = weft_tests::harness::weft().unwrap().with_file_name("weft-proxy");
        let done = host.command(User::Root, &proxy).args(["capture"]).args(args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    root(&["install", "--config", config.to_str().unwrap()]);
    assert_eq!(rules(host).matches("table inet weft").count(), 1, "once more is once");
    root(&["remove"]);
    root(&["remove"]);
    assert_eq!(rules(host), "");

    root(&["install", "--config", config.to_str().unwrap()]);
    host.end(Signal::SIGTERM).await;
    assert_eq!(rules(host), "", "they end with the proxy");
}
