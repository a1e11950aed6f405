//! What travels: the messages of `proto/weft.proto`, and the levels of resources.
//!
//! These are the wire's own shapes. The control plane writes them from a snapshot (stage 5), the runtime
//! reads them into what it decides with (stage 6): nobody computes with them in between.

#![allow(missing_docs, clippy::large_enum_variant, clippy::doc_lazy_continuation, rustdoc::invalid_html_tags)]

include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));

/// The highest level of resources that this build understands.
pub const LEVEL: u32 = 1;

impl Resource {
    /// What a reader of this resource has to understand: not what its writer knows, or a newer control plane would be of no
    /// use to the proxies of before. A field that must not be ignored gives the next level to those resources that bear
    /// it, and to no others.
    pub fn level(&self) -> u32 {
        1
    }
}

/// Bytes of resources that a frame carries at most; a larger push spans frames.
pub const FRAME_BYTES: usize = 1 << 20;
