//! Which calls a connection may make, and how large they may be, before a byte of them is read.
//!
//! Invariant: without a verified chain nothing but joining is possible, and what joins is small whoever sends it.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::PeerInfo;

/// The calls that a peer without a certificate may make: those by which it comes by one.
const OPEN: [&str; 2] = ["/weft.v1.Control/Enrol", "/weft.v1.Federation/Join"];

/// The largest message of such a call: a token and a request for a certificate.
pub(super) const MAX_OPEN_BYTES: usize = 64 * 1024;

/// A service that is told apart by who calls.
#[derive(Clone)]
pub(super) struct Gate<S> {
    /// Takes small messages alone.
    pub(super) open: S,
    /// For those who have shown a certificate.
    pub(super) members: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        std::task::ready!(self.open.poll_ready(context))?;
        self.members.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>();
        if OPEN.contains(&request.uri().path()) {
            Box::pin(self.open.call(request))
        } else if peer.is_some_and(|peer| peer.chain.is_some()) {
            Box::pin(self.members.call(request))
        } else {
            let refusal = Status::unauthenticated("this call needs a certificate of the mesh: enrol first");
            Box::pin(ready(Ok(refusal.into_http())))
        }
    }
}
