//! Two policies of one kind at one target: the narrowest wins only while there is one narrowest.
//!
//! It concerns the kinds that inherit (TrafficPolicy, PeerAuthentication). Several AuthorizationPolicies at one
//! target are no conflict: their verdicts are combined, and the order of the three steps decides.

use std::collections::BTreeMap;

use crate::{
    manifest::{Code, Diagnostic, Placed},
    name::{Namespace, ObjectName},
    resource::{Kind, Labels, Resource, TargetRef},
};

/// What a policy of a kind is about, seen from its namespace.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Target<'a> {
    Namespace,
    Workloads(&'a Labels),
    Service(Namespace, &'a ObjectName, Option<&'a str>),
}

/// Tells every policy whose target has one of the kind already.
pub(super) fn check(placed: &[Placed], diagnostics: &mut Vec<Diagnostic>) {
    let mut taken: BTreeMap<(Kind, Namespace, Target), Vec<&Placed>> = BTreeMap::new();
    let whole = |own: &&Placed| {
        !own.flaws
            .iter()
            .any(|flaw| flaw.starts_with("/spec/targetRefs") || flaw.starts_with("/spec/selector"))
    };
    for own in placed.iter().filter(whole) {
        let meta = own.resource.meta();
        for (target, pointer) in targets(&own.resource) {
            let holders = taken.entry((own.resource.kind(), meta.namespace(), target)).or_default();
            let meets = |other: &&&Placed| {
                let (left, right) = (&other.resource.meta().cluster, &meta.cluster);
                left.is_none() || right.is_none() || left == right
            };
            if let Some(first) = holders.iter().find(meets) {
                diagnostics.push(Diagnostic {
                    file: own.origin.file.clone(),
                    at: own.positions.at(&pointer),
                    code: Code::Conflict,
                    message: format!(
                        "`{}`, at {}, has the same target as `{}`",
                        first.resource.key(),
                        first.origin,
                        own.resource.key()
                    ),
                    help: Some("two of one kind at one target contradict each other: make them one".into()),
                });
            }
            holders.push(own);
        }
    }
}

fn targets<'a>(resource: &'a Resource) -> Vec<(Target<'a>, String)> {
    match resource {
        Resource::PeerAuthentication(object) => match &object.spec.selector {
            Some(selector) => vec![(Target::Workloads(&selector.match_labels), "/spec/selector".into())],
            None => vec![(Target::Namespace, "/metadata/name".into())],
        },
        Resource::TrafficPolicy(object) if object.spec.target_refs.is_empty() => {
            vec![(Target::Namespace, "/metadata/name".into())]
        }
        Resource::TrafficPolicy(object) => {
            let refs = object.spec.target_refs.iter().enumerate();
            let service = |(i, own): (usize, &'a TargetRef)| {
                let namespace = own.namespace.clone().unwrap_or_else(|| object.meta.namespace());
                (
                    Target::Service(namespace, &own.name, own.section_name.as_deref()),
                    format!("/spec/targetRefs/{i}"),
                )
            };
            refs.map(service).collect()
        }
        Resource::Mesh(_)
        | Resource::Cluster(_)
        | Resource::Namespace(_)
        | Resource::Service(_)
        | Resource::EndpointSlice(_)
        | Resource::Gateway(_)
        | Resource::HttpRoute(_)
        | Resource::ServiceExport(_)
        | Resource::AuthorizationPolicy(_) => Vec::new(),
    }
}
