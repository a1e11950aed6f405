//! What a process is and what it trusts, swapped under living connections.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use api::{
    digest::Hash,
    identity::{Bundle, CertificateDer, Rejection, UnixTime, Verified, verify},
};
use arc_swap::ArcSwap;
use rustls::{
    CommonState, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Clients, Credentials, CredentialsError};
use crate::files;

const BUNDLE_FILE: &str = "bundle.json";
/// Room for some thousand clusters.
const MAX_BUNDLE_BYTES: u64 = 4 * 1024 * 1024;
/// Peers remembered; a proxy talks to fewer at a time. About 1 KiB each.
const MAX_REMEMBERED: usize = 1024;

/// Who this process is and whom it trusts. Every connection asks it anew.
#[derive(Debug)]
pub struct Identity {
    credentials: ArcSwap<Credentials>,
    bundle: ArcSwap<Bundle>,
    /// Chains whose signatures were checked, by the hash of all their certificates. What a signature says does
    /// not change; everything else is checked again each time, against the bundle of that moment.
    checked: Mutex<HashMap<Hash, Arc<Verified>>>,
}

/// A bundle of another trust domain, or not newer than the one in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bundle {offered} does not replace bundle {held}: it is older or of another trust domain")]
pub struct StaleBundle {
    /// The sequence of the one that was offered.
    pub offered: u64,
    /// The sequence of the one in force.
    pub held: u64,
}

impl Identity {
    /// From its two halves.
    pub fn new(credentials: Credentials, bundle: Bundle) -> Arc<Self> {
        Arc::new(Identity {
            credentials: ArcSwap::from_pointee(credentials),
            bundle: ArcSwap::from_pointee(bundle),
            checked: Mutex::default(),
        })
    }

    /// The identity kept in `dir`, if there is one. It may have expired: see [`Credentials::validity`].
    pub fn load(dir: &Path) -> Result<Option<Arc<Self>>, CredentialsError> {
        let bundle = files::read(&dir.join(BUNDLE_FILE), MAX_BUNDLE_BYTES)?;
        match (Credentials::load(dir)?, bundle) {
            (Some(credentials), Some(json)) => {
                let bundle =
                    serde_json::from_slice(&json).map_err(|_| CredentialsError::File(BUNDLE_FILE))?;
                Ok(Some(Identity::new(credentials, bundle)))
            }
            (None, _) | (_, None) => Ok(None),
        }
    }

    /// Keeps it in `dir`, readable by its owner alone.
    pub fn store(&self, dir: &Path) -> Result<(), CredentialsError> {
        self.credentials.load().store(dir)?;
        let json = serde_json::to_vec(&**self.bundle.load()).map_err(std::io::Error::from)?;
        Ok(files::write_private(&dir.join(BUNDLE_FILE), &json)?)
    }

    /// What it is now.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.load_full()
    }

    /// What it trusts now.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    /// Renews its credentials, for the same id. The next handshake shows the new chain; living connections stay.
    pub fn renew(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        let own = self.credentials.load().id().clone();
        if *credentials.id() != own {
            return Err(CredentialsError::OtherId { own, found: credentials.id().clone() });
        }
        self.credentials.store(Arc::new(credentials));
        Ok(())
    }

    /// Trusts a newer bundle from the next handshake on. The one in force again is no error.
    pub fn trust(&self, bundle: Bundle) -> Result<(), StaleBundle> {
        let offered = Arc::new(bundle);
        let held =
            self.bundle.rcu(|held| if offered.supersedes(held) { offered.clone() } else { held.clone() });
        if offered.supersedes(&held) || *offered == *held {
            Ok(())
        } else {
            Err(StaleBundle { offered: offered.sequence, held: held.sequence })
        }
    }

    /// Who the peer with this chain is, under what is trusted now. Cheap for a chain that was seen before.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Arc<Verified>, Rejection> {
        let bundle = self.bundle.load();
        let key = Hash::of_parts(chain.iter().map(|der| der.as_ref()));
        let seen = self.checked.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(seen) = seen.filter(|seen| seen.still_holds(&bundle, now).is_ok()) {
            return Ok(seen);
        }
        let verified = Arc::new(verify(chain, &bundle, now)?);
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.len() >= MAX_REMEMBERED {
            checked.clear();
        }
        checked.insert(key, verified.clone());
        Ok(verified)
    }

    /// Who the peer of a connection is, under what is trusted now. [`Rejection::NoCertificate`] before the
    /// handshake has ended, and for a client that enrols.
    pub fn peer_of(&self, connection: &CommonState) -> Result<Arc<Verified>, Rejection> {
        self.verify(connection.peer_certificates().unwrap_or_default(), UnixTime::now())
    }
}

/// What the peer is shown: the present chain, and the roots where peers enrol.
#[derive(Debug)]
pub(super) struct Shown {
    identity: Arc<Identity>,
    clients: Clients,
}

impl Shown {
    pub(super) fn new(identity: Arc<Identity>, clients: Clients) -> Self {
        Shown { identity, clients }
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let own = self.identity.credentials.load().certified().clone();
        match self.clients {
            Clients::Members => own,
            Clients::Enrolling => {
                let bundle = self.identity.bundle.load();
                let roots = bundle.roots.iter().map(|root| root.der().clone());
                Arc::new(CertifiedKey::new(own.cert.iter().cloned().chain(roots).collect(), own.key.clone()))
            }
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
