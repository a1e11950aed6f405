//! The laboratory itself: hosts see their own network, and of another one what is public.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Notify,
    time::timeout,
};
use weft_tests::lab::{Host, Lab};

/// Who cannot be reached by then is away.
const AWAY: Duration = Duration::from_millis(500);
/// Long enough for a connection inside one machine, whatever else that does.
const SOON: Duration = Duration::from_secs(20);

fn greet(host: &Host) {
    for address in host.addresses.all() {
        host.keep(move || async move {
            let listener = TcpListener::bind((address, 7)).await.unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"hello").await;
            }
        });
    }
}

async fn call(host: &Host, address: IpAddr) -> io::Result<String> {
    call_within(SOON, host, address).await
}

/// Why nobody can be called there.
async fn away(host: &Host, address: IpAddr) -> io::ErrorKind {
    call_within(AWAY, host, address).await.unwrap_err().kind()
}

async fn call_within(limit: Duration, host: &Host, address: IpAddr) -> io::Result<String> {
    host.run(move || async move {
        let mut stream = timeout(limit, TcpStream::connect((address, 7))).await??;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    })
    .await
}

#[tokio::test]
async fn hosts_see_their_own_network_and_what_is_public_of_others() {
    let mut lab = Lab::new().await;
    lab.network("near");
    lab.network("far");
    for (network, host) in [("near", "a"), ("near", "b"), ("far", "c"), ("far", "open")] {
        greet(lab.host(network, host));
    }
    lab.public("open");
    for address in lab["b"].addresses.all().into_iter().chain(lab["open"].addresses.all()) {
        assert_eq!(call(&lab["a"], address).await.ok().as_deref(), Some("hello"), "{address}");
    }
    for address in lab["c"].addresses.all() {
        assert_eq!(away(&lab["a"], address).await, io::ErrorKind::TimedOut, "{address}");
    }
}

#[tokio::test]
async fn a_partition_is_as_it_is_said_until_it_heals() {
    let mut lab = Lab::new().await;
    lab.network("near");
    for host in ["a", "b", "c"] {
        greet(lab.host("near", host));
    }
    let [a, b] = [lab["a"].addresses.v4, lab["b"].addresses.v4].map(IpAddr::from);

    let guard = lab.partition("a", "b").drop();
    assert_eq!(away(&lab["a"], b).await, io::ErrorKind::TimedOut);
    assert_eq!(away(&lab["b"], a).await, io::ErrorKind::TimedOut);
    assert_eq!(call(&lab["c"], b).await.unwrap(), "hello", "others are not concerned");
    guard.heal();

    let guard = lab.partition("a", "b").reject();
    assert_eq!(call(&lab["a"], b).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(call(&lab["b"], a).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    drop(guard);

    let delay = Duration::from_secs(1);
    let guard = lab.partition("a", "b").late(delay);
    let took = async |from: &str, to: IpAddr| {
        let began = Instant::now();
        let said = call(&lab[from], to).await;
        assert_eq!(said.unwrap(), "hello");
        began.elapsed()
    };
    for address in lab["b"].addresses.all() {
        assert!(took("a", address).await >= delay, "to {address}");
    }
    assert!(took("b", a).await >= delay, "what a answers is late, too");
    assert!(took("c", b).await < delay, "others are not concerned");
    guard.heal();
    assert!(took("a", b).await < delay, "it is healed");

    // Nothing comes back of what one says, so that neither can connect; but what is not said is not missed.
    let guard = lab.partition("a", "b").one_way().drop();
    assert_eq!(away(&lab["b"], a).await, io::ErrorKind::TimedOut);
    guard.heal();
    assert_eq!(call(&lab["a"], b).await.unwrap(), "hello");
}

/// How many of so many datagrams of 1 KiB, sent at once, one host has from another.
async fn arrive(lab: &Lab, from: &str, to: &str, count: usize) -> usize {
    let (there, seen) = (IpAddr::from(lab[to].addresses.v4), Arc::new(AtomicUsize::new(0)));
    let (counted, last) = (seen.clone(), Arc::new(Notify::new()));
    let heard = last.clone();
    let port = lab[to]
        .run(move || async move {
            let socket = UdpSocket::bind((there, 0)).await.unwrap();
            let port = socket.local_addr().unwrap().port();
            tokio::task::spawn_local(async move {
                let mut bytes = [0; 1024];
                while let Ok(length) = socket.recv(&mut bytes).await {
                    if length == 1 {
                        return heard.notify_one();
                    }
                    counted.fetch_add(1, SeqCst);
                }
            });
            port
        })
        .await;
    lab[from]
        .run(move || async move {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).await.unwrap();
            for _ in 0..count {
                socket.send_to(&[0; 1024], (there, port)).await.unwrap();
            }
            // The last word may be lost, too.
            while timeout(AWAY, last.notified()).await.is_err() {
                socket.send_to(&[0], (there, port)).await.unwrap();
            }
        })
        .await;
    seen.load(SeqCst)
}

#[tokio::test]
async fn a_lossy_line_loses_and_a_thin_one_is_thin() {
    let mut lab = Lab::new().await;
    lab.network("near");
    for host in ["a", "b"] {
        lab.host("near", host);
    }
    // Fewer than a socket has room for.
    const ALL: usize = 60;
    assert_eq!(arrive(&lab, "a", "b", ALL).await, ALL);
    let guard = lab.partition("a", "b").lossy(50);
    let left = arrive(&lab, "a", "b", ALL).await;
    assert!((10..=50).contains(&left), "{left} of {ALL}");
    guard.heal();
    let guard = lab.partition("a", "b").slow(8);
    let left = arrive(&lab, "a", "b", ALL).await;
    assert!((8..=40).contains(&left), "{left} of {ALL}, where 24 pass at once");
    guard.heal();
    assert_eq!(arrive(&lab, "a", "b", ALL).await, ALL);
}
