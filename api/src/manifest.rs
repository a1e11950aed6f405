//! Stage 2, first half: text in Git → typed resources, each with its place; every mistake collected.
//!
//! YAML → tree with positions → schema of the kind → type → rules inside one object → placement.
//! What one object says of another is [`crate::link`]'s.
//!
//! Invariant: nothing is dropped. Whatever is not understood is a diagnostic with file, line and column.

mod check;
pub mod diagnostic;
mod place;
pub(crate) mod report;
pub(crate) mod tree;
pub(crate) mod unsupported;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::{
    diagnostic::{Code, Diagnostic, Position, Positions},
    report::is_full,
};
use self::{report::Report, tree::Node};
use crate::{
    admin::Severity,
    name::{ClusterName, Namespace, ObjectName},
    resource::{Kind, Meta, Resource, Scope},
    schema,
};

/// The label that says in which clusters an object applies.
pub const PLACEMENT_LABEL: &str = "weft.mesh/clusters";
/// A larger file is refused.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// A repository with more objects is refused. An object for several clusters counts once for each.
pub const MAX_OBJECTS: usize = 100_000;
/// A repository whose objects are larger together, as JSON, is refused. They count as above: one label may make many of a
/// large one.
pub const MAX_KEPT_BYTES: usize = 256 << 20;

/// Kinds that the design knows and that a later issue brings.
const LATER_KINDS: &[&str] = &[
    "GRPCRoute",
    "TLSRoute",
    "TCPRoute",
    "UDPRoute",
    "ListenerSet",
    "ReferenceGrant",
    "BackendTLSPolicy",
    "RequestAuthentication",
    "RateLimitPolicy",
    "FaultInjection",
    "ServiceEntry",
    "WorkloadEntry",
    "Telemetry",
    "Rollout",
    "ServiceLevelObjective",
];

/// Where an object was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The file, relative to the configuration's root.
    pub file: Arc<str>,
    /// The line at which the object begins.
    pub line: u32,
}

impl fmt::Display for Origin {
    /// `clusters/x.yaml:3`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.file, self.line)
    }
}

/// One object in one place: an object for two clusters is two of these.
#[derive(Debug, Clone)]
pub struct Placed {
    /// What it says.
    pub resource: Resource,
    /// Where it was written.
    pub origin: Origin,
    /// Where its parts stand.
    pub positions: Positions,
    /// Pointers to what was wrong with it and left out.
    pub(crate) flaws: Vec<String>,
}

impl Placed {
    /// An object as it was kept, without its text.
    pub fn kept(resource: Resource, origin: Origin) -> Self {
        let positions = Positions::at_line(origin.line);
        Placed { resource, origin, positions, flaws: Vec::new() }
    }
}

/// What is known of an object that could not be read; `None` is anything.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    kind: Option<Kind>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Broken {
    fn of(kind: Option<Kind>, tree: &Node) -> Self {
        let field = |name| Some(tree.field("metadata")?.node.field(name)?.node.text()?.to_owned());
        Broken { kind, namespace: field("namespace"), name: field("name") }
    }

    /// Whether it may have been this object.
    pub(crate) fn may_be(&self, kind: Kind, namespace: &Namespace, name: &ObjectName) -> bool {
        self.kind.is_none_or(|own| own == kind)
            && self.namespace.as_ref().is_none_or(|own| own == namespace.as_str())
            && self.name.as_ref().is_none_or(|own| own == name.as_str())
    }
}

/// What [`parse`] makes of files.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Every object that could be read, in the order of files and lines.
    pub placed: Vec<Placed>,
    /// Objects that could not be read; a reference to one of them is not dangling as well.
    pub(crate) broken: Vec<Broken>,
    /// What is wrong, in the order of files and positions.
    pub diagnostics: Vec<Diagnostic>,
    /// How large the JSON of what is placed would be, in bytes.
    kept_bytes: usize,
    /// What the patterns of its routes take where they are matched.
    pattern_bytes: usize,
    /// Why no more is placed.
    overflow: Option<String>,
}

/// Reads the `*.yaml` and `*.yml` among `files` (path relative to the configuration's root, content).
pub fn parse<P: AsRef<str>, B: AsRef<[u8]>>(files: &[(P, B)]) -> Parsed {
    let mut sorted: Vec<(&str, &[u8])> =
        files.iter().map(|(path, bytes)| (path.as_ref(), bytes.as_ref())).collect();
    sorted.retain(|(path, _)| path.ends_with(".yaml") || path.ends_with(".yml"));
    sorted.sort();
    let mut parsed = Parsed::default();
    for (path, bytes) in sorted {
        if parsed.is_closed() {
            break;
        }
        let file: Arc<str> = path.into();
        match text(bytes) {
            Ok(text) => parsed.file(&file, text),
            Err((at, code, message)) => parsed.unreadable(&file, at, code, message),
        }
    }
    if let Some(message) = parsed.overflow.take() {
        parsed.unreadable(&".".into(), Position::default(), Code::Limit, message);
        parsed.placed.clear();
    }
    parsed.unique();
    if parsed.is_full() {
        // The rest was not looked at, and may be what a reference leads to.
        parsed.broken.push(Broken::default());
    }
    parsed.diagnostics.sort();
    parsed
}

fn text(bytes: &[u8]) -> Result<&str, tree::Fault> {
    if bytes.len() > MAX_FILE_BYTES {
        let message = format!("larger than {MAX_FILE_BYTES} bytes: split it");
        return Err((Position::default(), Code::Limit, message));
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = good.matches('\n').count() as u32 + 1;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1;
        (Position { line, column }, Code::Syntax, "not UTF-8".to_owned())
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

impl Parsed {
    /// Whether what comes would neither be told of nor kept, so that it need not be read.
    fn is_closed(&self) -> bool {
        self.overflow.is_some() || self.is_full()
    }

    fn is_full(&self) -> bool {
        report::is_full(&self.diagnostics, Severity::Error)
    }

    fn unreadable(&mut self, file: &Arc<str>, at: Position, code: Code, message: String) {
        self.broken.push(Broken::default());
        self.error(file, at, code, message);
    }

    fn error(&mut self, file: &Arc<str>, at: Position, code: Code, message: String) {
        if self.is_full() {
            return;
        }
        self.diagnostics.push(Diagnostic {
            file: file.clone(),
            at,
            code,
            message,
            help: None,
            severity: Severity::Error,
        });
    }

    fn file(&mut self, file: &Arc<str>, text: &str) {
        let mut faults = Vec::new();
        let documents = tree::documents(text, &mut faults);
        for (at, code, message) in faults {
            match code {
                Code::DuplicateKey => self.error(file, at, code, message),
                _ => self.unreadable(file, at, code, message),
            }
        }
        let source: Arc<str> = text.into();
        for tree in documents {
            if self.is_closed() {
                return;
            }
            self.document(file, Positions { tree, source: source.clone() });
        }
    }

    fn document(&mut self, file: &Arc<str>, positions: Positions) {
        let tree = positions.tree.clone();
        let mut report = Report {
            file,
            positions: &positions,
            flaws: Vec::new(),
            diagnostics: &mut self.diagnostics,
            pattern_bytes: self.pattern_bytes,
        };
        let Some(kind) = identify(&tree, &mut report) else {
            self.broken.push(Broken::of(None, &tree));
            return;
        };
        let document =
            schema::validate::validate(kind, &tree, schema::of(kind), &mut report).unwrap_or_default();
        let (metadata, spec) = split(kind, document);
        let read = read(kind, metadata, spec, &mut report);
        // With too many mistakes its flaws are not all known, and what follows from them would be told.
        let is_judged = !report.is_full(Severity::Error);
        let Report { flaws, pattern_bytes, .. } = report;
        self.pattern_bytes = pattern_bytes;
        let Some((resource, places)) = read.filter(|(_, places)| is_judged && !places.is_empty()) else {
            self.broken.push(Broken::of(Some(kind), &tree));
            return;
        };
        if !self.has_room(&resource, &flaws, places.len()) {
            return;
        }
        let origin = Origin { file: file.clone(), line: tree.at.line };
        self.placed.extend(places.into_iter().map(|cluster| {
            let mut resource = resource.clone();
            resource.meta_mut().cluster = cluster;
            Placed { resource, origin: origin.clone(), positions: positions.clone(), flaws: flaws.clone() }
        }));
    }

    /// Whether so many copies of an object may be kept; asked before they are made. Notes why not.
    fn has_room(&mut self, resource: &Resource, flaws: &[String], copies: usize) -> bool {
        let size = resource.to_json().len() + flaws.iter().map(String::len).sum::<usize>();
        self.kept_bytes += size * copies;
        if self.placed.len() + copies > MAX_OBJECTS {
            self.overflow = Some(format!("more than {MAX_OBJECTS} objects in one repository: split it"));
        } else if self.kept_bytes > MAX_KEPT_BYTES {
            self.overflow = Some(format!(
                "objects of more than {MAX_KEPT_BYTES} bytes in one repository, each counted once for every cluster \
                 that it names: split it"
            ));
        }
        self.overflow.is_none()
    }

    /// Reports objects that meet at one key. The first one stays.
    fn unique(&mut self) {
        // By cluster within a name: of one name there may be as many objects as of all.
        type Places = BTreeMap<Option<ClusterName>, usize>;
        let mut firsts: BTreeMap<(Kind, Option<Namespace>, ObjectName), Places> = BTreeMap::new();
        let mut doubles = Vec::new();
        for (index, placed) in self.placed.iter().enumerate() {
            let Meta { name, namespace, cluster, .. } = placed.resource.meta();
            let same = firsts.entry((placed.resource.kind(), namespace.clone(), name.clone())).or_default();
            let first = match cluster {
                Some(_) => same.get(&None::<ClusterName>).or_else(|| same.get(cluster)),
                None => same.values().next(),
            };
            match first.copied() {
                Some(first) => doubles.push((index, first)),
                None => _ = same.insert(cluster.clone(), index),
            }
        }
        let mut told = BTreeSet::new();
        for (double, first) in doubles.iter().take(report::MAX_DIAGNOSTICS) {
            let (double, first) = (&self.placed[*double], &self.placed[*first]);
            let at = double.positions.key_at("/metadata/name");
            let message = format!(
                "`{}` is already declared at {}, as `{}`",
                double.resource.key(),
                first.origin,
                first.resource.key()
            );
            if told.insert((&double.origin.file, at)) {
                self.diagnostics.push(Diagnostic {
                    file: double.origin.file.clone(),
                    at,
                    code: Code::DuplicateObject,
                    message,
                    help: Some("remove one, rename one, or place them in different clusters".into()),
                    severity: Severity::Error,
                });
            }
        }
        let doubles: BTreeSet<usize> = doubles.into_iter().map(|(double, _)| double).collect();
        let mut index = 0..;
        self.placed.retain(|_| index.next().is_some_and(|index| !doubles.contains(&index)));
    }
}

/// The object of one document, and where it is to be placed; `None` when too little of it is right.
fn read(
    kind: Kind,
    metadata: Json,
    spec: Json,
    report: &mut Report,
) -> Option<(Resource, Vec<Option<ClusterName>>)> {
    let named = serde_json::from_value::<Meta>(metadata).ok();
    // Without a name the rest is judged all the same, under any name.
    let is_named = named.is_some();
    let meta = named.unwrap_or_else(|| Meta::named(ObjectName::new("a").expect("a name")));
    let mut resource = match Resource::decode(kind, meta, spec) {
        Ok(resource) => resource,
        Err(error) => {
            if report.flaws.is_empty() {
                report.value("", Code::BadValue, format!("cannot be read: {error}"));
            }
            return None;
        }
    };
    check::check(&resource, report);
    if !is_named || resource.meta().namespace.is_none() && kind.scope() == Scope::Namespace {
        return None;
    }
    let places = place::place(kind, resource.meta_mut(), report);
    Some((resource, places))
}

/// Metadata, and what the kind says.
fn split(kind: Kind, document: Json) -> (Json, Json) {
    let Json::Object(mut document) = document else { return Default::default() };
    let metadata = document.shift_remove("metadata").unwrap_or_default();
    if schema::is_flat(kind) {
        ["apiVersion", "kind"].iter().for_each(|name| _ = document.shift_remove(*name));
        return (metadata, Json::Object(document));
    }
    (metadata, document.shift_remove("spec").unwrap_or_else(|| Json::Object(Default::default())))
}

/// The kind of a document, if it is one that a repository may hold.
fn identify(tree: &Node, report: &mut Report) -> Option<Kind> {
    if !matches!(tree.value, tree::Value::Mapping(_)) {
        report.add(
            "",
            tree.at,
            Code::WrongType,
            format!("expected an object, found {}", tree.describe()),
            None,
        );
        return None;
    }
    let Some(entry) = tree.field("kind") else {
        report.add("", tree.at, Code::MissingField, "`kind` is missing".into(), None);
        return None;
    };
    let name = entry.node.text().unwrap_or_default();
    let Some(kind) = Kind::ALL.iter().copied().find(|kind| kind.name() == name) else {
        let (code, message, help) = unknown_kind(name, &entry.node);
        report.add("/kind", entry.node.at, code, message, help);
        return None;
    };
    // Another group means another kind of the same name; a wrong version is the schema's to tell.
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let found = tree.field("apiVersion").and_then(|entry| Some((entry.node.at, entry.node.text()?)));
    match found {
        Some((at, version)) if kind.api_versions().iter().all(|allowed| group(allowed) != group(version)) => {
            let help = Some(format!("write `apiVersion: {}`", kind.api_versions()[0]));
            report.add(
                "/apiVersion",
                at,
                Code::UnknownKind,
                format!("`{kind}` is not read under `{version}`"),
                help,
            );
            None
        }
        _ => Some(kind),
    }
}

fn unknown_kind(name: &str, node: &Node) -> (Code, String, Option<String>) {
    if LATER_KINDS.contains(&name) {
        return (Code::NotYetSupported, format!("`{name}` is not yet supported"), None);
    }
    let help = match name {
        "ServiceImport" => "it is made from ServiceExports, never committed".to_owned(),
        "GatewayClass" => "the class `weft` is built in".to_owned(),
        _ => match schema::validate::nearest(name, Kind::ALL.iter().map(|kind| kind.name())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "known are {}",
                Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
            ),
        },
    };
    (Code::UnknownKind, format!("unknown kind {}", node.describe().trim_start_matches("text ")), Some(help))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod upstream;
