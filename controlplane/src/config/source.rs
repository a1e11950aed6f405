//! The sources of configuration: what was said, and what is meant.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use api::name::{Namespace, SourceName};
use serde::{Deserialize, Serialize};

use crate::{
    git::{Access, Address, Scheme, Source},
    ownership::Ownership,
};

/// All sources together: their names stand in every head, and in what proxies call a revision.
const MAX_SOURCES: usize = 32;
/// What the only source is called, unless told otherwise.
const SOLE: &str = "main";

/// Between two questions to a server, unless told otherwise: webhooks make it immediate.
const POLL_SECONDS: u32 = 15;

/// A configuration repository.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawSource {
    /// What people call it; `main` by default, where it is the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SourceName>,
    /// The namespaces that it alone may say something in. One source says none: it owns the rest and what is mesh-wide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<Namespace>>,
    /// A local path, bare or with a work tree, or a URL: `https://`, `ssh://`, `file://`, and `http://` to loopback.
    #[serde(alias = "url")]
    pub repository: String,
    /// The branch that rules; `main` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The folder inside the repository; all of it by default.
    #[serde(default)]
    pub path: String,
    /// The user that goes with the token; `git` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The file with the token (`https`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The file with the certificates that are shown to the server (`https`), in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// The file with their key (`https`), in PEM, or that of the account (`ssh`), as OpenSSH keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The file with the server's authorities, instead of the system's (`https`), in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The file with the server's keys, as OpenSSH keeps them (`ssh`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts_file: Option<PathBuf>,
    /// Between two questions to the server; 15 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<u32>,
    /// The file with the secret of the server's webhooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_secret_file: Option<PathBuf>,
}

/// What is meant by `source` and `sources`, of which settings have one; what is wrong is added to `wrong`.
pub(super) fn all(
    source: Option<RawSource>,
    sources: Option<Vec<RawSource>>,
    wrong: &mut Vec<String>,
) -> Option<(Vec<Source>, Ownership)> {
    let before = wrong.len();
    let said = match (source, sources) {
        (Some(source), None) => {
            let name = source.name.clone().unwrap_or_else(|| SourceName::new(SOLE).expect("a label"));
            vec![RawSource { name: Some(name), ..source }]
        }
        (None, Some(sources)) => sources,
        _ => {
            wrong.push("a primary has either `source` or `sources`".into());
            return None;
        }
    };
    if said.len() > MAX_SOURCES {
        wrong.push(format!("{} sources are over the limit of {MAX_SOURCES}", said.len()));
    }
    let mut names = BTreeSet::new();
    let (mut meant, mut owned) = (Vec::new(), Vec::new());
    for (place, mut source) in said.into_iter().enumerate() {
        let Some(name) = source.name.take() else {
            wrong.push(format!("sources[{place}]: `name` is missing"));
            continue;
        };
        if !names.insert(name.clone()) {
            wrong.push(format!("source {name}: there are two of this name"));
        }
        owned.push((name.clone(), source.namespaces.take()));
        meant.extend(source.meant(name, wrong));
    }
    let ownership = Ownership::new(owned).map_err(|why| wrong.extend(why)).ok()?;
    (wrong.len() == before).then_some((meant, ownership))
}

impl RawSource {
    /// What is meant; what is wrong is added to `wrong`.
    fn meant(self, name: SourceName, wrong: &mut Vec<String>) -> Option<Source> {
        let before = wrong.len();
        let address = self.repository.parse::<Address>();
        let address = address.map_err(|error| wrong.push(format!("source {name}: repository: {error}"))).ok();
        if let Some(address) = &address {
            wrong.extend(self.misplaced(address).into_iter().map(|why| format!("source {name}: {why}")));
        }
        let branch = self.branch.unwrap_or_else(|| "main".into());
        if !is_branch(&branch) {
            wrong.push(format!("source {name}: `{branch}` is no name of a branch"));
        }
        let poll = self.poll_seconds.unwrap_or(POLL_SECONDS);
        if poll == 0 {
            wrong.push(format!("source {name}: pollSeconds must be at least 1"));
        }
        (wrong.len() == before).then_some(Source {
            name,
            address: address?,
            branch,
            folder: self.path,
            access: Access {
                user: self.username.unwrap_or_else(|| "git".into()),
                token: self.token_file,
                certificate: self.certificate_file,
                key: self.key_file,
                ca: self.ca_file,
                known_hosts: self.known_hosts_file,
            },
            poll: Duration::from_secs(poll.into()),
            webhook_secret: self.webhook_secret_file,
        })
    }

    /// Files that are missing for this address, or of no use.
    fn misplaced(&self, address: &Address) -> Vec<String> {
        let scheme = match address {
            Address::Local(_) => None,
            Address::Remote(server) => Some(server.scheme),
        };
        let (https, ssh) = (scheme == Some(Scheme::Https), scheme == Some(Scheme::Ssh));
        let http = https || scheme == Some(Scheme::Http);
        let has = |file: &Option<PathBuf>| file.is_some();
        let useless = [
            ("username", self.username.is_some() && !has(&self.token_file), "goes with `tokenFile`"),
            ("tokenFile", has(&self.token_file) && !http, "is for https://"),
            ("certificateFile", has(&self.certificate_file) && !https, "is for https://"),
            ("caFile", has(&self.ca_file) && !https, "is for https://"),
            ("keyFile", has(&self.key_file) && !https && !ssh, "is for https:// and ssh://"),
            ("knownHostsFile", has(&self.known_hosts_file) && !ssh, "is for ssh://"),
            (
                "pollSeconds",
                self.poll_seconds.is_some() && scheme.is_none(),
                "is for servers: a path is watched",
            ),
            (
                "webhookSecretFile",
                has(&self.webhook_secret_file) && scheme.is_none(),
                "is for servers: a path is watched",
            ),
            (
                "certificateFile",
                https && has(&self.key_file) && !has(&self.certificate_file),
                "is missing beside `keyFile`",
            ),
            (
                "keyFile",
                https && has(&self.certificate_file) && !has(&self.key_file),
                "is missing beside `certificateFile`",
            ),
            ("keyFile", ssh && !has(&self.key_file), "is missing: ssh:// needs it"),
            (
                "knownHostsFile",
                ssh && !has(&self.known_hosts_file),
                "is missing: ssh:// needs it (see ssh-keyscan)",
            ),
        ];
        let colon = self
            .username
            .as_ref()
            .is_some_and(|user| user.contains(':'))
            .then_some("username bears no colon");
        let said =
            useless.iter().filter(|(_, wrong, _)| *wrong).map(|(field, _, why)| format!("{field} {why}"));
        said.chain(colon.map(str::to_owned)).collect()
    }
}

/// The rules of `git check-ref-format`, and no pattern.
fn is_branch(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+#@".contains(c) || !c.is_ascii();
    !name.is_empty()
        && name.len() <= 200
        && name.chars().all(|c| plain(c) && !c.is_control())
        && !name.contains("..")
        && !name.starts_with('-')
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
        && !name.ends_with('.')
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn wrong(json: &str) -> String {
        let mut wrong = Vec::new();
        let raw: RawSource = serde_json::from_str(json).unwrap();
        let meant = all(Some(raw), None, &mut wrong);
        assert_eq!(meant.is_some(), wrong.is_empty());
        wrong.join("\n")
    }

    fn several(json: &str) -> Result<Ownership, String> {
        let raw: Vec<RawSource> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let mut wrong = Vec::new();
        let meant = all(None, Some(raw), &mut wrong);
        assert_eq!(meant.is_some(), wrong.is_empty());
        meant.map(|(_, ownership)| ownership).ok_or(wrong.join("\n"))
    }

    #[test]
    fn each_namespace_has_one_owner_and_one_source_owns_the_rest() {
        let ownership = several(
            r#"[{"name": "shop", "repository": "/srv/shop", "namespaces": ["shop", "till"]},
                {"name": "platform", "repository": "/srv/platform"}]"#,
        )
        .unwrap();
        let owner = |namespace: &str| ownership.owner(Some(&namespace.parse().unwrap())).as_str();
        assert_eq!(
            [owner("till"), owner("other"), owner("weft-system"), ownership.owner(None).as_str()],
            ["shop", "platform", "platform", "platform"]
        );
        assert_eq!(ownership.sources().map(SourceName::as_str).collect::<Vec<_>>(), ["platform", "shop"]);
    }

    #[test]
    fn sources_that_contradict_each_other_are_told_all_at_once() {
        let told = several(
            r#"[{"name": "a", "repository": "/a", "namespaces": ["shop", "weft-system"]},
                {"name": "b", "repository": "/b", "namespaces": ["shop"], "branch": ".."},
                {"name": "b", "repository": "/c", "namespaces": []},
                {"repository": "/d"}]"#,
        );
        expect![[r#"
            source b: `..` is no name of a branch
            source b: there are two of this name
            sources[3]: `name` is missing
            source a: namespace `weft-system` rules the whole mesh: it belongs to the source without `namespaces`
            source b: namespace `shop` is owned by source a already
            source b: `namespaces` is empty: it may say nothing at all
            one source says no `namespaces`: it owns the rest and what is mesh-wide"#]]
        .assert_eq(&told.unwrap_err());
        let told = several(r#"[{"name": "a", "repository": "/a"}, {"name": "b", "repository": "/b"}]"#);
        expect![[r#"
            source b: says no `namespaces`, as source a: one alone owns the rest and what is mesh-wide"#]]
        .assert_eq(&told.unwrap_err());
        expect![[r#"
            one source says no `namespaces`: it owns the rest and what is mesh-wide"#]]
        .assert_eq(&wrong(r#"{"repository": "/a", "namespaces": ["shop"]}"#));
        for bad in
            [r#"[{"name": "A b", "repository": "/a"}]"#, r#"[{"name": "a", "repository": "/a", "owns": []}]"#]
        {
            assert!(several(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_is_a_path_or_a_url_with_its_files() {
        for good in [
            r#"{"repository": "/srv/config"}"#,
            r#"{"url": "file:///srv/config", "branch": "release/1.2", "path": "mesh"}"#,
            r#"{"url": "https://git.example/config", "tokenFile": "/run/token", "username": "oauth2"}"#,
            r#"{"url": "https://git.example/config", "certificateFile": "c", "keyFile": "k", "caFile": "a"}"#,
            r#"{"url": "ssh://git@git.example/config", "keyFile": "k", "knownHostsFile": "h", "pollSeconds": 60}"#,
        ] {
            assert_eq!(wrong(good), "", "{good}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let bad =
            r#"{"url": "ssh://git.example/config", "tokenFile": "t", "branch": "a..b", "pollSeconds": 0}"#;
        expect![[r#"
            source main: tokenFile is for https://
            source main: keyFile is missing: ssh:// needs it
            source main: knownHostsFile is missing: ssh:// needs it (see ssh-keyscan)
            source main: `a..b` is no name of a branch
            source main: pollSeconds must be at least 1"#]]
        .assert_eq(&wrong(bad));
        expect![[r#"
            source main: certificateFile is missing beside `keyFile`"#]]
        .assert_eq(&wrong(r#"{"url": "https://git.example/config", "keyFile": "k"}"#));
        expect![[r#"
            source main: repository: a URL bears no user, password, query or fragment: put the token into a file (`tokenFile`)"#]]
        .assert_eq(&wrong(r#"{"url": "https://me:word@git.example/config"}"#));
        expect![[r#"
            source main: username goes with `tokenFile`
            source main: webhookSecretFile is for servers: a path is watched
            source main: username bears no colon"#]]
        .assert_eq(&wrong(r#"{"repository": "/srv", "username": "a:b", "webhookSecretFile": "s"}"#));
        for bad in ["", "-x", "a b", "a..b", ".a", "a/.b", "a.lock", "a/", "a*", "a:b", "a^", "refs/heads/a."]
        {
            assert!(!is_branch(bad), "{bad}");
        }
    }
}
