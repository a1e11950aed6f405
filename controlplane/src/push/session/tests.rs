//! The protocol of one stream, event by event.

use std::sync::Arc;

use api::{
    delta::{Gathering, Held, Push, View, apply},
    wire::{self, to_proxy},
};

use super::{Action, MAX_HOSTS, Session};
use crate::snapshot::{
    Configuration, Registered, Snapshot, Subscription, build,
    fixture::{inputs, living, workload},
};

/// A proxy that does as it is told, and what it was told.
struct Proxy {
    session: Session,
    view: View,
    reached: Vec<String>,
    unknown: Vec<String>,
    refused: Vec<String>,
    open: Option<Push>,
}

fn node() -> Registered {
    workload("front-1", "front", "v1", 11)
}

fn snapshot(commit: &str, ratings: u8) -> Arc<Snapshot> {
    let base = inputs("east");
    let ratings = (0..ratings).map(|i| workload(&format!("ratings-{i}"), "ratings", "v1", 20 + i));
    let mut with = living(base, [node()].into_iter().chain(ratings));
    with.configuration = renamed(with.configuration, commit);
    Arc::new(build(&with))
}

/// The same configuration under another commit.
fn renamed(configuration: Arc<Configuration>, commit: &str) -> Arc<Configuration> {
    let objects = configuration.objects.iter().map(|said| crate::snapshot::Said {
        resource: said.resource.clone(),
        changed_in: said.changed_in.clone(),
        file: said.file.clone(),
        line: said.line,
        rules: vec![],
    });
    Arc::new(Configuration { head: None, commit: commit.into(), objects: objects.collect() })
}

impl Proxy {
    fn connect(view: View, hosts: &[&str], snapshot: Arc<Snapshot>) -> Self {
        let hosts: Subscription = hosts.iter().map(|host| (*host).to_owned()).collect();
        let held: Held = view.held();
        let (session, actions) = Session::begin(node(), held, hosts, snapshot);
        let mut proxy =
            Proxy { session, view, reached: vec![], unknown: vec![], refused: vec![], open: None };
        proxy.hear(actions);
        proxy
    }

    fn hear(&mut self, actions: Vec<Action>) {
        let mut gathering = Gathering::default();
        for action in actions {
            match action {
                Action::Reached(commit) => self.reached.push(commit),
                Action::Refused(reasons) => self.refused.extend(reasons),
                Action::Reconciled => self.refused.clear(),
                Action::Unkept(reason) => self.refused.push(reason),
                Action::Send(to_proxy::Message::Unknown(unknown)) => self.unknown.extend(unknown.hosts),
                Action::Send(to_proxy::Message::Frame(frame)) => {
                    if let Some(push) = gathering.take(frame) {
                        assert!(self.open.replace(push).is_none(), "two pushes are unacknowledged");
                    }
                }
            }
        }
    }

    fn on(&mut self, snapshot: Arc<Snapshot>) {
        let actions = self.session.on_snapshot(node(), snapshot);
        self.hear(actions);
    }

    fn ack(&mut self) {
        let ack = self.obey();
        let actions = self.session.on_ack(&ack);
        self.hear(actions);
    }

    /// It obeys the push, and has no room for it; gives the acknowledgement that it owes.
    fn lack_room(&mut self) -> wire::Ack {
        let ack = self.obey();
        let actions = self.session.on_unkept(&ack, "no room".into());
        self.hear(actions);
        ack
    }

    fn obey(&mut self) -> wire::Ack {
        let push = self.open.take().expect("a push is open");
        self.view = apply(std::mem::take(&mut self.view), push.delta);
        let digests = self.view.digests();
        let (config, endpoint) = (digests.config.0.to_vec(), digests.endpoint.0.to_vec());
        wire::Ack { version: push.version, config_digest: config, endpoint_digest: endpoint }
    }

    fn nack(&mut self) {
        let version = self.open.take().expect("a push is open").version;
        let reasons = vec![wire::Reason { resource: "policy/a/b".into(), message: "no".into() }];
        let actions = self.session.on_nack(&wire::Nack { version, reasons });
        self.hear(actions);
    }
}

#[test]
fn a_commit_counts_once_it_is_acknowledged() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    assert!(proxy.reached.is_empty());
    proxy.ack();
    assert_eq!(proxy.reached, ["one"]);
    assert_eq!(proxy.view, snapshot("one", 1).view(&node(), &["ratings".to_owned()].into()));
}

#[test]
fn what_is_obeyed_and_not_kept_counts_once_it_is_kept() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    let first = proxy.lack_room();
    assert_eq!((&proxy.reached[..], &proxy.refused[..]), (&[][..], &["no room".to_owned()][..]));
    // The next one is told as what differs from it, and what changes nothing here counts no more than it does.
    proxy.on(snapshot("two", 2));
    let second = proxy.lack_room();
    proxy.on(snapshot("three", 2));
    assert!(proxy.open.is_none() && proxy.reached.is_empty());
    for (ack, reached) in
        [(&first, &[][..]), (&second, &["three".to_owned()]), (&second, &["three".to_owned()])]
    {
        let actions = proxy.session.on_ack(ack);
        proxy.hear(actions);
        assert_eq!(proxy.reached, reached);
    }
    // One that it keeps takes the place of what it could not keep.
    proxy.on(snapshot("four", 3));
    let fourth = proxy.lack_room();
    proxy.on(snapshot("five", 4));
    proxy.ack();
    let actions = proxy.session.on_ack(&fourth);
    proxy.hear(actions);
    assert_eq!(proxy.reached, ["three", "five"]);
    assert_eq!(proxy.view, snapshot("five", 4).view(&node(), &["ratings".to_owned()].into()));
}

#[test]
fn a_commit_that_changes_nothing_here_needs_no_push() {
    let mut proxy = Proxy::connect(View::default(), &[], snapshot("one", 0));
    proxy.ack();
    proxy.on(snapshot("two", 0));
    assert!(proxy.open.is_none());
    assert_eq!(proxy.reached, ["one", "two"]);
}

#[test]
fn who_comes_back_with_the_same_view_is_sent_nothing() {
    let view = snapshot("one", 1).view(&node(), &["ratings".to_owned()].into());
    let proxy = Proxy::connect(view, &["ratings"], snapshot("one", 1));
    assert!(proxy.open.is_none());
    assert_eq!(proxy.reached, ["one"]);
}

#[test]
fn who_asks_for_hosts_without_end_is_still_told_of_those_that_are_there() {
    let mut proxy = Proxy::connect(View::default(), &[], snapshot("one", 1));
    proxy.ack();
    for n in 0..2 * MAX_HOSTS {
        let hosts = vec![format!("h{n}.example")];
        let actions = proxy.session.on_subscribe(wire::Subscribe { hosts, drop: Vec::new() });
        proxy.hear(actions);
    }
    assert!(proxy.open.is_none());
    assert_eq!(proxy.unknown.len(), 2 * MAX_HOSTS);
    let actions =
        proxy.session.on_subscribe(wire::Subscribe { hosts: vec!["ratings".into()], drop: Vec::new() });
    proxy.hear(actions);
    assert!(proxy.open.is_some(), "it is pushed");
}

#[test]
fn what_changes_meanwhile_waits_and_goes_as_one() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    proxy.on(snapshot("two", 2));
    proxy.on(snapshot("three", 3));
    proxy.ack();
    assert_eq!(proxy.reached, ["one"]);
    proxy.ack();
    assert_eq!(proxy.reached, ["one", "three"]);
}

#[test]
fn that_a_push_is_kept_takes_nothing_back_of_the_refusal_of_a_later_one() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    let first = proxy.lack_room();
    proxy.on(snapshot("two", 2));
    proxy.nack();
    let actions = proxy.session.on_ack(&first);
    assert_eq!(actions, [Action::Reached("one".into())]);
    // What it holds is what it is to obey again.
    proxy.on(snapshot("three", 1));
    assert_eq!(proxy.reached, ["three"]);
    assert!(proxy.refused.is_empty());
    proxy.on(snapshot("four", 2));
    assert!(proxy.open.is_some(), "and it is asked anew");
}

#[test]
fn an_acknowledgement_with_other_digests_begins_anew() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    let version = proxy.open.as_ref().unwrap().version;
    proxy.open = None;
    let actions = proxy.session.on_ack(&wire::Ack { version, ..Default::default() });
    proxy.hear(actions);
    assert!(proxy.reached.is_empty());
    proxy.view = View::default();
    proxy.ack();
    assert_eq!(proxy.reached, ["one"]);
}

#[test]
fn a_refused_push_is_not_offered_again_until_it_differs() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    proxy.nack();
    assert_eq!(proxy.refused, ["policy/a/b: no"]);
    proxy.on(snapshot("two", 1));
    assert!(proxy.open.is_none() && proxy.reached.is_empty());
    proxy.on(snapshot("three", 2));
    proxy.ack();
    assert_eq!(proxy.reached, ["three"]);
}

#[test]
fn an_acknowledgement_of_another_push_means_nothing() {
    let mut proxy = Proxy::connect(View::default(), &[], snapshot("one", 0));
    let actions = proxy.session.on_ack(&wire::Ack { version: 99, ..Default::default() });
    assert_eq!(actions, []);
    proxy.ack();
    assert_eq!(proxy.reached, ["one"]);
}

#[test]
fn each_push_has_the_next_number_so_that_a_late_answer_to_another_means_nothing() {
    let mut proxy = Proxy::connect(View::default(), &["ratings"], snapshot("one", 1));
    let mut numbers = vec![];
    for (commit, ratings) in [("two", 2), ("three", 3), ("four", 4)] {
        numbers.push(proxy.open.as_ref().unwrap().version);
        proxy.ack();
        proxy.on(snapshot(commit, ratings));
    }
    assert_eq!(numbers, [1, 2, 3]);
    let late = wire::Ack { version: 3, ..Default::default() };
    assert_eq!(proxy.session.on_ack(&late), []);
    assert_eq!(proxy.reached, ["one", "two", "three"]);
}

#[test]
fn hosts_are_answered_pushed_and_remembered() {
    let mut proxy = Proxy::connect(View::default(), &[], snapshot("one", 1));
    proxy.ack();
    let asked = wire::Subscribe { hosts: vec!["ratings".into(), "nobody".into()], drop: vec![] };
    let actions = proxy.session.on_subscribe(asked);
    proxy.hear(actions);
    assert_eq!(proxy.unknown, ["nobody"]);
    proxy.ack();
    assert!(proxy.view.items.contains_key("service/shop/ratings"));
    let actions = proxy.session.on_subscribe(wire::Subscribe { hosts: vec![], drop: vec!["ratings".into()] });
    proxy.hear(actions);
    proxy.ack();
    assert!(!proxy.view.items.contains_key("service/shop/ratings"));
}

#[test]
fn what_a_sibling_asked_for_comes_without_asking() {
    let mut proxy = Proxy::connect(View::default(), &[], snapshot("one", 1));
    proxy.ack();
    let actions = proxy.session.on_siblings(&["ratings".to_owned()].into());
    proxy.hear(actions);
    proxy.ack();
    assert!(proxy.view.items.contains_key("service/shop/ratings"));
    assert_eq!(proxy.session.on_siblings(&["ratings".to_owned()].into()), []);
}
