//! The verification of `api::identity` in the places where rustls asks, and its reasons found again in errors.

use std::{error::Error as StdError, io, sync::Arc};

use api::{
    digest::Hash,
    identity::{CertificateDer, Rejection, UnixTime, verify_enrolment},
    name::ClusterName,
};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::ServerName;

use super::{Clients, Expect, Identity, PROVIDER};

/// Judges the clients of a server.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    identity: Arc<Identity>,
    clients: Clients,
}

impl ClientVerifier {
    pub(super) fn new(identity: Arc<Identity>, clients: Clients) -> Self {
        ClientVerifier { identity, clients }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Members
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.identity.verify(&chain(end, others), now).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        p256_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Judges the server that a client reached.
#[derive(Debug)]
pub(super) enum ServerVerifier {
    /// By what is trusted now, and whom the client expects.
    Member { identity: Arc<Identity>, expect: Expect },
    /// By the hash of a root alone.
    Enrolment { root: Hash, cluster: ClusterName },
}

impl ServerVerifier {
    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Rejection> {
        match self {
            ServerVerifier::Member { identity, expect } => expect.check(&*identity.verify(chain, now)?),
            ServerVerifier::Enrolment { root, cluster } => {
                verify_enrolment(chain, *root, cluster, now).map(|_| ())
            }
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(&chain(end, others), now).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        p256_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Why we refused the peer's certificates, if that is what the error is about, however it is wrapped.
pub fn rejection_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejection> {
    match rustls_error(error)? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref(),
        Error::NoCertificatesPresented => Some(&Rejection::NoCertificate),
        _ => None,
    }
}

/// The alert with which the peer broke off, if that is what the error is about, however it is wrapped.
pub fn alert_of(error: &(dyn StdError + 'static)) -> Option<AlertDescription> {
    match rustls_error(error)? {
        Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// An `io::Error` does not name what it wraps as its source, so it is opened by hand.
fn rustls_error<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => wrapped,
            None => error.source()?,
        };
    }
}

fn chain<'a>(end: &CertificateDer<'a>, others: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(end).chain(others).cloned().collect()
}

fn refuse(reason: Rejection) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

fn tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

fn p256_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ECDSA_NISTP256_SHA256 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
}
