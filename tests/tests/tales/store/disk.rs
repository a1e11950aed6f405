//! Control planes whose disk is full for a while: a small one of their own, in a mount namespace.

use std::io::{BufRead, BufReader, ErrorKind, Write};

use api::admin::CommitState;

use super::{replicas::Sidecar, *};

/// A disk in memory, for what runs in a mount namespace of its own. It takes no root.
pub(super) struct Disk {
    /// Lives in the namespace, and keeps it.
    keeper: Child,
}

impl Disk {
    /// One of so many bytes, at `place` where it is seen.
    fn mount(place: &Path, size: u32) -> Self {
        fs::create_dir_all(place).unwrap();
        let mount =
            format!("mount -t tmpfs -o size={size},mode=700 tmpfs \"$0\" && echo mounted && exec sleep 300");
        let keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
            .arg(place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut keeper = keeper.expect("`unshare` is missing: `scripts/setup test` installs util-linux");
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n", "no disk can be mounted in a user namespace; it says why above");
        Disk { keeper }
    }

    /// Where the test finds what processes on it find at `path`.
    pub(super) fn seen(&self, path: &Path) -> PathBuf {
        Path::new("/proc")
            .join(self.keeper.id().to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap())
    }

    /// Starts `program` where it is seen.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.keeper.id().to_string();
        command.args(["--user", "--mount", "--preserve-credentials", "--target", &target]).arg(program);
        command
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Primary {
    /// The same with its state on a small disk.
    fn on_a_small_disk(mut self) -> Self {
        self.disk = Some(Disk::mount(&self.dir.path().join("state"), 8 << 20));
        self
    }

    fn filler(&self) -> PathBuf {
        self.state().join("filler")
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        let full = std::iter::repeat_with(|| filler.write_all(&[0; 4096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Source {
    /// A commit that needs more than the room that a file has left.
    fn large_commit(&self, n: u16) -> String {
        let service = |i| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{i}, namespace: a, labels: {{ n: \"{n}\" }} }}\n\
                 spec: {{ ports: [{{ name: http, port: 80 }}] }}\n"
            )
        };
        fs::write(self.path().join("more.yaml"), (0..2_000).map(service).collect::<String>()).unwrap();
        self.commit(n)
    }
}

/// Commits rule again as soon as there is room, and nothing but commits has waited.
async fn waits_for_room(primary: &mut Primary, source: &Source, [own, workload]: [IpAddr; 2]) {
    primary.start();
    let first = source.commit(1);
    primary.serves(&first).await;
    let _sidecar = Sidecar::start(workload, [own; 2], &primary.token().await);
    primary.rules(&first).await;

    primary.fill();
    let second = source.large_commit(2);
    let status = primary
        .tells("why the commit waits", |status| {
            status.events.iter().any(|event| event.message.contains("No space left"))
        })
        .await;
    assert_eq!(status.commit, Some(first.clone()));
    let waits = status.sources[0].commits.iter().find(|one| one.commit == second);
    assert_eq!(waits.map(|one| one.state), Some(CommitState::Accepted));
    primary.rules(&first).await;
    primary.empty();
    primary.rules(&second).await;

    // Killed with no room left, and started when there is some.
    primary.fill();
    let third = source.large_commit(3);
    primary
        .tells("the next one waits", |status| {
            let known = status.sources[0].commits.iter().find(|one| one.commit == third);
            known.is_some_and(|one| one.state == CommitState::Accepted)
        })
        .await;
    primary.kill();
    primary.empty();
    primary.start();
    primary.rules(&third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_a_commit_waiting_and_nothing_else() {
    let source = Source::new().await;
    let mut primary = Primary::among(&[ip(12, 1)], &source, &[], 4).on_a_small_disk();
    waits_for_room(&mut primary, &source, [ip(12, 1), ip(12, 2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_beside_etcd_keeps_a_commit_waiting_and_nothing_else() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(13, 3), &[]));
    let mut reader = Reader::start(&server);
    let mut primary = Primary::among(&[ip(13, 1)], &source, &[server.url()], 4).on_a_small_disk();
    waits_for_room(&mut primary, &source, [ip(13, 1), ip(13, 2)]).await;
    reader.said(3);
    reader.sees(3).await;
}
