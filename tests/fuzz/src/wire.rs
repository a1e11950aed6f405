//! What a control plane may send to a proxy: frames → view → runtime → decisions.

use api::{
    delta::{Gathering, View, apply, diff},
    digest::Hash,
    wire::Frame,
};
use prost::Message;
use runtime::{At, Runtime};

use crate::facts::Told;

/// Frames one after the other, each with its length before it, as on the wire.
pub(crate) fn run(mut bytes: &[u8]) {
    let (mut view, mut gathering) = (View::default(), Gathering::default());
    let mut before: Option<Runtime> = None;
    while !bytes.is_empty() {
        let Ok(frame) = Frame::decode_length_delimited(&mut bytes) else { return };
        assert_eq!(Frame::decode(&*frame.encode_to_vec()).as_ref(), Ok(&frame));
        let Some(push) = gathering.take(frame) else { continue };
        let next = apply(view.clone(), push.delta);
        assert!(next.items.values().all(|item| item.hash == Hash::of(&item.body)));
        // Not the views themselves: the same bytes may have come at two levels.
        assert_eq!(apply(view.clone(), diff(&view.held(), &next)).held(), next.held());
        assert_eq!(apply(next.clone(), diff(&next.held(), &view)).held(), view.held());

        let anew = Runtime::compile(&next, &push.origin.revision, None);
        let kept = Runtime::compile(&next, &push.origin.revision, before.as_ref());
        match (anew, kept) {
            (Ok(anew), Ok(kept)) => {
                assert_eq!((anew.digests, kept.digests), (next.digests(), next.digests()));
                decide(&anew, &kept);
                (before, view) = (Some(kept), next);
            }
            (Err(anew), Err(kept)) => {
                assert!(!anew.is_empty());
                assert_eq!(anew, kept, "what is refused does not depend on what was in force");
            }
            (anew, kept) => panic!("anew {:?}, after another {:?}", anew.err(), kept.err()),
        }
    }
}

/// Deciding is total, and does not depend on how the runtime came about.
fn decide(anew: &Runtime, kept: &Runtime) {
    let inbound = anew.inbound().iter().map(|inbound| At::Inbound { port: inbound.port });
    let gateway = anew.listener_ports().map(|port| At::Gateway { port });
    let outbound = [true, false].map(|known_absent| At::Outbound { known_absent });
    let places: Vec<_> = inbound.take(3).chain(gateway.take(3)).chain(outbound).collect();
    let names = anew.services().take(3).map(|service| service.name.to_string().replace('/', "."));
    let hosts: Vec<_> =
        names.chain(["reviews.shop:8080".to_owned(), "[::1]:1".to_owned(), String::new()]).collect();
    for host in &hosts {
        for (peer, http) in [(true, true), (false, true), (false, false)] {
            let told = Told::new(peer, http, host);
            for &at in &places {
                let (one, other) = (anew.decide(at, &told.facts(), 7), kept.decide(at, &told.facts(), 7));
                assert_eq!(std::mem::discriminant(&one), std::mem::discriminant(&other));
            }
        }
    }
}
