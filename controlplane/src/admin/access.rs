//! Who may call: a bearer token from a file of mode 0600, or a cookie that a one-time login became.

use std::{
    collections::HashSet,
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use api::digest::Hash;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};

use super::{Api, Refused};

const TOKEN_FILE: &str = "admin.token";
const TOKEN_BYTES: usize = 32;
const COOKIE: &str = "weft-console";
/// Logins that were made and not used; the oldest kind of attack is to make many.
const MAX_OPEN: usize = 64;

/// The credentials of the admin API.
#[derive(Debug)]
pub struct Access {
    /// Hashes are compared, so that a comparison tells nothing of the token.
    token: Hash,
    logins: Mutex<HashSet<Hash>>,
    sessions: Mutex<HashSet<Hash>>,
}

impl Access {
    /// With the token in `dir`, made there at the first start.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(TOKEN_FILE);
        let token = match process::files::read(&path, 4096)? {
            Some(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            None => {
                let token = random();
                process::files::write_private(&path, token.as_bytes())?;
                token
            }
        };
        Ok(Access { token: Hash::of(token.as_bytes()), logins: Mutex::default(), sessions: Mutex::default() })
    }

    /// A one-time login for the console.
    pub fn login(&self) -> String {
        let login = random();
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= MAX_OPEN {
            logins.clear();
        }
        logins.insert(Hash::of(login.as_bytes()));
        login
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let bearer =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let cookies = headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let session = cookies.split("; ").find_map(|one| one.strip_prefix(COOKIE)?.strip_prefix('='));
        bearer.is_some_and(|token| Hash::of(token.as_bytes()) == self.token)
            || session.is_some_and(|session| {
                let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
                sessions.contains(&Hash::of(session.as_bytes()))
            })
    }

    /// The session that a login becomes, once.
    fn redeem(&self, login: &str) -> Option<String> {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.remove(&Hash::of(login.as_bytes())).then(|| {
            let session = random();
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.insert(Hash::of(session.as_bytes()));
            session
        })
    }
}

fn random() -> String {
    use rand::TryRngCore;
    let mut bytes = [0; TOKEN_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system has random numbers");
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

/// Lets a call pass that bears a credential; turns `?login=` into a cookie.
pub(super) async fn check(State(api): State<Api>, request: Request, next: Next) -> Response {
    if api.access.admits(request.headers()) {
        return next.run(request).await;
    }
    let login =
        request.uri().query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("login=")));
    if let Some(session) = login.and_then(|login| api.access.redeem(login)) {
        let cookie = format!("{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/");
        return ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response();
    }
    let help = "this call needs `Authorization: Bearer`, with the token in the control plane's state directory \
                (admin.token); for the console, `weft console` prints a fresh login";
    Refused(StatusCode::UNAUTHORIZED, help.into()).into_response()
}
