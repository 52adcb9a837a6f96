//! A real mount of a model for one test, served by a process of its own: a process that maps a file
//! of a mount it serves itself can wait for its own memory's lock, and cannot be killed while it
//! waits for its own answer.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::model::Model;
use crate::{MountFlags, MountOptions, Mounted, SessionKind, mount};

/// The directory that the serving process mounts, and by how many threads it is served.
const DIR: &str = "KOS_FUSE_TEST_MOUNT";
const THREADS: &str = "KOS_FUSE_TEST_THREADS";
/// Far more than an end takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The mount; gone when dropped.
pub(super) struct Live {
    dir: TempDir,
    server: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Live {
    pub(super) fn new() -> Self {
        Self::with_threads(4)
    }

    pub(super) fn with_threads(threads: usize) -> Self {
        Self::serving(threads, &[])
    }

    /// One whose kernel speaks with this session.
    pub(super) fn by(session: &str) -> Self {
        Self::serving(4, &[(SessionKind::VARIABLE, session)])
    }

    fn serving(threads: usize, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("kos-fuse").tempdir().expect("temporary directory");
        // Other users act on it too.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
        let mut server = Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", "tests::live::serve", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .env(THREADS, threads.to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("server");
        let answers = BufReader::new(server.stdout.take().expect("piped")).lines();
        let mut live = Self { dir, server, answers };
        live.answer();
        live
    }

    pub(super) fn mem(&self) -> PathBuf {
        self.dir.path().join("mem")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.mem().join(name)
    }

    /// Flush, unmount and mount again: nothing is left in any cache.
    pub(super) fn remount(&mut self) {
        self.ask("remount");
    }

    /// One command to the server, and its answer.
    pub(super) fn ask(&mut self, command: &str) -> String {
        writeln!(self.server.stdin.as_mut().expect("piped"), "{command}").expect("the server runs");
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            // The test harness of the server speaks as well, also in front of it.
            let line = self.answers.next().expect("the server mounts: is this root, with /dev/fuse?");
            if let Some((_, answer)) = line.expect("the server runs").split_once("live: ") {
                return answer.to_owned();
            }
        }
    }

    /// Flush, unmount and end. False when that fails.
    pub(super) fn ended(&mut self) -> bool {
        drop(self.server.stdin.take());
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            match self.server.try_wait().expect("server") {
                Some(status) => return status.success(),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.ended() {
            drop(self.server.kill());
            drop(self.server.wait());
            let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
            assert!(thread::panicking(), "the server failed, or did not end");
        }
    }
}

fn mounted(model: &Arc<Model>, dir: &Path) -> Mounted {
    let threads = std::env::var(THREADS).expect("threads").parse().expect("a number");
    let options = MountOptions {
        dir: dir.into(),
        source: "model".into(),
        threads,
        flags: MountFlags::empty(),
        remote: false,
        share_locks: false,
        session: SessionKind::of_environment().expect("a session"),
        first: true,
    };
    mount(Arc::clone(model), &options, None, Vec::new(), |_| Ok(None), || ()).expect("mounts")
}

/// Until its input ends: `remount`, `slow MILLISECONDS`, and `left`, which answers how many stripes
/// and nameless inodes there are.
#[test]
#[ignore = "no test: it serves the mounts of the others"]
fn serve() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let model = Arc::<Model>::default();
    let mut live = mounted(&model, &dir);
    println!("live: mounted");
    for command in std::io::stdin().lines() {
        let command = command.expect("a command");
        let mut answer = "done".to_owned();
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("remount", _) => {
                live.unmount().expect("unmounts");
                live = mounted(&model, &dir);
            }
            ("slow", millis) => model.slow.store(millis.parse().expect("a number"), Ordering::Relaxed),
            ("left", _) => answer = format!("{} {}", model.stripes(), model.orphans().len()),
            _ => panic!("command {command}"),
        }
        println!("live: {answer}");
    }
    live.unmount().expect("unmounts");
}
