//! The commits of one simulation. Each differs from the one before in what it allows, in its marks, or in its members.
//!
//! A mark is a number that stands in every part of the configuration that a proxy may be told of: in a view that bears
//! two different marks two revisions are mixed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use api::{head::CommitId, name::SourceName};
use controlplane::git::{Checkout, File};
use tokio::sync::watch;

/// The source of all commits.
pub fn source() -> SourceName {
    "config".parse().expect("a label")
}

/// The trust domain of every simulation.
pub const TRUST_DOMAIN: &str = "shop.example";

/// One commit.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its place among all commits.
    pub index: usize,
    /// Its id.
    pub id: CommitId,
    /// The mark of its parts; that of the commit before where no proxy has to learn of it.
    pub mark: u32,
    /// Whether the front is denied.
    pub denies: bool,
    /// The members.
    pub members: BTreeSet<String>,
}

/// The branch, and who watches it.
#[derive(Debug)]
pub struct Repository {
    commits: Vec<Arc<Commit>>,
    by_id: BTreeMap<String, usize>,
    head: watch::Sender<Option<Arc<Commit>>>,
}

/// What the next commit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Who is allowed, and all marks.
    Permission,
    /// The marks alone.
    Marks,
    /// Nothing that a proxy is told.
    Nothing,
    /// A member leaves.
    Removal(&'a str),
}

impl Repository {
    /// The first commit, with these members.
    pub fn new(members: &[&str]) -> Self {
        let mut repository =
            Repository { commits: Vec::new(), by_id: BTreeMap::new(), head: watch::Sender::new(None) };
        let members = members.iter().map(|name| (*name).to_owned()).collect();
        repository.add(0, false, members);
        repository
    }

    /// The next commit.
    pub fn commit(&mut self, change: Change<'_>) -> Arc<Commit> {
        let last = self.last().clone();
        let mut members = last.members.clone();
        if let Change::Removal(name) = change {
            members.remove(name);
        }
        let mark = last.mark + u32::from(change != Change::Nothing);
        self.add(mark, last.denies != (change == Change::Permission), members)
    }

    fn add(&mut self, mark: u32, denies: bool, members: BTreeSet<String>) -> Arc<Commit> {
        let index = self.commits.len();
        let id: CommitId = format!("{:04x}{:036x}", index + 1, 0).parse().expect("40 digits");
        self.by_id.insert(id.to_string(), index);
        let commit = Arc::new(Commit { index, id, mark, denies, members });
        self.commits.push(commit.clone());
        self.head.send_replace(Some(commit.clone()));
        commit
    }

    /// The newest commit.
    pub fn last(&self) -> &Arc<Commit> {
        &self.commits[self.commits.len() - 1]
    }

    /// The commit of this id.
    pub fn find(&self, id: &str) -> Option<&Arc<Commit>> {
        self.by_id.get(id).map(|index| &self.commits[*index])
    }

    /// Tells of each new head of the branch.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Commit>>> {
        self.head.subscribe()
    }
}

/// How a mark is written: as no digest is, in which letters and digits come as they may.
pub fn mark(number: u32) -> String {
    format!("rev-{number}-x")
}

/// The marks in these bytes.
pub fn marks(bytes: &[u8]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for at in 0..bytes.len().saturating_sub(4) {
        let Some(rest) = bytes[at..].strip_prefix(b"rev-") else { continue };
        let digits: Vec<u8> = rest.iter().copied().take_while(u8::is_ascii_digit).collect();
        if !digits.is_empty() && rest[digits.len()..].starts_with(b"-x") {
            found.extend(String::from_utf8_lossy(&digits).parse::<u32>());
        }
    }
    found
}

impl Commit {
    /// Its files, as the control plane reads them.
    pub fn checkout(&self) -> Checkout {
        let file = File { path: "mesh.yaml".into(), text: self.text().into() };
        Checkout {
            source: source(),
            commit: self.id.clone(),
            files: vec![file],
            refusals: vec![],
            author: "Op <op@shop.example>".into(),
            time: self.index as i64,
            subject: format!("commit {}", self.index),
            rewrote: false,
        }
    }

    fn text(&self) -> String {
        let mark = mark(self.mark);
        let mut text = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: {TRUST_DOMAIN} }}\n\
             ---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: shop, labels: {{ n: c{} }} }}\n",
            self.index
        );
        for member in &self.members {
            let _ = write!(
                text,
                "---\napiVersion: weft.mesh/v1alpha1\nkind: Cluster\nmetadata: {{ name: {member} }}\n\
                 spec: {{ network: {member}, namespaces: [shop] }}\n"
            );
        }
        for service in ["front", "reviews"] {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {service}, namespace: shop }}\n\
                 spec: {{ selector: {{ app: {service} }}, ports: [{{ name: http, port: 8080 }}] }}\n\
                 ---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\n\
                 metadata: {{ name: {service}, namespace: shop }}\n\
                 ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{ name: {service}, namespace: shop }}\n\
                 spec:\n  parentRefs: [{{ group: \"\", kind: Service, name: {service}, port: 8080 }}]\n  rules:\n\
                 \x20 - name: {mark}\n    backendRefs: [{{ name: {service}, port: 8080 }}]\n"
            );
            for place in ["a", "b"] {
                let _ = write!(
                    text,
                    "---\napiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
                     metadata: {{ name: {service}-{place}, namespace: shop }}\n\
                     spec:\n  targetRefs: [{{ group: \"\", kind: Service, name: {service} }}]\n  action: DENY\n  rules:\n\
                     \x20 - name: {mark}\n    when: request.path == \"/{place}\"\n"
                );
                if self.denies {
                    text.push_str("  - name: deny\n    when: source.serviceAccount == \"front\"\n");
                }
            }
        }
        text
    }
}
