//! A real daemon with a real mount for one test, and seeded randomness.

pub mod power;
pub mod seal;
pub mod second;
pub mod unnamed;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// Far more than a start or an end takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon with its own state and mount; killed and unmounted when dropped.
#[derive(Debug)]
pub struct Daemon {
    root: TempDir,
    child: Option<Child>,
    ram_bytes: u64,
    /// The process that is started is the supervisor of the one that serves.
    supervised: bool,
    /// The daemon's binary.
    pub program: PathBuf,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

/// The repository that the tests are of: as cargo says when it runs them, for a build may be used again for another copy.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&tests).join("..")
}

/// Say, to stay, that a directory is a state of kosfs, as `kos up` does.
pub fn mark_state(state: &Path) {
    let marker = File::create(state.join("kosfs-state"));
    let marked = marker.and_then(|mut file| {
        file.write_all(b"kosfs state, format 1\n")?;
        file.sync_all()?;
        File::open(state)?.sync_all()
    });
    marked.expect("marker");
}

/// A binary of this workspace, which `make build` has made.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    // Tests are in `deps` below the binaries.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not beside {}: run `make build` first", own.display()))
}

/// Copy a binary of this workspace to where others may start it. By a process of its own: the new processes of other tests have our
/// descriptors until they execute their programs, and what is open for writing cannot be executed.
pub fn copy_binary(name: &str, to: &Path) {
    let copied = Command::new("cp").arg(binary(name)).arg(to).status().expect("cp");
    assert!(copied.success(), "cp {name} {}", to.display());
}

/// The daemon with failpoints, which `KOS_FAULTS` sets: built here, as no installed binary has them.
/// Only our own crates are compiled again.
#[must_use]
pub fn faulty_daemon() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let own = std::env::current_exe().expect("own path");
        // TARGET/release/deps/test
        let target = own.ancestors().nth(3).expect("a target directory");
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--release", "--locked", "--workspace"])
            .args(["--features", "fabricd/faults", "--bin", "fabricd-faults", "--target-dir"])
            .arg(target)
            .current_dir(repository())
            .status();
        assert!(status.expect("cargo").success(), "fabricd-faults does not build");
        target.join("release/fabricd-faults")
    };
    BUILT.get_or_init(build).clone()
}

/// Wait until `done`, at most the deadline.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Daemon {
    /// Start one on an empty state.
    #[must_use]
    pub fn start() -> Self {
        Self::with_ram(0)
    }

    /// Start one under a supervisor, with so many bytes of memory tier: another one goes on with its mount when it is killed.
    #[must_use]
    pub fn supervised(ram_bytes: u64) -> Self {
        let mut daemon = Self::unstarted(ram_bytes);
        daemon.be_supervised();
        daemon.spawn();
        daemon
    }

    /// From the next start on.
    pub const fn be_supervised(&mut self) {
        self.supervised = true;
    }

    /// The process that serves, which is not [`Self::pid`] under a supervisor.
    #[must_use]
    pub fn serving_pid(&self) -> Option<u32> {
        let text = fs::read(self.state().join("run.json")).ok()?;
        let run: serde_json::Value = serde_json::from_slice(&text).ok()?;
        u32::try_from(run["pid"].as_u64()?).ok()
    }

    /// What the supervisor has started last, whether it serves or not.
    #[must_use]
    pub fn child_pid(&self) -> Option<u32> {
        let above = self.pid().to_string();
        let is_child = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Behind the name: the state, and the parent.
            let mut words = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            words.next().is_some_and(|state| state != "Z") && words.next() == Some(above.as_str())
        };
        let names =
            fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).find(is_child)
    }

    /// kill -9 of the process that serves, under a supervisor; the next one serves when this returns.
    pub fn crash(&self) {
        let killed = self.serving_pid().expect("a daemon");
        send(killed, rustix::process::Signal::KILL);
        self.await_next(killed);
    }

    /// Have the supervisor start a new daemon in place of the one that serves, which hands its mount over.
    pub fn upgrade(&self) {
        let before = self.serving_pid().expect("a daemon");
        send(self.pid(), rustix::process::Signal::HUP);
        self.await_next(before);
    }

    /// The same, and it is of another program.
    pub fn upgrade_to(&self, program: &Path) {
        fs::write(self.state().join("upgrade"), program.as_os_str().as_encoded_bytes()).expect("upgrade");
        self.upgrade();
    }

    fn await_next(&self, before: u32) {
        wait_for("the next daemon", || self.serving_pid().is_some_and(|pid| pid != before));
    }

    /// Start one on a disk of so many bytes, which is a tmpfs.
    #[must_use]
    pub fn on_disk(bytes: u64) -> Self {
        let mut daemon = Self::unstarted(0);
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("options");
        mount("kos-test", daemon.state(), "tmpfs", MountFlags::empty(), Some(&*options)).expect("tmpfs");
        daemon.spawn();
        daemon
    }

    /// Start one on an empty state with so many bytes of memory tier.
    #[must_use]
    pub fn with_ram(ram_bytes: u64) -> Self {
        let mut daemon = Self::unstarted(ram_bytes);
        daemon.spawn();
        daemon
    }

    /// One with a file, ended so that nothing of it is cached anywhere, and what is in the file: several stripes
    /// of 4+2 and an end that is not whole.
    #[must_use]
    pub fn with_file(seed: u64) -> (Self, Vec<u8>) {
        let mut daemon = Self::start();
        let data = Rng::new(seed).bytes((9 << 20) + 12_345);
        fs::write(daemon.mem().join("file"), &data).expect("write");
        daemon.stop();
        (daemon, data)
    }

    /// The directories of one, so that something can be mounted at its state first.
    #[must_use]
    pub fn unstarted(ram_bytes: u64) -> Self {
        let root = tempfile::Builder::new().prefix("kos-test").tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("state")).expect("state directory");
        fs::create_dir(root.path().join("mnt")).expect("mount directory");
        Self { root, child: None, ram_bytes, supervised: false, program: binary("fabricd"), env: Vec::new() }
    }

    /// The mount directory.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// The regions' tree.
    #[must_use]
    pub fn mem(&self) -> PathBuf {
        self.mount().join("mem")
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// The process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Where the memory tier is mounted.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.state().join("ram")
    }

    /// Everything the daemon said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A number of sys/metrics.
    #[must_use]
    pub fn metric(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.mount().join("sys/metrics")).expect("metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().expect("a number")
    }

    /// Write a line to the node's ctl file.
    pub fn ctl(&self, line: &str) {
        for entry in fs::read_dir(self.mount().join("nodes")).expect("nodes") {
            fs::write(entry.expect("node").path().join("ctl"), line).expect("ctl");
        }
    }

    /// On the state's disk, where it is in earnest, only when that is one of its own: tests clear
    /// states away.
    fn log_file(&self) -> PathBuf {
        let dir = if is_mounted(&self.state()) { self.state() } else { self.root.path().to_path_buf() };
        dir.join("log.txt")
    }

    /// Segment files of one place.
    #[must_use]
    pub fn segments_of(&self, place: usize) -> Vec<PathBuf> {
        let dir = self.state().join("shards").join(place.to_string());
        self.segments().into_iter().filter(|segment| segment.starts_with(&dir)).collect()
    }

    /// Segment files of all places.
    #[must_use]
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in fs::read_dir(self.state().join("shards")).expect("places") {
            for file in fs::read_dir(place.expect("place").path()).expect("place") {
                let path = file.expect("file").path();
                if path.extension().is_some_and(|e| e == "kos") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// Start it again on the same state.
    ///
    /// # Panics
    /// When it does not start.
    pub fn spawn(&mut self) {
        if let Err(e) = self.try_spawn() {
            panic!("{e}");
        }
    }

    /// The same, where a state may be beyond help.
    ///
    /// # Errors
    /// What the daemon said when it ended instead.
    pub fn try_spawn(&mut self) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("log file");
        let run = self.state().join("run.json");
        if let Err(e) = fs::remove_file(&run) {
            assert_eq!(e.kind(), io::ErrorKind::NotFound, "{e}");
        }
        let child = Command::new(&self.program)
            // By this name `kos` knows it, also the one with failpoints.
            .arg0("fabricd")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(self.supervised.then_some("--supervise"))
            .arg("--state")
            .arg(self.state())
            .arg("--mount")
            .arg(self.mount())
            .arg("--tier-ram")
            .arg(self.ram_bytes.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("fabricd");
        self.child = Some(child);
        let mut ended = None;
        wait_for("start", || {
            ended = self.child.as_mut().and_then(|c| c.try_wait().expect("child"));
            ended.is_some() || run.exists()
        });
        if ended.is_some() {
            self.child = None;
        }
        ended.map_or(Ok(()), |status| Err(format!("fabricd ended, {status}: {}", self.log())))
    }

    /// Whether the daemon has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("child").is_some())
    }

    /// Its end, which something else than [`Self::stop`] brings about.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        wait_for("the end", || child.try_wait().expect("child").is_some());
        child.wait().expect("child")
    }

    /// kill -9, and clear the dead mount away.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.take() {
            self.kill_all(child).expect("kill");
        }
        self.detach();
    }

    /// The supervisor first, or it would start another.
    fn kill_all(&self, mut child: Child) -> io::Result<()> {
        child.kill()?;
        child.wait()?;
        if self.supervised
            && let Some(pid) = self.serving_pid()
            && Path::new("/proc").join(pid.to_string()).exists()
        {
            send(pid, rustix::process::Signal::KILL);
        }
        Ok(())
    }

    /// SIGTERM: flush, unmount, exit.
    pub fn stop(&mut self) {
        let status = self.try_stop();
        assert!(status.success(), "{status}: {}", self.log());
        assert!(!is_mounted(&self.mount()), "still mounted");
    }

    /// The same, where it may fail to.
    pub fn try_stop(&mut self) -> ExitStatus {
        terminate(self.child.as_ref().expect("running"));
        self.wait()
    }

    fn detach(&self) {
        while is_mounted(&self.mount()) {
            unmount(self.mount(), UnmountFlags::DETACH).expect("unmount");
        }
    }
}

fn terminate(child: &Child) {
    send(child.id(), rustix::process::Signal::TERM);
}

fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, signal).expect("signal");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            drop(self.kill_all(child));
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
            let others = fs::read_to_string(self.state().join("log/mount.log")).unwrap_or_default();
            eprintln!("of other mounts:\n{others}");
        }
        for dir in [self.mount(), self.ram(), self.state()] {
            if is_mounted(&dir) {
                let _ = unmount(dir, UnmountFlags::DETACH);
            }
        }
    }
}

/// Whether a mount is at `dir`, dead or alive.
#[must_use]
pub fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let dir = dir.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&*dir))
}

/// The seed of a randomised test: `KOS_SEED`, or the time. Printed, so that a failure shows it.
#[must_use]
pub fn seed() -> u64 {
    let seed = std::env::var("KOS_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos())),
        |seed| seed.parse().expect("KOS_SEED: a number"),
    );
    println!("KOS_SEED={seed}");
    seed
}

/// Randomness from a seed, xorshift64*.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The same numbers for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// `len` bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
