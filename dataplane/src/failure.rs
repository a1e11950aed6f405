//! Why a request got no answer of its application, by whose fault it is.

use std::borrow::Cow;

use http::{HeaderValue, Response, StatusCode, header};

use crate::{account::Exchange, body::Body, headers};

/// Whose fault, and what the caller sees.
#[derive(Debug)]
pub enum Failure {
    /// The caller's.
    Client {
        /// 400, 403, 404, 408, 431, ...
        status: u16,
        /// For log and metrics.
        flag: &'static str,
        /// In words, for the log.
        reason: Cow<'static, str>,
    },
    /// Of what lies behind this proxy.
    Upstream {
        /// 502, 503 or 504.
        status: u16,
        /// For log and metrics.
        flag: &'static str,
        /// In words, for the log.
        reason: Cow<'static, str>,
        /// What other proxies may make of it.
        word: Option<Word>,
    },
    /// This proxy's own.
    Ours {
        /// For log and metrics.
        flag: &'static str,
        /// In words, for the log.
        reason: Cow<'static, str>,
    },
}

/// What a sidecar tells the proxy that called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Its application never saw the request: any request may be tried elsewhere.
    Refused(&'static str),
    /// Its application broke off before the first byte of an answer: an idempotent one may.
    Reset,
}

impl Failure {
    /// The caller's fault.
    pub fn client(status: u16, flag: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Failure::Client { status, flag, reason: reason.into() }
    }

    /// The fault of what lies behind.
    pub fn upstream(status: u16, flag: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Failure::Upstream { status, flag, reason: reason.into(), word: None }
    }

    /// Turned away before the application saw it.
    pub fn refused(word: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Failure::Upstream {
            status: 503,
            flag: "refused",
            reason: reason.into(),
            word: Some(Word::Refused(word)),
        }
    }

    /// The status that the caller sees.
    pub fn status(&self) -> u16 {
        match self {
            Failure::Client { status, .. } | Failure::Upstream { status, .. } => *status,
            Failure::Ours { .. } => 503,
        }
    }

    /// The short word for log and metrics.
    pub fn flag(&self) -> &'static str {
        match self {
            Failure::Client { flag, .. } | Failure::Upstream { flag, .. } | Failure::Ours { flag, .. } => {
                flag
            }
        }
    }

    /// In words, for the log.
    pub fn into_reason(self) -> Cow<'static, str> {
        match self {
            Failure::Client { reason, .. }
            | Failure::Upstream { reason, .. }
            | Failure::Ours { reason, .. } => reason,
        }
    }

    /// The answer; what it says in words stays in the log.
    pub fn response(self, exchange: &mut Exchange) -> Response<Body> {
        let (status, flag) = (self.status(), self.flag());
        let error = match (flag, status) {
            ("denied", _) => "denied by policy",
            (_, 400..=499) => "the request cannot be served",
            _ => "no answer from upstream",
        };
        let decision = String::from_utf8_lossy(exchange.decision.as_bytes()).into_owned();
        let body = format!(r#"{{"error":"{error}","reason":"{flag}","decision":"{decision}"}}"#);
        let mut response = Response::new(Body::whole(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let map = response.headers_mut();
        map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        map.insert(headers::DECISION, exchange.decision.clone());
        let reason = match self {
            Failure::Upstream { word, reason, .. } => {
                match word {
                    Some(Word::Refused(word)) => {
                        drop(map.insert(headers::REFUSED, HeaderValue::from_static(word)))
                    }
                    Some(Word::Reset) => {
                        drop(map.insert(headers::RESET, HeaderValue::from_static("application")))
                    }
                    None => {}
                }
                reason
            }
            Failure::Client { reason, .. } | Failure::Ours { reason, .. } => reason,
        };
        exchange.refused(status, flag, reason);
        response
    }
}
