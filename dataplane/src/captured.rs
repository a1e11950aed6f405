//! Connections that were captured: whoever made them knows nothing of this proxy, and means another address.
//!
//! A port that is declared to carry bytes is never looked into. On one that is declared to carry HTTP, HTTP is waited
//! for; elsewhere the first bytes tell, or their absence.

use std::{io, net::SocketAddr, rc::Rc};

use api::{endpoint::MESH_DOMAIN, wire::MtlsMode, wire::Protocol};
use runtime::{Decision, Target};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    caller::{Caller, Side},
    connection::{self, HELLO, Opening},
    passthrough::hello::{self, Reading},
    sniff::{self, Spoken},
    tcp,
    worker::Worker,
};

/// More of a ClientHello is not looked at.
const HELLO_BYTES: usize = 16 << 10;

/// Of the application, to `caller.original`.
pub async fn outbound(worker: &Rc<Worker>, stream: TcpStream, caller: Caller) {
    let Some((state, absent)) = tcp::informed(worker, caller.destination(0)).await else {
        return tcp::reset(&stream);
    };
    let protocol = match tcp::decide(&state.runtime, &caller, 0, absent) {
        Decision::Forward(plan) => match plan.target {
            Target::Service { port, .. } => port.protocol,
            Target::Direct { .. } | Target::Application(_) => Protocol::Unspecified,
        },
        // By its host a request may yet be for somebody.
        Decision::Refuse(_) | Decision::Unknown { .. } | Decision::Answer { .. } => Protocol::Unspecified,
    };
    drop(state);
    match spoken(&stream, protocol).await {
        Ok(Spoken::Http1) => connection::http(worker, stream, caller, Opening::Other).await,
        Ok(Spoken::Http2) => connection::http(worker, stream, caller, Opening::Http2).await,
        Ok(Spoken::Tls | Spoken::Bytes) => tcp::outbound(worker, &Rc::new(caller), stream).await,
        Err(_) => {}
    }
}

/// What is spoken by a client of a port of this protocol.
async fn spoken(stream: &TcpStream, protocol: Protocol) -> io::Result<Spoken> {
    match protocol {
        Protocol::Tcp => Ok(Spoken::Bytes),
        Protocol::Unspecified => sniff::peek(stream, sniff::SILENCE).await,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            Ok(match connection::opening(stream, connection::SILENCE, HELLO).await? {
                Opening::Tls => Spoken::Tls,
                Opening::Http2 => Spoken::Http2,
                Opening::Other => Spoken::Http1,
            })
        }
    }
}

/// To the application's port at `original`, from somebody who may be no member of the mesh.
pub async fn inbound(worker: &Rc<Worker>, stream: TcpStream, original: SocketAddr, mut caller: Caller) {
    let port = original.port();
    caller.side = Side::Inbound { port: Some(port) };
    let Some(state) = worker.proxy.state() else { return tcp::reset(&stream) };
    let said = state.runtime.inbound().iter().find(|inbound| inbound.port == port);
    let Some((protocol, mtls)) = said.map(|inbound| (inbound.protocol, inbound.mtls)) else {
        connection::refused(caller.remote, &format!("nothing of the mesh serves port {port} here"));
        return tcp::reset(&stream);
    };
    drop(state);
    let plaintext = matches!(mtls, MtlsMode::Permissive | MtlsMode::Disable);
    let spoken = match (plaintext, protocol) {
        (true, protocol) => spoken(&stream, protocol).await,
        // Only TLS can be meant for the mesh, and it begins with its client.
        (false, _) => sniff::peek(&stream, HELLO).await,
    };
    match spoken {
        Ok(Spoken::Tls) if !plaintext || is_for_the_mesh(&stream).await => {
            connection::tls(worker, stream, caller).await;
        }
        Ok(_) if !plaintext => {
            connection::refused(caller.remote, &format!("plaintext, and mTLS is STRICT at port {port}"));
            tcp::reset(&stream);
        }
        Ok(Spoken::Http1) => connection::http(worker, stream, caller, Opening::Other).await,
        Ok(Spoken::Http2) => connection::http(worker, stream, caller, Opening::Http2).await,
        Ok(Spoken::Tls | Spoken::Bytes) => tcp::inbound(worker, &Rc::new(caller), port, stream).await,
        Err(_) => {}
    }
}

/// Whether a ClientHello names the mesh's domain; any other is the application's own.
async fn is_for_the_mesh(stream: &TcpStream) -> bool {
    let mut bytes = vec![0; HELLO_BYTES];
    let look = async {
        let mut pause = connection::PEEK_PAUSE;
        loop {
            let seen = stream.peek(&mut bytes).await.ok()?;
            match hello::read(&bytes[..seen]) {
                Ok(Reading::Hello(name)) => return name,
                Ok(Reading::More) if seen > 0 && seen < HELLO_BYTES => tokio::time::sleep(pause).await,
                Ok(Reading::More) | Err(_) => return None,
            }
            pause = (pause * 2).min(connection::PEEK_PAUSE_MAX);
        }
    };
    timeout(HELLO, look).await.ok().flatten().is_some_and(|name| name.ends_with(MESH_DOMAIN))
}
