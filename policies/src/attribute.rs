//! The names that an expression may use, their types, and which of them it does use.

/// Every name, in the order in which users are told of them.
pub(crate) const KNOWN: [(&str, Attribute); 36] = {
    use Attribute::{Headers, Later, Mtls, QueryParams, Services};
    const fn text(text: Text) -> Attribute {
        Attribute::Text(text)
    }
    [
        ("source.principal", text(Text::SourcePrincipal)),
        ("source.trustDomain", text(Text::SourceTrustDomain)),
        ("source.namespace", text(Text::SourceNamespace)),
        ("source.serviceAccount", text(Text::SourceServiceAccount)),
        ("source.cluster", text(Text::SourceCluster)),
        ("source.ip", text(Text::SourceIp)),
        ("source.port", Attribute::Int(Int::SourcePort)),
        ("destination.ip", text(Text::DestinationIp)),
        ("destination.port", Attribute::Int(Int::DestinationPort)),
        ("destination.service", Services),
        ("destination.namespace", text(Text::DestinationNamespace)),
        ("destination.workload", text(Text::DestinationWorkload)),
        ("destination.cluster", text(Text::DestinationCluster)),
        ("request.method", text(Text::Method)),
        ("request.scheme", text(Text::Scheme)),
        ("request.host", text(Text::Host)),
        ("request.path", text(Text::Path)),
        ("request.rawPath", text(Text::RawPath)),
        ("request.query", text(Text::Query)),
        ("request.protocol", text(Text::Protocol)),
        ("request.id", text(Text::Id)),
        ("request.headers", Headers),
        ("request.queryParams", QueryParams),
        ("request.size", Attribute::Int(Int::Size)),
        ("request.time", Later("timestamp")),
        ("request.grpc.service", text(Text::GrpcService)),
        ("request.grpc.method", text(Text::GrpcMethod)),
        ("request.auth.issuer", Later("string")),
        ("request.auth.subject", Later("string")),
        ("request.auth.presenter", Later("string")),
        ("request.auth.audiences", Later("list(string)")),
        ("request.auth.claims", Later("map(string, dyn)")),
        ("connection.mtls", Mtls),
        ("connection.sni", text(Text::Sni)),
        ("connection.protocol", text(Text::ConnectionProtocol)),
        ("connection.tlsVersion", text(Text::TlsVersion)),
    ]
};

/// Something that an expression may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// A string.
    Text(Text),
    /// An int.
    Int(Int),
    /// `connection.mtls`, a bool.
    Mtls,
    /// `destination.service`, a list of strings.
    Services,
    /// `request.headers`, a map of strings.
    Headers,
    /// `request.queryParams`, a map of strings.
    QueryParams,
    /// Known with its type, but not yet supported.
    Later(&'static str),
}

/// A string attribute. Those of the source are `""` without mTLS, except its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // KNOWN says which is which
pub enum Text {
    SourcePrincipal,
    SourceTrustDomain,
    SourceNamespace,
    SourceServiceAccount,
    SourceCluster,
    SourceIp,
    DestinationIp,
    DestinationNamespace,
    DestinationWorkload,
    DestinationCluster,
    Method,
    Scheme,
    Host,
    Path,
    RawPath,
    Query,
    Protocol,
    Id,
    GrpcService,
    GrpcMethod,
    Sni,
    ConnectionProtocol,
    TlsVersion,
}

/// An int attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // KNOWN says which is which
pub enum Int {
    SourcePort,
    DestinationPort,
    Size,
}

/// A set of attributes: what an expression reads, so that a caller captures no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reads(u64);

impl Reads {
    /// Reads nothing.
    pub const NONE: Reads = Reads(0);

    /// Whether it reads the attribute.
    pub fn contains(self, attribute: Attribute) -> bool {
        KNOWN.iter().enumerate().any(|(bit, (_, known))| self.0 >> bit & 1 == 1 && *known == attribute)
    }

    /// What either reads.
    pub fn union(self, other: Reads) -> Reads {
        Reads(self.0 | other.0)
    }

    /// The names read, such as `source.namespace`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        KNOWN.iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, (name, _))| *name)
    }

    /// Whether it reads anything of a request, and so cannot judge what is not HTTP.
    pub fn request(self) -> bool {
        self.names().any(|name| name.starts_with("request."))
    }

    pub(crate) fn add(&mut self, name: &str) {
        if let Some(bit) = KNOWN.iter().position(|(known, _)| *known == name) {
            self.0 |= 1 << bit;
        }
    }
}

/// The attribute of that name.
pub(crate) fn lookup(name: &str) -> Option<Attribute> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, attribute)| *attribute)
}

/// What follows `prefix.` in known names; for an empty prefix the roots.
pub(crate) fn children(prefix: &str) -> Vec<&'static str> {
    let mut children = Vec::new();
    for (name, _) in KNOWN {
        let rest = if prefix.is_empty() {
            Some(name)
        } else {
            name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'))
        };
        let child = rest.and_then(|rest| rest.split('.').next());
        children.extend(child.filter(|child| !children.contains(child)));
    }
    children
}

/// The known name that was probably meant: close in spelling, or the same word under another root.
pub(crate) fn nearest_name(name: &str) -> Option<&'static str> {
    let same_leaf = |known: &&str| known.rsplit_once('.').is_some_and(|(_, leaf)| leaf == name);
    nearest(name, KNOWN.iter().map(|(known, _)| *known))
        .or_else(|| KNOWN.iter().map(|(known, _)| *known).find(same_leaf))
}

/// The candidate closest in spelling, if one is close enough to be a slip.
pub(crate) fn nearest<'k>(word: &str, candidates: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let slips_max = (word.len() / 4).clamp(1, 4);
    let measured = candidates.map(|candidate| (distance(word, candidate), candidate));
    measured
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, case aside.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
