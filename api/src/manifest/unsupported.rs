//! What the standards allow and Weft does not do yet: refused by name, never dropped.
//!
//! Paths are those of the upstream types; `*` stands for an index, `=VALUE` at the end for one value of the field.

use serde_json::Value as Json;

use crate::resource::Kind;

/// Why a field is refused.
pub(crate) struct Refusal {
    pub says: &'static str,
    pub help: &'static str,
}

const NOT_YET: Refusal = Refusal {
    says: "is not yet supported",
    help: "it is part of the standard, but nothing here would act on it: leave it out",
};
/// The same for a kind of our own.
const PLANNED: Refusal =
    Refusal { says: "is not yet supported", help: "nothing here would act on it: leave it out" };
const BY_SERVER: Refusal = Refusal {
    says: "is not read: it is written by the API server",
    help: "configuration says what is wanted: leave it out",
};
const WITHOUT_NAMESPACE: Refusal =
    Refusal { says: "is not allowed: objects of this kind lie in no namespace", help: "leave it out" };

const METADATA: &[&str] = &["ownerReferences", "finalizers", "generateName"];
const BY_SERVER_METADATA: &[&str] = &[
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// The fields and values of each kind that stand in its specification but not in our types.
fn table(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::HttpRoute => &[
            "/spec/useDefaultGateways",
            "/spec/parentRefs/*/kind=ListenerSet",
            "/spec/parentRefs/*/kind=XListenerSet",
            "/spec/parentRefs/*/kind=ServiceImport",
            "/spec/rules/*/sessionPersistence",
            "/spec/rules/*/filters/*/type=RequestMirror",
            "/spec/rules/*/filters/*/type=CORS",
            "/spec/rules/*/filters/*/type=ExternalAuth",
            "/spec/rules/*/filters/*/type=ExtensionRef",
            "/spec/rules/*/filters/*/requestMirror",
            "/spec/rules/*/filters/*/cors",
            "/spec/rules/*/filters/*/externalAuth",
            "/spec/rules/*/filters/*/extensionRef",
            "/spec/rules/*/backendRefs/*/filters",
        ],
        Kind::Gateway => &[
            "/spec/listeners/*/tls",
            "/spec/listeners/*/protocol=HTTPS",
            "/spec/listeners/*/protocol=TLS",
            "/spec/listeners/*/protocol=TCP",
            "/spec/listeners/*/protocol=UDP",
            "/spec/listeners/*/allowedRoutes/namespaces/from=Selector",
            "/spec/listeners/*/allowedRoutes/namespaces/selector",
            "/spec/addresses/*/type=Hostname",
            "/spec/addresses/*/type=NamedAddress",
            "/spec/infrastructure",
            "/spec/tls",
            "/spec/backendTLS",
            "/spec/allowedListeners",
            "/spec/defaultScope",
        ],
        Kind::Service => &[
            "/spec/type=ExternalName",
            "/spec/externalName",
            "/spec/externalIPs",
            "/spec/loadBalancerIP",
            "/spec/loadBalancerClass",
            "/spec/loadBalancerSourceRanges",
            "/spec/allocateLoadBalancerNodePorts",
            "/spec/healthCheckNodePort",
            "/spec/sessionAffinity",
            "/spec/sessionAffinityConfig",
            "/spec/ipFamilies",
            "/spec/ipFamilyPolicy",
            "/spec/internalTrafficPolicy",
            "/spec/externalTrafficPolicy",
            "/spec/trafficDistribution",
            "/spec/ports/*/nodePort",
            // By name: workloads register their ports by number alone.
            "/spec/ports/*/targetPort=*",
            "/spec/ports/*/protocol=UDP",
            "/spec/ports/*/protocol=SCTP",
        ],
        Kind::EndpointSlice => &[
            "/addressType=FQDN",
            "/endpoints/*/targetRef",
            "/endpoints/*/hints",
            "/endpoints/*/deprecatedTopology",
            "/ports/*/protocol=UDP",
            "/ports/*/protocol=SCTP",
        ],
        Kind::Namespace => &["/spec/finalizers"],
        Kind::ServiceExport => &["/spec/exportedLabels", "/spec/exportedAnnotations"],
        Kind::TrafficPolicy => &["/spec/loadBalancing/hash", "/spec/loadBalancing/policy=HASH"],
        Kind::Mesh | Kind::Cluster | Kind::PeerAuthentication | Kind::AuthorizationPolicy => &[],
    }
}

/// Why the field at `pointer`, which our types do not have, is refused; `None` when no specification has it.
pub(crate) fn field(kind: Kind, pointer: &str) -> Option<&'static Refusal> {
    if pointer == "/status" {
        return Some(&BY_SERVER);
    }
    match pointer.strip_prefix("/metadata/") {
        Some("namespace") => Some(&WITHOUT_NAMESPACE),
        Some(name) if BY_SERVER_METADATA.contains(&name) => Some(&BY_SERVER),
        Some(name) if METADATA.contains(&name) => Some(&NOT_YET),
        Some(_) => None,
        None => known_field(kind, pointer).then_some(if kind == Kind::TrafficPolicy {
            &PLANNED
        } else {
            &NOT_YET
        }),
    }
}

/// Whether the field at `pointer` is known, but not yet with this value.
pub(crate) fn value(kind: Kind, pointer: &str, value: &Json) -> bool {
    let Some(value) = value.as_str() else { return false };
    let refuses = |entry: &&'static str| {
        entry
            .split_once('=')
            .is_some_and(|(path, refused)| [value, "*"].contains(&refused) && matches(path, pointer))
    };
    table(kind).iter().any(refuses)
}

/// Whether the field is in our types, but nothing acts on it yet.
pub(crate) fn known_field(kind: Kind, pointer: &str) -> bool {
    table(kind).iter().any(|path| matches(path, pointer))
}

fn matches(path: &str, pointer: &str) -> bool {
    let (mut left, mut right) = (path.split('/'), pointer.split('/'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
}
