//! Certificate requests: only the key in them counts, and the proof that the asker holds it.

use std::time::Duration;

use api::identity::UnixTime;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::{AuthorityError, CLOCK_SKEW};

/// The most bytes a request has; one with a P-256 key needs about 250.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The P-256 key of a request in DER or PEM whose signature proves that the asker holds it.
///
/// Subject, names and extensions of the request are ignored: what a certificate says is the authority's word.
pub fn proven_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    if request.len() > MAX_REQUEST_BYTES {
        return Err(AuthorityError::Request("it has more than 16 KiB"));
    }
    let der = if request.starts_with(b"-----") {
        CertificateSigningRequestDer::from_pem_slice(request)
            .map_err(|_| AuthorityError::Request("it is not PEM of a `CERTIFICATE REQUEST`"))?
    } else {
        CertificateSigningRequestDer::from(request)
    };
    let Ok(([], parsed)) = X509CertificationRequest::from_der(&der) else {
        return Err(AuthorityError::Request("it is not PKCS #10"));
    };
    let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
        .map_err(|_| AuthorityError::Request("its key is of an unknown kind"))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(AuthorityError::Request("its key is not ECDSA P-256"));
    }
    parsed.verify_signature().map_err(|_| AuthorityError::Request("it is not signed by the key in it"))?;
    Ok(key)
}

/// A certificate's parameters with what all of ours share: a random serial number, names and times.
pub fn params(
    common_name: Option<&str>,
    uris: &[String],
    not_before: UnixTime,
    not_after: UnixTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.as_secs());
    params.not_after = epoch + Duration::from_secs(not_after.as_secs());
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    for uri in uris {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// From a little before `now`, since clocks differ, for `lifetime`, but not beyond `limit`.
pub fn span(now: UnixTime, lifetime: Duration, limit: Option<UnixTime>) -> (UnixTime, UnixTime) {
    let skew = CLOCK_SKEW.min(lifetime / 10).as_secs();
    let end = plus(now, lifetime);
    (seconds(now.as_secs().saturating_sub(skew)), limit.map_or(end, |limit| end.min(limit)))
}

fn plus(instant: UnixTime, duration: Duration) -> UnixTime {
    seconds(instant.as_secs().saturating_add(duration.as_secs()))
}

fn seconds(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// 16 random bytes, positive and not zero.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = super::seal::random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
