//! A DENY by who calls, where callers without a certificate are heard as well: who they are is nobody's name, so that it
//! does not reach them. That may be meant, and is warned of.

use api::{
    manifest::Placed,
    name::ClusterName,
    resource::{
        AuthorizationPolicy, Labels, Object, PeerAuthentication, Service,
        authentication::Mtls,
        authorization::Action,
        target::{TargetKind, selects},
    },
};
use policies::Reads;

/// Empty for whoever shows no certificate.
const IDENTITY: [&str; 5] =
    ["source.principal", "source.trustDomain", "source.namespace", "source.serviceAccount", "source.cluster"];

/// Who says that a caller may come without a certificate to what `policy` denies by its `reads`; `None` where nobody does,
/// or where it does not depend on that.
pub(super) fn let_in_by<'a>(
    placed: &[&'a Placed],
    policy: &Object<AuthorizationPolicy>,
    reads: Reads,
) -> Option<&'a Object<PeerAuthentication>> {
    let by_identity = reads.names().any(|name| IDENTITY.contains(&name));
    let asks_for_one = reads.names().any(|name| name == "connection.mtls");
    if policy.spec.action != Action::Deny || !by_identity || asks_for_one {
        return None;
    }
    let guarded = Guarded::by(placed, policy)?;
    let said: Vec<_> = placed
        .iter()
        .filter_map(|own| own.resource.as_kind::<PeerAuthentication>())
        .filter(|said| guarded.may_be(said))
        .collect();
    let strict = |said: &Object<PeerAuthentication>| said.spec.mtls == Some(Mtls::Strict);
    said.iter().copied().find(|open| {
        let opens = open.spec.mtls.iter().chain(open.spec.ports.iter().flatten().map(|port| &port.mtls));
        let closed = said.iter().any(|narrower| {
            narrowness(narrower) < narrowness(open) && guarded.is_all_in(narrower) && strict(narrower)
        });
        opens.clone().any(|mode| *mode != Mtls::Strict) && !closed
    })
}

/// How narrow a word is: of two about the same workload the narrower counts.
fn narrowness(said: &Object<PeerAuthentication>) -> u8 {
    match &said.spec.selector {
        Some(_) => 0,
        None if !said.meta.namespace().is_system() => 1,
        None => 2,
    }
}

/// The workloads that a policy guards, as far as labels tell.
struct Guarded<'p> {
    policy: &'p Object<AuthorizationPolicy>,
    /// What each group of them bears at least.
    labels: Vec<Labels>,
}

impl<'p> Guarded<'p> {
    /// `None` where they are gateways, whose callers are not of the mesh.
    fn by(placed: &[&Placed], policy: &'p Object<AuthorizationPolicy>) -> Option<Self> {
        let targets = &policy.spec.target_refs;
        let mut services = placed.iter().filter_map(|own| own.resource.as_kind::<Service>());
        let labels = match &policy.spec.selector {
            Some(selector) => vec![selector.match_labels.clone()],
            None if targets.is_empty() => vec![Labels::new()],
            None => {
                let is_target = |service: &&Object<Service>| {
                    service.meta.namespace() == policy.meta.namespace()
                        && targets
                            .iter()
                            .any(|one| one.kind == TargetKind::Service && one.name == service.meta.name)
                };
                services.by_ref().filter(is_target).map(|service| service.spec.selector.clone()).collect()
            }
        };
        (!labels.is_empty()).then_some(Guarded { policy, labels })
    }

    /// Whether `said` can be about one of them.
    fn may_be(&self, said: &Object<PeerAuthentication>) -> bool {
        let (home, own) = (said.meta.namespace(), self.policy.meta.namespace());
        let everywhere = home.is_system() && said.spec.selector.is_none();
        let fits = |labels: &Labels| {
            let wanted = said.spec.selector.iter().flat_map(|selector| &selector.match_labels);
            wanted.clone().all(|(key, value)| labels.get(key).is_none_or(|own| own == value))
        };
        meet(&said.meta.cluster, &self.policy.meta.cluster)
            && (everywhere || home == own || self.is_mesh_wide())
            && self.labels.iter().any(fits)
    }

    /// Whether `said` is about all of them.
    fn is_all_in(&self, said: &Object<PeerAuthentication>) -> bool {
        let selected = |labels: &Labels| {
            said.spec.selector.as_ref().is_none_or(|selector| selects(&selector.match_labels, labels))
        };
        !self.is_mesh_wide() && said.meta.cluster.is_none() && self.labels.iter().all(selected)
    }

    fn is_mesh_wide(&self) -> bool {
        let spec = &self.policy.spec;
        self.policy.meta.namespace().is_system() && spec.selector.is_none() && spec.target_refs.is_empty()
    }
}

/// Whether what is said of one is said of the other's cluster, too.
fn meet(one: &Option<ClusterName>, other: &Option<ClusterName>) -> bool {
    one.is_none() || other.is_none() || one == other
}
