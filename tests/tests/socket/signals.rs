//! Signals for programs that wait for a mount.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kos_tests::unnamed::own_session;
use kos_tests::{Daemon, Rng};
use rustix::process::{Pid, Signal, kill_process};

use crate::second::*;

/// A program that was killed is gone long before.
const SOON: Duration = Duration::from_secs(30);
/// Time to begin to wait.
const BEGIN: Duration = Duration::from_millis(500);

/// A request waits so long for a daemon that is away.
fn away() -> String {
    format!("session={},timeout=120", own_session())
}

/// A daemon that is stopped while this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(daemon: &Daemon) -> Self {
        let pid = Pid::from_raw(daemon.pid().cast_signed()).expect("pid");
        kill_process(pid, Signal::STOP).expect("stop");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("continue");
    }
}

fn reader(file: &File) -> Child {
    // It tells how far it is at each USR1.
    Command::new("dd")
        .arg("bs=1M")
        .stdin(file.try_clone().expect("clone"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("dd")
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("signal");
}

#[test]
fn a_killed_reader_does_not_wait_for_the_daemon() {
    let mut daemon = Daemon::start();
    fs::write(daemon.mem().join("file"), Rng::new(1).bytes(1 << 20)).expect("write");
    let second = Second::mount_with(&daemon, "", &away());
    let file = File::open(second.mem().join("file")).expect("open");
    // The kernel tells of the first signal only.
    for before in [None, Some(Signal::USR1)] {
        let stopped = Stopped::new(&daemon);
        let mut reader = reader(&file);
        thread::sleep(BEGIN);
        if let Some(before) = before {
            signal(&reader, before);
            thread::sleep(BEGIN);
        }
        assert!(reader.try_wait().expect("wait").is_none(), "it reads");
        reader.kill().expect("kill");
        let killed = Instant::now();
        while reader.try_wait().expect("wait").is_none() {
            assert!(killed.elapsed() < SOON, "it waits for its answer");
            thread::sleep(Duration::from_millis(10));
        }
        drop(stopped);
        assert_eq!(fs::read(second.mem().join("file")).expect("read"), Rng::new(1).bytes(1 << 20));
    }
    drop(file);
    second.umount(false);
    daemon.stop();
}

/// As on a local filesystem, where nothing that reads or looks ends with EINTR.
#[test]
fn a_signal_that_does_not_kill_ends_nothing() {
    let mut daemon = Daemon::start();
    fs::write(daemon.mem().join("file"), Rng::new(2).bytes(1 << 20)).expect("write");
    let second = Second::mount_with(&daemon, "", &away());
    let file = File::open(second.mem().join("file")).expect("open");
    let stopped = Stopped::new(&daemon);
    let mut reader = reader(&file);
    for _ in 0..5 {
        thread::sleep(BEGIN / 5);
        signal(&reader, Signal::USR1);
    }
    thread::sleep(BEGIN);
    assert!(reader.try_wait().expect("wait").is_none(), "it reads");
    drop(stopped);
    let mut read = Vec::new();
    reader.stdout.take().expect("piped").read_to_end(&mut read).expect("read");
    assert!(reader.wait().expect("wait").success() && read == Rng::new(2).bytes(1 << 20));
    drop(file);
    second.umount(false);
    daemon.stop();
}
