//! What one certificate says of itself, before anything is known about who signed it.

use std::{ops::RangeInclusive, time::Duration};

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::{Rejection, SpiffeId};
use crate::name::ClusterName;

/// A leaf of the right shape (X509-SVID, sections 2 to 5). Says nothing about trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its one URI SAN, a workload's or a control plane's id.
    pub id: SpiffeId,
    /// When it begins and ends to be valid.
    pub validity: RangeInclusive<UnixTime>,
}

impl Leaf {
    /// The leaf in `der`, or what is wrong with its shape.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, Rejection> {
        let certificate = parse(der)?;
        let id = one_uri(&certificate)?;
        check_shape(&certificate)?;
        if matches!(id, SpiffeId::Signer { .. }) {
            return Err(Rejection::Leaf("it bears the id of a signer"));
        }
        Ok(Leaf { id, validity: validity_of(&certificate)? })
    }
}

/// When a certificate of any kind begins and ends to be valid.
pub fn validity(der: &CertificateDer<'_>) -> Result<RangeInclusive<UnixTime>, Rejection> {
    validity_of(&parse(der)?)
}

/// The cluster of an intermediate, once its own shape is right: a CA of path length 0 that may sign
/// certificates, with the id of a signer, named after its cluster.
pub fn signer_cluster(der: &CertificateDer<'_>) -> Result<ClusterName, Rejection> {
    let certificate = parse(der)?;
    let constraints = certificate.basic_constraints().map_err(|_| Rejection::Malformed)?;
    if !constraints.is_some_and(|c| c.value.ca && c.value.path_len_constraint == Some(0)) {
        return Err(Rejection::Intermediate("it is not a CA of path length 0"));
    }
    let usage = certificate.key_usage().map_err(|_| Rejection::Malformed)?;
    if !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(Rejection::Intermediate("it may not sign certificates"));
    }
    if !matches!(one_uri(&certificate), Ok(SpiffeId::Signer { .. })) {
        return Err(Rejection::Intermediate("it has not the one id of a signer"));
    }
    let mut names = certificate.subject().iter_common_name();
    match (names.next().and_then(|name| name.as_str().ok()), names.next()) {
        (Some(name), None) => {
            ClusterName::new(name).map_err(|_| Rejection::Intermediate("its subject is not a cluster's name"))
        }
        _ => Err(Rejection::Intermediate("its subject has not exactly one common name")),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Rejection> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Rejection::Malformed),
    }
}

/// The id in the one URI SAN. Other kinds of SAN are allowed and mean nothing here.
fn one_uri(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Rejection> {
    let names = certificate.subject_alternative_name().map_err(|_| Rejection::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match *uris {
        [uri] => Ok(uri.parse()?),
        _ => Err(Rejection::UriSans(uris.len())),
    }
}

fn check_shape(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    let names = certificate.subject_alternative_name().map_err(|_| Rejection::Malformed)?;
    let constraints = certificate.basic_constraints().map_err(|_| Rejection::Malformed)?;
    let usage = certificate.key_usage().map_err(|_| Rejection::Malformed)?;
    let extended = certificate.extended_key_usage().map_err(|_| Rejection::Malformed)?;
    let rules = [
        (!constraints.is_some_and(|c| c.value.ca), "it is a CA"),
        (usage.as_ref().is_some_and(|u| u.value.digital_signature()), "it lacks the usage digitalSignature"),
        (
            !usage.is_some_and(|u| u.value.key_cert_sign() || u.value.crl_sign()),
            "it claims the usages of a signer",
        ),
        (extended.as_ref().is_some_and(|e| e.value.server_auth), "it lacks the usage serverAuth"),
        (extended.is_some_and(|e| e.value.client_auth), "it lacks the usage clientAuth"),
        (certificate.subject().iter().next().is_none(), "its subject is not empty"),
        (names.is_some_and(|names| names.critical), "its subject alternative name is not critical"),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, fault)) => Err(Rejection::Leaf(fault)),
    }
}

fn validity_of(certificate: &X509Certificate<'_>) -> Result<RangeInclusive<UnixTime>, Rejection> {
    let instant = |time: ASN1Time| {
        u64::try_from(time.timestamp())
            .map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
            .map_err(|_| Rejection::Malformed)
    };
    Ok(instant(certificate.validity().not_before)?..=instant(certificate.validity().not_after)?)
}
