//! What waits when the daemon is killed goes on waiting, and ends as it would have ended.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, wait_for};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// Whoever does not wait has ended by then.
const MOMENT: Duration = Duration::from_millis(300);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

#[expect(unsafe_code, reason = "fcntl")]
fn range_lock(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: zeros are a valid flock, and mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    // SAFETY: the descriptor is open, and the lock lives as long as the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program of its own that takes a lock, says so, and has it until it is killed.
fn holder(path: &Path, how: &str) -> Child {
    let script = "import fcntl, sys, time\n\
        f = open(sys.argv[1], 'r+')\n\
        {'flock': fcntl.flock, 'fcntl': fcntl.lockf}[sys.argv[2]](f, fcntl.LOCK_EX)\n\
        print('locked', flush=True)\n\
        time.sleep(600)";
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(path).arg(how).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3");
    let mut said = [0; 6];
    child.stdout.as_mut().expect("stdout").read_exact(&mut said).expect("locked");
    child
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("signal");
}

type Take = fn(&File) -> io::Result<()>;
type Give = fn(&File) -> io::Result<()>;
const KINDS: [(&str, Take, Give); 2] = [
    (
        "flock",
        |file| Ok(flock(file, FlockOperation::LockExclusive)?),
        |file| Ok(flock(file, FlockOperation::Unlock)?),
    ),
    (
        "open file",
        |file| range_lock(file, libc::F_OFD_SETLKW, libc::F_WRLCK),
        |file| range_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK),
    ),
];

#[test]
fn who_waits_for_a_lock_is_granted_it_after_crashes() {
    let mut daemon = Daemon::supervised(0);
    for (name, take, give) in KINDS {
        let path = daemon.mem().join(name);
        let (held, waits, third) = (open(&path), open(&path), open(&path));
        take(&held).expect("lock");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| take(&waits));
            thread::sleep(MOMENT);
            for _ in 0..3 {
                daemon.crash();
                thread::sleep(MOMENT);
                assert!(!waiting.is_finished(), "{name}: two have it");
            }
            give(&held).expect("unlock");
            waiting.join().expect("thread").expect("granted");
            let waiting = scope.spawn(|| take(&third));
            daemon.crash();
            thread::sleep(MOMENT);
            assert!(!waiting.is_finished(), "{name}: what was granted after a crash is held after the next");
            give(&waits).expect("unlock");
            waiting.join().expect("thread").expect("granted");
        });
    }
    daemon.stop();
}

#[test]
fn a_holder_that_is_killed_while_no_daemon_serves_holds_nothing() {
    let mut daemon = Daemon::supervised(0);
    for how in ["flock", "fcntl"] {
        let path = daemon.mem().join(how);
        let waits = open(&path);
        let mut holder = holder(&path, how);
        thread::scope(|scope| {
            let wait = || match how {
                "flock" => Ok(flock(&waits, FlockOperation::LockExclusive)?),
                _ => range_lock(&waits, libc::F_SETLKW, libc::F_WRLCK),
            };
            let waiting = scope.spawn(wait);
            thread::sleep(MOMENT);
            assert!(!waiting.is_finished(), "{how}");
            let serving = daemon.serving_pid().expect("a daemon");
            signal(serving, Signal::KILL);
            holder.kill().expect("kill");
            waiting.join().expect("thread").expect("granted");
            holder.wait().expect("wait");
        });
        wait_for("the next daemon", || daemon.serving_pid().is_some());
    }
    daemon.stop();
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[test]
#[expect(unsafe_code, reason = "signals")]
fn a_signal_ends_a_wait_that_began_before_the_crash() {
    let mut daemon = Daemon::supervised(0);
    // SAFETY: the handler does nothing, and zeros are a valid sigaction.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "sigaction");
    for (name, take, give) in KINDS {
        let path = daemon.mem().join(name);
        let (held, waits) = (open(&path), open(&path));
        take(&held).expect("lock");
        let (says, hears) = mpsc::channel();
        let ended = thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                says.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("heard");
                take(&waits)
            });
            let thread = hears.recv().expect("said");
            thread::sleep(MOMENT);
            daemon.crash();
            thread::sleep(MOMENT);
            assert!(!waiting.is_finished(), "{name}");
            // SAFETY: the thread lives, and its handler does nothing.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
            assert_eq!(sent, 0, "tgkill");
            waiting.join().expect("thread")
        });
        assert_eq!(ended.expect_err("interrupted").raw_os_error(), Some(libc::EINTR), "{name}");
        give(&held).expect("unlock");
        let third = open(&path);
        take(&third).expect("it left nothing");
    }
    daemon.stop();
}

/// A job ends with its node; whoever waits for it is told so.
#[test]
fn who_waits_for_a_job_is_answered_after_the_crash() {
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    fs::write(jobs.join("long"), "#!/bin/sh\n#KOS --restart=no\ntouch begun\nsleep 600\n").expect("drop");
    let job = jobs.join("by-name/long");
    wait_for("the job", || job.join("work/begun").exists());
    let begun = fs::canonicalize(&job).expect("its directory");
    let mut before = File::open(begun.join("status")).expect("status");
    let wait = begun.join("wait");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| fs::read_to_string(&wait).expect("wait"));
        thread::sleep(MOMENT);
        assert!(!waiting.is_finished());
        daemon.crash();
        assert_eq!(waiting.join().expect("thread"), "137\n");
    });
    let mut text = String::new();
    before.read_to_string(&mut text).expect("what was opened before the crash");
    assert!(text.contains("state = \"lost\""), "{text}");
    daemon.stop();
}
