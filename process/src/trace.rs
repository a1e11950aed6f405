//! Distributed tracing: the context that travels with a request, head sampling, and spans.
//!
//! Pure but for [`with_ids`]; sending spans away is the [`Exporter`]'s. A request that is not sampled costs its
//! context only: [`Span::begin`] makes no span for it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::HEXLOWER;

mod export;

pub use export::{Collector, CollectorError, Exporter};

/// Names a trace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// Names a span within its trace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// As it travels in OTLP.
    pub fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    /// As it travels in OTLP.
    pub fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What one hop tells the next of the trace (W3C Trace Context, level 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The span that is in work at the sender, parent of the receiver's.
    pub span: SpanId,
    /// Whether the spans of this trace are kept.
    pub sampled: bool,
    /// Whether the trace id is known to be random in its last seven bytes.
    random: bool,
    /// The `tracestate`, passed on untouched.
    state: Option<Arc<str>>,
}

/// The `tracestate` that must be passed on at least; a longer one may be dropped, and is.
const MAX_STATE_BYTES: usize = 512;

/// The most members of a `tracestate`.
const MAX_STATE_MEMBERS: usize = 32;

const FLAG_SAMPLED: u8 = 1;
const FLAG_RANDOM: u8 = 2;

impl Context {
    /// Begins a trace.
    pub fn root(ids: &mut Ids, sampled: bool) -> Self {
        Self { trace: ids.trace(), span: ids.span(), sampled, random: true, state: None }
    }

    /// Begins a trace of which the share `ratio` is sampled.
    pub fn root_sampled(ids: &mut Ids, ratio: f64) -> Self {
        let mut context = Self::root(ids, false);
        context.sampled = sampled(context.trace, ratio);
        context
    }

    /// The same trace with a span of its own.
    pub fn child(&self, ids: &mut Ids) -> Self {
        Self { span: ids.span(), ..self.clone() }
    }

    /// Reads the headers of a request. A bad `traceparent` is as none; a bad `tracestate` is dropped alone.
    /// Several `tracestate` lines are to be joined by commas.
    pub fn parse(traceparent: &[u8], tracestate: Option<&[u8]>) -> Option<Self> {
        let (known, rest) = traceparent.split_at_checked(55)?;
        let version = hex(&known[..2])?;
        let bounded = rest.is_empty() || (version > 0 && rest[0] == b'-');
        let dashes = [2, 35, 52].iter().all(|&at| known[at] == b'-');
        if version == 0xff || !bounded || !dashes {
            return None;
        }
        let flags = hex(&known[53..])? as u8;
        Some(Self {
            trace: TraceId(NonZeroU128::new(hex(&known[3..35])?)?),
            span: SpanId(NonZeroU64::new(hex(&known[36..52])? as u64)?),
            sampled: flags & FLAG_SAMPLED != 0,
            random: flags & FLAG_RANDOM != 0,
            state: tracestate.and_then(state),
        })
    }

    /// The `traceparent` to send.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        HEXLOWER.encode_append(&self.trace.bytes(), &mut text);
        text.push('-');
        HEXLOWER.encode_append(&self.span.bytes(), &mut text);
        text.push('-');
        HEXLOWER.encode_append(&[self.flags()], &mut text);
        text
    }

    /// The `tracestate` to send.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    fn flags(&self) -> u8 {
        (u8::from(self.sampled) * FLAG_SAMPLED) | (u8::from(self.random) * FLAG_RANDOM)
    }
}

/// Lower-case digits only, at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn state(said: &[u8]) -> Option<Arc<str>> {
    let said = str::from_utf8(said).ok()?.trim();
    let members = said.split(',').map(str::trim).filter(|member| !member.is_empty());
    let good = said.len() <= MAX_STATE_BYTES
        && members.clone().count() <= MAX_STATE_MEMBERS
        && members.clone().all(|member| member.split_once('=').is_some_and(|(key, _)| !key.is_empty()))
        && said.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    (good && !said.is_empty()).then(|| said.into())
}

/// Whether this trace is among the share `ratio` of all traces. The same on every hop, for it looks at the
/// id's last seven bytes alone, which are random by the specification.
pub fn sampled(trace: TraceId, ratio: f64) -> bool {
    const RANDOM_BITS: u32 = 56;
    let random = trace.0.get() as u64 & ((1 << RANDOM_BITS) - 1);
    (random as f64) < ratio * (1u64 << RANDOM_BITS) as f64
}

/// Makes ids: cheap and unlike any other process's, but not secret (xorshift64*, Vigna 2016).
#[derive(Debug)]
pub struct Ids(NonZeroU64);

impl Ids {
    /// The same seed gives the same ids.
    pub fn seeded(seed: u64) -> Self {
        Self(NonZeroU64::new(seed).unwrap_or(NonZeroU64::MIN))
    }

    /// Seeded by the operating system's randomness.
    pub fn random() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    fn next(&mut self) -> u64 {
        let mut state = self.0.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        // A shift register of this kind never reaches zero.
        self.0 = NonZeroU64::new(state).unwrap_or(NonZeroU64::MIN);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A new trace's id.
    pub fn trace(&mut self) -> TraceId {
        let id = u128::from(self.next()) << 64 | u128::from(self.next());
        TraceId(NonZeroU128::new(id).unwrap_or(NonZeroU128::MIN))
    }

    /// A new span's id.
    pub fn span(&mut self) -> SpanId {
        SpanId(NonZeroU64::new(self.next()).unwrap_or(NonZeroU64::MIN))
    }
}

/// Lends this thread's own source of ids.
pub fn with_ids<T>(make: impl FnOnce(&mut Ids) -> T) -> T {
    thread_local!(static IDS: RefCell<Ids> = RefCell::new(Ids::random()));
    IDS.with_borrow_mut(make)
}

/// Which side of a call a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The side that was called.
    Server,
    /// The side that calls.
    Client,
    /// No call.
    Internal,
}

/// How what a span tells of went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Status {
    /// Not an error.
    #[default]
    Unset,
    /// An error, and what it was.
    Error(Cow<'static, str>),
}

/// What an attribute holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

/// More attributes than this are counted, not kept.
const MAX_ATTRIBUTES: usize = 64;

/// A stretch of work on a sampled request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    context: Context,
    parent: Option<SpanId>,
    name: Cow<'static, str>,
    kind: Kind,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    dropped_attributes: u32,
    status: Status,
}

impl Span {
    /// A span with the ids of `context`, which begins at `start`; none unless the trace is sampled.
    pub fn begin(
        context: &Context,
        parent: Option<SpanId>,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        start: SystemTime,
    ) -> Option<Self> {
        context.sampled.then(|| Self {
            context: context.clone(),
            parent,
            name: name.into(),
            kind,
            start,
            end: start,
            attributes: Vec::new(),
            dropped_attributes: 0,
            status: Status::Unset,
        })
    }

    /// Adds an attribute, by the names of the OpenTelemetry semantic conventions or `weft.*`.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if self.attributes.len() < MAX_ATTRIBUTES {
            self.attributes.push((key, value.into()));
        } else {
            self.dropped_attributes += 1;
        }
    }

    /// Says that what it tells of failed.
    pub fn fail(&mut self, message: impl Into<Cow<'static, str>>) {
        self.status = Status::Error(message.into());
    }

    /// Ends it at `end`, never before its start.
    pub fn end(&mut self, end: SystemTime) {
        self.end = end.max(self.start);
    }
}

#[cfg(test)]
mod tests;
