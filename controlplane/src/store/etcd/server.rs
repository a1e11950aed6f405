//! One conversation with etcd's servers: connected when it is first needed, asked again until there is an answer.

use std::{fs, future::Future, path::Path, sync::Arc, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, ConnectOptions, Error, GetOptions, GetResponse, Identity, KeyValue,
    TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures_util::future::BoxFuture;
use tokio::{sync::Mutex, time::Instant};
use tonic::Code;

use super::EtcdSettings;
use crate::store::StoreError;

/// The layout of the keys.
pub(super) const FORMAT: u64 = 1;
/// etcd takes 128 operations in a transaction.
pub(super) const MAX_OPERATIONS: usize = 128;
/// Longer than a member's election takes; without an answer by then the caller must do something else.
const PATIENCE: Duration = Duration::from_secs(5);
/// One try: a member that is silent is not the only one.
const TRY: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that is silent for both is given up. etcd ends connections that ask more often than each 5 s.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(2));
/// The largest answer: [`MAX_OPERATIONS`] chunks, or a page of registrations.
const MAX_ANSWER_BYTES: usize = 128 * 1024 * 1024;
/// A certificate, key or password file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// How servers are connected to, by their URLs.
pub type Connect =
    Arc<dyn Fn(Vec<String>, ConnectOptions) -> BoxFuture<'static, Result<Client, Error>> + Send + Sync>;

/// The servers.
pub(super) struct Server {
    settings: EtcdSettings,
    connect: Connect,
    client: Mutex<Option<Client>>,
}

impl Server {
    pub(super) fn new(settings: EtcdSettings, connect: Connect) -> Self {
        Server { settings, connect, client: Mutex::default() }
    }

    /// Asks until there is an answer that another try would not change, for [`PATIENCE`].
    ///
    /// What is asked may be done more than once: an answer that is lost on its way is asked for again.
    pub(super) async fn ask<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = TRY.min(deadline.saturating_duration_since(Instant::now()));
            let tried = tokio::time::timeout(left, async {
                let client = self.client().await?;
                ask(client).await.map_err(Refused::from)
            });
            let why = match tried.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Refused::Final(error))) => {
                    // Its files may hold something else by now.
                    self.client.lock().await.take();
                    return Err(error);
                }
                Ok(Err(Refused::Passing(why))) => why,
                Err(_) => "no answer in time".to_owned(),
            };
            if Instant::now() + pause >= deadline {
                self.client.lock().await.take();
                return Err(StoreError::Failed(why));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(super) async fn get(&self, key: String, options: GetOptions) -> Result<GetResponse, StoreError> {
        self.ask(|client| {
            let (key, options) = (key.clone(), options.clone());
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            async move { kv.get(key, Some(options)).await }
        })
        .await
    }

    pub(super) async fn transact(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        self.ask(|client| {
            let txn = txn.clone();
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// The value of each key, in order.
    pub(super) async fn get_each(
        &self,
        keys: &[String],
        options: GetOptions,
    ) -> Result<Vec<Option<KeyValue>>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MAX_OPERATIONS) {
            let reads: Vec<_> =
                keys.iter().map(|key| TxnOp::get(key.as_str(), Some(options.clone()))).collect();
            match self.transact(Txn::new().and_then(reads)).await {
                Ok(answer) => found.extend(answer.op_responses().into_iter().map(|one| match one {
                    TxnOpResponse::Get(mut got) => got.take_kvs().pop(),
                    _ => None,
                })),
                // Some versions that are full refuse every transaction, even those that only read.
                Err(StoreError::Full(_)) => {
                    for key in keys {
                        found.push(self.get(key.clone(), options.clone()).await?.take_kvs().pop());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// All keys that begin with `prefix`, `page` at a time, in order.
    pub(super) async fn list(
        &self,
        prefix: &str,
        page: i64,
        options: GetOptions,
    ) -> Result<Vec<KeyValue>, StoreError> {
        let end = after(prefix);
        let mut all: Vec<KeyValue> = Vec::new();
        loop {
            let from = match all.last() {
                Some(last) => format!("{}\0", text(last.key())?),
                None => prefix.to_owned(),
            };
            let asked = options.clone().with_range(end.clone()).with_limit(page);
            let mut got = self.get(from, asked).await?;
            let more = got.more();
            all.extend(got.take_kvs());
            if !more {
                return Ok(all);
            }
        }
    }

    /// Runs `operations` in as many transactions as they need, each only if `guard` holds. False once it does not.
    pub(super) async fn run(
        &self,
        operations: impl IntoIterator<Item = TxnOp>,
        guard: Option<&Compare>,
    ) -> Result<bool, StoreError> {
        let mut operations = operations.into_iter().peekable();
        while operations.peek().is_some() {
            let batch: Vec<_> = operations.by_ref().take(MAX_OPERATIONS).collect();
            let txn = Txn::new().when(guard.cloned().into_iter().collect::<Vec<_>>()).and_then(batch);
            if !self.transact(txn).await?.succeeded() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn client(&self) -> Result<Client, Refused> {
        let mut held = self.client.lock().await;
        if let Some(client) = &*held {
            return Ok(client.clone());
        }
        let options = options(&self.settings).map_err(|why| Refused::Final(StoreError::Failed(why)))?;
        let client = (self.connect)(self.settings.endpoints.clone(), options).await?;
        let key = format!("{}/format", self.settings.prefix.trim_end_matches('/'));
        if let Some(format) = client.kv_client().get(key, None).await?.kvs().first() {
            let found = text(format.value()).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
            if found > FORMAT {
                return Err(Refused::Final(StoreError::Newer { found, known: FORMAT }));
            }
        }
        *held = Some(client.clone());
        Ok(client)
    }
}

/// Why a try had no answer.
enum Refused {
    /// Another try may have one.
    Passing(String),
    /// No other try will.
    Final(StoreError),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let passing = match &error {
            Error::GRpcStatus(status) if status.message().contains("database space exceeded") => {
                return Refused::Final(StoreError::Full(status.message().to_owned()));
            }
            Error::GRpcStatus(status) => {
                !matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied | Code::NotFound)
            }
            Error::InvalidArgs(_) | Error::InvalidUri(_) => false,
            _ => true,
        };
        let why = match error {
            Error::GRpcStatus(status) => status.message().to_owned(),
            error => error.to_string(),
        };
        if passing { Refused::Passing(why) } else { Refused::Final(StoreError::Failed(why)) }
    }
}

/// Over the machine's own network.
pub(super) fn by_machine() -> Connect {
    Arc::new(|endpoints, options| Box::pin(async { Client::connect(endpoints, Some(options)).await }))
}

fn options(settings: &EtcdSettings) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_timeout(TRY)
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_require_leader(true);
    if settings.ca.is_some() || settings.certificate.is_some() {
        let mut tls = TlsOptions::new();
        if let Some(ca) = &settings.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let Some((certificate, key)) = &settings.certificate {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    if let Some((user, password)) = &settings.user {
        let password =
            String::from_utf8(read(password)?).map_err(|_| "the password is not UTF-8".to_owned())?;
        options =
            options.with_user(user, password.trim_end_matches(['\r', '\n'])).with_auto_token_refresh(true);
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{} is larger than {MAX_FILE_BYTES} bytes", path.display()));
    }
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The first key after all that begin with `prefix`. A prefix ends in `/` here, so its last byte has a next one.
pub(super) fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(bytes).map_err(|_| StoreError::Damaged("a key that is not ours".into()))
}
