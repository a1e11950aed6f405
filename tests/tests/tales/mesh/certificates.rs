//! Who may not speak to an application: no byte of theirs reaches it, and the log says why.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::identity::UnixTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_tests::harness::{
    Mesh, Stranger, eventually, logs,
    stranger::{Forge, at},
    up::Workload,
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(10);
const REVIEWS: &str = "spiffe://shop.example/ns/shop/sa/reviews";

/// A workload whose application counts the bytes that reach it.
struct Guarded<'a> {
    mesh: &'a Mesh,
    workload: Workload,
    sni: String,
    bytes: Arc<AtomicUsize>,
}

#[tokio::test(flavor = "multi_thread")]
async fn only_good_certificates_reach_an_application() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    // A namespace that east may vouch for and west may not.
    let members = mesh.repository().read("clusters/members.yaml");
    let members =
        members.replacen("[\"shop\", \"weft-system\"]", "[\"shop\", \"weft-system\", \"payments\"]", 1);
    mesh.repository().write("clusters/members.yaml", &members);
    mesh.commit("east may vouch for payments").await;

    let guarded = Guarded::new(&mesh, "east-ratings-1").await;
    let east = Forge::stolen(&mesh.dir().join("east/controlplane"));
    let west = Forge::stolen(&mesh.dir().join("west/controlplane"));
    let other = Forge::counterfeit("shop.example", "east");
    let hour_ago = at(UnixTime::now().as_secs() - 3600);

    guarded.lets_in("a good certificate of east", &east.good(REVIEWS)).await;
    guarded.lets_in("a good certificate of west", &west.good(REVIEWS)).await;

    let refuse = async |what: &str, stranger: Stranger, reason: &str| {
        guarded.refuses(what, &stranger, reason).await;
        guarded.lets_in("a good certificate afterwards", &east.good(REVIEWS)).await;
    };
    refuse("no certificate", Stranger::bare(), "presented no certificate").await;
    refuse("another root", other.good(REVIEWS), "does not lead to a root").await;
    let mut spec = east.spec(REVIEWS);
    spec.uris.push("spiffe://shop.example/ns/shop/sa/front".into());
    refuse("two URI SANs", east.stranger(&spec, |chain| chain), "has 2 URI subject alternative names").await;
    let mut spec = east.spec(REVIEWS);
    (spec.not_before, spec.not_after) = (at(hour_ago.as_secs() - 3600), hour_ago);
    refuse("an expired one", east.stranger(&spec, |chain| chain), "expired").await;
    let foreign = east.good("spiffe://other.example/ns/shop/sa/reviews");
    refuse("another trust domain", foreign, "of the trust domain `other.example`").await;
    let unvouched = east.good("spiffe://shop.example/ns/unknown/sa/reviews");
    refuse("a namespace of nobody's", unvouched, "may not vouch for namespace `unknown`").await;

    // What a chain is padded with plays no part, wherever it stands in it.
    let payments = west.spec("spiffe://shop.example/ns/payments/sa/till");
    let reason = "cluster `west` may not vouch for namespace `payments`";
    refuse("a leaf of west for east's namespace", west.stranger(&payments, |chain| chain), reason).await;
    for place in [1, 2] {
        let padded = west.stranger(&payments, |mut chain| {
            chain.insert(place, east.certificate());
            chain
        });
        refuse("the same, padded with east's intermediate", padded, reason).await;
    }
    let padded = other.stranger(&other.spec(REVIEWS), |mut chain| {
        chain.push(east.certificate());
        chain
    });
    refuse("a counterfeit, padded with east's intermediate", padded, "does not lead to a root").await;
    guarded.refuses_in_the_clear().await;

    a_session_ends_with_its_issuer(&guarded, &west, &east).await;
}

/// West leaves the mesh: who has spoken before with a certificate of its intermediate is not believed any more, neither
/// on a new connection nor by way of the old session.
async fn a_session_ends_with_its_issuer(guarded: &Guarded<'_>, west: &Forge, east: &Forge) {
    let stranger = west.good(REVIEWS);
    guarded.lets_in("west while it is a member", &stranger).await;
    guarded.lets_in("west again, perhaps by its session", &stranger).await;
    let repository = guarded.mesh.repository();
    let members = repository.read("clusters/members.yaml");
    let east_alone = members.split("---\n").next().unwrap_or_default().to_owned();
    repository.write("clusters/members.yaml", &east_alone);
    repository.edit("gateways/ingress.yaml", "east,west", "east");
    repository.commit("west is no member any more").await;
    eventually("the sidecar hears that west is gone", SOON, async || {
        let bundle = guarded.mesh.runtime(&guarded.workload.admin).await["bundle"].take();
        let clusters = bundle["clusters"].as_array().cloned().unwrap_or_default();
        if clusters.iter().any(|one| one == "west") { Err(bundle.to_string()) } else { Ok(()) }
    })
    .await;
    let visit = stranger.visit(&guarded.workload.address, &guarded.sni, "/ratings").await;
    assert!(visit.answer.is_err() && !visit.resumed, "west's session lives on: {visit:?}");
    guarded.refuses("a session of west's", &stranger, "is not a member of this mesh").await;
    guarded.lets_in("a good certificate afterwards", &east.good(REVIEWS)).await;
}

impl<'a> Guarded<'a> {
    /// The test takes the application's place.
    async fn new(mesh: &'a Mesh, id: &str) -> Self {
        let workload = mesh.workload(id);
        mesh.kill(workload.pid);
        let listener = eventually("the application's port is free", SOON, async || {
            TcpListener::bind(&workload.app).await.map_err(|error| error.to_string())
        })
        .await;
        let bytes: Arc<AtomicUsize> = Arc::default();
        tokio::spawn(count(listener, bytes.clone()));
        let runtime = mesh.runtime(&workload.admin).await;
        let endpoint =
            runtime["runtime"]["inbound"][0]["endpoint"].as_str().expect("an endpoint's id").to_owned();
        let guarded = Guarded { mesh, workload, sni: format!("{endpoint}.ep.weft.internal"), bytes };
        let good = Forge::stolen(&mesh.dir().join("east/controlplane")).good(REVIEWS);
        eventually("the sidecar sees that the application is back", SOON, async || {
            match good.visit(&guarded.workload.address, &guarded.sni, "/ratings").await.answer {
                Ok(200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        guarded
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    async fn lets_in(&self, what: &str, stranger: &Stranger) {
        let before = self.bytes();
        let visit = stranger.visit(&self.workload.address, &self.sni, "/ratings").await;
        assert_eq!(visit.answer.as_ref().ok(), Some(&200), "{what}: {visit:?}");
        assert!(self.bytes() > before, "{what}: no byte reached the application");
    }

    async fn refuses(&self, what: &str, stranger: &Stranger, reason: &str) {
        let before = self.bytes();
        let said = self.count(reason);
        // Of many refusals in one second only the first are logged, so it tries again.
        eventually(&format!("the log names the reason for {what}"), SOON, async || {
            let visit = stranger.visit(&self.workload.address, &self.sni, "/ratings").await;
            assert!(visit.answer.is_err(), "{what} is let in: {visit:?}");
            if self.count(reason) > said { Ok(()) } else { Err(self.refusals().join("\n")) }
        })
        .await;
        assert_eq!(self.bytes(), before, "{what}: bytes reached the application");
    }

    fn count(&self, reason: &str) -> usize {
        self.refusals().iter().filter(|said| said.contains(reason)).count()
    }

    fn refusals(&self) -> Vec<String> {
        let events = logs::events(&self.workload.dir.join("sidecar"));
        events.iter().filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect()
    }

    /// A request without TLS.
    async fn refuses_in_the_clear(&self) {
        let before = self.bytes();
        eventually("the log names the reason for plaintext", SOON, async || {
            let mut heard = Vec::new();
            let mut stream = TcpStream::connect(&self.workload.address).await.unwrap();
            let request = b"GET /ratings HTTP/1.1\r\nhost: ratings:8080\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut heard)).await.expect("it is closed");
            assert_eq!(heard, b"", "plaintext is answered");
            let said = self.count("plaintext where every port is STRICT");
            if said > 0 { Ok(()) } else { Err(self.refusals().join("\n")) }
        })
        .await;
        assert_eq!(self.bytes(), before, "bytes in the clear reached the application");
    }
}

/// An application that answers everything and counts what reaches it.
async fn count(listener: TcpListener, bytes: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let bytes = bytes.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            let mut head = Vec::new();
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                bytes.fetch_add(read, Ordering::SeqCst);
                head.extend_from_slice(&buffer[..read]);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}
