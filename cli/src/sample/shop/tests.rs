//! The whole shop in one process: every service on a port of its own, and a proxy that knows them by host.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A service behind `listener`, calling the others through `proxy`.
fn serve(part: Part, listener: TcpListener, proxy: SocketAddr, orders: PathBuf) {
    let hop = Hop { service: part, version: "v1".into(), cluster: "east".into() };
    let calls = Calls::new(Some(&format!("http://{proxy}"))).unwrap();
    let shop = Arc::new(Shop::new(hop, calls, orders));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shop = shop.clone();
            let service = service_fn(move |request| {
                let shop = shop.clone();
                async move { Ok::<_, std::convert::Infallible>(shop.answer(request).await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// Sends a request in absolute form to `address`, as a proxy hears it, or in origin form to a service.
async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// A stand-in for all sidecars: passes requests on by host; a service without address answers 503.
async fn relay(services: [(Part, Option<SocketAddr>); 3], listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let known = services.iter().find(|(part, _)| part.name() == host).and_then(|(_, at)| *at);
            let (status, body) = match known {
                None => (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "no endpoint" })),
                Some(address) => {
                    let (mut head, body) = request.into_parts();
                    head.uri = head.uri.path_and_query().unwrap().as_str().parse().unwrap();
                    let body = body.collect().await?.to_bytes();
                    send(address, Request::from_parts(head, Full::new(body))).await
                }
            };
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status;
            Ok::<_, hyper::Error>(response)
        });
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
    }
}

/// Starts the shop without the services in `dead`; gives the front's address and where orders go.
async fn shop(dead: &[Part]) -> (SocketAddr, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = proxy.local_addr().unwrap();
    let mut services = [(Part::Catalogue, None), (Part::Reviews, None), (Part::Ratings, None)];
    for (part, address) in &mut services {
        if !dead.contains(part) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            *address = Some(listener.local_addr().unwrap());
            serve(*part, listener, at, dir.path().join("orders.log"));
        }
    }
    tokio::spawn(relay(services, proxy));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap();
    serve(Part::Front, listener, at, dir.path().join("none.log"));
    (front, dir)
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "shop.example").body(Full::default()).unwrap()
}

fn hops(body: &Value) -> Vec<&str> {
    body["served_by"].as_array().unwrap().iter().map(|hop| hop["service"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_front_page_has_the_data_of_all_services() {
    let (front, _dir) = shop(&[]).await;
    let (status, page) = send(front, get("/")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(hops(&page), ["front", "catalogue", "reviews", "ratings"]);
    assert_eq!(page["served_by"][1], json!({ "service": "catalogue", "version": "v1", "cluster": "east" }));
    assert!(page["catalogue"]["books"].is_array() && page["reviews"]["reviews"].is_array());
    assert_eq!(page["ratings"]["stars"]["weaving"], 5);
}

#[tokio::test]
async fn a_service_is_passed_on_with_its_status() {
    let (front, _dir) = shop(&[Part::Ratings]).await;
    let (status, body) = send(front, get("/catalogue?x=1")).await;
    assert_eq!((status, hops(&body)), (StatusCode::OK, vec!["front", "catalogue"]));
    let (status, body) = send(front, get("/ratings")).await;
    assert_eq!((status, hops(&body)), (StatusCode::SERVICE_UNAVAILABLE, vec!["front"]));
    assert_eq!(body["error"], "no endpoint");
    let (status, body) = send(front, get("/nothing")).await;
    assert_eq!((status, hops(&body)), (StatusCode::NOT_FOUND, vec!["front"]));
}

#[tokio::test]
async fn the_front_page_says_who_failed() {
    let (front, _dir) = shop(&[Part::Ratings]).await;
    let (status, body) = send(front, get("/")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["error"], "reviews answered 503");
    assert_eq!(body["why"]["error"], "ratings answered 503");
}

#[tokio::test]
async fn an_order_is_written_down_before_it_is_answered() {
    let (front, dir) = shop(&[]).await;
    let post = |body: &'static str| {
        Request::post("/orders").header("host", "shop.example").body(Full::new(Bytes::from(body))).unwrap()
    };
    let (status, body) = send(front, post(r#"{"id":"o-1"}"#)).await;
    assert_eq!((status, hops(&body)), (StatusCode::OK, vec!["front", "catalogue"]));
    assert_eq!(send(front, post(r#"{"id":7}"#)).await.0, StatusCode::OK);
    for bad in [r#"{"id":"a\nb"}"#, r#"{"id":""}"#, "{}", "nothing"] {
        assert_eq!(send(front, post(bad)).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(send(front, get("/orders")).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(std::fs::read_to_string(dir.path().join("orders.log")).unwrap(), "o-1\n7\n");
}

#[test]
fn tracing_and_x_headers_are_passed_on_and_no_others() {
    let mut headers = HeaderMap::new();
    for name in ["x-user", "traceparent", "tracestate", "b3", "x-b3-traceid", "cookie", "connection", "host"]
    {
        headers.insert(name, "1".parse().unwrap());
    }
    let passed = passed_on(&headers);
    let mut names: Vec<&str> = passed.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b3", "traceparent", "tracestate", "x-b3-traceid", "x-user"]);
}
