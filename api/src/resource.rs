//! The typed resources: one variant of [`Resource`] per kind, one file per family of kinds.
//!
//! Invariant: a resource holds meaning only. Positions, files and authors are kept beside it, so that its
//! canonical JSON, which is what is content-addressed, changes only when what it says changes.
//! Invariant: defaults of a specification are resolved on reading, so `weight: 1` and no weight are equal.

pub mod authentication;
pub mod authorization;
pub mod cidr;
pub mod duration;
pub mod endpoints;
pub mod gateway;
pub mod mesh;
pub mod route;
pub mod service;
pub mod target;
pub mod traffic;

use std::{collections::BTreeMap, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{
    authentication::PeerAuthentication,
    authorization::AuthorizationPolicy,
    cidr::Cidr,
    duration::Duration,
    endpoints::EndpointSlice,
    gateway::Gateway,
    mesh::{Cluster, Mesh},
    route::HttpRoute,
    service::{NamespaceSpec, Service, ServiceExport},
    target::{Selector, TargetRef},
    traffic::TrafficPolicy,
};
use crate::{
    digest::Hash,
    name::{BadName, ClusterName, Namespace, ObjectName, ServiceName},
};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// The API group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What every object says of itself, and where it applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Meta {
    /// The name.
    pub name: ObjectName,
    /// The namespace; `None` for kinds of the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The cluster that it applies to; `None` for all, later ones too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    /// Labels, without the one that says the placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels,
}

/// An object: metadata and what its kind says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    /// Name, placement, labels.
    #[serde(rename = "metadata")]
    pub meta: Meta,
    /// What the kind says.
    pub spec: S,
}

/// What the spec of a kind knows of its kind; lets [`Resource`]s be asked for by type.
pub trait Spec: Serialize + DeserializeOwned + JsonSchema + Sized + 'static {
    /// The kind.
    const KIND: Kind;
    /// The object, when the resource is of this kind.
    fn of(resource: &Resource) -> Option<&Object<Self>>;
}

/// Whether objects of a kind lie in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// They have none.
    Mesh,
    /// They must name one.
    Namespace,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($spec:ty) = $name:literal, $apis:expr, $scope:ident;)*) => {
        /// The kinds that a repository may hold.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Kind {
            /// Every kind, in the order of keys.
            pub const ALL: &[Kind] = &[$(Kind::$variant),*];

            /// The name as manifests write it.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }

            /// The `apiVersion`s under which it is read, the preferred one first.
            pub const fn api_versions(self) -> &'static [&'static str] {
                match self { $(Kind::$variant => $apis,)* }
            }

            /// Whether its objects lie in a namespace.
            pub const fn scope(self) -> Scope {
                match self { $(Kind::$variant => Scope::$scope,)* }
            }
        }

        /// One object of the configuration, of whatever kind.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        #[allow(clippy::large_enum_variant, reason = "resources are kept behind an `Arc`, one each")]
        pub enum Resource {
            $($(#[$doc])* #[serde(rename = $name)] $variant(Object<$spec>),)*
        }

        impl Resource {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Resource::$variant(_) => Kind::$variant,)* }
            }

            /// What it says of itself.
            pub fn meta(&self) -> &Meta {
                match self { $(Resource::$variant(object) => &object.meta,)* }
            }

            /// The same, for who places it.
            pub fn meta_mut(&mut self) -> &mut Meta {
                match self { $(Resource::$variant(object) => &mut object.meta,)* }
            }

            /// The object of `kind` with this metadata, and what its spec says as JSON.
            pub(crate) fn decode(kind: Kind, meta: Meta, spec: serde_json::Value) -> serde_json::Result<Self> {
                Ok(match kind {
                    $(Kind::$variant => Resource::$variant(Object { meta, spec: serde_json::from_value(spec)? }),)*
                })
            }
        }

        /// The JSON Schema of the spec of `kind`, as derived from its type.
        pub(crate) fn spec_schema(kind: Kind, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            match kind { $(Kind::$variant => <$spec>::json_schema(generator),)* }
        }

        $(impl Spec for $spec {
            const KIND: Kind = Kind::$variant;
            fn of(resource: &Resource) -> Option<&Object<Self>> {
                match resource { Resource::$variant(object) => Some(object), _ => None }
            }
        })*
    };
}

kinds! {
    /// Trust domain and defaults; exactly one.
    Mesh(Mesh) = "Mesh", &["weft.mesh/v1alpha1"], Mesh;
    /// A member cluster.
    Cluster(Cluster) = "Cluster", &["weft.mesh/v1alpha1"], Mesh;
    /// A namespace and its labels.
    Namespace(NamespaceSpec) = "Namespace", &["v1"], Mesh;
    /// A service: ports, and which workloads serve it.
    Service(Service) = "Service", &["v1"], Namespace;
    /// Endpoints that do not register themselves.
    EndpointSlice(EndpointSlice) = "EndpointSlice", &["discovery.k8s.io/v1"], Namespace;
    /// Where requests enter a cluster.
    Gateway(Gateway) = "Gateway", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], Namespace;
    /// Where HTTP requests go, at a gateway or inside the mesh.
    HttpRoute(HttpRoute) = "HTTPRoute",
        &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], Namespace;
    /// A service that a cluster offers to the others.
    ServiceExport(ServiceExport) = "ServiceExport",
        &["multicluster.x-k8s.io/v1alpha1", "multicluster.x-k8s.io/v1beta1"], Namespace;
    /// Whether plaintext is accepted.
    PeerAuthentication(PeerAuthentication) = "PeerAuthentication", &["weft.mesh/v1alpha1"], Namespace;
    /// Who may do what.
    AuthorizationPolicy(AuthorizationPolicy) = "AuthorizationPolicy", &["weft.mesh/v1alpha1"], Namespace;
    /// How requests to a service are balanced, limited, retried.
    TrafficPolicy(TrafficPolicy) = "TrafficPolicy", &["weft.mesh/v1alpha1"], Namespace;
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == text).ok_or_else(|| BadKey::Kind(text.into()))
    }
}

impl Resource {
    /// What it is kept under.
    pub fn key(&self) -> Key {
        let Meta { name, namespace, cluster, .. } = self.meta().clone();
        Key { kind: self.kind(), namespace, name, cluster }
    }

    /// The object, when it is of the kind whose spec is `S`.
    pub fn as_kind<S: Spec>(&self) -> Option<&Object<S>> {
        S::of(self)
    }

    /// The canonical JSON: the one encoding of what it says, and what is content-addressed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("every resource has a JSON form")
    }

    /// Reads [`Resource::to_json`].
    pub fn from_json(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// The hash of the canonical JSON.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.to_json())
    }
}

impl<S> Object<S> {
    /// `namespace/name`, of a namespaced object; the system namespace stands in for kinds of the whole mesh.
    pub fn service_name(&self) -> ServiceName {
        ServiceName::new(self.meta.namespace(), self.meta.name.clone())
    }
}

impl Meta {
    /// Only a name.
    pub fn named(name: ObjectName) -> Self {
        Meta { name, namespace: None, cluster: None, labels: Labels::new(), annotations: Labels::new() }
    }

    /// The namespace that the object lies in or, of a kind of the whole mesh, the system namespace.
    pub fn namespace(&self) -> Namespace {
        self.namespace.clone().unwrap_or_else(Namespace::system)
    }

    /// Whether the object applies in `cluster`.
    pub fn applies_in(&self, cluster: &ClusterName) -> bool {
        self.cluster.as_ref().is_none_or(|own| own == cluster)
    }
}

/// What an object is kept under. Two objects that meet at one key are an error.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    /// The kind.
    pub kind: Kind,
    /// The namespace, of a namespaced kind.
    pub namespace: Option<Namespace>,
    /// The name.
    pub name: ObjectName,
    /// The cluster that it is placed in; `None` for all.
    pub cluster: Option<ClusterName>,
}

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// The kind is none of ours.
    #[error("`{0}` is not a kind that a repository may hold")]
    Kind(String),
    /// It has another shape.
    #[error(
        "`{0}` is not a key: write `Kind namespace/name@cluster`, or `Kind name` without namespace or cluster"
    )]
    Shape(String),
    /// A part is no name.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl fmt::Display for Key {
    /// `AuthorizationPolicy shop/reviews-readers@west`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(out, "{namespace}/")?;
        }
        write!(out, "{}", self.name)?;
        self.cluster.iter().try_for_each(|cluster| write!(out, "@{cluster}"))
    }
}

impl FromStr for Key {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let (kind, rest) = text.split_once(' ').ok_or_else(|| BadKey::Shape(text.into()))?;
        let kind: Kind = kind.parse()?;
        let (path, cluster) = match rest.split_once('@') {
            Some((path, cluster)) => (path, Some(cluster.parse()?)),
            None => (rest, None),
        };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace.parse()?), name.parse()?),
            None => (None, path.parse()?),
        };
        if namespace.is_some() != (kind.scope() == Scope::Namespace) {
            return Err(BadKey::Shape(text.into()));
        }
        Ok(Key { kind, namespace, name, cluster })
    }
}

impl TryFrom<String> for Key {
    type Error = BadKey;
    fn try_from(text: String) -> Result<Self, BadKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.to_string()
    }
}

/// For `skip_serializing_if`: fields whose `false` is the same as their absence.
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        for text in [
            "AuthorizationPolicy shop/reviews-readers@west",
            "HTTPRoute shop/reviews",
            "Mesh mesh",
            "Cluster west",
        ] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
        for text in ["Mesh shop/mesh", "Service reviews", "Pod shop/a", "Mesh", "Service shop/a@b@c"] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn canonical_json_resolves_defaults_and_round_trips() {
        let text = br#"{"kind":"HTTPRoute","metadata":{"name":"a","namespace":"shop"},"spec":{"rules":[{"backendRefs":[{"name":"b","port":80}]}]}}"#;
        let resource = Resource::from_json(text).unwrap();
        let json = resource.to_json();
        assert!(String::from_utf8_lossy(&json).contains(r#""weight":1"#));
        assert_eq!(Resource::from_json(&json).unwrap(), resource);
        assert_eq!(Resource::from_json(&json).unwrap().to_json(), json);
        assert!(
            Resource::from_json(
                br#"{"kind":"Mesh","metadata":{"name":"a"},"spec":{"trustDomain":"x","nope":1}}"#
            )
            .is_err()
        );
    }
}
