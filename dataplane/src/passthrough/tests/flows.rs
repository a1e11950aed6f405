//! What becomes of bytes: bulk, back-pressure, ends, resets, silence.

use api::digest::Hash;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use socket2::SockRef;
use tokio::io::Interest;

use super::{super::flow::Flow, *};

#[tokio::test]
async fn a_half_closed_flow_goes_on_in_the_other_direction() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let mut client = tale.say(&hello).await;
    client.write_all(b"the last word").await.unwrap();
    client.shutdown().await.unwrap();

    let (mut server, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, [&hello[..], b"the last word"].concat());
    server.write_all(b"the very last").await.unwrap();
    drop(server);
    assert_eq!(rest(client).await, b"the very last");
}

#[tokio::test]
async fn a_reader_that_waits_holds_the_writer_and_nothing_is_lost() {
    const BULK: usize = 64 << 20; // twice what kernels mostly keep for one socket at the utmost
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;

    // Nobody reads yet: what is written must stop long before all of it is taken in.
    let bulk: Vec<u8> = (0..BULK).map(|i| (i / 251) as u8).collect();
    let mut written = 0;
    while let Ok(done) = timeout(Duration::from_millis(200), server.write(&bulk[written..])).await {
        written += done.unwrap();
        assert!(written < BULK, "no back-pressure");
    }
    let sent = bulk.clone();
    tokio::spawn(async move {
        server.write_all(&sent[written..]).await.unwrap();
    });
    assert!(rest(client).await == bulk);
    assert!(tale.gateway.metrics.spliced.get() > BULK as u64 / 2, "{}", tale.gateway.metrics.spliced.get());
    let line = format!("weft_eastwest_bytes_total{{direction=\"ToClient\"}} {BULK}");
    let text = tale.registry.text().unwrap();
    assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
}

#[tokio::test]
async fn a_broken_side_breaks_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let mut client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_is_passed_on_to_a_reader_that_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    hear(&mut server, hello.len()).await;
    while let Ok(written) = timeout(Duration::from_millis(200), server.write(&[7; 65536])).await {
        written.unwrap();
    }
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let reset = timeout(Duration::from_secs(10), client.ready(Interest::ERROR)).await;
    assert!(reset.expect("it was not passed on").unwrap().is_error());
}

/// Sends `total` bytes in chunks of all sizes, and their hash in the end.
async fn send_random(stream: &mut (impl AsyncWriteExt + Unpin), seed: u64, total: usize) -> Hash {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut all = vec![0; total];
    random.fill(&mut all[..]);
    let mut rest = &all[..];
    while !rest.is_empty() {
        let most = [1, 100, 20_000, 300_000, 2_000_000][random.random_range(0..5)];
        let (chunk, more) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        stream.write_all(chunk).await.unwrap();
        rest = more;
    }
    Hash::of(&all)
}

/// Reads to the end, at all speeds.
async fn hash_slowly(stream: &mut (impl AsyncReadExt + Unpin), seed: u64) -> Hash {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut all, mut buffer) = (Vec::new(), vec![0; 500_000]);
    loop {
        let most = [10, 10_000, 500_000][random.random_range(0..3)];
        let size = random.random_range(1..=most);
        match stream.read(&mut buffer[..size]).await.unwrap() {
            0 => return Hash::of(&all),
            count => all.extend(&buffer[..count]),
        }
        for _ in 0..random.random_range(0..3) {
            tokio::task::yield_now().await;
        }
    }
}

/// Random bytes both ways at once through `client`, which are heard whole by `server`, and the other way round.
async fn both_ways(mut client: TcpStream, mut server: TcpStream, total: usize) {
    let (mut from_client, mut into_client) = client.split();
    let (mut from_server, mut into_server) = server.split();
    let up = async {
        let sent = send_random(&mut into_client, 1, total).await;
        into_client.shutdown().await.unwrap();
        sent
    };
    let down = async {
        let sent = send_random(&mut into_server, 2, total).await;
        into_server.shutdown().await.unwrap();
        sent
    };
    let (up, down, above, below) =
        tokio::join!(up, down, hash_slowly(&mut from_server, 3), hash_slowly(&mut from_client, 4));
    assert!(up == above, "what the server heard is not what the client said");
    assert!(down == below, "what the client heard is not what the server said");
}

#[tokio::test]
async fn bulk_comes_whole_in_both_directions_whatever_its_chunks() {
    const TOTAL: usize = 24 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tale = Tale::new(Settings::default(), &[("a", listener.local_addr().unwrap())]).await;
    let hello = client_hello(&id("a").sni(), None);
    let client = tale.say(&hello).await;
    let (mut server, _) = listener.accept().await.unwrap();
    assert_eq!(hear(&mut server, hello.len()).await, hello);
    both_ways(client, server, TOTAL).await;
    let metrics = &tale.gateway.metrics;
    assert_eq!(metrics.to_client.get(), TOTAL as u64);
    assert_eq!(metrics.to_endpoint.get(), (TOTAL + hello.len()) as u64);
    assert!(metrics.spliced.get() > TOTAL as u64 / 4, "{} were spliced", metrics.spliced.get());
    assert!(metrics.spliced.get() < 2 * TOTAL as u64, "the beginning is copied");
}

#[tokio::test]
async fn without_a_pipe_bulk_is_copied() {
    let pipes = Pipes::default();
    let _all: Vec<_> = std::iter::from_fn(|| pipes.lend()).collect();
    let gateway = Passthrough::new(Settings::default(), &Registry::new());
    let connect = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    };
    let ((far_client, client), (server, far_server)) = (connect().await, connect().await);
    let open = table::Target::open_for_test(id("a"));
    let flow = Flow { client, server, first: Vec::new(), open };
    let (ended, ()) = tokio::join!(flow.run(&gateway, &pipes), both_ways(far_client, far_server, 8 << 20));
    ended.unwrap();
    assert_eq!((gateway.metrics.spliced.get(), pipes.count()), (0, (pipes::MOST, 0)));
}

#[tokio::test]
async fn a_flow_takes_little_memory_and_no_buffer_while_idle() {
    let (gateway, pipes) = (Passthrough::new(Settings::default(), &Registry::new()), Pipes::default());
    let client = TcpStream::connect(echo().await).await.unwrap();
    let peer = client.peer_addr().unwrap();
    let size = size_of_val(&serve(&gateway, &pipes, client, peer));
    assert!(size <= 2048, "{size} bytes; 10,000 of them are to be cheap");
}

#[tokio::test]
async fn a_flow_does_not_last_for_ever() {
    let settings = Settings { total: Duration::from_millis(300), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    loop {
        if let Err(error) = flow.write_all(b".").await.and(flow.read_exact(&mut [0]).await.map(drop)) {
            return assert!(matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ));
        }
    }
}

#[tokio::test]
async fn a_silent_flow_is_closed() {
    let settings = Settings { idle: Duration::from_secs(1), ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    assert_eq!(flow.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn every_byte_breaks_the_silence() {
    const IDLE: Duration = Duration::from_secs(2);
    let settings = Settings { idle: IDLE, ..Settings::default() };
    let tale = Tale::new(settings, &[("a", echo().await)]).await;
    let mut flow = tale.flow(&id("a").sni()).await;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(IDLE / 6);
    while began.elapsed() < 2 * IDLE {
        ticks.tick().await;
        flow.write_all(b".").await.unwrap();
        hear(&mut flow, 1).await;
    }
}
