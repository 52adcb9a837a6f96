//! The launcher: a small process with one thread that forks, so that the daemon does not. It reads orders from
//! standard input, a JSON object a line, and writes ends to standard output. When its input ends, so does
//! everything it started.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions};
use rustix::thread::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::{Attempt, Ended, Stop, Task, session};

/// Exit statuses of programs that cannot be started, as shells have them.
const CANNOT_RUN: i32 = 126;
const NOT_FOUND: i32 = 127;
/// Open files of one process of a job.
const FILES_MAX: u64 = 65_536;
/// Bytes read of the orders at once.
const READ_BYTES: usize = 64 << 10;
/// Time that jobs have to end when the daemon does.
const GRACE: Duration = Duration::from_secs(1);

/// An order to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Start(Task),
    Stop(Attempt, Stop),
}

struct Running {
    attempt: Attempt,
    leader: Pid,
    /// Readable when it ended.
    ended: OwnedFd,
    /// What it said before it became its program: why it could not.
    why: OwnedFd,
}

/// Serve until standard input ends. `lock` is held meanwhile: attempts of an earlier launcher on the same state
/// are over before the first one of this begins.
///
/// # Errors
/// Of the pipes to the daemon, and of the lock.
pub fn run(lock: &Path) -> io::Result<()> {
    keep_from_jobs()?;
    let lock = File::options().create(true).truncate(false).write(true).open(lock)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let mut running = Vec::new();
    let served = serve(&mut running);
    running.iter().for_each(|job| session::ask(job.leader));
    let began = Instant::now();
    while began.elapsed() < GRACE && running.iter().any(|job| !is_readable(&job.ended)) {
        thread::sleep(Duration::from_millis(5));
    }
    running.into_iter().try_for_each(|job| finish(job).map(drop))?;
    served
}

fn is_readable(fd: &OwnedFd) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Whatever this process was started with stays out of the programs it starts.
fn keep_from_jobs() -> io::Result<()> {
    #[expect(unsafe_code, reason = "no safe wrapper marks a range of descriptors")]
    // SAFETY: only close-on-exec flags change; every descriptor stays open and as it is.
    let marked = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if marked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn serve(running: &mut Vec<Running>) -> io::Result<()> {
    let (orders, mut ends) = (io::stdin(), io::stdout().lock());
    let mut input = Vec::new();
    loop {
        let mut fds = vec![PollFd::new(&orders, PollFlags::IN)];
        fds.extend(running.iter().map(|job| PollFd::new(&job.ended, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut over = ready[1..].iter();
        let (done, rest) = running.drain(..).partition(|_| over.next() == Some(&true));
        *running = rest;
        for job in done {
            tell(&mut ends, &finish(job)?)?;
        }
        if ready[0] {
            let had = input.len();
            input.resize(had + READ_BYTES, 0);
            let read = rustix::io::read(orders.as_fd(), &mut input[had..])?;
            input.truncate(had + read);
            if read == 0 {
                return Ok(());
            }
            while let Some(end) = input.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                obey(serde_json::from_slice(&line)?, running, &mut ends)?;
            }
        }
    }
}

fn obey(order: Order, running: &mut Vec<Running>, ends: &mut impl Write) -> io::Result<()> {
    match order {
        Order::Start(task) => match start(&task) {
            Ok(job) => running.push(job),
            Err(e) => {
                let reason = format!("cannot start: {e}");
                tell(ends, &Ended { attempt: task.attempt, exit: CANNOT_RUN, reason })?;
            }
        },
        Order::Stop(attempt, how) => {
            // It may have ended while the order was on its way.
            if let Some(job) = running.iter().find(|job| job.attempt == attempt) {
                match how {
                    Stop::Ask => session::ask(job.leader),
                    Stop::Force => session::kill(job.leader),
                }
            }
        }
    }
    Ok(())
}

fn tell(ends: &mut impl Write, ended: &Ended) -> io::Result<()> {
    let mut line = serde_json::to_vec(ended)?;
    line.push(b'\n');
    ends.write_all(&line)?;
    ends.flush()
}

/// The leader ended, or is ended: so does what it left in the background.
fn finish(job: Running) -> io::Result<Ended> {
    session::kill(job.leader);
    let (_, status) = rustix::process::waitpid(Some(job.leader), WaitOptions::empty())?
        .ok_or_else(|| io::Error::other("waitpid: nothing ended"))?;
    let mut reason = String::new();
    File::from(job.why).read_to_string(&mut reason)?;
    let signal = status.terminating_signal();
    if let Some(signal) = signal {
        reason = format!("ended by signal {signal}");
    }
    let exit = status.exit_status().or_else(|| signal.map(|signal| 128 + signal)).unwrap_or(CANNOT_RUN);
    Ok(Ended { attempt: job.attempt, exit, reason })
}

/// Returns before the program begins: what it needs may hang, and this process serves everybody.
fn start(task: &Task) -> io::Result<Running> {
    let (why, tell_why) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    #[expect(unsafe_code, reason = "no safe wrapper forks")]
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            drop(why);
            exit(child(task, tell_why.into()))
        }
        _ => drop(tell_why),
    }
    // Negative for an error, and 0 was the child.
    let leader = Pid::from_raw(pid.max(0)).ok_or_else(io::Error::last_os_error)?;
    let ended = rustix::process::pidfd_open(leader, PidfdFlags::empty())?;
    Ok(Running { attempt: task.attempt, leader, ended, why })
}

/// Become the program; what this returns is the exit status of one that could not begin.
fn child(task: &Task, mut tell_why: File) -> i32 {
    let program = task.argv.first().map_or("", String::as_str);
    let failed = become_job(task).err().unwrap_or_else(|| {
        let mut command = Command::new(program);
        command.args(&task.argv[1..]).env_clear().envs(task.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).exec()
    });
    // Nobody is left to be told that even this fails.
    let _ = write!(tell_why, "cannot start {program}: {failed}");
    if failed.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
}

/// In the child: its own session, its limits, its submitter; only then does it touch a file.
fn become_job(task: &Task) -> io::Result<()> {
    default_signals();
    rustix::process::setsid()?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, FILES_MAX)?;
    if let Some(bytes) = task.mem_bytes {
        limit(Resource::As, bytes)?;
    }
    let uid = Uid::from_raw(task.uid);
    if rustix::process::geteuid().is_root() {
        let (gid, groups) = (Gid::from_raw(task.gid), task.groups.iter().map(|&gid| Gid::from_raw(gid)));
        rustix::thread::set_thread_groups(&groups.collect::<Vec<_>>())?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    } else if rustix::process::geteuid() != uid {
        return Err(rustix::io::Errno::PERM.into());
    }
    // After the change of user, which takes it back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    std::env::set_current_dir(&task.cwd)?;
    rustix::stdio::dup2_stdout(append_to(&task.stdout)?)?;
    rustix::stdio::dup2_stderr(append_to(&task.stderr)?)?;
    Ok(())
}

/// Whatever the daemon's starter ignored, as nohup does, is not the job's.
fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        #[expect(unsafe_code, reason = "no safe wrapper sets a signal's action")]
        // SAFETY: no handler is installed. It fails for those that cannot be changed, which are as they must be.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A regular file, as it was made: its owner may have put anything in its place.
fn append_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{} is no regular file", path.display())));
    }
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

/// Lower a limit; one that is lower already stays.
fn limit(resource: Resource, max: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let max = now.maximum.map_or(max, |own| own.min(max));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })?)
}
