//! Tales of what goes out of the mesh, and of what must not.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_to_a_host_outside_goes_as_it_came() {
    let app = App::start("collector").await;
    let front = sidecar("front").start().await;
    let request = |kind: &str| {
        let request = Request::post(format!("http://{}/version", app.address)).header("content-type", kind);
        request.body(Full::default()).unwrap()
    };
    let mut sender = over_h2(front.outbound).await;
    for (kind, version) in [("application/grpc", "HTTP/2.0"), ("text/plain", "HTTP/1.1")] {
        let answer = sender.send_request(request(kind)).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), version, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_of_the_mesh_does_not_leave_it_unheard() {
    let app = App::start("somebody").await;
    let front = sidecar("front").start().await;
    // The control plane never answers here.
    for host in ["ratings", "ratings.shop", "ratings.other.svc", "ratings.other.svc.cluster.local."] {
        let (status, told) = ask(front.outbound, Request::get(format!("http://{host}/"))).await;
        assert!(status == 503 && told.contains("unheard"), "{host}: {status} {told}");
    }
    let outside = Request::get(format!("http://{}/", app.address));
    assert_eq!(ask(front.outbound, outside).await, (200, "somebody".into()));
    let (status, told) = ask(front.outbound, Request::get("http://ratings.invalid/")).await;
    assert!(status == 502 && told.contains("no-such-host"), "{status} {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_to_be_encrypted_goes_in_plaintext() {
    let shop = Shop::open(1).await;
    let mut stream = TcpStream::connect(shop.front.outbound).await.unwrap();
    stream.write_all(b"GET https://reviews/ HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer, shop.requests()), (b"HTTP/1.1 400", 0));
}
