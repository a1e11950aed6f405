//! Where a repository is, as settings say it: a path, or the URL of a server.
//!
//! Invariant: an address bears no secret: a URL with a password, a query or a fragment is none. So it may be shown.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use http::{Uri, uri::Authority};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On this machine; the file system tells when it changes.
    Local(PathBuf),
    /// At a server, which is asked.
    Remote(Server),
}

/// A repository at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// The account there (`ssh` alone).
    pub user: Option<String>,
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The repository's path there, with the slash that it begins with.
    pub path: String,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TLS.
    Https,
    /// Without TLS: to loopback alone.
    Http,
    /// Secure Shell.
    Ssh,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
            Scheme::Ssh => "ssh",
        }
    }

    fn port(self) -> u16 {
        match self {
            Scheme::Https => 443,
            Scheme::Http => 80,
            Scheme::Ssh => 22,
        }
    }
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// `git@host:path`.
    #[error("write it as a URL: ssh://USER@HOST/PATH")]
    Scp,
    /// Another scheme.
    #[error("`{0}://` is not spoken: name a path, or an https://, ssh:// or file:// URL")]
    Scheme(String),
    /// Not a URL.
    #[error("not the URL of a repository: expected SCHEME://HOST/PATH of plain characters")]
    Shape,
    /// A secret where everybody reads it.
    #[error("a URL bears no user, password, query or fragment: put the token into a file (`tokenFile`)")]
    Secret,
    /// Plaintext to another machine.
    #[error("http:// is for loopback alone, since it hides and proves nothing: use https://")]
    Plaintext,
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text
                .split('/')
                .next()
                .is_some_and(|first| first.contains('@') && first.contains(':'))
            {
                true => Err(BadAddress::Scp),
                false => Ok(Address::Local(text.into())),
            };
        };
        let scheme = match scheme {
            "file" if rest.starts_with('/') => return Ok(Address::Local(rest.into())),
            "file" => return Err(BadAddress::Shape),
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            "ssh" => Scheme::Ssh,
            other => return Err(BadAddress::Scheme(other.chars().take(20).collect())),
        };
        let uri: Uri = text.parse().map_err(|_| BadAddress::Shape)?;
        let authority = uri.authority().ok_or(BadAddress::Shape)?;
        let server = Server {
            scheme,
            user: user(scheme, authority)?,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(scheme.port()),
            path: uri.path().to_owned(),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+%".contains(c);
        if server.host.is_empty() || server.host.starts_with('-') || !server.path.chars().all(plain) {
            return Err(BadAddress::Shape);
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(BadAddress::Secret);
        }
        if scheme == Scheme::Http && !is_loopback(&server.host) {
            return Err(BadAddress::Plaintext);
        }
        Ok(Address::Remote(server))
    }
}

/// The account that is named before the host.
fn user(scheme: Scheme, authority: &Authority) -> Result<Option<String>, BadAddress> {
    let Some((user, _)) = authority.as_str().rsplit_once('@') else { return Ok(None) };
    if scheme != Scheme::Ssh || user.contains(':') {
        return Err(BadAddress::Secret);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = !user.is_empty() && !user.starts_with('-') && user.chars().all(plain);
    if good { Ok(Some(user.to_owned())) } else { Err(BadAddress::Shape) }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Local(path) => write!(out, "{}", path.display()),
            Address::Remote(server) => write!(out, "{server}"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}://", self.scheme.name())?;
        if let Some(user) = &self.user {
            write!(out, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(out, "[{}]", self.host)?,
            false => write!(out, "{}", self.host)?,
        }
        if self.port != self.scheme.port() {
            write!(out, ":{}", self.port)?;
        }
        write!(out, "{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_url_without_secrets() {
        let text = |said: &str| match said.parse::<Address>() {
            Ok(Address::Local(path)) => format!("local {}", path.display()),
            Ok(remote) => remote.to_string(),
            Err(error) => error.to_string().split(':').next().unwrap().to_owned(),
        };
        let shape = "not the URL of a repository";
        let secret = "a URL bears no user, password, query or fragment";
        for (said, meant) in [
            ("/srv/config", "local /srv/config"),
            ("../config", "local ../config"),
            ("file:///srv/config", "local /srv/config"),
            ("file://host/srv", shape),
            ("https://git.example/mesh/config.git", "https://git.example/mesh/config.git"),
            ("https://git.example:443/a", "https://git.example/a"),
            ("https://[::1]:8443/a", "https://[::1]:8443/a"),
            ("ssh://git@git.example:2222/srv/config", "ssh://git@git.example:2222/srv/config"),
            ("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/a"),
            ("http://localhost/a", "http://localhost/a"),
            ("http://git.example/a", "http"),
            ("git://git.example/a", "`git"),
            ("git@git.example:mesh/config", "write it as a URL"),
            ("https://user@git.example/a", secret),
            ("https://user:token@git.example/a", secret),
            ("ssh://user:word@git.example/a", secret),
            ("https://git.example/a?token=x", secret),
            ("https://git.example/a#x", secret),
            ("ssh://-oProxyCommand=x/a", shape),
            ("ssh://-x@git.example/a", shape),
            ("ssh://git.example/a'b", shape),
            ("https:///a", shape),
        ] {
            assert_eq!(text(said), meant, "{said}");
        }
    }
}
