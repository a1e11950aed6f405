//! The last good view on disk: what a proxy obeys when it starts and no control plane answers.

use std::{io, path::Path};

use api::{
    delta::{Gathering, Origin, View, apply},
    wire,
};
use process::files;
use prost::Message;

const FILE: &str = "view.bin";

/// Far above the view of a proxy that uses thousands of services.
const MAX_BYTES: u64 = 256 << 20;

/// Writes the view, durably, as the one frame that would bring it about.
pub fn write(dir: &Path, view: &View, origin: &Origin) -> io::Result<()> {
    let changed = view.items.iter().map(|(name, item)| wire::Item {
        name: name.to_string(),
        level: item.level,
        body: item.body.to_vec(),
        hash: Vec::new(),
    });
    let digests = view.digests();
    let frame = wire::Frame {
        version: 1,
        changed: changed.collect(),
        close: true,
        config_digest: digests.config.0.to_vec(),
        endpoint_digest: digests.endpoint.0.to_vec(),
        revision: origin.revision.clone(),
        head: origin.head.map(Into::into),
        ..Default::default()
    };
    files::write_private(&dir.join(FILE), &frame.encode_to_vec())
}

/// The view that was kept, and where it came from; none when there is none or it is damaged.
pub fn read(dir: &Path) -> io::Result<Option<(View, Origin)>> {
    let Some(bytes) = files::read(&dir.join(FILE), MAX_BYTES)? else { return Ok(None) };
    let push = wire::Frame::decode(&bytes[..]).ok().and_then(|frame| Gathering::default().take(frame));
    Ok(push.and_then(|push| {
        let view = apply(View::default(), push.delta);
        (push.digests == Some(view.digests())).then_some((view, push.origin))
    }))
}

#[cfg(test)]
mod tests {
    use api::head::Seq;

    use super::*;

    #[test]
    fn a_view_is_read_back_and_a_damaged_one_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let view = crate::fixture::sidecar("reviews").view();
        let origin = Origin { head: Some(Seq { epoch: 1, n: 2 }), ..Origin::of("c0ffee") };
        write(dir.path(), &view, &origin).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some((view, origin)));
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }
}
