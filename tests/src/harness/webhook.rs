//! What Git servers post when somebody has pushed.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};

use super::{Client, client::request};

/// What such a body says is not believed, so it says little.
const BODY: &str = r#"{"ref": "refs/heads/main"}"#;

/// How a server shows that it knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By a code over the body.
    GitHub,
    /// The same under another name.
    Gitea,
    /// By the secret itself.
    GitLab,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::GitHub, Kind::Gitea, Kind::GitLab];

    fn header(self, secret: &str) -> (&'static str, String) {
        let code = || {
            let code = sign(&Key::new(HMAC_SHA256, secret.as_bytes()), BODY.as_bytes());
            code.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        match self {
            Kind::GitHub => ("x-hub-signature-256", format!("sha256={}", code())),
            Kind::Gitea => ("x-gitea-signature", code()),
            Kind::GitLab => ("x-gitlab-token", secret.to_owned()),
        }
    }
}

/// Posts one to the control plane that listens at `address`. Gives the status of its answer.
pub async fn post(kind: Kind, address: &str, secret: &str) -> u16 {
    let (name, value) = kind.header(secret);
    let headers = [(name, value.as_str()), ("content-type", "application/json")];
    let posted = request("POST", "/hooks/git", &headers).map(|_| BODY.into());
    Client::new(address).send(posted, true).await.expect("an answer").status
}
