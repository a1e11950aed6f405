//! A few requests and connections to judge: with and without an identity, HTTP and not.

use std::time::SystemTime;

use api::name::{ClusterName, Namespace, ServiceAccount, TrustDomain};
use http::{HeaderMap, HeaderValue};
use policies::facts::{Connection, Destination, Facts, Guarded, Peer, Request, Source};

/// Owns what [`Facts`] borrow.
pub(crate) struct Told {
    peer: Option<Peer>,
    guarded: Guarded,
    host: String,
    http: bool,
    headers: HeaderMap,
}

impl Told {
    pub(crate) fn new(peer: bool, http: bool, host: &str) -> Self {
        let name = "constant names are names";
        let peer = peer.then(|| Peer {
            trust_domain: TrustDomain::new("shop.example").expect(name),
            namespace: Namespace::new("shop").expect(name),
            service_account: ServiceAccount::new("front").expect(name),
            cluster: ClusterName::new("west").expect(name),
            principal: "spiffe://shop.example/ns/shop/sa/front".to_owned(),
        });
        let guarded = Guarded {
            services: ["shop/reviews", "shop/reviews-v1"].map(|text| text.parse().expect(name)).into(),
            namespace: Namespace::new("shop").expect(name),
            workload: "reviews-v1-1".to_owned(),
            cluster: ClusterName::new("east").expect(name),
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("ann"));
        headers.insert("content-length", HeaderValue::from_static("120"));
        Told { peer, guarded, host: host.to_owned(), http, headers }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        let mtls = self.peer.is_some();
        Facts {
            source: Source { peer: self.peer.as_ref(), address: ([127, 1, 0, 7], 40_000).into() },
            destination: Destination { guarded: &self.guarded, address: ([127, 1, 0, 8], 15_006).into() },
            request: self.http.then_some(Request {
                method: "GET",
                scheme: "http",
                host: &self.host,
                path: "/reviews/7/é",
                raw_path: "/reviews//7/é",
                query: "page=2&tag=a&tag=b&name=J%C3%BCrg+M&empty",
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
