//! The head: the one small value that says which revision is in force.
//!
//! Everything else in the store is immutable and named by its hash, so moving the head by one compare-and-swap takes a
//! commit, or a return to an older one, into force whole, whatever its size.
//!
//! Invariant: a head is believed by the bytes that were signed, never by bytes that were encoded again.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{digest::Hash, name::SourceName};

/// What the encoded head of a revision of some hundred sources stays well below.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A Git commit: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(Arc<str>);

impl CommitId {
    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }

    /// `source@commit`: how it is written where there are several sources.
    pub fn of(&self, source: &SourceName) -> String {
        format!("{source}@{self}")
    }
}

/// A text that is not a full commit id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a commit: expected 40 or 64 hexadecimal digits in lower case")]
pub struct BadCommitId;

impl FromStr for CommitId {
    type Err = BadCommitId;
    fn from_str(text: &str) -> Result<Self, BadCommitId> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits && [40, 64].contains(&text.len()) { Ok(CommitId(text.into())) } else { Err(BadCommitId) }
    }
}

impl TryFrom<String> for CommitId {
    type Error = BadCommitId;
    fn try_from(text: String) -> Result<Self, BadCommitId> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(commit: CommitId) -> String {
        commit.0.as_ref().to_owned()
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "CommitId({})", self.short())
    }
}

/// Where a head stands among all heads of its mesh, later ones greater.
///
/// A new or restored store begins a new epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq {
    /// Which life of the primary's store.
    pub epoch: u64,
    /// Counts the heads of that life.
    pub n: u64,
}

impl fmt::Display for Seq {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.epoch, self.n)
    }
}

/// One state of the configuration: where it was read, and the hash of what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// Each source's name and the commit it was read at, sorted by name.
    pub commits: Vec<(SourceName, CommitId)>,
    /// The blob that lists the namespaces' manifests. It does not change when resources only move within files.
    pub manifest: Hash,
    /// The blob that lists the namespaces' positions (file, line, author), for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<Hash>,
}

impl Revision {
    /// The commit that `source` was read at.
    pub fn commit_of(&self, source: &str) -> Option<&CommitId> {
        self.commits.iter().find(|(name, _)| name.as_str() == source).map(|(_, commit)| commit)
    }

    /// What proxies, logs and people call it: the commit, or where there are several `a@COMMIT b@COMMIT`.
    pub fn label(&self) -> String {
        match self.commits.as_slice() {
            [(_, only)] => only.to_string(),
            all => all.iter().map(|(source, commit)| commit.of(source)).collect::<Vec<_>>().join(" "),
        }
    }
}

/// What is in force. A field that this version does not know is an error: the last head stays rather than half of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// See [`Seq`].
    pub epoch: u64,
    /// See [`Seq`].
    pub n: u64,
    /// What rules every node that no candidate rules; none before the first good commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<Revision>,
    /// What a staged rollout brings in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Revision>,
    /// The share of nodes, in percent, that the candidate rules.
    #[serde(default)]
    pub stage: u32,
    /// After a rollback: newer commits are checked and held.
    #[serde(default)]
    pub pinned: bool,
}

impl Head {
    /// The first head of a new epoch, with nothing in force.
    pub fn first(epoch: u64) -> Self {
        Head { epoch, n: 0, stable: None, candidate: None, stage: 0, pinned: false }
    }

    /// The head after this one, with `revision` in force everywhere.
    pub fn next(&self, revision: Revision) -> Self {
        Head { n: self.n + 1, stable: Some(revision), candidate: None, stage: 0, ..*self }
    }

    /// Its place in the order of heads.
    pub fn seq(&self) -> Seq {
        Seq { epoch: self.epoch, n: self.n }
    }

    /// The revision that rules `node`. A higher stage only ever adds nodes to the candidate's.
    pub fn revision_for(&self, node: &str) -> Option<&Revision> {
        let candidate = self.candidate.as_ref().filter(|_| place(node) < self.stage);
        candidate.or(self.stable.as_ref())
    }

    /// The bytes that are signed and kept: JSON with the fields in the order of this type and no white space.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a head has no map and no float")
    }
}

/// 0 to 99: fixed for a node, and evenly spread over nodes.
fn place(node: &str) -> u32 {
    let [a, b, c, d, ..] = Hash::of(node.as_bytes()).0;
    u32::from_be_bytes([a, b, c, d]) % 100
}

/// A head with the bytes that vouch for it. Cheap to clone.
///
/// Holding one proves that its bytes are a head, not that its signature is good: `federation` judges that.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedHead(Arc<Parts>);

#[derive(PartialEq, Eq)]
struct Parts {
    head: Head,
    bytes: Vec<u8>,
    signature: Vec<u8>,
    statement: Vec<u8>,
}

/// Why bytes are not a head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// Longer than any head of ours.
    #[error("a head of {0} bytes is over the limit of {MAX_HEAD_BYTES}")]
    TooLarge(usize),
    /// Not of the shape that this version knows.
    #[error("not a head that this version understands: {0}; is the primary newer than this control plane?")]
    Shape(String),
}

impl SignedHead {
    /// Reads the head from the bytes that were signed.
    pub fn parse(bytes: Vec<u8>, signature: Vec<u8>, statement: Vec<u8>) -> Result<Self, BadHead> {
        let total = bytes.len() + signature.len() + statement.len();
        if total > MAX_HEAD_BYTES {
            return Err(BadHead::TooLarge(total));
        }
        let head = serde_json::from_slice(&bytes).map_err(|error| BadHead::Shape(error.to_string()))?;
        Ok(SignedHead(Arc::new(Parts { head, bytes, signature, statement })))
    }

    /// Signs `head` with `sign`, which gets its canonical bytes and gives (signature, statement about the key).
    pub fn seal(head: Head, sign: impl FnOnce(&[u8]) -> (Vec<u8>, Vec<u8>)) -> Self {
        let bytes = head.canonical();
        let (signature, statement) = sign(&bytes);
        SignedHead(Arc::new(Parts { head, bytes, signature, statement }))
    }

    /// A head that nobody vouches for: for a store that no remote follows.
    pub fn unsigned(head: Head) -> Self {
        SignedHead::seal(head, |_| Default::default())
    }

    /// What it says.
    pub fn head(&self) -> &Head {
        &self.0.head
    }

    /// The bytes that were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The signature over [`SignedHead::bytes`]; empty when unsigned.
    pub fn signature(&self) -> &[u8] {
        &self.0.signature
    }

    /// The root's statement about the signing key; empty when unsigned.
    pub fn statement(&self) -> &[u8] {
        &self.0.statement
    }

    /// One run of bytes for a store or a stream.
    pub fn encode(&self) -> Vec<u8> {
        let parts = [&self.0.bytes, &self.0.signature, &self.0.statement];
        parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes(), part.as_slice()].concat()).collect()
    }

    /// Reads what [`SignedHead::encode`] wrote.
    pub fn decode(mut encoded: &[u8]) -> Result<Self, BadHead> {
        let mut part = || -> Option<Vec<u8>> {
            let (length, rest) = encoded.split_first_chunk::<4>()?;
            let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            encoded = rest;
            Some(part.to_vec())
        };
        match (part(), part(), part()) {
            (Some(bytes), Some(signature), Some(statement)) if encoded.is_empty() => {
                SignedHead::parse(bytes, signature, statement)
            }
            _ => Err(BadHead::Shape("its three parts are cut short or too long".into())),
        }
    }
}

impl fmt::Debug for SignedHead {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = if self.0.signature.is_empty() { "unsigned" } else { "signed" };
        write!(out, "{:?} ({signed})", self.0.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(digit: &str) -> Revision {
        let commit = digit.repeat(40).parse().unwrap();
        Revision {
            commits: vec![("main".parse().unwrap(), commit)],
            manifest: Hash::of(digit.as_bytes()),
            positions: None,
        }
    }

    fn head() -> Head {
        Head::first(7).next(revision("a"))
    }

    #[test]
    fn the_canonical_form_is_fixed() {
        let expected = format!(
            r#"{{"epoch":7,"n":1,"stable":{{"commits":[["main","{}"]],"manifest":"{}"}},"stage":0,"pinned":false}}"#,
            "a".repeat(40),
            Hash::of(b"a")
        );
        assert_eq!(String::from_utf8(head().canonical()).unwrap(), expected);
    }

    #[test]
    fn a_revision_is_called_by_its_commit_or_by_that_of_each_source() {
        let one = revision("a");
        assert_eq!(one.label(), "a".repeat(40));
        let commits =
            vec![one.commits[0].clone(), ("shop".parse().unwrap(), "b".repeat(40).parse().unwrap())];
        let several = Revision { commits, ..one };
        assert_eq!(several.label(), format!("main@{} shop@{}", "a".repeat(40), "b".repeat(40)));
    }

    #[test]
    fn a_signed_head_is_read_as_it_was_written() {
        let signed = SignedHead::seal(head(), |bytes| (vec![bytes.len() as u8], b"key".to_vec()));
        let read = SignedHead::decode(&signed.encode()).unwrap();
        assert_eq!(read, signed);
        assert_eq!((read.head(), read.statement()), (&head(), &b"key"[..]));
    }

    #[test]
    fn what_is_not_a_head_is_refused() {
        let encoded = SignedHead::unsigned(head()).encode();
        assert!(matches!(SignedHead::decode(&encoded[..encoded.len() - 1]), Err(BadHead::Shape(_))));
        assert!(matches!(SignedHead::decode(&[&encoded[..], b"x"].concat()), Err(BadHead::Shape(_))));
        assert!(matches!(SignedHead::decode(&[255; 4]), Err(BadHead::Shape(_))));
        let newer = br#"{"epoch":1,"n":1,"waves":[]}"#.to_vec();
        assert!(matches!(SignedHead::parse(newer, vec![], vec![]), Err(BadHead::Shape(_))));
        let large = vec![b' '; MAX_HEAD_BYTES + 1];
        assert!(matches!(SignedHead::parse(large, vec![], vec![]), Err(BadHead::TooLarge(_))));
    }

    #[test]
    fn a_candidate_rules_its_share_and_only_grows() {
        let nodes: Vec<String> = (0..1000).map(|i| format!("east/reviews-{i}")).collect();
        let ruled = |stage| {
            let head = Head { candidate: Some(revision("b")), stage, ..head() };
            nodes.iter().filter(|node| head.revision_for(node) == head.candidate.as_ref()).collect::<Vec<_>>()
        };
        assert!(ruled(0).is_empty());
        assert_eq!(ruled(100).len(), 1000);
        assert!((200..400).contains(&ruled(30).len()), "{}", ruled(30).len());
        let more = ruled(31);
        assert!(ruled(30).iter().all(|node| more.contains(node)));
        assert_eq!(Head::first(1).revision_for("east/a"), None);
    }

    #[test]
    fn a_commit_id_is_whole() {
        assert!("a".repeat(40).parse::<CommitId>().is_ok());
        assert!("0".repeat(64).parse::<CommitId>().is_ok());
        for bad in ["", "abc", &"A".repeat(40), &"g".repeat(40)] {
            assert_eq!(bad.parse::<CommitId>(), Err(BadCommitId), "{bad}");
        }
    }
}
