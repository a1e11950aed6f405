//! What stands for long: an HTTP/2 stream that ticks, a raw connection that is captured and echoed at the other cluster.
//!
//! Neither can be moved once it stands, so there is no rule for them: it is told what became of each.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::sleep,
};
use weft_tests::{harness::ticks, lab::Host};

/// The stream ticks each second.
const TICK: Duration = Duration::from_secs(1);
/// Between two words on a raw connection.
const WORD: Duration = Duration::from_millis(200);
/// Longer than any cell.
const NEVER: Duration = Duration::from_secs(3600);

/// Something long that is heard of all the time; its drop ends it.
pub struct Flow {
    name: String,
    usual: Duration,
    heard: Arc<Mutex<Heard>>,
    task: AbortHandle,
}

struct Heard {
    last: Instant,
    longest: Duration,
    ended: Option<(Instant, String)>,
}

/// What became of a flow.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fate {
    /// Which one.
    pub name: String,
    /// The longest silence beyond the usual, in milliseconds.
    pub silent_millis: u64,
    /// When it broke, in milliseconds after the fault, and why.
    pub broke: Option<(u64, String)>,
}

impl Flow {
    /// Ticks through the ingress of a cluster, to whichever front they come from.
    pub async fn stream(from: &Host, cluster: &str, ingress: String) -> Flow {
        Flow::start(from, format!("stream at {cluster}"), TICK, move |heard| {
            Box::pin(
                async move { ticks::listen(&ingress, NEVER, || locked(&heard).word()).await.to_string() },
            )
        })
        .await
    }

    /// Words from a host whose traffic is captured, to the echo at `address`.
    pub async fn raw(from: &Host, cluster: &str, address: String) -> Flow {
        Flow::start(from, format!("raw from {cluster}"), WORD, move |heard| {
            Box::pin(async move {
                talk(&address, &heard).await.err().map_or_else(String::new, |error| error.to_string())
            })
        })
        .await
    }

    async fn start(
        from: &Host,
        name: String,
        usual: Duration,
        work: impl FnOnce(Arc<Mutex<Heard>>) -> std::pin::Pin<Box<dyn Future<Output = String> + Send>>
        + Send
        + 'static,
    ) -> Flow {
        let heard =
            Arc::new(Mutex::new(Heard { last: Instant::now(), longest: Duration::ZERO, ended: None }));
        let record = heard.clone();
        let task = from.run(move || async move {
            let task = tokio::spawn(async move {
                let why = work(record.clone()).await;
                locked(&record).ended = Some((Instant::now(), why));
            });
            task.abort_handle()
        });
        let task = task.await;
        Flow { name, usual, heard, task }
    }

    /// What became of it since `struck`.
    pub fn fate(&self, struck: Instant) -> Fate {
        let mut heard = locked(&self.heard);
        if heard.ended.is_none() {
            // What is silent still is as silent as it is by now.
            heard.longest = heard.longest.max(heard.last.elapsed());
        }
        let silent = heard.longest.saturating_sub(self.usual);
        let broke =
            heard.ended.clone().map(|(when, why)| (millis(when.saturating_duration_since(struck)), why));
        Fate { name: self.name.clone(), silent_millis: millis(silent), broke }
    }
}

impl Heard {
    fn word(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(address: &str, heard: &Mutex<Heard>) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    loop {
        word(&mut stream).await?;
        locked(heard).word();
        sleep(WORD).await;
    }
}

/// One word to the echo at `address`, on a connection of its own.
pub async fn say(address: &str) -> io::Result<()> {
    word(&mut TcpStream::connect(address).await?).await
}

async fn word(stream: &mut TcpStream) -> io::Result<()> {
    let mut word = *b"word";
    stream.write_all(&word).await?;
    stream.read_exact(&mut word).await.map(drop)
}

/// Says again what it is told, at a port of a host.
pub fn echo(host: &Host, port: u16) {
    let address = host.addresses.v4;
    host.keep(move || async move {
        let listener = TcpListener::bind((address, port)).await.expect("the host is new");
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = copy(&mut from, &mut to).await;
            });
        }
    });
}

fn locked(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().expect("no one panics with it")
}

/// Whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
