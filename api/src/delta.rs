//! Stage five: what one proxy is to hold, and how it gets there from what it holds.
//!
//! Invariant: `apply(a, diff(a, b)) == b`, for every a and b in which the same bytes have the same level. A level says
//! who may read the bytes and is no part of their hash, by which views are compared.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

use crate::{
    digest::Hash,
    head::Seq,
    wire::{self, FRAME_BYTES},
};

/// One resource of a view, as its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What a reader has to understand.
    pub level: u32,
    /// An encoded `wire::Resource`.
    pub body: Bytes,
    /// SHA-256 of `body`.
    pub hash: Hash,
}

impl Item {
    /// The item that carries `resource`.
    pub fn new(resource: &wire::Resource) -> Self {
        Item::from_bytes(resource.level(), resource.encode_to_vec().into())
    }

    /// The item with this body, hashed here.
    pub fn from_bytes(level: u32, body: Bytes) -> Self {
        let hash = Hash::of(&body);
        Item { level, body, hash }
    }
}

/// Which of the two digests a resource counts to: endpoints change often, configuration rarely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Ruled by Git.
    Config,
    /// Ruled by what lives now.
    Endpoint,
}

impl Class {
    /// The class of the resource called `name`.
    pub fn of(name: &str) -> Self {
        match name.split('/').next() {
            Some("endpoints" | "networks" | "passthrough") => Class::Endpoint,
            _ => Class::Config,
        }
    }
}

/// Both digests of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Over what Git rules.
    pub config: Hash,
    /// Over what lives.
    pub endpoint: Hash,
}

/// All that one proxy is to hold, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Invariant: each hash is that of its body.
    pub items: BTreeMap<Arc<str>, Item>,
}

impl View {
    /// Adds a resource under `name`.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, resource: &wire::Resource) {
        self.items.insert(name.into(), Item::new(resource));
    }

    /// Both digests, over sorted (name, hash).
    pub fn digests(&self) -> Digests {
        Digests { config: self.digest(Class::Config), endpoint: self.digest(Class::Endpoint) }
    }

    fn digest(&self, class: Class) -> Hash {
        Hash::of_set(
            self.items
                .iter()
                .filter(|(name, _)| Class::of(name) == class)
                .map(|(name, item)| (&**name, item.hash)),
        )
    }

    /// Names and hashes alone: what a proxy says that it holds.
    pub fn held(&self) -> Held {
        Held(self.items.iter().map(|(name, item)| (name.clone(), item.hash)).collect())
    }
}

/// Names and hashes of a view whose bodies are elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(pub BTreeMap<Arc<str>, Hash>);

/// What changes between two views.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// New, or new contents.
    pub changed: Vec<(Arc<str>, Item)>,
    /// Gone.
    pub removed: Vec<Arc<str>>,
}

impl Delta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// What leads from `from` to `to`.
pub fn diff(from: &Held, to: &View) -> Delta {
    let changed = to
        .items
        .iter()
        .filter(|(name, item)| from.0.get(*name) != Some(&item.hash))
        .map(|(name, item)| (name.clone(), item.clone()))
        .collect();
    let removed = from.0.keys().filter(|name| !to.items.contains_key(*name)).cloned().collect();
    Delta { changed, removed }
}

/// `view` after `delta`.
pub fn apply(mut view: View, delta: Delta) -> View {
    delta.removed.iter().for_each(|name| drop(view.items.remove(name)));
    view.items.extend(delta.changed);
    view
}

/// Where a view comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The commit, as everybody calls it.
    pub revision: String,
    /// The head, if the sender said it. Who obeys one takes no view of an earlier one.
    pub head: Option<Seq>,
}

impl Origin {
    /// Of `revision`, without a head.
    pub fn of(revision: &str) -> Self {
        Origin { revision: revision.to_owned(), head: None }
    }
}

impl From<Seq> for wire::Place {
    fn from(Seq { epoch, n }: Seq) -> Self {
        wire::Place { epoch, n }
    }
}

impl From<wire::Place> for Seq {
    fn from(wire::Place { epoch, n }: wire::Place) -> Self {
        Seq { epoch, n }
    }
}

/// Cuts a delta into frames of about `FRAME_BYTES`; the last one closes and says where it leads.
pub fn frames(version: u64, delta: Delta, digests: Digests, origin: &Origin) -> Vec<wire::Frame> {
    let mut frames = vec![wire::Frame { version, ..Default::default() }];
    let mut size = 0;
    for (name, item) in delta.changed {
        if size > 0 && size + item.body.len() > FRAME_BYTES {
            frames.push(wire::Frame { version, ..Default::default() });
            size = 0;
        }
        size += item.body.len();
        let last = frames.last_mut().expect("never empty");
        last.changed.push(wire::Item {
            name: name.to_string(),
            level: item.level,
            body: item.body.to_vec(),
            hash: Vec::new(),
        });
    }
    let last = frames.last_mut().expect("never empty");
    last.removed = delta.removed.iter().map(|name| name.to_string()).collect();
    last.close = true;
    last.config_digest = digests.config.0.to_vec();
    last.endpoint_digest = digests.endpoint.0.to_vec();
    last.revision = origin.revision.clone();
    last.head = origin.head.map(Into::into);
    frames
}

/// Gathers frames until one closes: a push takes effect whole or not at all.
#[derive(Debug, Default)]
pub struct Gathering {
    version: u64,
    delta: Delta,
}

/// A whole push, as a proxy received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Local to the stream.
    pub version: u64,
    /// What changes.
    pub delta: Delta,
    /// Where it leads, if the sender said so in a readable way.
    pub digests: Option<Digests>,
    /// What it is of.
    pub origin: Origin,
}

impl Gathering {
    /// Takes one frame; the push, when this frame closes it. A frame of another version begins anew.
    pub fn take(&mut self, frame: wire::Frame) -> Option<Push> {
        if frame.version != self.version {
            *self = Gathering { version: frame.version, delta: Delta::default() };
        }
        self.delta.changed.extend(
            frame
                .changed
                .into_iter()
                .map(|item| (Arc::from(item.name.as_str()), Item::from_bytes(item.level, item.body.into()))),
        );
        self.delta.removed.extend(frame.removed.iter().map(|name| Arc::from(name.as_str())));
        if !frame.close {
            return None;
        }
        let digests = Hash::from_slice(&frame.config_digest)
            .zip(Hash::from_slice(&frame.endpoint_digest))
            .map(|(config, endpoint)| Digests { config, endpoint });
        let delta = std::mem::take(&mut self.delta);
        let origin = Origin { revision: frame.revision, head: frame.head.map(Into::into) };
        Some(Push { version: frame.version, delta, digests, origin })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn view() -> impl Strategy<Value = View> {
        btree_map("(service|endpoints)/[a-d]", prop::collection::vec(any::<u8>(), 0..4), 0..6).prop_map(
            |map| {
                let items =
                    map.into_iter().map(|(name, body)| (name.into(), Item::from_bytes(1, body.into())));
                View { items: items.collect() }
            },
        )
    }

    proptest! {
        #[test]
        fn a_delta_leads_where_it_says(a in view(), b in view()) {
            let delta = diff(&a.held(), &b);
            prop_assert_eq!(delta.is_empty(), a == b);
            prop_assert_eq!(apply(a, delta), b);
        }

        #[test]
        fn a_push_survives_the_wire(a in view(), b in view()) {
            let delta = diff(&a.held(), &b);
            let mut gathering = Gathering::default();
            let origin = Origin { head: Some(Seq { epoch: 1, n: 2 }), ..Origin::of("c0ffee") };
            let pushes: Vec<_> = frames(7, delta.clone(), b.digests(), &origin)
                .into_iter()
                .filter_map(|frame| gathering.take(wire::Frame::decode(&*frame.encode_to_vec()).unwrap()))
                .collect();
            let push = Push { version: 7, delta, digests: Some(b.digests()), origin };
            prop_assert_eq!(pushes, vec![push]);
        }

        #[test]
        fn equal_digests_mean_equal_views(a in view(), b in view()) {
            prop_assert_eq!(a.digests() == b.digests(), a == b);
        }
    }

    #[test]
    fn a_large_push_spans_frames_and_only_the_last_closes() {
        let body = Bytes::from(vec![0u8; FRAME_BYTES / 2 + 1]);
        let items = (0..3).map(|i| (format!("service/s/{i}").into(), Item::from_bytes(1, body.clone())));
        let view = View { items: items.collect() };
        let frames = frames(1, diff(&Held::default(), &view), view.digests(), &Origin::default());
        assert_eq!(
            frames.iter().map(|f| (f.version, f.close)).collect::<Vec<_>>(),
            [(1, false), (1, false), (1, true)]
        );
    }

    #[test]
    fn a_frame_is_filled_up_to_its_size() {
        let items = |sizes: &[usize]| -> Vec<usize> {
            let item =
                |(i, size)| (format!("service/s/{i}").into(), Item::from_bytes(1, vec![0; size].into()));
            let changed = sizes.iter().copied().enumerate().map(item).collect();
            let delta = Delta { changed, removed: vec![] };
            let frames = frames(1, delta, View::default().digests(), &Origin::default());
            frames.iter().map(|frame| frame.changed.len()).collect()
        };
        assert_eq!(items(&[]), [0], "the frame that closes");
        assert_eq!(items(&[FRAME_BYTES - 1, 1, 1]), [2, 1]);
        assert_eq!(items(&[1, FRAME_BYTES, FRAME_BYTES + 1]), [1, 1, 1]);
        assert_eq!(items(&[FRAME_BYTES + 1]), [1]);
    }

    #[test]
    fn a_push_that_another_one_cuts_off_leaves_nothing() {
        let mut gathering = Gathering::default();
        let frame = |version, name: &str, close| wire::Frame {
            version,
            changed: vec![wire::Item { name: name.into(), ..Default::default() }],
            removed: vec![format!("not {name}")],
            close,
            ..Default::default()
        };
        assert_eq!(gathering.take(frame(1, "a", false)), None);
        assert_eq!(gathering.take(frame(2, "b", false)), None);
        let Delta { changed, removed } = gathering.take(frame(2, "c", true)).unwrap().delta;
        assert_eq!(changed.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(removed.iter().map(|name| &**name).collect::<Vec<_>>(), ["not b", "not c"]);
    }

    #[test]
    fn what_lives_counts_to_one_digest_and_what_git_rules_to_the_other() {
        let empty = View::default().digests();
        for (name, lives) in [
            ("endpoints/shop/a", true),
            ("networks", true),
            ("passthrough", true),
            ("service/shop/endpoints", false),
            ("workload", false),
        ] {
            let mut view = View::default();
            view.insert(name, &wire::Resource::default());
            let Digests { config, endpoint } = view.digests();
            assert_eq!((config == empty.config, endpoint == empty.endpoint), (lives, !lives), "{name}");
        }
    }
}
