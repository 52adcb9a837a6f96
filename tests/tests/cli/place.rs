//! A state and a mount of one test alone, and `kos` on them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kos_tests::{binary, is_mounted, wait_for};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than `kos` itself ever waits, but for a sync.
pub(crate) const KOS_DEADLINE: Duration = Duration::from_secs(200);
/// For a file operation through the mount.
pub(crate) const FILE_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a test's file: several stripes of 4+2 and an end that is not whole.
pub(crate) const LEN: usize = (9 << 20) + 12_345;
pub(crate) const PROMISED: [&str; 9] = [
    "health",
    "mounts",
    "mount_source",
    "nodes",
    "nodes_up",
    "leader",
    "leader_pid",
    "under_replicated_stripes",
    "under_spread_stripes",
];

/// States and a mount of this test alone.
pub(crate) struct Place {
    pub(crate) root: TempDir,
    pub(crate) states: Vec<PathBuf>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::spread(&["state"])
    }

    pub(crate) fn spread(states: &[&str]) -> Self {
        let root = tempfile::Builder::new().prefix("kos-cli").tempdir().expect("temporary directory");
        let states = states.iter().map(|name| root.path().join(name)).collect();
        Self { root, states }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.states[0].clone()
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    pub(crate) fn ram(&self) -> PathBuf {
        self.state().join("ram")
    }

    pub(crate) fn mem(&self, name: &str) -> PathBuf {
        self.mount().join("mem").join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(binary("kos"));
        command.current_dir(self.root.path());
        command
    }

    /// `kos` with these words and nothing else, in the root of the place.
    pub(crate) fn exactly(&self, args: &[&str], code: i32) -> String {
        let mut command = self.command();
        command.args(args);
        expect(command, code)
    }

    /// `kos` with these words, on these states.
    pub(crate) fn on(&self, states: &[&Path], args: &[&str], code: i32) -> String {
        let mut command = self.command();
        command.args(args);
        for state in states {
            command.arg("--state").arg(state);
        }
        if args.first() == Some(&"up") {
            if !args.contains(&"--mount") {
                command.arg("--mount").arg(self.mount());
            }
            if !args.contains(&"--tier-ram") {
                command.args(["--tier-ram", "64M"]);
            }
        }
        expect(command, code)
    }

    /// `kos` with these words, on all states of the place.
    pub(crate) fn expect(&self, args: &[&str], code: i32) -> String {
        let states: Vec<&Path> = self.states.iter().map(PathBuf::as_path).collect();
        self.on(&states, args, code)
    }

    /// What `kos status` exits with.
    pub(crate) fn health(&self) -> Option<i32> {
        let mut command = self.command();
        command.arg("status").arg("--state").arg(self.state());
        run(command).0
    }

    pub(crate) fn status(&self, code: i32) -> Value {
        serde_json::from_str(&self.expect(&["status", "--json"], code)).expect("json")
    }

    pub(crate) fn write(&self, name: &str, data: &[u8]) {
        let (path, data) = (self.mem(name), data.to_vec());
        within("write", move || fs::write(path, data));
    }

    pub(crate) fn write_synced(&self, name: &str, data: &[u8]) {
        let (path, data) = (self.mem(name), data.to_vec());
        within("write", move || {
            let mut file = File::create(path)?;
            file.write_all(&data)?;
            file.sync_all()
        });
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let path = self.mem(name);
        within("read", move || fs::read(path))
    }

    /// The daemon, as it wrote itself down, if it lives and is ours.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let run: Value = serde_json::from_slice(&fs::read(self.state().join("run.json")).ok()?).ok()?;
        let pid = Pid::from_raw(i32::try_from(run["pid"].as_i64()?).ok()?)?;
        self.serves(pid).then_some(pid)
    }

    /// Whether a process is a daemon with our state.
    pub(crate) fn serves(&self, pid: Pid) -> bool {
        self.is_ours(pid) && !supervises(pid)
    }

    /// Whether it is one, or the supervisor of one.
    fn is_ours(&self, pid: Pid) -> bool {
        let words = cmdline(pid);
        let id = |path: PathBuf| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let state = id(self.state());
        // A relative path means what it means to that process.
        let cwd = PathBuf::from(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        let ours = |word: &[u8]| state.is_some() && id(cwd.join(OsStr::from_bytes(word))) == state;
        words.first().is_some_and(|program| program.ends_with(b"fabricd"))
            && words.windows(2).any(|pair| pair[0] == b"--state" && ours(&pair[1]))
    }

    /// All daemons with our state.
    pub(crate) fn daemons(&self) -> Vec<Pid> {
        self.processes().into_iter().filter(|pid| !supervises(*pid)).collect()
    }

    /// All their supervisors.
    pub(crate) fn supervisors(&self) -> Vec<Pid> {
        self.processes().into_iter().filter(|pid| supervises(*pid)).collect()
    }

    /// Both.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let names = fs::read_dir("/proc").expect("/proc").map(|entry| entry.expect("/proc").file_name());
        let pids = names.filter_map(|name| Pid::from_raw(name.to_str()?.parse().ok()?));
        pids.filter(|pid| self.is_ours(*pid)).collect()
    }

    /// To the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.send(self.pid().expect("running"), signal), "running");
    }

    /// To a process of this place; false when it has ended.
    pub(crate) fn send(&self, pid: Pid, signal: Signal) -> bool {
        // The handle is taken before the last look, so that no other process can be hit.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        self.is_ours(pid) && pidfd_send_signal(handle, signal).is_ok()
    }

    /// kill -9 everybody who serves the state: the supervisors first, for they would start daemons again.
    fn kill_all(&self) {
        for pids in [self.supervisors(), self.daemons()] {
            for pid in pids {
                self.send(pid, Signal::KILL);
            }
        }
    }

    /// Whether every thread of the daemon is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        let pid = self.pid().expect("running").as_raw_nonzero();
        let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
        tasks.all(|task| {
            let stat = fs::read_to_string(task.expect("task").path().join("stat")).expect("stat");
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// kill -9 the daemon and its supervisor, and wait for their end.
    pub(crate) fn kill(&self) {
        assert!(self.pid().is_some(), "running");
        self.kill_all();
        wait_for("the end", || self.processes().is_empty());
        assert!(self.state().join("run.json").exists());
        assert!(is_mounted(&self.mount()), "the dead mount is still there");
    }

    /// Type and source of every mount on a directory.
    pub(crate) fn mounts(dir: &Path) -> Vec<(String, String)> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let here = table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == dir));
        let what = here.filter_map(|line| line.split_once(" - "));
        what.map(|(_, what)| {
            let mut words = what.split(' ').map(str::to_owned);
            (words.next().expect("type"), words.next().expect("source"))
        })
        .collect()
    }

    /// The mount is there, once, and answers.
    pub(crate) fn answers(&self) {
        self.answers_from(&self.state().to_string_lossy());
    }

    /// So, with a state that was given like this.
    pub(crate) fn answers_from(&self, given: &str) {
        let mounts = Self::mounts(&self.mount());
        assert_eq!(mounts, [("fuse.kosfs".to_owned(), format!("{given}/kos.sock"))]);
        let dir = self.mount().join("mem");
        assert!(within("stat", move || fs::metadata(dir)).is_dir());
    }

    /// Nothing of a stopped node is left but its data.
    pub(crate) fn is_gone(&self) {
        assert!(self.processes().is_empty());
        assert!(!is_mounted(&self.mount()));
        assert!(!self.state().join("run.json").exists());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.state().join("log/fabricd.log")).unwrap_or_default();
            eprintln!("the daemon's log:\n{log}");
        }
        // They end also where they are stopped.
        self.kill_all();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(Path::new));
        for point in points.filter(|point| point.starts_with(self.root.path())) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// Do it in a thread, and wait for its end only so long: what hangs in a mount cannot be ended.
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    let result = result.recv_timeout(FILE_DEADLINE).unwrap_or_else(|e| panic!("{what}: {e}"));
    result.unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// Run it and expect this exit code; answers all it said.
pub(crate) fn expect(command: Command, code: i32) -> String {
    let shown = format!("{command:?}");
    let (status, said) = run(command);
    assert_eq!(status, Some(code), "{shown}: {said}");
    said
}

/// Run it without the user's settings; answers its exit code and all it said.
pub(crate) fn run(mut command: Command) -> (Option<i32>, String) {
    // Files, because a pipe would have to be emptied meanwhile.
    let mut said = tempfile::tempfile().expect("temporary file");
    command.env_remove("KOS_STATE").env_remove("KOS_MOUNT").stdin(Stdio::null());
    command.stdout(said.try_clone().expect("file")).stderr(said.try_clone().expect("file"));
    let mut child = command.spawn().expect("kos");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("kos") {
            break status;
        }
        if start.elapsed() > KOS_DEADLINE {
            let _ = child.kill();
            panic!("{command:?}: not within {KOS_DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("what it said");
    (status.code(), text)
}

/// Whether a process starts daemons, and is none.
fn supervises(pid: Pid) -> bool {
    cmdline(pid).iter().any(|word| word == b"--supervise")
}

pub(crate) fn cmdline(pid: Pid) -> Vec<Vec<u8>> {
    let bytes = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

pub(crate) fn names(said: &str, path: &Path) -> bool {
    said.contains(&*path.to_string_lossy())
}

pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("directory");
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Bytes in the segment files below a state.
pub(crate) fn shard_bytes(state: &Path) -> u64 {
    let place = state.join("shards/0");
    let segments = entries(&place).into_iter().filter(|name| name.ends_with(".kos"));
    segments.map(|name| fs::metadata(place.join(name)).expect("segment").blocks() * 512).sum()
}
