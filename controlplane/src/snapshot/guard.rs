//! What guards whom: authorization policies and mTLS modes of one workload.

use std::collections::BTreeSet;

use api::{
    name::{Namespace, ServiceName},
    resource::{
        AuthorizationPolicy, Object, PeerAuthentication, Service, TargetRef,
        authentication::{self, Mtls},
        authorization::{Action, Mode},
        service::TargetPort,
        target::TargetKind,
    },
    wire,
};

use super::{Inputs, Registered, Said, service::serves};

/// The name of a policy in a view.
pub(super) fn policy_name(policy: &Object<AuthorizationPolicy>) -> String {
    format!("policy/{}", policy.service_name())
}

/// The policies that guard `port` of a workload, sorted by name; all of its ports when `port` is `None`.
pub(super) fn of_workload<'a>(
    inputs: &'a Inputs,
    workload: &Registered,
    port: Option<u16>,
) -> Vec<(&'a Object<AuthorizationPolicy>, &'a Said)> {
    let selecting: Vec<_> = selecting(inputs, workload).collect();
    let policies = inputs.configuration.of::<AuthorizationPolicy>(&inputs.cluster);
    policies.filter(|(policy, _)| guards(policy, workload, &selecting, port)).collect()
}

/// The policies attached to an object by `targetRefs`, sorted by name.
pub(super) fn attached(
    inputs: &Inputs,
    kind: TargetKind,
    namespace: &Namespace,
    name: &str,
    section: Option<&str>,
) -> Vec<String> {
    let refers = |target: &TargetRef| {
        target.kind == kind
            && target.name.as_str() == name
            && (target.section_name.is_none() || target.section_name.as_deref() == section)
    };
    let policies = inputs.configuration.of::<AuthorizationPolicy>(&inputs.cluster);
    let policies = policies.filter(|(policy, _)| policy.meta.namespace() == *namespace);
    policies
        .filter(|(policy, _)| policy.spec.target_refs.iter().any(refers))
        .map(|(policy, _)| policy_name(policy))
        .collect()
}

/// The services that select a workload, with their specs.
pub(super) fn selecting<'a>(
    inputs: &'a Inputs,
    workload: &'a Registered,
) -> impl Iterator<Item = (ServiceName, &'a Service)> + 'a {
    let services = inputs.configuration.of::<Service>(&inputs.cluster);
    services
        .map(|(object, _)| (object.service_name(), &object.spec))
        .filter(|(name, spec)| serves(workload, name, spec))
}

fn guards(
    policy: &Object<AuthorizationPolicy>,
    workload: &Registered,
    selecting: &[(ServiceName, &Service)],
    port: Option<u16>,
) -> bool {
    let home = policy.meta.namespace();
    let spec = &policy.spec;
    if !spec.target_refs.is_empty() {
        return home == workload.namespace
            && spec.target_refs.iter().any(|target| {
                target.kind == TargetKind::Service
                    && selecting.iter().any(|(name, service)| {
                        name.name == target.name && covers(target.section_name.as_deref(), service, port)
                    })
            });
    }
    match &spec.selector {
        Some(selector) => home == workload.namespace && selector.matches(&workload.labels),
        None => home == workload.namespace || home.is_system(),
    }
}

/// Whether a reference to a section of a service means the workload's `port`.
fn covers(section: Option<&str>, service: &Service, port: Option<u16>) -> bool {
    let (Some(section), Some(port)) = (section, port) else { return true };
    let named = service
        .ports
        .iter()
        .find(|one| one.name.as_deref() == Some(section) || one.port.to_string() == section);
    named.is_some_and(|named| named.target() == TargetPort::Number(port))
}

/// A mode as the wire says it.
pub(super) fn mode(mtls: Mtls) -> wire::MtlsMode {
    match mtls {
        Mtls::Strict => wire::MtlsMode::Strict,
        Mtls::Permissive => wire::MtlsMode::Permissive,
        Mtls::Disable => wire::MtlsMode::Disable,
    }
}

/// What a port of a workload accepts, and who says it; `None` is the default.
pub(crate) fn mtls_and_origin<'a>(
    inputs: &'a Inputs,
    workload: &Registered,
    port: u16,
) -> (Mtls, Option<&'a Said>) {
    let mut said: Vec<_> = inputs
        .configuration
        .of::<PeerAuthentication>(&inputs.cluster)
        .filter_map(|(object, said)| {
            let home = object.meta.namespace();
            let narrowness = match &object.spec.selector {
                Some(selector) if home == workload.namespace && selector.matches(&workload.labels) => 0,
                Some(_) => return None,
                None if home == workload.namespace => 1,
                None if home.is_system() => 2,
                None => return None,
            };
            Some((narrowness, &object.spec, said))
        })
        .collect();
    said.sort_by_key(|(narrowness, ..)| *narrowness);
    let specs: Vec<_> = said.iter().map(|(_, spec, _)| *spec).collect();
    let (mtls, place) = authentication::at(&specs, port);
    (mtls, place.map(|place| said[place].2))
}

/// Every policy of this cluster that some view may name.
pub(super) fn all<'a>(inputs: &'a Inputs) -> impl Iterator<Item = (String, wire::Policy)> + 'a {
    let mut seen = BTreeSet::new();
    inputs.configuration.of::<AuthorizationPolicy>(&inputs.cluster).filter_map(move |(policy, said)| {
        let name = policy_name(policy);
        seen.insert(name.clone()).then(|| (name, to_wire(policy, said)))
    })
}

fn to_wire(policy: &Object<AuthorizationPolicy>, said: &Said) -> wire::Policy {
    let action = match policy.spec.action {
        Action::Deny => wire::Action::Deny,
        Action::Allow => wire::Action::Allow,
        Action::Audit => wire::Action::Audit,
    };
    let rules = policy.spec.rules.iter().map(|rule| wire::PolicyRule {
        name: rule.name.clone().map(|name| name.to_string()).unwrap_or_default(),
        when: rule.when.clone().unwrap_or_default(),
    });
    wire::Policy {
        namespace: policy.meta.namespace().to_string(),
        name: policy.meta.name.to_string(),
        action: action.into(),
        dry_run: policy.spec.mode == Mode::DryRun,
        rules: rules.collect(),
        commit: said.changed_in.clone(),
    }
}
