//! `POST /hooks/git`, or of one source alone `/hooks/git/NAME`: a server says that somebody has pushed, and it is asked
//! at once.
//!
//! Signed as GitHub (`X-Hub-Signature-256`) and Gitea (`X-Gitea-Signature`) do, by an HMAC-SHA256 of the body, or with
//! the secret itself, as GitLab does (`X-Gitlab-Token`). Whose secret it is says which source is meant: each of those
//! that share one, unless the path names one of them.
//!
//! Invariant: nothing in a body is believed or even kept: it is weighed as it comes, and what counts is what the server
//! answers when it is asked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use api::name::SourceName;
use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hmac::{Context, HMAC_SHA256, Key, sign},
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use process::metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Registry};
use tokio::{sync::Semaphore, time::timeout};

use crate::git::{self, Bell};

/// What GitHub, whose are the largest, keeps its bodies below.
const MAX_BODY_BYTES: u64 = 25 * 1024 * 1024;
/// A body must come within this.
const LIMIT: Duration = Duration::from_secs(10);
/// Webhooks that are weighed at once; more are told to come again.
const AT_ONCE: usize = 16;

/// Who is asked when a webhook bears its secret.
pub struct Hook {
    /// The source.
    pub source: SourceName,
    /// The file with the secret, read anew for each webhook.
    pub secret: PathBuf,
    /// Makes it ask its server.
    pub bell: Bell,
}

/// What became of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    /// A source asks its server.
    Accepted,
    /// Its signature is none of ours.
    Refused,
    /// Its body is too large.
    TooLarge,
    /// Its body did not come in time, or broke off.
    Broken,
    /// There were too many at once.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

impl Outcome {
    fn status(self) -> StatusCode {
        match self {
            Outcome::Accepted => StatusCode::ACCEPTED,
            Outcome::Refused => StatusCode::UNAUTHORIZED,
            Outcome::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Outcome::Broken => StatusCode::BAD_REQUEST,
            Outcome::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

struct Parts {
    hooks: Vec<Hook>,
    places: Semaphore,
    limit: Duration,
    heard: Family<Labels, Counter>,
}

impl Parts {
    fn new(hooks: Vec<Hook>, limit: Duration, heard: Family<Labels, Counter>) -> Arc<Self> {
        Arc::new(Parts { hooks, places: Semaphore::new(AT_ONCE), limit, heard })
    }
}

/// What the listener for webhooks answers.
pub fn routes(hooks: Vec<Hook>, metrics: &Registry) -> Router {
    let heard = metrics.register("weft_webhooks", "Webhooks by what became of them", Family::default());
    Router::new()
        .route("/hooks/git", post(hear))
        .route("/hooks/git/{source}", post(hear_of))
        .with_state(Parts::new(hooks, LIMIT, heard))
}

async fn hear(State(parts): State<Arc<Parts>>, request: Request<Body>) -> StatusCode {
    weigh(&parts, parts.hooks.iter().collect(), request).await
}

/// A source that there is not has no secret that a webhook could bear.
async fn hear_of(
    State(parts): State<Arc<Parts>>,
    Path(source): Path<String>,
    request: Request<Body>,
) -> StatusCode {
    let named = parts.hooks.iter().filter(|hook| hook.source.as_str() == source).collect();
    weigh(&parts, named, request).await
}

async fn weigh(parts: &Parts, hooks: Vec<&Hook>, request: Request<Body>) -> StatusCode {
    let outcome = match parts.places.try_acquire() {
        Ok(_place) => timeout(parts.limit, judge(hooks, request)).await.unwrap_or(Outcome::Broken),
        Err(_) => Outcome::Busy,
    };
    parts.heard.get_or_create(&Labels { outcome }).inc();
    outcome.status()
}

async fn judge(hooks: Vec<&Hook>, request: Request<Body>) -> Outcome {
    let (head, mut body) = request.into_parts();
    let Some(proof) = Proof::of(&head.headers) else { return Outcome::Refused };
    let mut known: Vec<(&Hook, Vec<u8>, Context)> = Vec::new();
    for hook in hooks {
        let path = hook.secret.clone();
        match tokio::task::spawn_blocking(move || git::secret(&path)).await {
            Ok(Ok(secret)) => {
                let weighed = Context::with_key(&Key::new(HMAC_SHA256, &secret));
                known.push((hook, secret, weighed));
            }
            Ok(Err(why)) => tracing::warn!(source = %hook.source, why, "its webhooks cannot be judged"),
            Err(_) => {}
        }
    }
    let mut left = MAX_BODY_BYTES;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Outcome::Broken };
        let Ok(chunk) = frame.into_data() else { continue };
        let Some(rest) = left.checked_sub(chunk.len() as u64) else { return Outcome::TooLarge };
        left = rest;
        known.iter_mut().for_each(|(.., weighed)| weighed.update(&chunk));
    }
    let mut outcome = Outcome::Refused;
    for (hook, secret, weighed) in known {
        if proof.holds(&secret, weighed) {
            tracing::debug!(source = %hook.source, "a webhook");
            hook.bell.notify_one();
            outcome = Outcome::Accepted;
        }
    }
    outcome
}

/// What a webhook shows.
enum Proof {
    /// A code over its body.
    Code(Vec<u8>),
    /// The secret.
    Token(Vec<u8>),
}

impl Proof {
    fn of(headers: &HeaderMap) -> Option<Proof> {
        let header = |name: &str| headers.get(name).map(|value| value.as_bytes());
        let code = |hex: &[u8]| data_encoding::HEXLOWER_PERMISSIVE.decode(hex).ok().map(Proof::Code);
        if let Some(said) = header("x-hub-signature-256") {
            return code(said.strip_prefix(b"sha256=")?);
        }
        if let Some(said) = header("x-gitea-signature") {
            return code(said);
        }
        header("x-gitlab-token").map(|token| Proof::Token(token.to_owned()))
    }

    /// Whether it proves that the sender knows `secret`, in a time that tells nothing about it.
    fn holds(&self, secret: &[u8], weighed: Context) -> bool {
        match self {
            Proof::Code(code) => verify_slices_are_equal(code, weighed.sign().as_ref()).is_ok(),
            // Codes of both, so that not even the secret's length shows.
            Proof::Token(token) => {
                let key = Key::new(HMAC_SHA256, secret);
                let (shown, right) = (sign(&key, token), sign(&key, secret));
                verify_slices_are_equal(shown.as_ref(), right.as_ref()).is_ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::FutureExt;

    use super::*;

    struct Case {
        _dir: tempfile::TempDir,
        bells: [Bell; 2],
        parts: Arc<Parts>,
        secrets: [PathBuf; 2],
    }

    impl Case {
        fn new() -> Self {
            Case::within(LIMIT)
        }

        fn within(limit: Duration) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let secrets = ["platform", "shop"].map(|name| dir.path().join(name));
            let bells = [Bell::default(), Bell::default()];
            let hooks = secrets.iter().zip(&bells).map(|(path, bell)| {
                let source: SourceName = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                fs::write(path, format!("secret of {source}\n")).unwrap();
                Hook { source, secret: path.clone(), bell: bell.clone() }
            });
            let parts = Parts::new(hooks.collect(), limit, Family::default());
            Case { _dir: dir, bells, parts, secrets }
        }

        /// The answer, and which bells ring.
        async fn post(&self, header: &str, value: &str, body: impl Into<Body>) -> (u16, [bool; 2]) {
            let request = Request::post("/hooks/git").header(header, value).body(body.into()).unwrap();
            let status = hear(State(self.parts.clone()), request).await;
            (status.as_u16(), self.rings())
        }

        /// The same, by the path of one source.
        async fn post_of(&self, source: &str, token: &str) -> (u16, [bool; 2]) {
            let request = Request::post("/").header("X-Gitlab-Token", token).body(Body::empty()).unwrap();
            let status = hear_of(State(self.parts.clone()), Path(source.to_owned()), request).await;
            (status.as_u16(), self.rings())
        }

        fn rings(&self) -> [bool; 2] {
            [&self.bells[0], &self.bells[1]].map(|bell| bell.notified().now_or_never().is_some())
        }

        fn counted(&self, outcome: Outcome) -> u64 {
            self.parts.heard.get_or_create(&Labels { outcome }).get()
        }
    }

    fn code(secret: &str, body: &str) -> String {
        let code = sign(&Key::new(HMAC_SHA256, secret.as_bytes()), body.as_bytes());
        data_encoding::HEXLOWER.encode(code.as_ref())
    }

    #[tokio::test]
    async fn of_sources_that_share_a_secret_the_path_rings_one() {
        let case = Case::new();
        fs::write(&case.secrets[0], "secret of shop").unwrap();
        assert_eq!(case.post("X-Gitlab-Token", "secret of shop", "").await, (202, [true, true]));
        assert_eq!(case.post_of("shop", "secret of shop").await, (202, [false, true]));
        assert_eq!(case.post_of("platform", "secret of shop").await, (202, [true, false]));
        assert_eq!(case.post_of("shop", "another").await, (401, [false, false]));
        assert_eq!(case.post_of("nobody", "secret of shop").await, (401, [false, false]));
    }

    #[tokio::test]
    async fn each_way_of_signing_rings_the_source_whose_secret_it_is() {
        let case = Case::new();
        let body = r#"{"ref": "refs/heads/main"}"#;
        let good = code("secret of shop", body);
        for (header, value) in [
            ("X-Hub-Signature-256", format!("sha256={good}")),
            ("X-Gitea-Signature", good.clone()),
            ("X-Gitlab-Token", "secret of shop".into()),
        ] {
            assert_eq!(case.post(header, &value, body).await, (202, [false, true]), "{header}");
        }
        assert_eq!(case.post("X-Gitlab-Token", "secret of platform", body).await, (202, [true, false]));
        assert_eq!((case.counted(Outcome::Accepted), case.counted(Outcome::Refused)), (4, 0));
    }

    /// The example that GitHub gives for testing a receiver: docs.github.com, "Validating webhook deliveries".
    #[tokio::test]
    async fn a_signature_of_github_s_own_rings() {
        let case = Case::new();
        fs::write(&case.secrets[0], "It's a Secret to Everybody").unwrap();
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let (header, body) = ("X-Hub-Signature-256", "Hello, World!");
        assert_eq!(case.post(header, signature, body).await, (202, [true, false]));
        assert_eq!(case.post(header, signature, "Hello, World?").await, (401, [false, false]));
    }

    #[tokio::test]
    async fn what_is_not_signed_right_rings_nothing_and_is_counted() {
        let case = Case::new();
        let good = code("secret of shop", "body");
        for (header, value) in [
            ("X-Hub-Signature-256", format!("sha256={}", code("another secret", "body"))),
            ("X-Hub-Signature-256", good.clone()),
            ("X-Hub-Signature-256", format!("sha1={good}")),
            ("X-Hub-Signature-256", format!("sha256={}", &good[..62])),
            ("X-Hub-Signature-256", "sha256=".into()),
            ("X-Gitea-Signature", code("secret of shop", "another body")),
            ("X-Gitea-Signature", "no code".into()),
            ("X-Gitlab-Token", "secret of sho".into()),
            ("X-Gitlab-Token", String::new()),
            ("X-Other", good.clone()),
        ] {
            assert_eq!(case.post(header, &value, "body").await, (401, [false; 2]), "{header}: {value}");
        }
        assert_eq!(case.counted(Outcome::Refused), 10);
    }

    #[tokio::test]
    async fn a_secret_rotates_and_an_empty_one_opens_nothing() {
        let case = Case::new();
        fs::write(&case.secrets[1], "another").unwrap();
        assert_eq!(case.post("X-Gitlab-Token", "secret of shop", "").await.0, 401);
        assert_eq!(case.post("X-Gitlab-Token", "another", "").await, (202, [false, true]));
        fs::write(&case.secrets[1], "\n").unwrap();
        assert_eq!(case.post("X-Gitlab-Token", "", "").await.0, 401);
        assert_eq!(case.post("X-Gitea-Signature", &code("", "body"), "body").await.0, 401);
        fs::remove_file(&case.secrets[1]).unwrap();
        assert_eq!(case.post("X-Gitlab-Token", "another", "").await.0, 401);
        assert_eq!(case.post("X-Gitlab-Token", "secret of platform", "").await, (202, [true, false]));
    }

    #[tokio::test]
    async fn a_body_is_bounded_in_size_and_time() {
        let case = Case::new();
        let huge = vec![0; MAX_BODY_BYTES as usize + 1];
        assert_eq!(case.post("X-Gitlab-Token", "secret of shop", huge).await, (413, [false; 2]));
        let _all = case.parts.places.try_acquire_many(AT_ONCE as u32).unwrap();
        assert_eq!(case.post("X-Gitlab-Token", "secret of shop", "").await, (503, [false; 2]));
        assert_eq!([Outcome::TooLarge, Outcome::Busy].map(|outcome| case.counted(outcome)), [1, 1]);
        let case = Case::within(Duration::ZERO);
        let never = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(case.post("X-Gitlab-Token", "secret of shop", never).await, (400, [false; 2]));
        assert_eq!(case.counted(Outcome::Broken), 1);
    }
}
