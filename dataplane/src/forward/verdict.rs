//! What the end of a try means: what it tells of its endpoint, and whether the request may be sent again and at whose
//! cost. A table; nothing here waits or sends.
//!
//! What was not processed may go elsewhere whatever it is; what broke off or came late may when it is idempotent and
//! can be replayed; a gRPC call may when its whole answer is a status that says so. Nothing else ever is.

use crate::balance::{Endpoint, Outcome, Tried};

/// How one try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Before it was sent: there is no connection, which tells this of the endpoint.
    Unconnected(Outcome),
    /// Before it was processed: so says the peer, or HTTP/2.
    Unprocessed(Told),
    /// Nothing of it was sent: the connection had idled, and was closed by then, which tells nothing of the endpoint.
    Closed,
    /// It broke off after it may have been processed, before a head.
    Broken(Told),
    /// No head came in time.
    Late,
    /// With an answer that tells this of the endpoint.
    Answered(Outcome, Word),
    /// The caller broke off.
    Client,
    /// A limit of the service is reached.
    Over,
}

/// Whether an end is news. A connection that breaks ends each request that shares it, and has broken but once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is.
    First,
    /// Another request has told of it.
    Again,
}

/// What an answer says of sending the request once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Nothing.
    None,
    /// The application broke off before it had answered.
    Reset,
    /// Its status is one that is to be retried.
    Status,
    /// It is nothing but a gRPC status that is to be retried.
    GrpcStatus,
}

/// What policy, request and the tries before leave open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct May {
    /// All of its body can be sent again.
    pub whole: bool,
    /// Another try is left.
    pub tries: bool,
    /// Sending it twice is as sending it once.
    pub idempotent: bool,
    /// The policy's `retry.on`.
    pub on_refused: bool,
    /// Likewise.
    pub on_reset: bool,
    /// It had less time than the policy gives, by the proxy's own choice: once a second at each suspected endpoint, or
    /// for a moment at one beside it. The request does not pay for going on, least of all when a hang has just used the
    /// budget up.
    pub limited: bool,
}

impl May {
    /// Whether it may be sent again though nobody knows what has become of it.
    pub fn repeat(self) -> bool {
        self.retry() && self.idempotent
    }

    fn retry(self) -> bool {
        self.whole && self.tries
    }
}

/// Whether a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// This end is its end.
    Never,
    /// It costs neither a try nor budget.
    Free,
    /// It costs a try.
    Try,
    /// It costs a try and budget.
    Budget,
}

impl End {
    /// What it tells of the endpoint.
    pub fn outcome(self) -> Outcome {
        match self {
            End::Unconnected(outcome) | End::Answered(outcome, _) => outcome,
            End::Unprocessed(Told::First) => Outcome::ConnectFailure,
            End::Broken(Told::First) => Outcome::GatewayError,
            End::Late => Outcome::Late { connected: true },
            End::Unprocessed(Told::Again) | End::Broken(Told::Again) => Outcome::Cancelled,
            End::Closed | End::Client | End::Over => Outcome::Cancelled,
        }
    }

    /// Whether the request is sent again.
    pub fn again(self, may: May) -> Again {
        let silent = if may.limited { Again::Try } else { Again::Budget };
        let (may_be, cost) = match self {
            End::Unconnected(_) | End::Unprocessed(_) => (may.whole && may.on_refused, Again::Free),
            End::Closed => (may.whole, Again::Free),
            End::Broken(_) => (may.repeat() && may.on_reset, silent),
            End::Late => (may.repeat(), silent),
            End::Answered(_, Word::Reset) => (may.repeat() && may.on_reset, Again::Budget),
            End::Answered(_, Word::Status) => (may.repeat(), Again::Budget),
            End::Answered(_, Word::GrpcStatus) => (may.retry(), Again::Budget),
            End::Answered(_, Word::None) | End::Client | End::Over => (false, Again::Never),
        };
        if may_be { cost } else { Again::Never }
    }

    /// Notes where the next try had better not go.
    pub fn note(self, tried: &mut Tried, endpoint: &Endpoint) {
        match self {
            End::Unconnected(Outcome::Late { .. }) => tried.connect_late(endpoint),
            End::Unconnected(_) | End::Unprocessed(_) => tried.connect_failed(endpoint),
            // It is as good as it was. This ends: each time there is one such connection less.
            End::Closed => {}
            End::Broken(_) | End::Late | End::Answered(..) | End::Client | End::Over => {
                tried.failed(endpoint)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Again::*, *};

    const REFUSED: End = End::Unconnected(Outcome::ConnectFailure);
    const UNPROCESSED: End = End::Unprocessed(Told::First);
    const BROKEN: End = End::Broken(Told::First);
    const RESET: End = End::Answered(Outcome::GatewayError, Word::Reset);
    const LISTED: End = End::Answered(Outcome::ServerError, Word::Status);
    const GRPC: End = End::Answered(Outcome::Success, Word::GrpcStatus);
    const PASSED: End = End::Answered(Outcome::GatewayError, Word::None);

    const ALL: May =
        May { whole: true, tries: true, idempotent: true, on_refused: true, on_reset: true, limited: false };

    #[test]
    fn what_may_be_sent_again_and_at_whose_cost() {
        let check = |what, may, expect: [Again; 9]| {
            let ends = [REFUSED, UNPROCESSED, BROKEN, End::Late, RESET, LISTED, GRPC, PASSED, End::Over];
            assert_eq!(ends.map(|end| end.again(may)), expect, "{what}");
            assert_eq!(End::Unprocessed(Told::Again).again(may), UNPROCESSED.again(may));
            assert_eq!(End::Broken(Told::Again).again(may), BROKEN.again(may));
            assert_eq!(End::Client.again(may), Never);
            assert_eq!(End::Closed.again(may), if may.whole { Free } else { Never });
        };
        // Refused, unprocessed, broken, late, reset, status, gRPC status, passed, over a limit.
        check("a GET", ALL, [Free, Free, Budget, Budget, Budget, Budget, Budget, Never, Never]);
        let post = May { idempotent: false, ..ALL };
        check("a POST", post, [Free, Free, Never, Never, Never, Never, Budget, Never, Never]);
        let last = May { tries: false, ..ALL };
        let limited = May { limited: true, ..ALL };
        check(
            "with less time than the policy gives",
            limited,
            [Free, Free, Try, Try, Budget, Budget, Budget, Never, Never],
        );
        check("the last try", last, [Free, Free, Never, Never, Never, Never, Never, Never, Never]);
        check("a long body", May { whole: false, ..ALL }, [Never; 9]);
        let no_reset = May { on_reset: false, ..ALL };
        check("without RESET", no_reset, [Free, Free, Never, Budget, Never, Budget, Budget, Never, Never]);
        let no_refused = May { on_refused: false, ..ALL };
        check(
            "without REFUSED",
            no_refused,
            [Never, Never, Budget, Budget, Budget, Budget, Budget, Never, Never],
        );
    }

    #[test]
    fn what_an_end_tells_of_its_endpoint() {
        for (end, outcome) in [
            (REFUSED, Outcome::ConnectFailure),
            (End::Unconnected(Outcome::Late { connected: false }), Outcome::Late { connected: false }),
            (UNPROCESSED, Outcome::ConnectFailure),
            (BROKEN, Outcome::GatewayError),
            (End::Unprocessed(Told::Again), Outcome::Cancelled),
            (End::Broken(Told::Again), Outcome::Cancelled),
            (End::Closed, Outcome::Cancelled),
            (End::Late, Outcome::Late { connected: true }),
            (GRPC, Outcome::Success),
            (PASSED, Outcome::GatewayError),
            (End::Client, Outcome::Cancelled),
            (End::Over, Outcome::Cancelled),
        ] {
            assert_eq!(end.outcome(), outcome, "{end:?}");
        }
    }
}
