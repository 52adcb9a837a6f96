//! Locks of fcntl(2) and flock(2) between two mounts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kos_tests::unnamed::{SESSION, own_session};
use kos_tests::{Daemon, wait_for};
use rustix::fs::FlockOperation;

use crate::second::*;

/// Of the open file, so that threads exclude each other as processes do.
#[expect(unsafe_code, reason = "fcntl")]
fn ofd(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    (start, len): (i64, i64),
) -> io::Result<libc::flock> {
    // SAFETY: zeros are a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the descriptor is open, and the lock lives as long as the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == 0 { Ok(lock) } else { Err(io::Error::last_os_error()) }
}

fn open(dir: &Path, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(name)).expect("open")
}

fn is_free(file: &File, kind: libc::c_int, span: (i64, i64)) -> bool {
    let found = ofd(file, libc::F_OFD_GETLK, kind, span).expect("getlk");
    i32::from(found.l_type) == libc::F_UNLCK
}

fn take(file: &File, kind: libc::c_int, span: (i64, i64)) -> Result<(), i32> {
    ofd(file, libc::F_OFD_SETLK, kind, span).map(drop).map_err(|e| e.raw_os_error().unwrap_or(0))
}

fn wait_until_locked(file: &File, span: (i64, i64)) -> io::Result<()> {
    ofd(file, libc::F_OFD_SETLKW, libc::F_WRLCK, span).map(drop)
}

#[test]
fn two_mounts_exclude_each_other() {
    let mut daemon = Daemon::with_ram(0);
    let before = open(&daemon.mem(), "file");
    // Taken before there is a second mount.
    take(&before, libc::F_WRLCK, (0, 10)).expect("lock");
    let second = Second::mount(&daemon);
    let there = open(&second.mem(), "file");
    assert_eq!(take(&there, libc::F_WRLCK, (9, 5)), Err(libc::EAGAIN));
    assert_eq!(take(&there, libc::F_RDLCK, (0, 1)), Err(libc::EAGAIN));
    let found = ofd(&there, libc::F_OFD_GETLK, libc::F_RDLCK, (5, 0)).expect("getlk");
    assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (libc::F_WRLCK, 0, 10));
    take(&there, libc::F_WRLCK, (10, 0)).expect("beside it, to the end");
    assert_eq!(take(&before, libc::F_WRLCK, (1 << 40, 1)), Err(libc::EAGAIN));
    take(&before, libc::F_RDLCK, (0, 10)).expect("weaker");
    take(&there, libc::F_RDLCK, (0, 10)).expect("readers share");
    assert_eq!(take(&before, libc::F_WRLCK, (0, 10)), Err(libc::EAGAIN));
    // The end of an open file is the end of its locks.
    drop(there);
    wait_for("the locks' end", || is_free(&before, libc::F_WRLCK, (0, 0)));
    second.umount(true);
    daemon.stop();
}

/// Without leases a lock is what brings the other's bytes: taken, it reads what was written before it was given back.
#[test]
fn a_lock_brings_what_was_released_with_it() {
    const ROUNDS: u64 = 100;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    set_policy(&daemon, "consistency", "release");
    fs::write(daemon.mem().join("count"), [0; 8192]).expect("write");
    let second = Second::mount(&daemon);
    let files = [open(&daemon.mem(), "count"), open(&second.mem(), "count")];
    thread::scope(|scope| {
        for file in &files {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    wait_until_locked(file, (0, 8)).expect("lock");
                    let mut count = [0; 8];
                    file.read_exact_at(&mut count, 0).expect("read");
                    let next = u64::from_le_bytes(count) + 1;
                    file.write_all_at(&next.to_le_bytes(), 0).expect("write");
                    take(file, libc::F_UNLCK, (0, 8)).expect("unlock");
                }
            });
        }
    });
    drop(files);
    let count = fs::read(second.mem().join("count")).expect("read");
    assert_eq!(count[..8], (2 * ROUNDS).to_le_bytes());
    second.umount(false);
    daemon.stop();
}

#[test]
fn one_that_waits_is_woken_and_killed_holders_hold_nothing() {
    let mut daemon = Daemon::with_ram(0);
    let second = Second::mount(&daemon);
    let (here, there) = (open(&daemon.mem(), "file"), open(&second.mem(), "file"));
    for (holder, waiter) in [(&here, &there), (&there, &here)] {
        take(holder, libc::F_WRLCK, (0, 0)).expect("lock");
        thread::scope(|scope| {
            // More than a mount has threads: none is held.
            let waiting: Vec<_> =
                (0..20).map(|nth| scope.spawn(move || wait_until_locked(waiter, (nth, 1)))).collect();
            thread::sleep(Duration::from_millis(300));
            assert!(waiting.iter().all(|thread| !thread.is_finished()));
            assert!(waiter.metadata().is_ok(), "the mount answers");
            take(holder, libc::F_UNLCK, (0, 0)).expect("unlock");
            for thread in waiting {
                thread.join().expect("thread").expect("locked");
            }
        });
        take(waiter, libc::F_UNLCK, (0, 0)).expect("unlock");
    }
    // The other mount's process dies with a lock.
    take(&there, libc::F_WRLCK, (0, 0)).expect("lock");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wait_until_locked(&here, (0, 1)));
        thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        kill(second_pid(&daemon));
        waiting.join().expect("thread").expect("locked");
    });
    drop(there);
    daemon.stop();
}

fn second_pid(daemon: &Daemon) -> u32 {
    wait_for_mounts(daemon, 2);
    let text = fs::read(daemon.state().join("status.json")).expect("status");
    let status: serde_json::Value = serde_json::from_slice(&text).expect("json");
    u32::try_from(status["mounts"][1]["pid"].as_u64().expect("pid")).expect("a pid")
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[test]
fn a_ring_over_two_mounts_is_a_deadlock() {
    let mut daemon = Daemon::with_ram(0);
    let second = Second::mount(&daemon);
    let files = |dir: &Path| [open(dir, "a"), open(dir, "b")];
    let ([a_here, b_here], [a_there, b_there]) = (files(&daemon.mem()), files(&second.mem()));
    // The owner is the open file, so one that waits for its own first lock is no ring; but this is.
    take(&a_here, libc::F_WRLCK, (0, 1)).expect("lock");
    take(&a_there, libc::F_WRLCK, (1, 1)).expect("lock");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wait_until_locked(&a_here, (1, 1)));
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        let refused = wait_until_locked(&a_there, (0, 1)).expect_err("it would wait for itself");
        assert_eq!(refused.raw_os_error(), Some(libc::EDEADLK));
        take(&a_there, libc::F_UNLCK, (0, 0)).expect("unlock");
        waiting.join().expect("thread").expect("locked");
    });
    // Another file's locks have nothing to do with it.
    take(&b_here, libc::F_WRLCK, (0, 1)).expect("lock");
    assert_eq!(take(&b_there, libc::F_WRLCK, (0, 1)), Err(libc::EAGAIN));
    drop([a_here, b_here, a_there, b_there]);
    daemon.stop();
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[test]
#[expect(unsafe_code, reason = "signals")]
fn a_signal_ends_the_wait() {
    let mut daemon = Daemon::with_ram(0);
    let (held, waiter) = (open(&daemon.mem(), "file"), open(&daemon.mem(), "file"));
    take(&held, libc::F_WRLCK, (0, 0)).expect("lock");
    // SAFETY: the handler does nothing, and zeros are a valid sigaction.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "sigaction");
    let (says, hears) = std::sync::mpsc::channel();
    let ended = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            says.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("heard");
            wait_until_locked(&waiter, (0, 1))
        });
        let thread = hears.recv().expect("said");
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        // SAFETY: the thread lives, and its handler does nothing.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
        assert_eq!(sent, 0, "tgkill");
        waiting.join().expect("thread")
    });
    assert_eq!(ended.expect_err("interrupted").raw_os_error(), Some(libc::EINTR));
    take(&held, libc::F_UNLCK, (0, 0)).expect("unlock");
    assert!(is_free(&held, libc::F_WRLCK, (0, 0)), "it left nothing");
    drop((held, waiter));
    daemon.stop();
}

#[test]
fn locks_outlive_the_daemon() {
    let mut daemon = Daemon::with_ram(0);
    let second = Second::mount(&daemon);
    let there = open(&second.mem(), "file");
    take(&there, libc::F_WRLCK, (5, 5)).expect("lock");
    daemon.kill();
    daemon.spawn();
    // The mount has told the new daemon of it before this is answered.
    assert!(there.metadata().is_ok());
    let here = open(&daemon.mem(), "file");
    assert!(!is_free(&here, libc::F_RDLCK, (7, 1)) && is_free(&here, libc::F_WRLCK, (0, 5)));
    drop(there);
    wait_for("its end", || is_free(&here, libc::F_WRLCK, (0, 0)));
    drop(here);
    daemon.stop();
}

#[test]
fn sqlite_from_both_mounts_keeps_its_integrity() {
    const EACH: usize = 60;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    // In rollback-journal mode, as by default; whoever adds looks first.
    let sql = |dir: &Path, statements: &str| {
        run(Command::new("sqlite3")
            .args(["-bail", "-cmd", ".timeout 100000"])
            .arg(dir.join("db"))
            .arg(statements))
    };
    let add =
        "begin immediate; insert into t select coalesce(max(n), 0) + 1, hex(randomblob(500)) from t; commit;";
    let made = sql(&daemon.mem(), "create table t (n integer primary key, text)");
    assert_eq!(made, (Some(0), String::new()));
    let ok = (Some(0), "ok\n".to_owned());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let checks = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                assert_eq!(sql(&second.mem(), "pragma integrity_check"), ok);
            }
        });
        let writers: Vec<_> = [daemon.mem(), second.mem(), daemon.mem(), second.mem()]
            .map(|dir| scope.spawn(move || sql(&dir, &add.repeat(EACH))))
            .into_iter()
            .collect();
        let ends: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::Relaxed);
        checks.join().expect("checks");
        for end in ends {
            assert_eq!(end.expect("writer"), (Some(0), String::new()));
        }
    });
    for dir in [daemon.mem(), second.mem()] {
        assert_eq!(sql(&dir, "pragma integrity_check"), ok);
        let counts = format!("{0}|{0}\n", 4 * EACH);
        assert_eq!(sql(&dir, "select count(*), max(n) from t"), (Some(0), counts));
    }
    second.umount(false);
    daemon.stop();
}

/// Two mounts that speak with the kernel so.
fn mounts_by(session: &str) -> (Daemon, Second) {
    let mut daemon = Daemon::unstarted(0);
    daemon.env.push((SESSION.into(), session.into()));
    daemon.spawn();
    let second = Second::mount_with(&daemon, "", &format!("session={session}"));
    (daemon, second)
}

#[test]
fn flock_and_fcntl_locks_are_apart_and_of_both_mounts() {
    let (mut daemon, second) = mounts_by(own_session());
    let [first, same] = [0, 1].map(|_| open(&daemon.mem(), "file"));
    let other = open(&second.mem(), "file");
    let flock = |file: &File, how| rustix::fs::flock(file, how).map_err(rustix::io::Errno::raw_os_error);
    let (exclusive, shared) =
        (FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared);
    flock(&first, exclusive).expect("flock");
    assert_eq!([&same, &other].map(|file| flock(file, shared)), [Err(libc::EWOULDBLOCK); 2]);
    // Neither sees the other.
    take(&other, libc::F_WRLCK, (0, 0)).expect("fcntl");
    assert_eq!(take(&first, libc::F_RDLCK, (5, 1)), Err(libc::EAGAIN));
    flock(&first, shared).expect("weaker");
    flock(&other, shared).expect("readers share");
    assert_eq!(flock(&first, exclusive), Err(libc::EWOULDBLOCK));
    // It is the open file's: another descriptor of it keeps the lock, and its last one ends it.
    flock(&other, FlockOperation::Unlock).expect("unlock");
    flock(&first, exclusive).expect("alone");
    let twin = first.try_clone().expect("dup");
    drop(first);
    assert_eq!(flock(&other, shared), Err(libc::EWOULDBLOCK));
    drop(twin);
    wait_for("its end", || flock(&other, exclusive).is_ok());
    // One that waits is woken by the other mount.
    thread::scope(|scope| {
        let waits = scope.spawn(|| rustix::fs::flock(&same, FlockOperation::LockExclusive));
        thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        flock(&other, FlockOperation::Unlock).expect("unlock");
        waits.join().expect("thread").expect("granted");
    });
    drop((same, other));
    second.umount(false);
    daemon.stop();
}

#[test]
fn a_signal_ends_the_wait_for_a_flock() {
    let (mut daemon, second) = mounts_by(own_session());
    let held = open(&daemon.mem(), "file");
    rustix::fs::flock(&held, FlockOperation::LockExclusive).expect("flock");
    for dir in [daemon.mem(), second.mem()] {
        let mut waits = Command::new("flock").arg(dir.join("file")).arg("true").spawn().expect("flock");
        thread::sleep(Duration::from_millis(300));
        assert!(waits.try_wait().expect("wait").is_none());
        waits.kill().expect("kill");
        let mut ended = None;
        wait_for("its end", || {
            ended = waits.try_wait().expect("wait");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| !status.success()));
    }
    // They left nothing behind.
    drop(held);
    let next = open(&second.mem(), "file");
    wait_for("the lock", || rustix::fs::flock(&next, FlockOperation::NonBlockingLockExclusive).is_ok());
    drop(next);
    second.umount(false);
    daemon.stop();
}

#[test]
fn fuser_leaves_flock_to_each_mount() {
    let (mut daemon, second) = mounts_by("fuser");
    let [first, same] = [0, 1].map(|_| open(&daemon.mem(), "file"));
    let other = open(&second.mem(), "file");
    let take = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    take(&first).expect("flock");
    take(&same).expect_err("held in this mount");
    take(&other).expect("the other mount knows nothing of it");
    drop(first);
    take(&same).expect("free again");
    drop((same, other));
    second.umount(false);
    daemon.stop();
}
