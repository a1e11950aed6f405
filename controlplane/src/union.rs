//! What is in force, source by source: each one's last good tree, and the revision that they make together.
//!
//! A source's part of a revision is what lies in the namespaces that it owns, whoever said it: where the settings give a
//! namespace to another source, what is in force there stays until its new owner has a good commit. So a denial survives
//! the day on which a repository is split.

use std::{collections::BTreeMap, sync::Arc};

use api::{
    head::{CommitId, Head, Revision, Seq},
    manifest::{Origin, Placed},
    name::{Namespace, SourceName},
    resource::Resource,
};

use crate::{
    gate::Tree,
    ownership::Ownership,
    store::{self, Store, StoreError, Stored, read_revision},
};

/// The last good trees of all sources.
#[derive(Debug, Clone, Default)]
pub(crate) struct Union {
    /// The head that they are of.
    pub(crate) seq: Option<Seq>,
    /// By source; one that never had a good commit may have a part all the same, by those who owned it before.
    parts: BTreeMap<SourceName, Arc<Part>>,
    /// Sources that the settings do not name any more, and that may still have said some of it.
    former: Vec<(SourceName, CommitId)>,
}

/// What one source has in force.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// Its last good commit.
    commit: Option<CommitId>,
    /// What it says, as others see it: its files are said to be of this source.
    placed: Vec<Placed>,
    /// The same, as it is kept.
    entries: Vec<store::Entry>,
}

impl Part {
    /// What a commit says.
    pub(crate) fn of(tree: &Tree) -> Self {
        let entry = |placed: &Placed| {
            let key = placed.resource.key();
            store::Entry {
                key: key.to_string(),
                namespace: key.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
                bytes: placed.resource.to_json().into(),
                commit: tree.commit.clone(),
                position: store::Position {
                    file: placed.origin.file.to_string(),
                    line: placed.origin.line,
                    author: tree.author.clone(),
                    source: Some(tree.source.clone()),
                    rules: rule_lines(placed),
                },
            }
        };
        let seen = |placed: &Placed| {
            let mut seen = placed.clone();
            seen.origin.file = seen_file(&tree.source, &placed.origin.file);
            seen
        };
        Part {
            commit: Some(tree.commit.clone()),
            placed: tree.placed().iter().map(seen).collect(),
            entries: tree.placed().iter().map(entry).collect(),
        }
    }

    /// Adds what the store has of it.
    fn add(&mut self, owner: &SourceName, stored: Stored) -> Result<(), StoreError> {
        let resource = Resource::from_json(&stored.bytes)
            .map_err(|error| StoreError::Damaged(format!("{}: {error}", stored.key)))?;
        let position = stored.position.unwrap_or_default();
        let said_by = position.source.as_ref().unwrap_or(owner);
        let origin = Origin { file: seen_file(said_by, &position.file), line: position.line };
        self.placed.push(Placed::kept(resource, origin));
        self.entries.push(store::Entry {
            key: stored.key,
            namespace: stored.namespace,
            bytes: stored.bytes,
            commit: stored.changed_in,
            position,
        });
        Ok(())
    }

    /// What it says.
    pub(crate) fn placed(&self) -> &[Placed] {
        &self.placed
    }

    /// How many resources it has, and how many of them are not in `next`.
    pub(crate) fn loses(&self, next: &Part) -> (usize, usize) {
        let kept: std::collections::BTreeSet<&str> = next.entries.iter().map(|entry| &*entry.key).collect();
        let lost = self.entries.iter().filter(|entry| !kept.contains(&*entry.key)).count();
        (self.entries.len(), lost)
    }
}

impl Union {
    /// What the store's head holds.
    pub(crate) async fn read(store: &dyn Store, head: &Head, owners: &Ownership) -> Result<Self, StoreError> {
        let mut parts: BTreeMap<SourceName, Part> = BTreeMap::new();
        let Some(revision) = &head.stable else { return Ok(Union::default()) };
        for stored in read_revision(store, revision).await? {
            let namespace = match stored.namespace.as_str() {
                "" => None,
                named => Some(
                    Namespace::new(named)
                        .map_err(|error| StoreError::Damaged(format!("{}: {error}", stored.key)))?,
                ),
            };
            let owner = owners.owner(namespace.as_ref());
            parts.entry(owner.clone()).or_default().add(owner, stored)?;
        }
        let (own, former): (Vec<_>, Vec<_>) =
            revision.commits.iter().cloned().partition(|(source, _)| owners.knows(source));
        for (source, commit) in own {
            parts.entry(source).or_default().commit = Some(commit);
        }
        let parts = parts.into_iter().map(|(source, part)| (source, part.into())).collect();
        Ok(Union { seq: Some(head.seq()), parts, former })
    }

    /// What a source has in force.
    pub(crate) fn part(&self, source: &SourceName) -> Option<&Part> {
        self.parts.get(source).map(|part| &**part)
    }

    /// What the sources beside this one have in force.
    pub(crate) fn beside(&self, source: &SourceName) -> Vec<&Placed> {
        let others = self.parts.iter().filter(|(name, _)| *name != source);
        others.flat_map(|(_, part)| &part.placed).collect()
    }

    /// All that is in force.
    pub(crate) fn placed(&self) -> impl Iterator<Item = &Placed> {
        self.parts.values().flat_map(|part| &part.placed)
    }

    /// Puts `part` in the place of what the source had in force.
    pub(crate) fn replace(&mut self, source: &SourceName, part: Part) {
        self.parts.insert(source.clone(), part.into());
    }

    /// Nothing is left of what sources said that the settings do not name any more.
    pub(crate) fn forget_former(&mut self) {
        self.former.clear();
    }

    /// Keeps it as a revision. The head is not touched.
    pub(crate) async fn write(
        &self,
        store: &dyn Store,
        previous: Option<&Revision>,
    ) -> Result<Revision, StoreError> {
        let own = self.parts.iter().filter_map(|(source, part)| Some((source.clone(), part.commit.clone()?)));
        let commits: BTreeMap<SourceName, CommitId> = own.chain(self.former.iter().cloned()).collect();
        let entries = self.parts.values().flat_map(|part| part.entries.iter().cloned());
        store::write_revision(store, commits.into_iter().collect(), entries, previous).await
    }
}

/// How a file is called in what is told to those who own other sources.
fn seen_file(source: &SourceName, file: &str) -> Arc<str> {
    format!("source {source}: {file}").into()
}

/// Where each rule of an object stands.
fn rule_lines(placed: &Placed) -> Vec<u32> {
    let pointers = (0..).map(|place| format!("/spec/rules/{place}"));
    let there = pointers.take_while(|pointer| placed.positions.has(pointer));
    there.map(|pointer| placed.positions.at(&pointer).line).collect()
}

#[cfg(test)]
mod tests;
