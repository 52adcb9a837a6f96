//! A second mount of a test's daemon.

use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Daemon, binary, is_mounted, wait_for};

/// For one call of the helper.
const DEADLINE: Duration = Duration::from_secs(120);

/// Unmounted when dropped.
#[derive(Debug)]
pub struct Second {
    root: TempDir,
}

impl Second {
    /// Where something may be mounted.
    #[must_use]
    pub fn place() -> Self {
        Self { root: tempfile::Builder::new().prefix("kos-second").tempdir().expect("temporary directory") }
    }

    /// Mount a daemon's tree.
    #[must_use]
    pub fn mount(daemon: &Daemon) -> Self {
        Self::mount_with(daemon, "", "rw")
    }

    /// The same of a part of it, with mount(8)'s options.
    #[must_use]
    pub fn mount_with(daemon: &Daemon, subtree: &str, options: &str) -> Self {
        let second = Self::place();
        let (code, said) = second.run(&source(daemon, subtree), options);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        second
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.root.path()
    }

    /// The regions' tree.
    #[must_use]
    pub fn mem(&self) -> PathBuf {
        self.dir().join("mem")
    }

    /// The helper on this place: its exit code and what it said.
    #[must_use]
    pub fn run(&self, source: &str, options: &str) -> (Option<i32>, String) {
        run(Command::new(binary("mount-kosfs")).arg(source).arg(self.dir()).args(["-o", options]))
    }

    /// umount(8), as users do. Processes that other tests of this binary start have its open files until they are
    /// another program.
    pub fn umount(&self, lazy: bool) {
        let mut said = (None, String::new());
        wait_for("umount", || {
            said = run(Command::new("umount").args(lazy.then_some("-l")).arg(self.dir()));
            !said.1.contains("target is busy")
        });
        assert_eq!(said, (Some(0), String::new()));
        assert!(!is_mounted(self.dir()));
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        while is_mounted(self.dir()) {
            if unmount(self.dir(), UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }
}

/// Set a policy, named without `user.kos.`, of all regions.
pub fn set_policy(daemon: &Daemon, name: &str, value: &str) {
    let name = format!("user.kos.{name}");
    let set = run(Command::new("setfattr").args(["-n", &name, "-v", value]).arg(daemon.mem()));
    assert_eq!(set, (Some(0), String::new()));
}

/// Regions of class memory, so that no disk is waited for.
pub fn in_memory(daemon: &Daemon) {
    set_policy(daemon, "durability", "memory");
}

/// What mount(8) calls the daemon's tree, or a part of it.
#[must_use]
pub fn source(daemon: &Daemon, subtree: &str) -> String {
    format!("{}{subtree}", daemon.state().join("kos.sock").display())
}

/// Mounts that the daemon knows of.
#[must_use]
pub fn mounts_known(daemon: &Daemon) -> Vec<String> {
    let text = fs::read(daemon.state().join("status.json")).expect("status");
    let status: serde_json::Value = serde_json::from_slice(&text).expect("json");
    let dirs = status["mounts"].as_array().expect("mounts").iter().map(|mount| mount["dir"].as_str());
    dirs.map(|dir| dir.expect("a directory").to_owned()).collect()
}

/// The process that serves the second mount.
#[must_use]
pub fn process(daemon: &Daemon) -> Pid {
    wait_for_mounts(daemon, 2);
    let text = fs::read(daemon.state().join("status.json")).expect("status");
    let status: serde_json::Value = serde_json::from_slice(&text).expect("json");
    let pid = status["mounts"][1]["pid"].as_i64().expect("a process");
    Pid::from_raw(i32::try_from(pid).expect("a process")).expect("a process")
}

/// A process that does nothing until this is dropped: else a test that fails would wait for it for ever.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stop it.
    #[must_use]
    pub fn new(process: Pid) -> Self {
        kill_process(process, Signal::STOP).expect("stop");
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("continue");
    }
}

/// Until the status names so many mounts.
pub fn wait_for_mounts(daemon: &Daemon, count: usize) {
    wait_for("the status", || mounts_known(daemon).len() == count);
}

/// Run it: its exit code and what it said.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut said = tempfile::tempfile().expect("temporary file");
    command.stdin(Stdio::null());
    command.stdout(said.try_clone().expect("file")).stderr(said.try_clone().expect("file"));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("child") {
            break status;
        }
        if start.elapsed() > DEADLINE {
            let _ = child.kill();
            panic!("{command:?}: not within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("what it said");
    (status.code(), text)
}
