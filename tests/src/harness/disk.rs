//! A small disk that a test fills: in memory, in a mount namespace of its own. It takes no root.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Unmounted when it is dropped.
pub struct SmallDisk {
    /// Lives in the namespace, and keeps it.
    keeper: Child,
    place: PathBuf,
}

impl SmallDisk {
    /// One of so many bytes at `place`, an absolute path, for what runs by [`SmallDisk::command`].
    ///
    /// # Panics
    /// Where none can be mounted; it says why.
    pub fn mount(place: &Path, size: u32) -> Self {
        fs::create_dir_all(place).expect("a directory");
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
        let _ = BufReader::new(keeper.stdout.take().expect("a pipe")).read_line(&mut said);
        assert_eq!(said, "mounted\n", "a user namespace in which a disk can be mounted; it says why above");
        SmallDisk { keeper, place: place.to_owned() }
    }

    /// Where everybody else finds what is on it.
    pub fn path(&self) -> PathBuf {
        let root = Path::new("/proc").join(self.keeper.id().to_string()).join("root");
        root.join(self.place.strip_prefix("/").expect("it is absolute"))
    }

    /// Runs `program` where it is seen at its place.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.keeper.id().to_string();
        command.args(["--user", "--mount", "--preserve-credentials", "--target", &target]).arg(program);
        command
    }

    /// Leaves no room on it.
    ///
    /// # Panics
    /// When it fails in another way.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file on it");
        let full = std::iter::repeat_with(|| filler.write_all(&[0; 4096])).find_map(Result::err);
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull));
    }

    /// Makes room again.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
