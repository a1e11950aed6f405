//! A `.tar.gz` that only its owner may read, written part by part.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, Header};

use crate::output::now;

/// What all parts lie in, once unpacked.
const FOLDER: &str = "weft-bug-report";

pub(super) struct Archive {
    builder: Builder<GzEncoder<File>>,
    parts: usize,
}

impl Archive {
    /// A new file; one that is there is not overwritten.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Archive { builder: Builder::new(GzEncoder::new(file, Compression::default())), parts: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts == 0
    }

    pub(super) fn add(&mut self, name: &str, content: &str) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now() as u64);
        self.builder.append_data(&mut header, format!("{FOLDER}/{name}"), content.as_bytes())?;
        self.parts += 1;
        Ok(())
    }

    /// How many parts there are, once all of it is on disk.
    pub(super) fn finish(self) -> anyhow::Result<usize> {
        self.builder.into_inner()?.finish()?.sync_all()?;
        Ok(self.parts)
    }
}
