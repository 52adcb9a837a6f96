//! The supervisor as a process of its own with daemons below it, all of this test's program.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::flag;

use super::wire::{self, Word};
use super::{DEVICES_MAX, HANDED_OVER, Link, keeper};

const DIR: &str = "KOS_TEST_SUPERVISOR";
const DEADLINE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn role(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    let test = format!("supervisor::tests::{name}");
    command.args(["--ignored", "--exact", &test, "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command
}

/// A supervisor and its directory, in which the file `mode` says what daemons do, and `lives` has a line from each.
struct Supervisor {
    dir: tempfile::TempDir,
    child: Child,
}

impl Supervisor {
    fn start(mode: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("kos-fuse").tempdir().expect("temporary directory");
        fs::write(dir.path().join("mode"), mode).expect("mode");
        let log = File::create(dir.path().join("log")).expect("log");
        let mut command = role("supervise", dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let child = command.spawn().expect("supervisor");
        Self { dir, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn says(&self, mode: &str) {
        fs::write(self.path("mode"), mode).expect("mode");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("log")
    }

    /// What the daemons found, once there were so many that serve.
    fn lives(&self, count: usize) -> Vec<String> {
        wait_for(&format!("{count} lives"), || lines(&self.path("lives")).len() >= count);
        lines(&self.path("lives"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal");
    }

    /// kill -9 the daemon that has just come to serve.
    fn crash(&self) {
        let lives = lines(&self.path("pids"));
        let pid = lives.last().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a daemon"), Signal::KILL).expect("kill");
    }

    fn ends(&mut self) -> i32 {
        wait_for("the end", || self.child.try_wait().expect("supervisor").is_some());
        self.child.wait().expect("supervisor").code().expect("a code")
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log:\n{}", self.log());
        }
        drop(self.child.kill());
        drop(self.child.wait());
        // A daemon goes on without it, but not without this.
        let _ = fs::remove_file(self.path("mode"));
    }
}

#[test]
#[ignore = "no test: the supervisor of the others"]
fn supervise() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let command = {
        let dir = dir.clone();
        Box::new(move |program: &Path| {
            let mut command = role("daemon", &dir);
            command.env("KOS_TEST_PROGRAM", program);
            if program.is_relative() { command } else { Command::new(program) }
        })
    };
    let code = keeper::run("first".as_ref(), command, &dir.join("upgrade")).expect("supervises");
    std::process::exit(code.into());
}

#[test]
#[ignore = "no test: the daemon of the others"]
fn daemon() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let (stop, hand_over) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    flag::register(SIGTERM, Arc::clone(&stop)).expect("signal");
    flag::register(SIGHUP, Arc::clone(&hand_over)).expect("signal");
    let append = |name: &str, line: String| {
        let file = File::options().create(true).append(true).open(dir.join(name));
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).expect("line");
    };
    let (link, kept) = Link::take().expect("a link");
    assert_eq!(fs::read_link("/proc/self/fd/0").expect("stdin"), Path::new("/dev/null"));
    assert_eq!(link.supervisor(), std::os::unix::process::parent_id());
    let mode = fs::read_to_string(dir.join("mode")).unwrap_or_default();
    if let Some(code) = mode.strip_prefix("exit ") {
        append("starts", code.to_owned());
        std::process::exit(code.parse().expect("a code"));
    }
    let mut found = String::new();
    let devices = kept.devices.len();
    if let Some(memory) = kept.memory {
        let mut memory = File::from(memory);
        memory.rewind().and_then(|()| memory.read_to_string(&mut found)).expect("memory");
    } else if mode != "nothing" {
        fs::write(dir.join("memory"), "left").expect("memory");
        let file = File::open(dir.join("memory")).expect("memory");
        link.keep_memory(file.as_fd()).expect("kept");
        (0..3).for_each(|_| link.keep_device(file.as_fd()).expect("kept"));
    }
    link.serving().expect("says so");
    append("pids", std::process::id().to_string());
    let program = std::env::var("KOS_TEST_PROGRAM").expect("a program");
    append("lives", format!("{program}: {devices} devices, memory {found:?}"));
    let mut lost = false;
    while dir.join("mode").exists() {
        if stop.load(Ordering::SeqCst) {
            std::process::exit(0);
        }
        if hand_over.load(Ordering::SeqCst) {
            std::process::exit(HANDED_OVER.into());
        }
        if !lost && link.is_lost() {
            lost = true;
            append("lost", format!("{:?}", link.serving().map_err(|e| e.kind())));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

const FRESH: &str = "first: 0 devices, memory \"\"";
const AGAIN: &str = "first: 3 devices, memory \"left\"";

#[test]
fn what_was_left_survives_crashes_until_a_clean_end() {
    let mut supervisor = Supervisor::start("serve");
    assert_eq!(supervisor.lives(1), [FRESH]);
    supervisor.crash();
    assert_eq!(supervisor.lives(2), [FRESH, AGAIN]);
    supervisor.crash();
    assert_eq!(supervisor.lives(3), [FRESH, AGAIN, AGAIN]);
    assert!(supervisor.log().contains("ended by signal 9; started again"));
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.ends(), 0);
    assert_eq!(supervisor.lives(3).len(), 3);
}

#[test]
fn a_daemon_that_left_nothing_is_not_started_again() {
    let mut supervisor = Supervisor::start("nothing");
    supervisor.lives(1);
    supervisor.crash();
    assert_eq!(supervisor.ends(), 137);
    assert_eq!(Supervisor::start("exit 3").ends(), 3);
}

#[test]
fn starts_that_fail_are_given_up() {
    let mut supervisor = Supervisor::start("serve");
    supervisor.lives(1);
    supervisor.says("exit 9");
    supervisor.crash();
    assert_eq!(supervisor.ends(), 1);
    assert_eq!(lines(&supervisor.path("starts")).len(), 5);
    assert!(supervisor.log().contains("given up after 5 starts"));
}

#[test]
fn a_stop_between_two_daemons_ends_the_next() {
    let mut supervisor = Supervisor::start("serve");
    supervisor.lives(1);
    supervisor.says("exit 9");
    supervisor.crash();
    wait_for("a failed start", || !lines(&supervisor.path("starts")).is_empty());
    supervisor.signal(Signal::TERM);
    supervisor.says("serve");
    assert_eq!(supervisor.ends(), 0);
    assert_eq!(supervisor.lives(2)[1], AGAIN, "it served before it ended");
}

#[test]
fn an_upgrade_starts_the_program_that_is_named_and_what_is_none_gives_way() {
    let mut supervisor = Supervisor::start("serve");
    supervisor.lives(1);
    fs::write(supervisor.path("upgrade"), "second\n").expect("upgrade");
    supervisor.signal(Signal::HUP);
    let second = AGAIN.replace("first", "second");
    assert_eq!(supervisor.lives(2)[1], second);
    assert!(!supervisor.path("upgrade").exists(), "named once");
    for (nth, wrong) in ["/no/such/program", "/bin/false"].into_iter().enumerate() {
        fs::write(supervisor.path("upgrade"), wrong).expect("upgrade");
        supervisor.signal(Signal::HUP);
        assert_eq!(supervisor.lives(3 + nth)[2 + nth], second);
    }
    assert_eq!(supervisor.log().matches("back to the previous program").count(), 2);
    supervisor.signal(Signal::HUP);
    assert_eq!(supervisor.lives(5)[4], second, "without a name it is the same");
    supervisor.signal(Signal::INT);
    assert_eq!(supervisor.ends(), 0);
}

#[test]
fn a_daemon_hears_that_its_supervisor_is_gone() {
    let supervisor = Supervisor::start("serve");
    supervisor.lives(1);
    supervisor.signal(Signal::KILL);
    wait_for("the loss", || !lines(&supervisor.path("lost")).is_empty());
    assert_eq!(lines(&supervisor.path("lost")), ["Err(BrokenPipe)"]);
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair")
}

#[test]
fn a_link_takes_everything_or_says_why_not() {
    let brief = Duration::from_millis(20);
    let (ours, theirs) = pair();
    let e = Link::over(theirs, brief).expect_err("nothing comes");
    assert_eq!(e.kind(), std::io::ErrorKind::TimedOut);
    drop(ours);

    let (ours, theirs) = pair();
    let file = tempfile::tempfile().expect("file");
    wire::send(ours.as_fd(), Word::Device, Some(file.as_fd())).expect("sent");
    drop(ours);
    let e = Link::over(theirs, DEADLINE).expect_err("it is gone");
    assert_eq!(e.kind(), std::io::ErrorKind::UnexpectedEof);

    let (ours, theirs) = pair();
    wire::send(ours.as_fd(), Word::Memory, Some(file.as_fd())).expect("sent");
    for _ in 0..DEVICES_MAX - 1 {
        wire::send(ours.as_fd(), Word::Device, Some(file.as_fd())).expect("all fit");
    }
    wire::send(ours.as_fd(), Word::All, None).expect("sent");
    let (link, kept) = Link::over(theirs, DEADLINE).expect("taken");
    assert!(kept.memory.is_some() && kept.devices.len() == DEVICES_MAX - 1);
    let all = kept.devices.iter().chain(&kept.memory);
    assert!(all.map(rustix::io::fcntl_getfd).all(|flags| flags == Ok(rustix::io::FdFlags::CLOEXEC)));
    link.keep_device(file.as_fd()).expect("the last");
    let e = link.keep_device(file.as_fd()).expect_err("too many");
    assert_eq!(e.kind(), std::io::ErrorKind::QuotaExceeded);
    assert!(link.keeps_devices() && !link.is_lost());
    drop(ours);
    assert!(link.is_lost() && !link.keeps_devices());
}
