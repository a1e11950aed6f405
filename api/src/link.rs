//! Stage 2, second half: objects → one linked [`ResourceSet`], or every reference that does not hold.
//!
//! Invariant: in a set that [`link`] gave, there is one `Mesh`, every cluster named exists, and every reference
//! that Git owns resolves, or is warned of where the `Mesh` says `unresolvedReferences: REPORT`.
//!
//! Git owns a namespace of a cluster once it declares any `Service` of it there; elsewhere Services are the
//! cluster's own and are resolved in the snapshot. Gateways and routes are always Git's.
//!
//! What one source says is judged beside what the others say, since references lead from one to another.

mod reference;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    admin::Severity,
    manifest::{
        self, Broken, Code, Diagnostic, Origin, Parsed, Placed, Position,
        report::{MAX_DIAGNOSTICS, Report},
    },
    name::{ClusterName, Namespace, ObjectName},
    resource::{Key, Kind, Mesh, Object, Resource, Spec, mesh::UnresolvedReferences},
};

/// A resource, and where it was written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it says.
    pub resource: Resource,
    /// Where it was written.
    pub origin: Origin,
}

/// All resources of a revision.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    /// By key, so in one order everywhere.
    pub resources: BTreeMap<Key, Arc<Entry>>,
}

/// What [`load`] makes of files.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What could be read. Only without errors is it fit to be put in force.
    pub set: ResourceSet,
    /// Every mistake and warning, in the order of files and positions.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// The set, when nothing refuses it.
    pub fn accept(self) -> Result<ResourceSet, Vec<Diagnostic>> {
        if self.diagnostics.iter().any(Diagnostic::is_error) { Err(self.diagnostics) } else { Ok(self.set) }
    }
}

/// How much of the mesh's configuration is at hand.
#[derive(Debug, Clone, Copy)]
pub enum Extent<'a> {
    /// All of it.
    Whole,
    /// That of these namespaces; what is in others, or mesh-wide, may exist.
    Namespaces(&'a BTreeSet<Namespace>),
}

/// Parses and links in one what a single source says of everything: all its mistakes but those of expressions, and none
/// that only follows from another.
pub fn load<P: AsRef<str>, B: AsRef<[u8]>>(files: &[(P, B)]) -> Loaded {
    let parsed = manifest::parse(files);
    let diagnostics = judge(&parsed, &[], Extent::Whole);
    Loaded { set: ResourceSet::of(parsed.placed), diagnostics }
}

/// What is wrong with what one source says, alone and together with what the others say, in order. A mistake that it
/// makes of what another says stands where that one said it.
pub fn judge(own: &Parsed, beside: &[&Placed], extent: Extent<'_>) -> Vec<Diagnostic> {
    // The others come first: of two that exclude each other, the later one is told of.
    let placed: Vec<&Placed> = beside.iter().copied().chain(&own.placed).collect();
    let mut diagnostics = own.diagnostics.clone();
    diagnostics.extend(check(&placed, &own.broken, extent));
    bounded(diagnostics)
}

/// The diagnostics in order and each once, no more of a severity than are told, and a word when there may be more.
pub fn bounded(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort();
    diagnostics.dedup();
    // Each by itself: what is let pass must not push out what refuses.
    let (mut errors, mut warnings) = (0, 0);
    diagnostics.retain(|one| {
        let count = if one.is_error() { &mut errors } else { &mut warnings };
        *count += 1;
        *count <= MAX_DIAGNOSTICS
    });
    if errors >= MAX_DIAGNOSTICS {
        diagnostics.push(Diagnostic {
            file: ".".into(),
            at: Position::default(),
            code: Code::Limit,
            message: format!("only {MAX_DIAGNOSTICS} mistakes are told, and there may be more"),
            help: Some("mend these first".into()),
            severity: Severity::Error,
        });
        diagnostics.sort();
        diagnostics.dedup();
    }
    diagnostics
}

/// Links objects that were read without a mistake.
pub fn link(placed: Vec<Placed>) -> Result<ResourceSet, Vec<Diagnostic>> {
    let mut diagnostics = check(&placed.iter().collect::<Vec<_>>(), &[], Extent::Whole);
    diagnostics.sort();
    diagnostics.dedup();
    if diagnostics.iter().any(Diagnostic::is_error) { Err(diagnostics) } else { Ok(ResourceSet::of(placed)) }
}

impl ResourceSet {
    fn of(placed: Vec<Placed>) -> Self {
        let entry = |placed: Placed| Entry { resource: placed.resource, origin: placed.origin };
        placed.into_iter().map(entry).collect()
    }

    /// The one `Mesh`.
    pub fn mesh(&self) -> Option<&Mesh> {
        self.all::<Mesh>().next().map(|(_, mesh)| &mesh.spec)
    }

    /// The names of all members.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterName> {
        self.all::<crate::resource::Cluster>().filter_map(|(key, _)| ClusterName::new(key.name.as_str()).ok())
    }

    /// What applies in `cluster`, in the order of keys.
    pub fn for_cluster(&self, cluster: &ClusterName) -> impl Iterator<Item = (&Key, &Arc<Entry>)> {
        self.resources.iter().filter(move |(key, _)| key.cluster.as_ref().is_none_or(|own| own == cluster))
    }

    /// Every object of one kind, in the order of keys.
    pub fn all<S: Spec>(&self) -> impl Iterator<Item = (&Key, &Object<S>)> {
        self.resources.iter().filter_map(|(key, entry)| Some((key, entry.resource.as_kind::<S>()?)))
    }

    /// The objects of one kind that apply in `cluster`, in the order of keys.
    pub fn in_cluster<S: Spec>(&self, cluster: &ClusterName) -> impl Iterator<Item = (&Key, &Object<S>)> {
        self.for_cluster(cluster).filter_map(|(key, entry)| Some((key, entry.resource.as_kind::<S>()?)))
    }

    /// The object of one kind and name that applies in `cluster`; there is never more than one.
    pub fn find<S: Spec>(
        &self,
        namespace: &Namespace,
        name: &ObjectName,
        cluster: &ClusterName,
    ) -> Option<&Object<S>> {
        let key =
            |cluster| Key { kind: S::KIND, namespace: Some(namespace.clone()), name: name.clone(), cluster };
        [None, Some(cluster.clone())]
            .into_iter()
            .find_map(|place| self.resources.get(&key(place))?.resource.as_kind())
    }
}

impl FromIterator<Entry> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        ResourceSet {
            resources: entries.into_iter().map(|entry| (entry.resource.key(), Arc::new(entry))).collect(),
        }
    }
}

fn check(placed: &[&Placed], broken: &[Broken], extent: Extent<'_>) -> Vec<Diagnostic> {
    let world = World::of(placed, broken, extent);
    let mut diagnostics = Vec::new();
    world.one_mesh(&mut diagnostics);
    for own in placed.iter().copied() {
        let mut report = Report {
            file: &own.origin.file,
            positions: &own.positions,
            flaws: own.flaws.clone(),
            diagnostics: &mut diagnostics,
            pattern_bytes: 0,
        };
        if report.is_full(Severity::Error) {
            break;
        }
        world.placement(own, &mut report);
        reference::check(&world, own, &mut report);
    }
    target::check(placed, &mut diagnostics);
    diagnostics
}

/// A cluster, or `None` for what applies in all when no member is declared.
type Place = Option<ClusterName>;

/// Everything that a reference may lead to.
struct World<'a> {
    extent: Extent<'a>,
    placed: &'a [&'a Placed],
    by_key: BTreeMap<Key, &'a Placed>,
    broken: &'a [Broken],
    clusters: BTreeSet<ClusterName>,
    /// Where Git declares a Service.
    owned: BTreeSet<(Place, Namespace)>,
    /// How dangling references are told.
    dangling: Severity,
    /// The `Mesh`, when it is at hand and could be read whole.
    mesh: Option<&'a Mesh>,
}

/// Where a reference leads.
enum Lookup<'a> {
    Found(&'a Placed),
    /// It is not Git's to say, or it could not be read.
    Elsewhere,
    Missing,
}

impl<'a> World<'a> {
    fn of(placed: &'a [&'a Placed], broken: &'a [Broken], extent: Extent<'a>) -> Self {
        let meshes = placed.iter().filter_map(|own| own.resource.as_kind::<Mesh>());
        let reports = meshes
            .map(|mesh| mesh.spec.unresolved_references)
            .any(|said| said == UnresolvedReferences::Report);
        let dangling = if reports { Severity::Warning } else { Severity::Error };
        let mut whole = placed.iter().filter(|own| own.flaws.is_empty());
        let mesh = whole.find_map(|own| Some(&own.resource.as_kind::<Mesh>()?.spec));
        let names = placed.iter().filter(|own| own.resource.kind() == Kind::Cluster);
        let clusters = match extent {
            Extent::Whole => {
                names.filter_map(|own| ClusterName::new(own.resource.meta().name.as_str()).ok()).collect()
            }
            // The members are another source's to say: those that are named exist.
            Extent::Namespaces(_) => {
                placed.iter().filter_map(|own| own.resource.meta().cluster.clone()).collect()
            }
        };
        let by_key = placed.iter().map(|own| (own.resource.key(), *own)).collect();
        let mut world =
            World { extent, placed, by_key, broken, clusters, owned: BTreeSet::new(), dangling, mesh };
        for own in placed.iter().filter(|own| own.resource.kind() == Kind::Service) {
            let namespace = own.resource.meta().namespace();
            world.owned.extend(world.places(own).into_iter().map(|place| (place, namespace.clone())));
        }
        world
    }

    /// Every place that the object applies in.
    fn places(&self, own: &Placed) -> Vec<Place> {
        match &own.resource.meta().cluster {
            Some(cluster) => vec![Some(cluster.clone())],
            None if self.clusters.is_empty() => vec![None],
            None => self.clusters.iter().cloned().map(Some).collect(),
        }
    }

    fn look(&self, kind: Kind, namespace: &Namespace, name: &ObjectName, place: &Place) -> Lookup<'a> {
        let key = |cluster| Key { kind, namespace: Some(namespace.clone()), name: name.clone(), cluster };
        if let Some(found) =
            [None, place.clone()].into_iter().find_map(|cluster| self.by_key.get(&key(cluster)))
        {
            return Lookup::Found(found);
        }
        if matches!(self.extent, Extent::Namespaces(own) if !own.contains(namespace)) {
            return Lookup::Elsewhere;
        }
        let clusters_own = kind == Kind::Service && !self.owned.contains(&(place.clone(), namespace.clone()));
        if clusters_own || self.broken.iter().any(|broken| broken.may_be(kind, namespace, name)) {
            return Lookup::Elsewhere;
        }
        Lookup::Missing
    }

    fn one_mesh(&self, diagnostics: &mut Vec<Diagnostic>) {
        let meshes: Vec<&Placed> =
            self.placed.iter().copied().filter(|own| own.resource.kind() == Kind::Mesh).collect();
        let system = Namespace::system();
        let may_be = |broken: &Broken| {
            ObjectName::new("mesh").is_ok_and(|name| broken.may_be(Kind::Mesh, &system, &name))
        };
        match meshes.as_slice() {
            [] if self.broken.iter().any(may_be) || matches!(self.extent, Extent::Namespaces(_)) => {}
            [] => diagnostics.push(Diagnostic {
                file: ".".into(),
                at: Position::default(),
                code: Code::MissingField,
                message: "there is no `Mesh`: a repository holds exactly one".into(),
                help: Some("is this the configuration's root?".into()),
                severity: Severity::Error,
            }),
            [first, others @ ..] => diagnostics.extend(others.iter().map(|other| Diagnostic {
                file: other.origin.file.clone(),
                at: other.positions.key_at("/metadata/name"),
                code: Code::DuplicateObject,
                message: format!("a second `Mesh`: the first one is at {}", first.origin),
                help: Some("a repository holds exactly one".into()),
                severity: Severity::Error,
            })),
        }
    }

    fn placement(&self, own: &Placed, report: &mut Report) {
        let meta = own.resource.meta();
        let Some(cluster) = meta.cluster.as_ref().filter(|cluster| !self.clusters.contains(*cluster)) else {
            return;
        };
        let name = ObjectName::new(cluster.as_str());
        if name.is_ok_and(|name| {
            self.broken.iter().any(|broken| broken.may_be(Kind::Cluster, &Namespace::system(), &name))
        }) {
            return;
        }
        let help =
            crate::schema::validate::nearest(cluster.as_str(), self.clusters.iter().map(ClusterName::as_str))
                .map(|near| format!("did you mean `{near}`?"));
        let label = "/metadata/labels/weft.mesh~1clusters";
        let pointer = if own.positions.has(label) { label } else { "/metadata/name" };
        let message = format!("there is no Cluster `{cluster}`");
        report.add(pointer, own.positions.at(pointer), Code::Placement, message, help);
    }
}

#[cfg(test)]
mod tests;
