//! Facts for tests, written as a person would tell them: `from=shop/front@east GET /reviews/1?page=2 x-user:ann`.

use std::{net::SocketAddr, time::SystemTime};

use api::name::{ClusterName, Namespace, ServiceAccount, ServiceName, TrustDomain};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::facts::{Connection, Destination, Facts, Guarded, Peer, Request, Source};

/// Owns what [`Facts`] borrow. What is not told: no peer, plaintext, `GET /` to reviews in shop, in east.
#[derive(Debug)]
pub(crate) struct Told {
    peer: Option<Peer>,
    guarded: Guarded,
    source: SocketAddr,
    destination: SocketAddr,
    http: bool,
    method: String,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Told {
    pub(crate) fn new(words: &str) -> Told {
        let mut told = Told {
            peer: None,
            guarded: Guarded {
                services: vec![service("shop/reviews"), service("shop/reviews-v1")],
                namespace: Namespace::new("shop").unwrap(),
                workload: "reviews-v1-1".into(),
                cluster: ClusterName::new("east").unwrap(),
            },
            source: "127.1.0.7:40000".parse().unwrap(),
            destination: "127.1.0.8:15006".parse().unwrap(),
            http: true,
            method: "GET".into(),
            path: "/".into(),
            query: String::new(),
            headers: HeaderMap::new(),
        };
        words.split_whitespace().for_each(|word| told.hear(word));
        told
    }

    fn hear(&mut self, word: &str) {
        if let Some(peer) = word.strip_prefix("from=") {
            self.peer = Some(peer_of(peer));
        } else if let Some(address) = word.strip_prefix("ip=") {
            self.source = SocketAddr::new(address.parse().unwrap(), 40000);
        } else if word == "tcp" {
            self.http = false;
        } else if word.starts_with('/') {
            let (path, query) = word.split_once('?').unwrap_or((word, ""));
            (self.path, self.query) = (path.into(), query.into());
        } else if let Some((name, value)) = word.split_once(':') {
            let name: HeaderName = name.parse().unwrap();
            self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        } else {
            self.method = word.into();
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        let mtls = self.peer.is_some();
        Facts {
            source: Source { peer: self.peer.as_ref(), address: self.source },
            destination: Destination { guarded: &self.guarded, address: self.destination },
            request: self.http.then_some(Request {
                method: &self.method,
                scheme: "http",
                host: "reviews.shop",
                path: &self.path,
                raw_path: &self.path,
                query: &self.query,
                protocol: "HTTP/1.1",
                id: "r-1",
                headers: &self.headers,
                time: SystemTime::UNIX_EPOCH,
            }),
            connection: Connection {
                mtls,
                sni: if mtls { "x.ep.weft.internal" } else { "" },
                protocol: if self.http { "http/1.1" } else { "tcp" },
                tls_version: if mtls { "TLSv1.3" } else { "" },
            },
        }
    }
}

/// `namespace/account@cluster`
fn peer_of(text: &str) -> Peer {
    let (identity, cluster) = text.split_once('@').unwrap_or((text, "east"));
    let (namespace, account) = identity.split_once('/').unwrap();
    Peer {
        trust_domain: TrustDomain::new("shop.example").unwrap(),
        namespace: Namespace::new(namespace).unwrap(),
        service_account: ServiceAccount::new(account).unwrap(),
        cluster: ClusterName::new(cluster).unwrap(),
        principal: format!("spiffe://shop.example/ns/{namespace}/sa/{account}"),
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}
