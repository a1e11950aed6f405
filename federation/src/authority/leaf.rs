//! What a leaf says, written down before it is signed.

use api::identity::{SpiffeId, UnixTime};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

use super::{AuthorityError, request};

/// Everything that the authority decides about a leaf.
///
/// [`LeafSpec::new`] makes a right one; its fields are open so that a test of refusals can make a wrong one.
/// Production code signs through [`Intermediate::sign_leaf`](super::Intermediate::sign_leaf) alone.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    /// URI subject alternative names; a right leaf has one.
    pub uris: Vec<String>,
    /// From when it is valid.
    pub not_before: UnixTime,
    /// Until when it is valid.
    pub not_after: UnixTime,
    /// A common name in the subject; a right leaf has none.
    pub common_name: Option<String>,
    /// Whether it claims to be a CA; a right leaf does not.
    pub ca: bool,
    /// Key usages; a right leaf has `digitalSignature`.
    pub usages: Vec<KeyUsagePurpose>,
    /// Extended key usages; a right leaf has `serverAuth` and `clientAuth`.
    pub extended_usages: Vec<ExtendedKeyUsagePurpose>,
}

impl LeafSpec {
    /// A right leaf for `id`.
    pub fn new(id: &SpiffeId, not_before: UnixTime, not_after: UnixTime) -> Self {
        LeafSpec {
            uris: vec![id.to_string()],
            not_before,
            not_after,
            common_name: None,
            ca: false,
            usages: vec![KeyUsagePurpose::DigitalSignature],
            extended_usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    pub(super) fn params(&self) -> Result<CertificateParams, AuthorityError> {
        let name = self.common_name.as_deref();
        let mut params = request::params(name, &self.uris, self.not_before, self.not_after)?;
        params.is_ca = if self.ca { IsCa::Ca(BasicConstraints::Constrained(0)) } else { IsCa::NoCa };
        params.key_usages = self.usages.clone();
        params.extended_key_usages = self.extended_usages.clone();
        Ok(params)
    }
}
