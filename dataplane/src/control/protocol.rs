//! What a proxy says and does on its control stream. Pure: frames and hosts in, actions out.
//!
//! Invariant: a view takes effect whole or not at all, it is on disk before it is acknowledged, and the digests of
//! an ACK are those of what was compiled. A view that does not compile leaves the last good one in force. One that cannot be
//! kept is obeyed all the same, and that is told: who lacks room on a disk still has to know who is where.
//! Invariant: what is obeyed never goes back to an earlier head, after a restart neither, whoever says so: of the
//! control planes of a cluster one may not know yet that another one serves.

use std::{collections::BTreeSet, sync::Arc};

use api::{
    delta::{Gathering, Origin, Push, View, apply},
    head::Seq,
    wire::{self, from_proxy::Message},
};
use runtime::{Reason, Runtime};

/// The most hosts that are subscribed at a time; what an application asks for beyond is as unknown.
const HOSTS_MAX: usize = 1000;

/// The most bytes of one host name (RFC 1035).
const HOST_BYTES: usize = 253;

/// One proxy's side of all its streams, one after the other.
pub struct Session {
    hello: wire::Hello,
    /// What deltas apply to: what the control plane believes that this proxy holds.
    view: View,
    current: Option<Arc<Runtime>>,
    /// The head that is obeyed, as far as it was said.
    head: Option<Seq>,
    gathering: Gathering,
    hosts: BTreeSet<String>,
    /// The acknowledgement of the view that is obeyed, while that is not on disk.
    owed: Option<Owed>,
}

struct Owed {
    ack: wire::Ack,
    origin: Origin,
    /// Whether it was told that it cannot be kept.
    told: bool,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A stream stands.
    Opened,
    /// The control plane speaks.
    Received(wire::ToProxy),
    /// Requests name hosts that nobody here knows.
    Wanted(Vec<String>),
    /// A second has passed.
    Beat(wire::Heartbeat),
    /// This proxy goes for good.
    Leaving,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send it.
    Send(Message),
    /// Write the view to disk, and tell [`Session::kept`] how that went.
    Keep(View, Origin),
    /// From now on requests obey this.
    Install(Arc<Runtime>),
    /// Nobody in the mesh knows these.
    Absent(Vec<String>),
    /// Close the stream and open another.
    Reopen(&'static str),
}

impl Session {
    /// Begins with what was kept on disk, if it still compiles; the last good runtime is then in force at once.
    pub fn new(hello: wire::Hello, kept: Option<(View, Origin)>) -> (Self, Result<(), Vec<Reason>>) {
        let mut session = Session {
            hello,
            view: View::default(),
            current: None,
            head: None,
            gathering: Gathering::default(),
            hosts: BTreeSet::new(),
            owed: None,
        };
        let Some((view, origin)) = kept else { return (session, Ok(())) };
        // What is obeyed was acknowledged, whether this version can read it or not.
        session.head = origin.head;
        match Runtime::compile(&view, &origin.revision, None) {
            Ok(runtime) => {
                session.current = Some(Arc::new(runtime));
                session.view = view;
                (session, Ok(()))
            }
            Err(reasons) => (session, Err(reasons)),
        }
    }

    /// What is in force.
    pub fn current(&self) -> Option<&Arc<Runtime>> {
        self.current.as_ref()
    }

    /// Takes one event.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Opened => self.opened(),
            Event::Received(wire::ToProxy { message: None }) => Vec::new(),
            Event::Received(wire::ToProxy { message: Some(message) }) => match message {
                wire::to_proxy::Message::Frame(frame) => match self.gathering.take(frame) {
                    Some(push) => self.pushed(push),
                    None => Vec::new(),
                },
                wire::to_proxy::Message::Unknown(unknown) => self.unknown(unknown.hosts),
            },
            Event::Wanted(hosts) => self.wanted(hosts),
            Event::Beat(heartbeat) => {
                let owed =
                    self.owed.as_ref().map(|owed| Action::Keep(self.view.clone(), owed.origin.clone()));
                [Action::Send(Message::Heartbeat(heartbeat))].into_iter().chain(owed).collect()
            }
            Event::Leaving => vec![Action::Send(Message::Farewell(wire::Farewell {}))],
        }
    }

    /// The last view is on disk, or it is not and why. What is to be said of that.
    pub fn kept(&mut self, written: Result<(), String>) -> Option<Message> {
        match written {
            Ok(()) => self.owed.take().map(|owed| Message::Ack(owed.ack)),
            Err(reason) => {
                let owed = self.owed.as_mut().filter(|owed| !owed.told)?;
                owed.told = true;
                Some(Message::Unkept(wire::Unkept { ack: Some(owed.ack.clone()), reason }))
            }
        }
    }

    fn opened(&mut self) -> Vec<Action> {
        self.gathering = Gathering::default();
        if self.owed.take().is_some() {
            // It stays in force, and all of it is asked for again: were it said to be held, it would count as
            // acknowledged, and a restart would go back behind it.
            self.view = View::default();
        }
        let held = self.view.held().0.into_iter().map(|(name, hash)| wire::Item {
            name: name.to_string(),
            hash: hash.0.to_vec(),
            ..Default::default()
        });
        let (held, hosts) = (held.collect(), self.hosts.iter().cloned().collect());
        let head = self.head.map(Into::into);
        vec![Action::Send(Message::Hello(wire::Hello { held, hosts, head, ..self.hello.clone() }))]
    }

    fn pushed(&mut self, push: Push) -> Vec<Action> {
        let Push { version, delta, digests, origin } = push;
        if let (Some(obeyed), Some(told)) = (self.head, origin.head)
            && told < obeyed
        {
            let message = format!("it is of head {told}, and {obeyed} is obeyed here");
            let behind = Reason { resource: "view".into(), message };
            return vec![nack(version, &[behind]), Action::Reopen("the control plane is behind")];
        }
        let view = apply(self.view.clone(), delta);
        if digests != Some(view.digests()) {
            // What we hold is not what the control plane believes: begin from nothing.
            self.view = View::default();
            let reason = Reason {
                resource: "view".into(),
                message: "the digests do not fit what was received".into(),
            };
            return vec![
                nack(version, &[reason]),
                Action::Reopen("digests differ: asking for the whole view again"),
            ];
        }
        match Runtime::compile(&view, &origin.revision, self.current.as_deref()) {
            Err(reasons) => vec![nack(version, &reasons)],
            Ok(runtime) => {
                let ack = wire::Ack {
                    version,
                    config_digest: runtime.digests.config.0.to_vec(),
                    endpoint_digest: runtime.digests.endpoint.0.to_vec(),
                };
                let runtime = Arc::new(runtime);
                self.current = Some(runtime.clone());
                self.view = view.clone();
                self.head = origin.head.or(self.head);
                self.owed = Some(Owed { ack, origin: origin.clone(), told: false });
                vec![Action::Install(runtime), Action::Keep(view, origin)]
            }
        }
    }

    fn unknown(&mut self, hosts: Vec<String>) -> Vec<Action> {
        self.hosts.retain(|host| !hosts.contains(host));
        vec![Action::Absent(hosts)]
    }

    fn wanted(&mut self, wanted: Vec<String>) -> Vec<Action> {
        let (mut hosts, mut absent) = (Vec::new(), Vec::new());
        for host in wanted {
            if self.hosts.contains(&host) {
                continue;
            }
            if self.hosts.len() >= HOSTS_MAX || host.len() > HOST_BYTES {
                absent.push(host);
                continue;
            }
            self.hosts.insert(host.clone());
            hosts.push(host);
        }
        let asked = (!hosts.is_empty())
            .then(|| Action::Send(Message::Subscribe(wire::Subscribe { hosts, drop: Vec::new() })));
        let absent = (!absent.is_empty()).then_some(Action::Absent(absent));
        asked.into_iter().chain(absent).collect()
    }
}

fn nack(version: u64, reasons: &[Reason]) -> Action {
    let reasons = reasons
        .iter()
        .map(|reason| wire::Reason { resource: reason.resource.clone(), message: reason.message.clone() });
    Action::Send(Message::Nack(wire::Nack { version, reasons: reasons.collect() }))
}

#[cfg(test)]
mod tests {
    use api::{
        delta::{diff, frames},
        digest::Hash,
    };

    use super::*;
    use crate::fixture;

    fn session() -> Session {
        Session::new(wire::Hello { instance: "a-1".into(), ..Default::default() }, None).0
    }

    fn push(session: &mut Session, version: u64, from: &View, to: &View) -> Vec<Action> {
        push_of(session, version, (from, to), None)
    }

    fn push_of(
        session: &mut Session,
        version: u64,
        (from, to): (&View, &View),
        head: Option<Seq>,
    ) -> Vec<Action> {
        let origin = Origin { head, ..Origin::of("c0ffee") };
        let frames = frames(version, diff(&from.held(), to), to.digests(), &origin);
        let take = |frame| {
            session
                .on(Event::Received(wire::ToProxy { message: Some(wire::to_proxy::Message::Frame(frame)) }))
        };
        let mut actions: Vec<_> = frames.into_iter().flat_map(take).collect();
        if let Some(Action::Keep(..)) = actions.last() {
            actions.extend(session.kept(Ok(())).map(Action::Send));
        }
        actions
    }

    fn words(actions: &[Action]) -> Vec<&'static str> {
        let word = |action: &Action| match action {
            Action::Send(Message::Ack(_)) => "ack",
            Action::Send(Message::Nack(_)) => "nack",
            Action::Send(Message::Hello(_)) => "hello",
            Action::Send(Message::Subscribe(_)) => "subscribe",
            Action::Send(_) => "send",
            Action::Keep(..) => "keep",
            Action::Install(_) => "install",
            Action::Absent(_) => "absent",
            Action::Reopen(_) => "reopen",
        };
        actions.iter().map(word).collect()
    }

    #[test]
    fn a_good_view_is_in_force_kept_and_then_acknowledged() {
        let (mut session, view) = (session(), fixture::sidecar("reviews").view());
        let actions = push(&mut session, 1, &View::default(), &view);
        assert_eq!(words(&actions), ["install", "keep", "ack"]);
        let Action::Send(Message::Ack(ack)) = &actions[2] else { panic!("an ack") };
        assert_eq!(Hash::from_slice(&ack.config_digest), Some(view.digests().config));
    }

    #[test]
    fn a_bad_view_is_refused_and_the_last_good_one_stays() {
        let (mut session, good) = (session(), fixture::sidecar("reviews").view());
        push(&mut session, 1, &View::default(), &good);
        let mut bad = good.clone();
        bad.items.remove("mesh");
        let actions = push(&mut session, 2, &good, &bad);
        assert_eq!(words(&actions), ["nack"]);
        assert_eq!(session.current().unwrap().digests, good.digests());
        let again = push(&mut session, 3, &good, &good);
        assert_eq!(
            words(&again),
            ["install", "keep", "ack"],
            "the next good one is taken from where it stood"
        );
    }

    /// Found by the simulated network: a control plane that was replaced and did not know it took a denial back.
    #[test]
    fn an_earlier_head_is_never_obeyed_again() {
        let (old, mut new) = (fixture::sidecar("reviews").view(), fixture::sidecar("reviews").view());
        new.items.remove("networks");
        let at = |epoch, n| Some(Seq { epoch, n });
        let mut session = session();
        push_of(&mut session, 1, (&View::default(), &new), at(1, 3));
        let actions = push_of(&mut session, 2, (&new, &old), at(1, 2));
        assert_eq!(words(&actions), ["nack", "reopen"]);
        assert_eq!(session.current().unwrap().digests, new.digests());
        // Of one head there are many views: endpoints come and go.
        let again = push_of(&mut session, 3, (&new, &old), at(1, 3));
        assert_eq!(words(&again), ["install", "keep", "ack"]);
        push_of(&mut session, 4, (&old, &new), at(1, 3));
        let actions = session.on(Event::Opened);
        let Action::Send(Message::Hello(hello)) = &actions[0] else { panic!("a hello") };
        assert_eq!(hello.head.map(Seq::from), at(1, 3));
        // Nor after a restart; a later epoch is later, whatever it counts.
        let kept = (new.clone(), Origin { head: at(1, 3), ..Origin::of("c0ffee") });
        let (mut session, _) = Session::new(wire::Hello::default(), Some(kept));
        assert_eq!(words(&push_of(&mut session, 1, (&new, &old), at(1, 2))), ["nack", "reopen"]);
        assert_eq!(words(&push_of(&mut session, 2, (&new, &old), at(2, 0))), ["install", "keep", "ack"]);
        assert_eq!(words(&push_of(&mut session, 3, (&old, &new), at(1, 9))), ["nack", "reopen"]);
    }

    #[test]
    fn wrong_digests_begin_from_nothing() {
        let (mut session, view) = (session(), fixture::sidecar("reviews").view());
        push(&mut session, 1, &View::default(), &view);
        let mut other = view.clone();
        other.items.remove("trust");
        let mut frame = frames(2, diff(&other.held(), &other), view.digests(), &Origin::default()).remove(0);
        frame.removed = vec!["networks".into(), "trust".into()];
        let message = Some(wire::to_proxy::Message::Frame(frame));
        assert_eq!(words(&session.on(Event::Received(wire::ToProxy { message }))), ["nack", "reopen"]);
        let actions = session.on(Event::Opened);
        let Action::Send(Message::Hello(hello)) = &actions[0] else { panic!("a hello") };
        assert!(hello.held.is_empty());
        assert!(session.current().is_some(), "requests still obey the last good one");
        assert_eq!(
            words(&push(&mut session, 1, &View { items: Default::default() }, &view)),
            ["install", "keep", "ack"]
        );
    }

    /// A push of a view that cannot be kept; what is said of that.
    fn unkept(session: &mut Session, version: u64, from: &View, to: &View) -> wire::Unkept {
        let origin = Origin::of("c0ffee");
        let frame = frames(version, diff(&from.held(), to), to.digests(), &origin).remove(0);
        let message = Some(wire::to_proxy::Message::Frame(frame));
        let actions = session.on(Event::Received(wire::ToProxy { message }));
        assert_eq!(words(&actions), ["install", "keep"]);
        match session.kept(Err("no room".into())) {
            Some(Message::Unkept(unkept)) => unkept,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_view_that_cannot_be_kept_is_obeyed_and_acknowledged_once_it_is() {
        let (mut session, first) = (session(), fixture::sidecar("reviews").view());
        let mut second = first.clone();
        second.items.remove("networks");
        let beat = |session: &mut Session| session.on(Event::Beat(wire::Heartbeat::default()));
        let told = unkept(&mut session, 1, &View::default(), &first);
        assert_eq!((told.ack.map(|ack| ack.version), &*told.reason), (Some(1), "no room"));
        assert_eq!(session.current().unwrap().digests, first.digests());

        // What comes next applies to it, and is what is kept now.
        let told = unkept(&mut session, 2, &first, &second);
        assert_eq!(told.ack.map(|ack| ack.version), Some(2));
        assert_eq!(session.current().unwrap().digests, second.digests());
        let actions = beat(&mut session);
        assert_eq!(words(&actions), ["send", "keep"]);
        let Action::Keep(view, origin) = &actions[1] else { panic!("a view") };
        assert_eq!((view.digests(), origin), (second.digests(), &Origin::of("c0ffee")));
        assert!(session.kept(Err("no room".into())).is_none(), "it was told");
        let Some(Message::Ack(ack)) = session.kept(Ok(())) else { panic!("an ack") };
        assert_eq!(Hash::from_slice(&ack.config_digest), Some(second.digests().config));
        assert_eq!(words(&beat(&mut session)), ["send"]);
        assert!(session.kept(Ok(())).is_none());
    }

    #[test]
    fn what_is_not_on_disk_is_not_said_to_be_held() {
        let (mut session, view) = (session(), fixture::sidecar("reviews").view());
        unkept(&mut session, 1, &View::default(), &view);
        let actions = session.on(Event::Opened);
        let Action::Send(Message::Hello(hello)) = &actions[0] else { panic!("a hello") };
        assert!(hello.held.is_empty());
        assert_eq!(session.current().unwrap().digests, view.digests(), "it stays in force");
        assert_eq!(words(&push(&mut session, 1, &View::default(), &view)), ["install", "keep", "ack"]);
    }

    #[test]
    fn hosts_are_asked_for_once_and_again_after_a_break() {
        let mut session = session();
        let wanted = |host: &str| Event::Wanted(vec![host.to_owned()]);
        assert_eq!(words(&session.on(wanted("a.shop"))), ["subscribe"]);
        assert!(session.on(wanted("a.shop")).is_empty());
        let hello = |session: &mut Session| match &session.on(Event::Opened)[0] {
            Action::Send(Message::Hello(hello)) => hello.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(hello(&mut session).hosts, ["a.shop"]);
        let unknown = wire::to_proxy::Message::Unknown(wire::Unknown { hosts: vec!["a.shop".into()] });
        assert_eq!(words(&session.on(Event::Received(wire::ToProxy { message: Some(unknown) }))), ["absent"]);
        assert!(hello(&mut session).hosts.is_empty());
        // Many at once are asked for at once.
        let many = (0..=HOSTS_MAX).map(|i| format!("h{i}")).collect();
        assert_eq!(words(&session.on(Event::Wanted(many))), ["subscribe", "absent"]);
        assert_eq!(words(&session.on(wanted("one-more"))), ["absent"]);
    }

    #[test]
    fn what_is_too_long_for_a_name_is_no_host() {
        let mut session = session();
        let wanted = |bytes: usize| Event::Wanted(vec!["h".repeat(bytes)]);
        assert_eq!(words(&session.on(wanted(HOST_BYTES + 1))), ["absent"]);
        assert_eq!(words(&session.on(wanted(HOST_BYTES))), ["subscribe"]);
    }

    #[test]
    fn what_was_kept_is_in_force_at_once_and_resumed_by_digest() {
        let view = fixture::sidecar("reviews").view();
        let (mut session, kept) =
            Session::new(wire::Hello::default(), Some((view.clone(), Origin::of("c0ffee"))));
        assert!(kept.is_ok());
        assert_eq!(&*session.current().unwrap().revision, "c0ffee");
        let actions = session.on(Event::Opened);
        let Action::Send(Message::Hello(hello)) = &actions[0] else { panic!("a hello") };
        let held = hello.held.iter().map(|item| (&*item.name, Hash::from_slice(&item.hash)));
        let own = view.held();
        assert!(held.eq(own.0.iter().map(|(name, hash)| (&**name, Some(*hash)))), "{:?}", hello.held);
    }
}
