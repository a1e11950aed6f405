//! Which source may say what.
//!
//! Invariant: every namespace has one owner, and so has what is mesh-wide: what two sources say never meets at a key.
//! The settings say it, which no commit can change.

use std::collections::{BTreeMap, BTreeSet};

use api::name::{Namespace, SourceName};

/// The owned namespaces, and the one source that owns the rest and what is mesh-wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    rest: SourceName,
    owners: BTreeMap<Namespace, SourceName>,
}

impl Ownership {
    /// One source says everything.
    pub fn sole(source: SourceName) -> Self {
        Ownership { rest: source, owners: BTreeMap::new() }
    }

    /// What each source was said to own, if it is what each thing has one owner by; else all that is wrong with it.
    pub fn new(said: Vec<(SourceName, Option<Vec<Namespace>>)>) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let mut rest = None;
        let mut owners: BTreeMap<Namespace, SourceName> = BTreeMap::new();
        for (source, namespaces) in said {
            match (namespaces, &rest) {
                (None, None) => rest = Some(source),
                (None, Some(first)) => wrong.push(format!(
                    "source {source}: says no `namespaces`, as source {first}: one alone owns the rest and what is mesh-wide"
                )),
                (Some(namespaces), _) if namespaces.is_empty() => {
                    wrong.push(format!("source {source}: `namespaces` is empty: it may say nothing at all"));
                }
                (Some(namespaces), _) => {
                    for namespace in namespaces {
                        if namespace.is_system() {
                            wrong.push(format!(
                                "source {source}: namespace `{namespace}` rules the whole mesh: it belongs to the source without `namespaces`"
                            ));
                        } else if let Some(first) = owners.get(&namespace) {
                            wrong.push(format!(
                                "source {source}: namespace `{namespace}` is owned by source {first} already"
                            ));
                        } else {
                            owners.insert(namespace, source.clone());
                        }
                    }
                }
            }
        }
        match rest {
            Some(rest) if wrong.is_empty() => Ok(Ownership { rest, owners }),
            Some(_) => Err(wrong),
            None => {
                wrong.push("one source says no `namespaces`: it owns the rest and what is mesh-wide".into());
                Err(wrong)
            }
        }
    }

    /// Who owns a namespace, or where there is none, what is mesh-wide.
    pub fn owner(&self, namespace: Option<&Namespace>) -> &SourceName {
        namespace.and_then(|namespace| self.owners.get(namespace)).unwrap_or(&self.rest)
    }

    /// Who owns the rest and what is mesh-wide.
    pub fn rest(&self) -> &SourceName {
        &self.rest
    }

    /// Whether the settings name a source.
    pub fn knows(&self, source: &SourceName) -> bool {
        *source == self.rest || self.owners.values().any(|owner| owner == source)
    }

    /// All sources.
    pub fn sources(&self) -> impl Iterator<Item = &SourceName> {
        let named: BTreeSet<_> = self.owners.values().chain([&self.rest]).collect();
        named.into_iter()
    }

    /// The namespaces that were said to be a source's own; none of the one that owns the rest.
    pub fn namespaces(&self, source: &SourceName) -> Vec<Namespace> {
        let own = self.owners.iter().filter(|(_, owner)| *owner == source);
        own.map(|(namespace, _)| namespace.clone()).collect()
    }
}
