//! One thread that carries requests: its upstream connections, its chance, its decision ids.
//!
//! Nothing in it is shared with another thread, so nothing in it needs a lock.

use std::{
    cell::Cell,
    future::Future,
    io::{self, Write},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use http::HeaderValue;
use process::{
    shutdown::Shutdown,
    tls::{self, Clients},
};
use rustls::ServerConfig;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::{account::Handles, balance, dial, liveness::Liveness, names::Names, pool::Pool, proxy::Proxy};

/// What a decision's id begins with: eight digits and a dash.
const PREFIX: usize = 9;

/// One worker.
pub struct Worker {
    /// What all workers share.
    pub proxy: Arc<Proxy>,
    /// Its upstream connections.
    pub pool: Pool,
    /// What names mean outside the mesh.
    pub names: Names,
    /// Watches its connections.
    pub liveness: Arc<Liveness>,
    /// How it accepts mTLS.
    pub tls: Arc<ServerConfig>,
    /// Its metrics, found without hashing labels.
    pub handles: Handles,
    chance: Cell<u64>,
    prefix: String,
    decisions: Cell<u64>,
}

impl Worker {
    /// A worker of this thread.
    pub fn new(proxy: Arc<Proxy>) -> Rc<Self> {
        let tls = tls::server(&proxy.identity, Clients::Members, &["h2", "http/1.1"]);
        Rc::new(Worker {
            proxy,
            tls,
            pool: Pool::default(),
            names: Names::default(),
            liveness: Arc::default(),
            handles: Handles::default(),
            chance: Cell::new(rand::random()),
            prefix: format!("{:08x}-", rand::random::<u32>()),
            decisions: Cell::new(0),
        })
    }

    /// A random number; cheap, and not secret.
    pub fn chance(&self) -> u64 {
        let next = self.chance.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.chance.set(next);
        balance::mix(next)
    }

    /// True for this share of the calls.
    pub fn chosen(&self, share: f64) -> bool {
        share >= 1.0 || (share > 0.0 && balance::unit(self.chance()) < share)
    }

    /// The id of the next decision: a prefix that no other worker has, and a count.
    pub fn decision(&self) -> HeaderValue {
        let count = self.decisions.get();
        self.decisions.set(count + 1);
        let mut id = [0; PREFIX + 16];
        let mut rest = &mut id[..];
        // There is room for any count.
        let _ = write!(rest, "{}{count:x}", self.prefix);
        let left = rest.len();
        HeaderValue::from_bytes(&id[..PREFIX + 16 - left]).unwrap_or(HeaderValue::from_static("-"))
    }

    /// Runs something on this thread. A panic in it ends it, and nothing else.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn(task);
    }

    /// Looks after connections, and after gateways that are lost or doubted, until `shutdown`.
    pub async fn tend(self: Rc<Self>, shutdown: Shutdown) {
        let also = || {
            self.pool.sweep(&self, Instant::now());
            for gateway in self.proxy.gateways.due(self.proxy.now()) {
                let worker = self.clone();
                self.spawn(async move { dial::try_gateway(&worker, &gateway).await });
            }
        };
        self.liveness.tend(&shutdown, || self.proxy.now(), also).await;
    }
}

/// What a worker's thread runs its tasks on.
pub fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

/// Runs the tasks of hyper on this thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Executor;
    use tokio::sync::oneshot;

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_in_one_connection_leaves_the_worker_and_its_other_connections() {
        let shutdown = Shutdown::new();
        runtime().unwrap().block_on(async {
            let (ask, asked) = oneshot::channel::<()>();
            let (answer, answered) = oneshot::channel();
            spawn(shutdown.track("connection".into(), async {
                asked.await.unwrap();
                answer.send("served").unwrap();
            }));
            spawn(shutdown.track("connection".into(), async { panic!("in a connection") }));
            LocalExecutor.execute(async { panic!("in a stream of HTTP/2") });
            tokio::task::yield_now().await;
            ask.send(()).unwrap();
            assert_eq!(answered.await, Ok("served"));
            assert_eq!(shutdown.drain(Duration::from_secs(30)).await, Ok(()), "both have ended");
        });
        assert_eq!(shutdown.panics(), 1);
    }
}
