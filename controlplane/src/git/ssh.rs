//! `ssh://`: OpenSSH's own client speaks, with the key and the known hosts of the settings and nothing else: no
//! configuration of the user, no agent, no question to anybody.

use std::{path::Path, process::Stdio};

use bytes::{Bytes, BytesMut};
use gix_transport::{
    Protocol,
    client::{blocking_io::Transport, git},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
};

use super::{
    access::Access,
    address::Server,
    attempt::{Attempt, Inlet, SILENCE, incoming, outgoing, patiently},
};

/// What is kept of what `ssh` complains of.
const MAX_WORDS_BYTES: u64 = 4096;
const READ_BYTES: usize = 64 * 1024;

/// Starts `ssh` to `server`; it ends with the attempt.
pub(super) fn connect(
    server: &Server,
    access: &Access,
    attempt: &Attempt,
) -> Result<impl Transport + use<>, String> {
    let _runtime = attempt.runtime().enter();
    let mut child = command(server, access).spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no `ssh` here: install openssh-client".to_owned(),
        _ => format!("ssh does not start: {error}"),
    })?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three are piped") };
    let (inlet, from_server) = incoming();
    let (to_server, written) = outgoing();
    let (say, words) = oneshot::channel();
    attempt.spawn(async move { drop(say.send(last_words(stderr).await)) });
    attempt.spawn(write(stdin, written));
    let own = attempt.clone();
    attempt.spawn(async move {
        let heard = hear(stdout, &inlet, &own).await;
        if let Err(why) = ended(child, heard, words).await {
            own.fail(why);
        }
        drop(inlet);
    });
    let none: Option<(String, Option<u16>)> = None;
    let path = server.path.as_str();
    Ok(git::blocking_io::Connection::new(
        from_server,
        to_server,
        Protocol::V2,
        path,
        none,
        git::ConnectMode::Process,
        false,
    ))
}

fn command(server: &Server, access: &Access) -> Command {
    let option = |name: &str, value: &Option<std::path::PathBuf>| {
        let path = value.as_deref().unwrap_or(Path::new("/dev/null"));
        // Percent signs are ssh's tokens, and quotes keep spaces together.
        format!("-o{name}=\"{}\"", path.display().to_string().replace('%', "%%"))
    };
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-T", "-a", "-x", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes"]);
    command.args(["-oIdentitiesOnly=yes", "-oIdentityAgent=none", "-oPreferredAuthentications=publickey"]);
    command.args(["-oGlobalKnownHostsFile=/dev/null", "-oUpdateHostKeys=no", "-oLogLevel=ERROR"]);
    command.args(["-oConnectionAttempts=1", "-oSendEnv=GIT_PROTOCOL"]);
    command.arg(format!("-oConnectTimeout={}", SILENCE.as_secs()));
    command.arg(option("IdentityFile", &access.key)).arg(option("UserKnownHostsFile", &access.known_hosts));
    command.arg("-p").arg(server.port.to_string());
    if let Some(user) = &server.user {
        command.arg("-l").arg(user);
    }
    // The path has no quotes: addresses are of plain characters.
    command.arg("--").arg(&server.host).arg(format!("git-upload-pack '{}'", server.path));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("LC_ALL", "C").env("GIT_PROTOCOL", "version=2");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn write(mut stdin: ChildStdin, mut written: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = written.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return; // What `ssh` says at its end tells why.
        }
    }
}

async fn hear(mut stdout: ChildStdout, inlet: &Inlet, attempt: &Attempt) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        let read = patiently(stdout.read_buf(&mut buffer)).await?;
        match read.map_err(|error| format!("it broke off: {error}"))? {
            0 => return Ok(()),
            bytes => attempt.count(bytes)?,
        }
        if inlet.send(buffer.split().freeze()).await.is_err() {
            return Ok(()); // Whoever asked has read enough.
        }
    }
}

/// How it ended: `ssh` knows better than whoever read its output.
async fn ended(
    mut child: Child,
    heard: Result<(), String>,
    words: oneshot::Receiver<String>,
) -> Result<(), String> {
    heard?;
    let status = patiently(child.wait()).await?.map_err(|error| format!("ssh is lost: {error}"))?;
    match patiently(words).await?.unwrap_or_default() {
        _ if status.success() => Ok(()),
        words if words.is_empty() => Err(format!("ssh ended with {status}")),
        words => Err(format!("ssh says: {words}")),
    }
}

/// The last two lines that are no decoration.
async fn last_words(stderr: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    // A failed read leaves what was read before.
    let _ = stderr.take(MAX_WORDS_BYTES).read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes);
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    let lines: Vec<String> = text.lines().map(plain).map(|line| line.trim().to_owned()).collect();
    let told: Vec<&str> =
        lines.iter().map(String::as_str).filter(|line| !line.is_empty() && !line.starts_with('@')).collect();
    told[told.len().saturating_sub(2)..].join("; ")
}
