//! Hot restarts: the daemon is killed, or hands over to a new one, and programs that use the mount see a delay and no error.

mod changes;
mod ends;
mod jobs;
mod programs;
mod room;
mod sealed;
mod second;
mod waits;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng, seed, wait_for};
use programs::Program;
use rustix::process::{Pid, Signal, kill_process};

/// Restarts of each kind in one run.
const TIMES: u64 = 20;
const RAM_BYTES: u64 = 256 << 20;

/// Run all programs, and `disturb` the daemon so many times meanwhile.
fn programs_go_on(daemon: &Daemon, all: &[(&str, Program)], disturb: impl Fn(u64)) {
    let seed = seed();
    let stop = AtomicBool::new(false);
    let dirs: Vec<_> = all.iter().map(|(name, _)| daemon.mem().join(name)).collect();
    for dir in &dirs {
        fs::create_dir(dir).expect("mkdir");
    }
    thread::scope(|scope| {
        let running: Vec<_> = all
            .iter()
            .zip(&dirs)
            .map(|(&(name, program), dir)| {
                let (stop, rng) = (&stop, Rng::new(seed ^ name.len() as u64));
                (name, scope.spawn(move || program(dir, rng, stop)))
            })
            .collect();
        let mut rng = Rng::new(seed);
        for round in 0..TIMES {
            thread::sleep(Duration::from_millis(rng.below(300)));
            disturb(round);
            if running.iter().any(|(_, program)| program.is_finished()) {
                break;
            }
        }
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::SeqCst);
        for (name, program) in running {
            let rounds = program.join().unwrap_or_else(|_| panic!("{name} failed"));
            println!("{name}: {rounds} rounds");
            assert!(rounds > 0, "{name} did nothing");
        }
    });
}

#[test]
fn programs_see_no_error_while_the_daemon_is_killed() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &programs::ALL, |_| daemon.crash());
    daemon.stop();
}

#[test]
fn programs_see_no_error_while_the_daemon_is_replaced() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &programs::ALL, |_| daemon.upgrade());
    daemon.stop();
}

#[test]
fn further_programs_see_no_error_while_the_daemon_is_killed() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &changes::ALL, |_| daemon.crash());
    daemon.stop();
}

#[test]
fn further_programs_see_no_error_while_the_daemon_is_replaced() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &changes::ALL, |_| daemon.upgrade());
    daemon.stop();
}

fn kill(pid: u32) {
    // It may be gone by itself.
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), Signal::KILL);
}

/// Kill the daemon, and so long after that the one that is just taking over.
fn crash_twice(daemon: &Daemon, pause: Duration) {
    let first = daemon.serving_pid().expect("a daemon");
    kill(first);
    thread::sleep(pause);
    let next = daemon.child_pid().filter(|&next| next != first);
    next.into_iter().for_each(kill);
    wait_for("the next daemon", || {
        daemon
            .serving_pid()
            .is_some_and(|pid| pid != first && Some(pid) != next && daemon.child_pid() == Some(pid))
    });
}

#[test]
fn programs_see_no_error_while_daemons_are_killed_that_are_taking_over() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &programs::ALL, |round| {
        crash_twice(&daemon, Duration::from_millis(round * 5));
    });
    daemon.stop();
}

#[test]
fn further_programs_see_no_error_while_daemons_are_killed_that_are_taking_over() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    programs_go_on(&daemon, &changes::ALL, |round| {
        crash_twice(&daemon, Duration::from_millis(round * 5));
    });
    daemon.stop();
}

/// What was open, locked, mapped, written and not flushed, unlinked and not closed: all of it is there.
#[test]
fn what_programs_have_is_theirs_after_a_kill() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    let at = |name: &str| daemon.mem().join(name);
    let open =
        |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(at(name));
    let mut written = open("written").expect("open");
    written.write_all(b"not flushed").expect("write");
    let mut unlinked = open("unlinked").expect("open");
    unlinked.write_all(b"no name").expect("write");
    fs::remove_file(at("unlinked")).expect("unlink");
    let times = fs::metadata(at("written")).expect("stat");
    fs::create_dir(at("dir")).expect("mkdir");

    daemon.crash();

    assert_eq!(fs::read(at("written")).expect("read"), b"not flushed");
    let now = fs::metadata(at("written")).expect("stat");
    assert_eq!((now.mtime(), now.mtime_nsec()), (times.mtime(), times.mtime_nsec()));
    let mut text = String::new();
    unlinked.rewind().expect("seek");
    unlinked.read_to_string(&mut text).expect("read");
    assert_eq!(text, "no name");
    written.write_all(b", and more").expect("write");
    written.sync_all().expect("fsync");
    assert!(fs::create_dir(at("dir")).is_err(), "made twice");

    daemon.crash();

    let mut bytes = [0; 21];
    written.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"not flushed, and more");
    unlinked.read_exact_at(&mut bytes[..7], 0).expect("read");
    assert_eq!(&bytes[..7], b"no name");
    let inode = unlinked.metadata().expect("stat").ino();
    drop((written, unlinked));
    daemon.stop();
    daemon.spawn();
    assert_eq!(fs::read(daemon.mem().join("written")).expect("read"), b"not flushed, and more");
    assert!(
        fs::read_dir(daemon.mem()).expect("list").all(|entry| entry
            .expect("entry")
            .metadata()
            .expect("stat")
            .ino()
            != inode)
    );
    daemon.stop();
}
