//! What became of the commits of each source, and which were in force.

use std::{
    collections::{BTreeMap, VecDeque},
    time::SystemTime,
};

use api::{
    admin::{CommitState, CommitStatus, Problem},
    head::{CommitId, Revision, Seq},
    name::SourceName,
};

use crate::{gate::Tree, git::Trouble, plane::seconds};

/// Commits of a source whose fate is shown.
const MAX_SEEN: usize = 100;
/// Revisions that were in force and are remembered as such.
const MAX_PUBLISHED: usize = 1_000;

/// The commits that this primary has seen, and those that were in force.
#[derive(Debug, Clone, Default)]
pub struct Commits {
    /// What is known of each source.
    pub sources: BTreeMap<SourceName, Seen>,
    /// The revisions that were taken into force last, oldest first.
    pub published: Vec<Published>,
}

/// What is known of a source.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What became of each of its commits, newest last.
    pub commits: VecDeque<CommitStatus>,
    /// What is wrong with its repository now, and since when something is.
    pub trouble: Option<(String, f64)>,
}

/// A revision that was in force.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its head.
    pub seq: Seq,
    /// What proxies and clusters call it.
    pub label: String,
    /// The commit of each source.
    pub commits: Vec<(SourceName, CommitId)>,
}

impl Published {
    /// The commit that a source was read at.
    pub fn commit_of(&self, source: &SourceName) -> Option<&CommitId> {
        self.commits.iter().find(|(name, _)| name == source).map(|(_, commit)| commit)
    }
}

impl Commits {
    /// Nothing is known yet of these sources.
    pub fn of(sources: impl IntoIterator<Item = SourceName>) -> Self {
        let sources = sources.into_iter().map(|source| (source, Seen::default()));
        Commits { sources: sources.collect(), published: Vec::new() }
    }

    /// Notes a revision that is in force. Whoever obeys one that is forgotten lags.
    pub fn publish(&mut self, seq: Seq, revision: &Revision) {
        if self.published.last().is_some_and(|last| last.seq == seq) {
            return;
        }
        if self.published.len() == MAX_PUBLISHED {
            self.published.remove(0);
        }
        self.published.push(Published { seq, label: revision.label(), commits: revision.commits.clone() });
    }

    /// Where in [`Commits::published`] the commit of a source that satisfies `is` came into force last: what other
    /// sources changed since does not make it later.
    pub fn place(&self, source: &SourceName, is: impl Fn(&CommitId) -> bool) -> Option<usize> {
        let holds = |one: &Published| one.commit_of(source).is_some_and(&is);
        let last = self.published.iter().rposition(holds)?;
        let before = self.published[..last].iter().rposition(|one| !holds(one));
        Some(before.map_or(0, |before| before + 1))
    }

    /// Notes what became of a commit; says whether that is new.
    pub fn note(&mut self, tree: &Tree, state: CommitState, errors: Vec<Problem>) -> bool {
        let seen = &mut self.sources.entry(tree.source.clone()).or_default().commits;
        if matches!(state, CommitState::Rolling) {
            let open = seen
                .iter_mut()
                .filter(|one| matches!(one.state, CommitState::Rolling | CommitState::Accepted));
            open.for_each(|one| one.state = CommitState::Superseded);
        }
        let known = seen.iter().find(|one| one.commit == tree.commit.as_str());
        let is_new = known.is_none_or(|one| one.state != state || one.errors != errors);
        let first_seen = known.map_or_else(|| seconds(SystemTime::now()), |one| one.seen);
        seen.retain(|one| one.commit != tree.commit.as_str());
        seen.push_back(CommitStatus {
            commit: tree.commit.to_string(),
            subject: tree.subject.clone(),
            author: tree.author.clone(),
            seen: first_seen,
            state,
            effective_after_ms: None,
            errors,
        });
        if seen.len() > MAX_SEEN {
            seen.pop_front();
        }
        is_new
    }

    /// Notes what is wrong with a source's repository; since when something is stays, however its reason changes. Says
    /// whether it is another trouble, or none any more.
    pub fn trouble(&mut self, source: &SourceName, trouble: Option<&Trouble>) -> bool {
        let known = &mut self.sources.entry(source.clone()).or_default().trouble;
        let since = known.as_ref().map(|(_, since)| *since);
        let now =
            trouble.map(|trouble| (trouble.to_string(), since.unwrap_or_else(|| seconds(SystemTime::now()))));
        let changed = *known != now;
        *known = now;
        changed
    }
}

#[cfg(test)]
mod tests {
    use api::digest::Hash;

    use super::*;

    fn commit(digit: char) -> CommitId {
        String::from_iter([digit; 40]).parse().unwrap()
    }

    /// Heads of two sources, each with the digits of its commits; a dot where a source has none.
    fn published(heads: &[&str]) -> Commits {
        let mut commits = Commits::default();
        for (n, head) in (1..).zip(heads) {
            let of = |(name, digit): (&str, char)| (name.parse().unwrap(), commit(digit));
            let named = ["platform", "shop"].into_iter().zip(head.chars());
            let commits_of = named.filter(|(_, digit)| *digit != '.').map(of).collect();
            let revision =
                Revision { commits: commits_of, manifest: Hash::of(head.as_bytes()), positions: None };
            commits.publish(Seq { epoch: 1, n }, &revision);
        }
        commits
    }

    #[test]
    fn a_commit_is_as_old_as_its_last_coming_into_force_whatever_others_change() {
        let commits = published(&["a.", "a1", "b1", "b2", "a2"]);
        let place = |source: &str, digit| commits.place(&source.parse().unwrap(), |id| *id == commit(digit));
        assert_eq!(place("shop", '1'), Some(1));
        assert_eq!(place("platform", 'b'), Some(2));
        assert_eq!(place("shop", '2'), Some(3));
        assert_eq!(place("platform", 'a'), Some(4), "it was returned to");
        assert_eq!(place("shop", 'a'), None);
    }
}
