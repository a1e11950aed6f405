//! The mirror of a server's branch in the state directory: a bare repository that is read like any other.
//!
//! Each fetch adds a pack. Once there are many, all is fetched anew as one pack, so that a mirror grows with its
//! history and not with its age.

use std::{
    error::Error as _,
    fs, io, iter,
    path::{Path, PathBuf},
    time::Duration,
};

use gix::remote::{Direction, fetch::Tags};
use gix_transport::{
    Protocol,
    client::blocking_io::{Transport, http},
};
use tokio::time::timeout;

use super::{
    Source, Trouble,
    address::{Address, Scheme, Server},
    attempt::Attempt,
    https, repository, ssh,
};

/// A fetch as a whole. One that takes longer is tried again, with what it brought thrown away.
const LIMIT: Duration = Duration::from_secs(120);
/// More than these are made one. Opening looks at each.
const MAX_PACKS: usize = 50;
const FORMATS: [gix::hash::Kind; 2] = [gix::hash::Kind::Sha1, gix::hash::Kind::Sha256];

/// Brings the branch of `source` into the repository at `dir`, which is made unless it is there.
pub(super) async fn fetch(source: &Source, dir: &Path) -> Result<(), Trouble> {
    let Address::Remote(server) = &source.address else { return Ok(()) };
    let (attempt, end) = Attempt::begin();
    let errand = Errand {
        source: source.clone(),
        server: server.clone(),
        dir: dir.to_owned(),
        attempt: attempt.clone(),
    };
    let work = tokio::task::spawn_blocking(move || errand.run());
    let ended = timeout(LIMIT, work).await;
    drop(end);
    match ended {
        Ok(Ok(done)) => done,
        // It panicked: that is logged, and the next fetch begins anew.
        Ok(Err(_)) => Err(unfetched(source, "the fetch ended with a mistake of ours".into())),
        Err(_) => Err(unfetched(source, format!("it has not sent all within {} s", LIMIT.as_secs()))),
    }
}

fn unfetched(source: &Source, reason: String) -> Trouble {
    Trouble::Unfetched { url: source.address.to_string(), reason }
}

/// A fetch, on a thread that may block.
struct Errand {
    source: Source,
    server: Server,
    dir: PathBuf,
    attempt: Attempt,
}

/// How a fetch into one repository went.
enum Outcome {
    /// The branch is here.
    Done,
    /// The server has no such branch.
    NoBranch,
    /// The server names objects in another way than the repository does.
    Format(gix::hash::Kind),
}

impl Errand {
    fn run(&self) -> Result<(), Trouble> {
        match self.bring() {
            Ok(Outcome::Done) => {}
            Ok(Outcome::NoBranch) => {
                let (path, branch) = (self.source.address.to_string(), self.source.branch.clone());
                return Err(Trouble::BranchGone { path, branch });
            }
            Ok(Outcome::Format(format)) => {
                return Err(unfetched(&self.source, format!("objects named by {format} are not read")));
            }
            Err(why) => return Err(unfetched(&self.source, self.attempt.failure().unwrap_or(why))),
        }
        if packs(&self.dir).len() > MAX_PACKS
            && let Err(why) = self.renew()
        {
            // It serves as it is, and the next fetch tries again.
            tracing::warn!(source = %self.source.name, why, "the mirror's packs were not made one");
        }
        Ok(())
    }

    /// Fetches into the mirror, made anew where it is damaged or of another format.
    fn bring(&self) -> Result<Outcome, String> {
        // Nobody else is here: what holds these was killed.
        for left in left_behind(&self.dir) {
            fs::remove_file(&left).map_err(|error| self.unwritten(&error))?;
        }
        if !self.is_sound() {
            make(&self.dir, &self.source.branch, FORMATS[0]).map_err(|error| self.unwritten(&error))?;
        }
        match self.receive(&self.dir)? {
            Outcome::Format(format) if FORMATS.contains(&format) => {
                make(&self.dir, &self.source.branch, format).map_err(|error| self.unwritten(&error))?;
                self.receive(&self.dir)
            }
            outcome => Ok(outcome),
        }
    }

    /// Whether the mirror can be read, and has the commit that its branch is at, if it has the branch.
    fn is_sound(&self) -> bool {
        let Ok(repository) = repository::open(&self.dir) else { return false };
        let name = format!("refs/heads/{}", self.source.branch);
        match repository.try_find_reference(name.as_str()) {
            Ok(Some(branch)) => {
                repository.find_commit(branch.id().detach()).is_ok_and(|one| one.tree().is_ok())
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn unwritten(&self, error: &io::Error) -> String {
        format!("the mirror {} cannot be made: {error}", self.dir.display())
    }

    fn receive(&self, dir: &Path) -> Result<Outcome, String> {
        let url = self.server.to_string();
        match self.server.scheme {
            Scheme::Ssh => {
                let transport = ssh::connect(&self.server, &self.source.access, &self.attempt)?;
                self.receive_by(dir, &url, transport)
            }
            Scheme::Https | Scheme::Http => {
                let client = https::Client::new(&self.server, &self.source.access, self.attempt.clone())?;
                let parsed = gix::url::parse(url.as_str()).map_err(|error| error.to_string())?;
                let transport = http::Transport::new_http(client, parsed, Protocol::V2, false);
                self.receive_by(dir, &url, transport)
            }
        }
    }

    fn receive_by(&self, dir: &Path, url: &str, transport: impl Transport) -> Result<Outcome, String> {
        let branch = format!("refs/heads/{}", self.source.branch);
        let repository = repository::open(dir).map_err(told)?;
        let remote = repository
            .remote_at_without_url_rewrite(url)
            .and_then(|remote| {
                remote.with_refspecs([format!("+{branch}:{branch}").as_str()], Direction::Fetch)
            })
            .map_err(told)?
            .with_fetch_tags(Tags::None);
        let connection = remote
            .to_connection_with_transport(transport)
            .with_credentials(|_| Ok(None))
            .with_transport_options(Box::new(()));
        let ready = connection.prepare_fetch(gix::progress::Discard, Default::default()).map_err(told)?;
        if ready.ref_map().object_hash != repository.object_hash() {
            return Ok(Outcome::Format(ready.ref_map().object_hash));
        }
        if ready.ref_map().is_missing_required_mapping() {
            return Ok(Outcome::NoBranch);
        }
        ready.receive(gix::progress::Discard, self.attempt.interrupt()).map_err(told)?;
        Ok(Outcome::Done)
    }

    /// Fetches everything into a repository beside the mirror, and its pack takes the place of all packs.
    fn renew(&self) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let fresh = self.dir.with_extension("fresh");
        let format = repository::open(&self.dir).map_err(told)?.object_hash();
        make(&fresh, &self.source.branch, format).map_err(text)?;
        self.receive(&fresh)?;
        if !self.holds(&fresh)? {
            return Err("the server's branch has lost the mirror's commit".into());
        }
        let (old, new) = (packs(&self.dir), packs(&fresh));
        for pack in &new {
            // The index last: a pack is found by it.
            for ending in ["pack", "idx"] {
                let from = pack.with_extension(ending);
                fs::rename(&from, folder(&self.dir).join(from.file_name().unwrap_or_default()))
                    .map_err(text)?;
            }
        }
        let kept = |old: &&PathBuf| new.iter().any(|new| new.file_name() == old.file_name());
        for pack in old.iter().filter(|old| !kept(old)) {
            for ending in ["idx", "pack"] {
                fs::remove_file(pack.with_extension(ending)).map_err(text)?;
            }
        }
        fs::remove_dir_all(&fresh).map_err(text)
    }

    /// Whether the repository at `fresh` has the commit that the mirror's branch is at.
    fn holds(&self, fresh: &Path) -> Result<bool, String> {
        let mirror = repository::open(&self.dir).map_err(told)?;
        let name = format!("refs/heads/{}", self.source.branch);
        let commit = mirror.find_reference(name.as_str()).map_err(told)?.id().detach();
        Ok(repository::open(fresh).map_err(told)?.has_object(commit))
    }
}

/// What went wrong, and what was behind it: that is what can be mended.
fn told(error: gix::Error) -> String {
    let line = |said: String| said.lines().next().unwrap_or_default().to_owned();
    let what = line(error.to_string());
    let last = iter::successors(error.source(), |one| (*one).source()).last();
    match last.map(|cause| line(cause.to_string())).filter(|cause| !what.contains(cause.as_str())) {
        Some(cause) => format!("{what}: {cause}"),
        None => what,
    }
}

/// Makes an empty bare repository, in the place of whatever is there.
fn make(dir: &Path, branch: &str, format: gix::hash::Kind) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    process::files::private_directory(&folder(dir))?;
    fs::create_dir_all(dir.join("refs/heads"))?;
    fs::write(dir.join("HEAD"), format!("ref: refs/heads/{branch}\n"))?;
    let config = match format {
        gix::hash::Kind::Sha256 => {
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
        }
        _ => "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
    };
    fs::write(dir.join("config"), config)
}

/// Locks, and packs that were never finished.
fn left_behind(dir: &Path) -> Vec<PathBuf> {
    let mut folders = vec![dir.join("refs")];
    let mut files: Vec<_> =
        ["HEAD.lock", "config.lock", "packed-refs.lock"].map(|name| dir.join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files.retain(|file| file.extension().is_some_and(|ending| ending == "lock") && file.exists());
    let packs = fs::read_dir(self::folder(dir)).into_iter().flatten().flatten().map(|file| file.path());
    files.extend(packs.filter(|file| {
        !file
            .extension()
            .is_some_and(|ending| ["pack", "idx", "keep", "rev"].iter().any(|one| ending == *one))
    }));
    files
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("objects/pack")
}

/// The indices of the packs at `dir`.
fn packs(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder(dir)).into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "idx")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_fetch_left_is_found_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        make(dir, "main", gix::hash::Kind::Sha1).unwrap();
        let left =
            ["refs/heads/main.lock", "refs/heads/a/b.lock", "packed-refs.lock", "objects/pack/.tmpAbC"];
        let kept = [
            "refs/heads/main",
            "objects/pack/pack-1.pack",
            "objects/pack/pack-1.idx",
            "objects/pack/pack-1.keep",
        ];
        for name in left.iter().chain(&kept) {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), "").unwrap();
        }
        let mut found = left_behind(dir);
        found.sort();
        let mut expected = left.map(|name| dir.join(name));
        expected.sort();
        assert_eq!(found, expected);
    }
}
