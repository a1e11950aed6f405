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

impl Seen {
    /// Lets a commit roll that a head names and that still waits for the store by what is known here: the store's answer was
    /// lost, or what came after it failed.
    fn roll(&mut self, commit: &CommitId) {
        let waits = |one: &CommitStatus| one.commit == commit.as_str() && one.state == CommitState::Accepted;
        let Some(at) = self.commits.iter().position(waits) else { return };
        let rolling = self.commits.iter_mut().filter(|one| one.state == CommitState::Rolling);
        rolling.for_each(|one| one.state = CommitState::Superseded);
        self.commits[at].state = CommitState::Rolling;
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
        for (source, commit) in &revision.commits {
            if let Some(seen) = self.sources.get_mut(source) {
                seen.roll(commit);
            }
        }
    }

    /// Where in [`Commits::published`] the commit of a source that satisfies `is` came into force last: what other
    /// sources changed since does not make it later.
    pub fn place(&self, source: &SourceName, is: impl Fn(&CommitId) -> bool) -> Option<usize> {
        let holds = |one: &Published| one.commit_of(source).is_some_and(&is);
        let last = self.published.iter().rposition(holds)?;
        let before = self.published[..last].iter().rposition(|one| !holds(one));
        Some(before.map_or(0, |before| before + 1))
    }

    /// What was told of a commit, and did not refuse it.
    pub fn warnings(&self, tree: &Tree) -> &[Problem] {
        let mut seen = self.sources.get(&tree.source).into_iter().flat_map(|seen| &seen.commits);
        seen.find(|one| one.commit == tree.commit.as_str()).map_or(&[], |one| &one.warnings)
    }

    /// Notes what became of a commit, with its errors and warnings; says whether that is new.
    pub fn note(&mut self, tree: &Tree, state: CommitState, problems: Vec<Problem>) -> bool {
        let (errors, warnings): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_error);
        let seen = &mut self.sources.entry(tree.source.clone()).or_default().commits;
        // What still waits for the store never comes into force once its source is heard at another commit.
        let is_over = |one: &CommitStatus| match one.state {
            CommitState::Rolling => matches!(state, CommitState::Rolling),
            CommitState::Accepted => one.commit != tree.commit.as_str(),
            _ => false,
        };
        seen.iter_mut().filter(|one| is_over(one)).for_each(|one| one.state = CommitState::Superseded);
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
            warnings,
        });
        if seen.len() > MAX_SEEN {
            seen.pop_front();
        }
        is_new
    }

    /// An operator lets a commit pass that is held, where it is the last of its source: until it was judged once more, it
    /// waits, and so does whoever waits for it.
    pub fn let_pass(&mut self, commit: &CommitId) {
        let last = self.sources.values_mut().filter_map(|source| source.commits.back_mut());
        last.filter(|one| one.commit == commit.as_str() && one.state == CommitState::Held)
            .for_each(|one| one.state = CommitState::Accepted);
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
pub(crate) mod tests {
    use std::sync::Arc;

    use api::{admin::Severity, digest::Hash};

    use super::*;
    use crate::git::{Checkout, File};

    /// The commit whose name is this digit, over and over.
    pub(crate) fn commit(digit: char) -> CommitId {
        String::from_iter([digit; 40]).parse().unwrap()
    }

    /// A revision of two sources, `platform` and `shop`: the digit of each one's commit, a dot where one has none.
    pub(crate) fn revision(digits: &str) -> Revision {
        let of = |(name, digit): (&str, char)| (name.parse().unwrap(), commit(digit));
        let named = ["platform", "shop"].into_iter().zip(digits.chars());
        let commits = named.filter(|(_, digit)| *digit != '.').map(of).collect();
        Revision { commits, manifest: Hash::of(digits.as_bytes()), positions: None }
    }

    /// Heads, each with the digits of its revision.
    fn published(heads: &[&str]) -> Commits {
        let mut commits = Commits::default();
        for (n, head) in (1..).zip(heads) {
            commits.publish(Seq { epoch: 1, n }, &revision(head));
        }
        commits
    }

    /// A commit of `shop`, whose files do not matter here.
    fn tree(commit: CommitId) -> Tree {
        Tree::read(&Checkout {
            source: "shop".parse().unwrap(),
            commit,
            files: vec![File { path: "a.yaml".into(), text: Arc::from("") }],
            refusals: vec![],
            author: "Ada <ada@shop.example>".into(),
            time: 0,
            subject: "a change".into(),
            rewrote: false,
        })
    }

    fn problem(message: &str) -> Problem {
        Problem {
            file: "a.yaml".into(),
            line: 1,
            column: 1,
            message: message.into(),
            help: None,
            severity: Severity::Error,
        }
    }

    /// What is known of the commits of `shop`, oldest first: the first digit of each, and its state.
    fn states(commits: &Commits) -> Vec<(&str, CommitState)> {
        let seen = &commits.sources["shop"].commits;
        seen.iter().map(|one| (&one.commit[..1], one.state)).collect()
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

    #[test]
    fn a_source_is_there_before_anything_is_known_of_it() {
        let commits = Commits::of(["platform", "shop"].map(|name| name.parse().unwrap()));
        assert!(commits.sources.values().all(|seen| seen.commits.is_empty() && seen.trouble.is_none()));
        assert_eq!(commits.sources.keys().map(SourceName::as_str).collect::<Vec<_>>(), ["platform", "shop"]);
    }

    #[test]
    fn a_head_that_is_told_of_twice_came_into_force_once() {
        let mut commits = published(&["a1", "a2"]);
        commits.publish(Seq { epoch: 1, n: 2 }, &revision("a2"));
        assert_eq!(commits.published.len(), 2);
        commits.publish(Seq { epoch: 1, n: 3 }, &revision("a2"));
        assert_eq!(commits.published.len(), 3, "it was put into force anew");
    }

    #[test]
    fn the_oldest_revisions_and_commits_are_forgotten() {
        let mut commits = Commits::default();
        for n in 0..=MAX_PUBLISHED as u64 {
            commits.publish(Seq { epoch: 1, n }, &revision("a1"));
        }
        let kept: Vec<u64> = commits.published.iter().map(|one| one.seq.n).collect();
        assert_eq!(kept, (1..=MAX_PUBLISHED as u64).collect::<Vec<_>>());

        for n in 0..=MAX_SEEN {
            let commit = format!("{n:040x}").parse().unwrap();
            commits.note(&tree(commit), CommitState::Refused, vec![]);
        }
        let seen = &commits.sources["shop"].commits;
        assert_eq!(seen.len(), MAX_SEEN);
        assert_eq!(seen[0].commit, format!("{:040x}", 1));
    }

    #[test]
    fn what_waits_for_the_store_rolls_once_a_head_names_it() {
        use CommitState::{Accepted, Refused, Rolling, Superseded};
        let mut commits = published(&["a1"]);
        for (digit, state) in [('1', Rolling), ('2', Accepted)] {
            commits.note(&tree(commit(digit)), state, vec![]);
        }
        commits.publish(Seq { epoch: 1, n: 2 }, &revision("a2"));
        commits.note(&tree(commit('3')), Refused, vec![]);
        assert_eq!(states(&commits), [("1", Superseded), ("2", Rolling), ("3", Refused)]);
    }

    #[test]
    fn what_rolls_takes_the_place_of_what_was_on_its_way_and_of_nothing_else() {
        use CommitState::{Accepted, Effective, Held, Refused, Rolling, Superseded};
        let mut commits = Commits::default();
        let mut note = |digit, state| assert!(commits.note(&tree(commit(digit)), state, vec![]));
        [('1', Accepted), ('2', Rolling), ('3', Accepted)]
            .into_iter()
            .for_each(|(digit, state)| note(digit, state));
        assert_eq!(
            states(&commits)[1..],
            [("2", Rolling), ("3", Accepted)],
            "who is read replaces nobody in force"
        );
        let mut note = |digit, state| assert!(commits.note(&tree(commit(digit)), state, vec![]));
        [('4', Refused), ('5', Held), ('6', Effective)]
            .into_iter()
            .for_each(|(digit, state)| note(digit, state));
        assert_eq!(states(&commits)[2], ("3", Superseded), "its source says something else by now");
        commits.note(&tree(commit('3')), Rolling, vec![]);
        assert_eq!(
            states(&commits),
            [
                ("1", Superseded),
                ("2", Superseded),
                ("4", Refused),
                ("5", Held),
                ("6", Effective),
                ("3", Rolling)
            ]
        );
    }

    #[test]
    fn what_is_let_pass_is_held_no_more_where_it_is_the_last() {
        use CommitState::{Accepted, Held, Refused};
        let mut commits = Commits::default();
        let mut let_pass = |digit, state| {
            commits.note(&tree(commit(digit)), state, vec![]);
            ['1', '2', '3'].iter().for_each(|any| commits.let_pass(&commit(*any)));
            commits.sources["shop"].commits.back().map(|last| last.state)
        };
        assert_eq!(let_pass('1', Refused), Some(Refused));
        assert_eq!(let_pass('2', Held), Some(Accepted));
        commits.note(&tree(commit('3')), Held, vec![]);
        commits.note(&tree(commit('4')), Accepted, vec![]);
        commits.let_pass(&commit('3'));
        assert_eq!(
            states(&commits)[2..],
            [("3", Held), ("4", Accepted)],
            "it will not come into force any more"
        );
    }

    #[test]
    fn it_is_news_when_a_commit_has_another_state_or_other_errors_and_it_was_seen_when_it_was_first_seen() {
        let mut commits = Commits::default();
        let mut note = |state, errors: &[&str]| {
            let errors = errors.iter().map(|error| problem(error)).collect();
            let is_news = commits.note(&tree(commit('1')), state, errors);
            // As if it had been long ago.
            let seen = &mut commits.sources.get_mut("shop").unwrap().commits;
            assert_eq!(seen.len(), 1);
            (is_news, std::mem::replace(&mut seen[0].seen, 7.0))
        };
        let (is_news, first_seen) = note(CommitState::Refused, &["no"]);
        assert!(is_news && first_seen > 1_000_000_000.0);
        assert_eq!(note(CommitState::Refused, &["no"]), (false, 7.0));
        assert_eq!(note(CommitState::Refused, &["no", "nor this"]), (true, 7.0));
        assert_eq!(note(CommitState::Accepted, &["no", "nor this"]), (true, 7.0));
    }

    #[test]
    fn a_trouble_lasts_since_it_began_however_its_reason_changes() {
        let mut commits = Commits::default();
        let source: SourceName = "shop".parse().unwrap();
        let away = Trouble::Away { path: "/config".into(), reason: "not mounted".into() };
        let lost = Trouble::BranchGone { path: "/config".into(), branch: "main".into() };
        assert!(!commits.trouble(&source, None));
        assert!(commits.trouble(&source, Some(&away)));
        commits.sources.get_mut(&source).unwrap().trouble.as_mut().unwrap().1 = 7.0;
        assert!(!commits.trouble(&source, Some(&away)));
        assert!(commits.trouble(&source, Some(&lost)));
        assert_eq!(commits.sources[&source].trouble, Some((lost.to_string(), 7.0)));
        assert!(commits.trouble(&source, None));
        assert_eq!(commits.sources[&source].trouble, None);
    }
}
