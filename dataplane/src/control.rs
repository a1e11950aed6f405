//! The control stream: what this proxy obeys comes down it, what it holds and sees goes up.
//!
//! [`protocol`] decides, this file carries out. A lost control plane changes nothing for requests: the last good
//! runtime stays, and the stream is sought again at every known address.

pub mod enrol;
pub mod hosts;
pub mod kept;
pub mod protocol;
pub mod renew;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use api::{
    identity::{Rejection, SpiffeId},
    wire::{self, from_proxy::Message},
};
use process::{
    logs,
    rpc::{self, stub::control_client::ControlClient},
    shutdown::Shutdown,
    tls::{self, Expect, Identity},
    world::{SharedWorld, World},
};
use protocol::{Action, Event, Session};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::proxy::Proxy;

/// What every control plane is asked for by; who it is stands in its certificate.
const SERVER_NAME: &str = "control.weft.internal";

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often this proxy says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// How long the application may take to accept the connection that asks whether it is there.
const PROBE: Duration = Duration::from_millis(500);

/// What is on its way up; more than this and the stream is as good as broken.
const OUTGOING: usize = 64;

/// The largest frame: a resource of FRAME_BYTES beside others.
const MESSAGE_BYTES: usize = 64 << 20;

/// Follows the control plane until `shutdown`, and says farewell then.
pub async fn run(
    world: SharedWorld,
    proxy: Arc<Proxy>,
    session: Session,
    questions: mpsc::Receiver<String>,
    shutdown: Shutdown,
) {
    let mut control = Control { world, proxy, session, questions };
    let mut pause = Pause::default();
    for address in control.proxy.config.control_planes.clone().into_iter().cycle() {
        let began = tokio::time::Instant::now();
        let ended = control.follow(address, &shutdown).await;
        if shutdown.is_cancelled() {
            return;
        }
        if began.elapsed() > LONGEST_PAUSE * 2 {
            pause = Pause::default();
        }
        let pause = pause.next(&*control.world);
        tracing::warn!(%address, reason = ended, pause_ms = pause.as_millis() as u64, "no control stream; requests go on as they were");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// A channel to the control plane of this proxy's own cluster at `address`.
async fn channel(
    world: &SharedWorld,
    identity: &Arc<Identity>,
    address: SocketAddr,
    source: IpAddr,
) -> Result<Channel, String> {
    let own = identity.credentials();
    let verified = identity.verify(own.chain(), world.unix()).map_err(|error| error.to_string())?;
    let domain = SpiffeId::trust_domain(&verified.id);
    let config = tls::client(identity, Expect::control_plane(domain, &verified.cluster), &["h2"]);
    rpc::connect(world, address, Some(source), config, SERVER_NAME.to_owned())
        .await
        .map_err(|error| error.to_string())
}

/// Hosts that are asked for at a time.
const QUESTIONS: usize = 256;

/// Pauses that double, with jitter, so that a thousand proxies do not come back at once.
#[derive(Default)]
pub(crate) struct Pause(u32);

impl Pause {
    pub(crate) fn next(&mut self, world: &dyn World) -> Duration {
        let whole = FIRST_PAUSE.saturating_mul(1 << self.0.min(10)).min(LONGEST_PAUSE);
        self.0 += 1;
        world.jittered(whole)
    }
}

/// Both ways of one stream.
type Conversation = (mpsc::Sender<wire::FromProxy>, Streaming<wire::ToProxy>);

struct Control {
    world: SharedWorld,
    proxy: Arc<Proxy>,
    session: Session,
    questions: mpsc::Receiver<String>,
}

impl Control {
    /// One stream, from its first frame to its end. Why it ended.
    async fn follow(&mut self, address: SocketAddr, shutdown: &Shutdown) -> String {
        let opened = tokio::select! {
            opened = self.open(address) => opened,
            () = shutdown.cancelled() => return String::new(),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(reason) => return reason,
        };
        tracing::info!(%address, "the control stream stands");
        self.proxy.hosts.set_answered(true);
        let ended = self.converse(stream, shutdown).await;
        self.proxy.hosts.set_answered(false);
        ended
    }

    async fn converse(&mut self, stream: Conversation, shutdown: &Shutdown) -> String {
        let (outgoing, mut incoming) = stream;
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut questions = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                message = incoming.message() => match message {
                    Ok(Some(message)) => Event::Received(message),
                    Ok(None) => return "the control plane closed the stream".into(),
                    Err(status) => return status.message().to_owned(),
                },
                1.. = self.questions.recv_many(&mut questions, QUESTIONS) => {
                    Event::Wanted(std::mem::take(&mut questions))
                }
                _ = beats.tick() => Event::Beat(heartbeat(&*self.world, &self.proxy).await),
                () = shutdown.cancelled() => Event::Leaving,
            };
            let leaving = matches!(event, Event::Leaving);
            let actions = self.session.on(event);
            if let Err(reason) = self.carry_out(actions, &outgoing).await {
                return reason;
            }
            if leaving {
                drop(outgoing);
                // The control plane ends the stream once it has read the farewell.
                let _ = timeout(BEAT, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
                return String::new();
            }
        }
    }

    async fn open(&mut self, address: SocketAddr) -> Result<Conversation, String> {
        let channel = channel(&self.world, &self.proxy.identity, address, self.proxy.config.source).await?;
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let actions = self.session.on(Event::Opened);
        self.carry_out(actions, &outgoing).await?;
        let mut client = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let answer = client.follow(ReceiverStream::new(queue)).await;
        Ok((outgoing, answer.map_err(|status| status.message().to_owned())?.into_inner()))
    }

    async fn carry_out(
        &mut self,
        actions: Vec<Action>,
        outgoing: &mpsc::Sender<wire::FromProxy>,
    ) -> Result<(), String> {
        for action in actions {
            match action {
                Action::Send(message) => send(outgoing, message)?,
                Action::Install(runtime) => {
                    tracing::info!(revision = &*runtime.revision, "in force");
                    self.proxy.install(runtime);
                }
                Action::Keep(view, origin) => {
                    let written = kept::write(&self.proxy.config.state_dir, &view, &origin);
                    let said = self.session.kept(written.map_err(|error| error.to_string()));
                    said.map_or(Ok(()), |message| send(outgoing, message))?;
                }
                Action::Absent(hosts) => self.proxy.hosts.absent(hosts, Instant::now()),
                Action::Reopen(reason) => return Err(reason.to_owned()),
            }
        }
        Ok(())
    }
}

/// Says it to the control plane, and to the log where it is bad news.
fn send(outgoing: &mpsc::Sender<wire::FromProxy>, message: Message) -> Result<(), String> {
    match &message {
        Message::Nack(nack) => {
            let reasons: Vec<_> =
                nack.reasons.iter().map(|r| format!("{}: {}", r.resource, r.message)).collect();
            tracing::error!(version = nack.version, reasons = reasons.join("; "), "a view is refused");
        }
        Message::Unkept(unkept) => {
            tracing::error!(reason = unkept.reason, "a view is in force, and cannot be kept on disk");
        }
        _ => {}
    }
    let sent = outgoing.try_send(wire::FromProxy { message: Some(message) });
    sent.map_err(|_| "the control plane does not read what it is sent".to_owned())
}

async fn heartbeat(world: &dyn World, proxy: &Proxy) -> wire::Heartbeat {
    let mut app_ready = true;
    for app in proxy.config.role.apps() {
        let connected = timeout(PROBE, world.connect(app.address, None)).await;
        app_ready &= matches!(connected, Ok(Ok(_)));
    }
    wire::Heartbeat {
        app_ready,
        draining: proxy.draining.load(Relaxed),
        certificate_not_after: proxy.identity.credentials().validity().end().as_secs() as i64,
        ejected: proxy.ejected(),
    }
}

/// The credentials of this proxy: those on disk if they are usable, else by its token, however long that takes. If a clock is
/// wrong, those on disk become usable once it is set.
pub async fn identity(world: &SharedWorld, config: &crate::config::Config) -> anyhow::Result<Arc<Identity>> {
    let kept = Identity::load(&config.state_dir).unwrap_or_else(|error| {
        tracing::warn!(error = logs::causes(&error), "the credentials on disk are of no use");
        None
    });
    let mut pause = Pause::default();
    while let Some(kept) = &kept {
        match usable(&**world, kept) {
            Ok(()) => return Ok(kept.clone()),
            // If it is this clock that is slow, what a token is exchanged for would not be valid either, and the token be lost.
            Err(rejection @ Rejection::NotYetValid(_)) => {
                tracing::warn!(
                    %rejection,
                    "waiting until the certificate on disk is valid: this machine's clock is slow, or its issuer's was fast \
                     (then remove the certificate, and start with a fresh token)"
                );
                tokio::time::sleep(pause.next(&**world)).await;
            }
            Err(rejection) => {
                tracing::warn!(%rejection, "the certificate on disk is of no use now");
                break;
            }
        }
    }
    let path = config
        .token_file
        .as_ref()
        .ok_or_else(|| anyhow::anyhow!("no usable credentials and no tokenFile"))?;
    let mut token = enrol::Token::from_file(path)?;
    // A token that is used up for what cannot be kept is lost.
    process::files::prove_writable(&config.state_dir)
        .with_context(|| format!("{}: nothing can be kept there", config.state_dir.display()))?;
    for address in config.control_planes.iter().cycle() {
        match enrol::enrol(world, &token, *address, config.source).await {
            Ok(identity) => {
                if let Err(error) = identity.store(&config.state_dir) {
                    tracing::error!(error = logs::causes(&error), "the certificate cannot be kept on disk");
                }
                tracing::info!(id = %identity.credentials().id(), "enrolled");
                return Ok(identity);
            }
            Err(error) => tracing::warn!(%address, error = logs::causes(&error), "not enrolled yet"),
        }
        tokio::time::sleep(pause.next(&**world)).await;
        if let Some(kept) = kept.as_ref().filter(|kept| usable(&**world, kept).is_ok()) {
            tracing::info!("the certificate on disk is of use after all");
            return Ok(kept.clone());
        }
        match enrol::Token::from_file(path) {
            Ok(newer) => token = newer,
            Err(error) => {
                tracing::warn!(error = logs::causes(&error), "the token that was read before is tried again")
            }
        }
    }
    anyhow::bail!("no control plane is named")
}

fn usable(world: &dyn World, identity: &Identity) -> Result<(), Rejection> {
    identity.verify(identity.credentials().chain(), world.unix()).map(drop)
}
