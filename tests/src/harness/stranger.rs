//! A TLS client that shows whatever certificates it is told to, and believes every server.

use std::{path::Path, sync::Arc, time::Duration};

use api::{
    identity::{CertificateDer, SpiffeId, UnixTime},
    name::{ClusterName, TrustDomain},
};
use federation::authority::{
    INTERMEDIATE_LIFETIME, Intermediate, IntermediateKey, LeafSpec, ROOT_LIFETIME, Root,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A whole visit ends within this.
const LIMIT: Duration = Duration::from_secs(10);

/// A client and what it shows.
#[derive(Clone)]
pub struct Stranger {
    config: Arc<ClientConfig>,
}

/// How a visit went.
#[derive(Debug)]
pub struct Visit {
    /// The status of the answer; what ended the visit when there was none.
    pub answer: Result<u16, String>,
    /// Whether the TLS session was resumed.
    pub resumed: bool,
}

/// An authority whose leaves strangers show.
pub struct Forge(Intermediate);

impl Forge {
    /// The intermediate of a control plane, out of its state directory.
    pub fn stolen(state: &Path) -> Self {
        Forge(Intermediate::load(state).expect("a readable state").expect("the control plane has joined"))
    }

    /// One of the same names under a root of its own.
    pub fn counterfeit(trust_domain: &str, cluster: &str) -> Self {
        let domain: TrustDomain = trust_domain.parse().expect("a trust domain");
        let cluster: ClusterName = cluster.parse().expect("a cluster");
        let now = UnixTime::now();
        let root = Root::generate(&domain, ROOT_LIFETIME, now).expect("a root");
        let key = IntermediateKey::generate().expect("a key");
        let request = key.request().expect("a request");
        let certificate =
            root.sign_intermediate(&request, &cluster, INTERMEDIATE_LIFETIME, now).expect("an intermediate");
        Forge(key.certified(certificate).expect("the key's own"))
    }

    /// Its certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.certificate().clone()
    }

    /// What a right leaf for `id` says, valid for an hour around now.
    pub fn spec(&self, id: &str) -> LeafSpec {
        let id: SpiffeId = id.parse().expect("a SPIFFE id");
        let now = UnixTime::now().as_secs();
        LeafSpec::new(&id, at(now - 1800), at(now + 1800))
    }

    /// A stranger with a right leaf for `id`.
    pub fn good(&self, id: &str) -> Stranger {
        self.stranger(&self.spec(id), |chain| chain)
    }

    /// A stranger with a leaf as `spec` says; `arrange` has the last word about the chain.
    pub fn stranger(
        &self,
        spec: &LeafSpec,
        arrange: impl Fn(Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>>,
    ) -> Stranger {
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let chain = arrange(self.0.sign_spec(request.der(), spec).expect("a leaf"));
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Stranger::new(Some((chain, key)))
    }
}

/// A second since the epoch.
pub fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

impl Stranger {
    /// One without any certificate.
    pub fn bare() -> Self {
        Stranger::new(None)
    }

    fn new(shown: Option<(Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>)>) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's own")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match shown {
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, key.into()).expect("key and leaf match")
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(8);
        Stranger { config: Arc::new(config) }
    }

    /// Connects to `address` under the server name `sni`, and asks for `GET path`.
    pub async fn visit(&self, address: &str, sni: &str, path: &str) -> Visit {
        let visit = tokio::time::timeout(LIMIT, self.try_visit(address, sni, path)).await;
        visit.unwrap_or_else(|_| Visit { answer: Err(format!("nothing within {LIMIT:?}")), resumed: false })
    }

    async fn try_visit(&self, address: &str, sni: &str, path: &str) -> Visit {
        let refused =
            |error: &dyn std::fmt::Display| Visit { answer: Err(error.to_string()), resumed: false };
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(error) => return refused(&error),
        };
        let name = ServerName::try_from(sni.to_owned()).expect("a server name");
        let mut stream = match TlsConnector::from(self.config.clone()).connect(name, stream).await {
            Ok(stream) => stream,
            Err(error) => return refused(&error),
        };
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        let request = format!("GET {path} HTTP/1.1\r\nhost: ratings:8080\r\nconnection: close\r\n\r\n");
        let mut heard = Vec::new();
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            stream.read_to_end(&mut heard).await
        };
        let ended = exchange.await;
        let status = String::from_utf8_lossy(&heard).split(' ').nth(1).and_then(|status| status.parse().ok());
        let answer = match (status, ended) {
            (Some(status), _) => Ok(status),
            (None, Ok(_)) => Err("closed without an answer".to_owned()),
            (None, Err(error)) => Err(error.to_string()),
        };
        Visit { answer, resumed }
    }
}

/// Who the server is does not matter here.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
