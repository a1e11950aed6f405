//! What this control plane may sign, and who it is itself.
//!
//! The primary holds the root; every cluster holds its own intermediate, signs its own workloads' leaves, and so
//! goes on without the primary for as long as the intermediate lives.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{
    digest::Hash,
    head::{Head, SignedHead},
    identity::{Bundle, CertificateDer, RootCertificate, SpiffeId, UnixTime, Vouch},
    name::{ClusterName, TrustDomain},
    resource::mesh::Certificates,
};
use arc_swap::ArcSwap;
use federation::{
    authority::{
        AuthorityError, HeadCertificate, HeadKey, INTERMEDIATE_RENEWAL, Intermediate, IntermediateKey,
        LEAF_LIFETIME, Root, SealKey, Signed,
    },
    token::{BadToken, MacKey, Payload, Redeemer},
};
use process::tls::{Credentials, CredentialsError, Identity, Key, renewal};

/// The key that heads are signed with is the first of its kind; a later one would be certified with a higher number.
const HEAD_KEY_SEQUENCE: u64 = 1;

/// Why trust could not be set up or kept.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// This process's own credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A root that cannot anchor a path.
    #[error(transparent)]
    Root(#[from] api::identity::BadRoot),
    /// Bytes that are no bundle.
    #[error("not a trust bundle: {0}")]
    Bundle(String),
    /// Only the primary can do this.
    #[error("only the primary holds the root")]
    NotPrimary,
}

/// What this control plane may sign, and who it is itself.
pub struct Authority {
    cluster: ClusterName,
    dir: PathBuf,
    intermediate: ArcSwap<Intermediate>,
    identity: Arc<Identity>,
    redeemer: Mutex<Redeemer>,
    primary: Option<Primary>,
}

/// What the primary alone holds.
struct Primary {
    root: Root,
    head_key: HeadKey,
    statement: Vec<u8>,
}

impl Authority {
    /// The primary's, made in `dir` at the first start.
    pub fn primary(
        dir: &Path,
        cluster: &ClusterName,
        trust_domain: &TrustDomain,
        lifetimes: &Certificates,
        now: UnixTime,
    ) -> Result<Self, TrustError> {
        let seal = SealKey::load_or_create(&dir.join("seal.key"))?;
        let root = Root::load_or_create(dir, &seal, trust_domain, lifetimes.root.get(), now)?;
        let intermediate = match Intermediate::load(dir)?.filter(|held| lives(held, now)) {
            Some(held) => held,
            None => {
                let key = IntermediateKey::load_or_create(dir)?;
                let signed =
                    root.sign_intermediate(&key.request()?, cluster, lifetimes.intermediate.get(), now)?;
                key.certified(signed)?
            }
        };
        intermediate.save(dir)?;
        let head_key = HeadKey::load_or_create(dir)?;
        let certificate = head_key.certify(&root, HEAD_KEY_SEQUENCE)?;
        let statement =
            serde_json::to_vec(&certificate).map_err(|error| TrustError::Bundle(error.to_string()))?;
        let bundle = match Identity::load(dir)? {
            Some(held) => (*held.bundle()).clone(),
            None => Bundle {
                trust_domain: trust_domain.clone(),
                sequence: 1,
                roots: vec![RootCertificate::new(root.certificate().clone())?],
                clusters: BTreeMap::from([(cluster.clone(), Vouch::default())]),
                revoked: BTreeMap::new(),
            },
        };
        Authority::new(dir, cluster, intermediate, bundle, Some(Primary { root, head_key, statement }), now)
    }

    /// A remote's, if it has joined before.
    pub fn rejoin(dir: &Path, cluster: &ClusterName, now: UnixTime) -> Result<Option<Self>, TrustError> {
        let (Some(intermediate), Some(held)) = (Intermediate::load(dir)?, Identity::load(dir)?) else {
            return Ok(None);
        };
        let bundle = (*held.bundle()).clone();
        Authority::new(dir, cluster, intermediate, bundle, None, now).map(Some)
    }

    /// A remote's, once the primary has signed its intermediate.
    pub fn joined(
        dir: &Path,
        cluster: &ClusterName,
        key: IntermediateKey,
        certificate: CertificateDer<'static>,
        bundle: Bundle,
        now: UnixTime,
    ) -> Result<Self, TrustError> {
        let intermediate = key.certified(certificate)?;
        intermediate.save(dir)?;
        Authority::new(dir, cluster, intermediate, bundle, None, now)
    }

    fn new(
        dir: &Path,
        cluster: &ClusterName,
        intermediate: Intermediate,
        bundle: Bundle,
        primary: Option<Primary>,
        now: UnixTime,
    ) -> Result<Self, TrustError> {
        let credentials = own_credentials(&intermediate, cluster, LEAF_LIFETIME, now)?;
        let identity = Identity::new(credentials, bundle);
        identity.store(dir)?;
        let mac = MacKey::load_or_create(&dir.join("token.key"))?;
        let redeemer = Redeemer::open(mac, &dir.join("tokens.json"))?;
        Ok(Authority {
            cluster: cluster.clone(),
            dir: dir.to_owned(),
            intermediate: ArcSwap::from_pointee(intermediate),
            identity,
            redeemer: Mutex::new(redeemer),
            primary,
        })
    }

    /// Who this control plane is, and whom it trusts.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.identity.bundle().trust_domain.clone()
    }

    /// SHA-256 of the root that tokens name: the newest of the bundle.
    pub fn root_hash(&self) -> Option<Hash> {
        self.identity.bundle().roots.last().map(RootCertificate::hash)
    }

    /// Until when this cluster can sign.
    pub fn intermediate_not_after(&self) -> UnixTime {
        self.intermediate.load().not_after()
    }

    /// Signs a leaf for `id`; the caller has decided that the asker is `id`.
    pub fn sign_leaf(
        &self,
        request: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.intermediate.load().sign_leaf(request, id, lifetime, now)
    }

    /// Signs the intermediate of a member; the caller has decided that the asker is that cluster.
    pub fn sign_intermediate(
        &self,
        request: &[u8],
        cluster: &ClusterName,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let primary = self.primary.as_ref().ok_or(TrustError::NotPrimary)?;
        Ok(primary.root.sign_intermediate(request, cluster, lifetime, now)?)
    }

    /// Signs a head.
    pub fn sign_head(&self, head: Head) -> Result<SignedHead, TrustError> {
        let primary = self.primary.as_ref().ok_or(TrustError::NotPrimary)?;
        let signature = primary.head_key.sign(Signed::Head, &head.canonical())?;
        Ok(SignedHead::seal(head, |_| (signature, primary.statement.clone())))
    }

    /// Signs a bundle: signature and statement about the key.
    pub fn sign_bundle(&self, bundle: &[u8]) -> Result<(Vec<u8>, Vec<u8>), TrustError> {
        let primary = self.primary.as_ref().ok_or(TrustError::NotPrimary)?;
        Ok((primary.head_key.sign(Signed::Bundle, bundle)?, primary.statement.clone()))
    }

    /// Whether the primary signed these bytes, by the roots that are trusted now.
    pub fn signed_by_primary(
        &self,
        what: Signed,
        bytes: &[u8],
        signature: &[u8],
        statement: &[u8],
    ) -> Result<(), AuthorityError> {
        let certificate: HeadCertificate =
            serde_json::from_slice(statement).map_err(|_| AuthorityError::HeadKey)?;
        certificate.verify(&self.identity.bundle())?.verify(what, bytes, signature)
    }

    /// Whether the primary signed this head.
    pub fn believes(&self, head: &SignedHead) -> Result<(), AuthorityError> {
        self.signed_by_primary(Signed::Head, head.bytes(), head.signature(), head.statement())
    }

    /// Trusts a newer bundle, durably. One that is not newer changes nothing.
    pub fn trust(&self, bundle: Bundle) -> Result<(), TrustError> {
        self.identity.trust(bundle).map_err(|error| TrustError::Bundle(error.to_string()))?;
        Ok(self.identity.store(&self.dir)?)
    }

    /// The bundle with these members, further in sequence if that changes anything. It is never behind the store's
    /// `epoch`, so that a primary whose keys came back from an old backup is not taken for one that repeats itself.
    pub fn with_members(&self, clusters: BTreeMap<ClusterName, Vouch>, epoch: u64) -> Option<Bundle> {
        let held = self.identity.bundle();
        (held.clusters != clusters || held.sequence < epoch).then(|| Bundle {
            sequence: epoch.max(held.sequence + 1),
            clusters,
            ..(*held).clone()
        })
    }

    /// The token's text.
    pub fn issue<P: Payload>(&self, payload: &P) -> String {
        self.lock().key().issue(payload)
    }

    /// What a token says that was issued here and is alive, whether it was used or not.
    pub fn check<P: Payload>(&self, text: &str, now: UnixTime) -> Result<P, BadToken> {
        self.lock().key().check(text, now)
    }

    /// What a token says, once.
    pub fn redeem<P: Payload>(&self, text: &str, now: UnixTime) -> Result<P, BadToken> {
        self.lock().redeem(text, now)
    }

    /// Renews this process's own leaf when it is due, or when leaves are to live shorter than it does.
    pub fn renew_own(&self, lifetime: Duration, now: UnixTime) -> Result<(), TrustError> {
        let credentials = self.identity.credentials();
        let validity = credentials.validity();
        let too_long = validity.end().as_secs() > (now.as_secs() + lifetime.as_secs());
        if now < renewal::due(*validity.start(), *validity.end(), 0.5) && !too_long {
            return Ok(());
        }
        self.identity.renew(own_credentials(&self.intermediate.load(), &self.cluster, lifetime, now)?)?;
        Ok(self.identity.store(&self.dir)?)
    }

    /// A request for a new intermediate, when the present one nears its end.
    pub fn intermediate_request(&self, now: UnixTime) -> Result<Option<Vec<u8>>, AuthorityError> {
        let intermediate = self.intermediate.load();
        if lives(&intermediate, now) { Ok(None) } else { intermediate.request().map(Some) }
    }

    /// Renews the primary's own intermediate when it is due; a remote asks over its link.
    pub fn renew_own_intermediate(&self, lifetime: Duration, now: UnixTime) -> Result<(), TrustError> {
        match (&self.primary, self.intermediate_request(now)?) {
            (Some(_), Some(request)) => {
                let signed = self.sign_intermediate(&request, &self.cluster, lifetime, now)?;
                self.renew_intermediate(signed, now)
            }
            (_, None) | (None, Some(_)) => Ok(()),
        }
    }

    /// Takes the renewed intermediate into use; the leaves of the old one stay good, since the key is the same.
    pub fn renew_intermediate(
        &self,
        certificate: CertificateDer<'static>,
        now: UnixTime,
    ) -> Result<(), TrustError> {
        let renewed = self.intermediate.load().renewed(certificate)?;
        renewed.save(&self.dir)?;
        self.identity.renew(own_credentials(&renewed, &self.cluster, LEAF_LIFETIME, now)?)?;
        self.intermediate.store(Arc::new(renewed));
        Ok(self.identity.store(&self.dir)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Redeemer> {
        self.redeemer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an intermediate is far enough from its end: 30 days, or a third of its life where that is less.
fn lives(intermediate: &Intermediate, now: UnixTime) -> bool {
    let Ok(validity) = api::identity::validity(intermediate.certificate()) else { return false };
    let (begin, end) = (validity.start().as_secs(), validity.end().as_secs());
    let margin = INTERMEDIATE_RENEWAL.as_secs().min((end - begin) / 3);
    now.as_secs() + margin < end
}

fn own_credentials(
    intermediate: &Intermediate,
    cluster: &ClusterName,
    lifetime: Duration,
    now: UnixTime,
) -> Result<Credentials, TrustError> {
    let key = Key::generate()?;
    let id = SpiffeId::control_plane(intermediate.trust_domain(), cluster);
    let chain = intermediate.sign_leaf(&key.request()?, &id, lifetime, now)?;
    Ok(key.certified(chain)?)
}

#[cfg(test)]
mod tests;
