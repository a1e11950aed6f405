//! Mutual TLS between members of the mesh, for both planes.
//!
//! [`Identity`] holds what a process is (its key and chain) and what it trusts (the bundle). Both are swapped
//! while connections live: the next handshake uses the new ones. [`server`] and [`client`] make rustls
//! configurations around it, to be made once and shared:
//!
//! * TLS 1.3 alone, ECDSA P-256 certificates, X25519 or P-256 key exchange. No post-quantum hybrid: it would
//!   add two kilobytes and a third of the cost to each handshake.
//! * No resumption of any kind. A resumed session would not show its certificates again, so trust that was
//!   withdrawn since would go unnoticed; every connection is verified against what is trusted now.
//! * The server name is a routing hint (`<id>.ep.weft.internal`) and proves nothing; the client checks the SPIFFE
//!   id and the cluster that it [expects](Expect).
//!
//! A TLS 1.3 client finishes its handshake before the server has judged its certificate; the refusal comes as
//! an alert on the first read ([`alert_of`]).

mod credentials;
mod expect;
mod identity;
pub mod renewal;
mod verifier;

#[cfg(test)]
mod tests;

pub use credentials::{Credentials, CredentialsError, Key};
pub use expect::Expect;
pub use identity::{Identity, StaleBundle};
pub use verifier::{alert_of, rejection_of};

use std::sync::{Arc, LazyLock};

use api::{digest::Hash, name::ClusterName};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    server::NoServerSessionStorage,
    version::TLS13,
};

use verifier::{ClientVerifier, ServerVerifier};

/// Which clients a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Members alone.
    Members,
    /// Members, and peers without any certificate, who may do nothing but enrol with a token. To them the
    /// server shows its roots after its chain, so that they can find the one whose hash the token carries.
    /// A peer that shows a certificate is still refused if it is a bad one.
    Enrolling,
}

/// How the process behind `identity` accepts connections; `alpn` by preference (`"h2"`, `"http/1.1"`).
pub fn server(identity: &Arc<Identity>, clients: Clients, alpn: &[&str]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(identity.clone(), clients)))
        .with_cert_resolver(Arc::new(identity::Shown::new(identity.clone(), clients)));
    config.alpn_protocols = protocols(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// How the process behind `identity` connects to whom it [expects](Expect).
pub fn client(identity: &Arc<Identity>, expect: Expect, alpn: &[&str]) -> Arc<ClientConfig> {
    let verifier = ServerVerifier::Member { identity: identity.clone(), expect };
    let shown = identity::Shown::new(identity.clone(), Clients::Members);
    let mut config = client_builder(verifier).with_client_cert_resolver(Arc::new(shown));
    finish(&mut config, alpn);
    Arc::new(config)
}

/// How a process without an identity connects to the control plane of `cluster`, to send it a token that
/// carries the hash of `root`. No other control plane, and no other member, passes.
pub fn enrolment(root: Hash, cluster: &ClusterName, alpn: &[&str]) -> Arc<ClientConfig> {
    let verifier = ServerVerifier::Enrolment { root, cluster: cluster.clone() };
    let mut config = client_builder(verifier).with_no_client_auth();
    finish(&mut config, alpn);
    Arc::new(config)
}

fn client_builder(
    verifier: ServerVerifier,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
}

fn finish(config: &mut ClientConfig, alpn: &[&str]) {
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// AES-128 first: the cheapest suite where AES is in hardware.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});
