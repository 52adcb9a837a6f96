//! The launcher: a small process with one thread that forks, so that the daemon does not. It reads orders from
//! standard input, a JSON object a line, and writes ends to standard output. When its input ends, so does
//! everything it started.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
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

/// An order to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Start(Task),
    Stop(Attempt, Stop),
}

struct Running {
    attempt: Attempt,
    child: Child,
    leader: Pid,
    /// Readable when it ended.
    ended: OwnedFd,
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
    for job in &mut running {
        session::kill(job.leader);
        job.child.wait()?;
    }
    served
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
                let program = task.argv.first().map_or("", String::as_str);
                let exit = if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
                let reason = format!("cannot start {program}: {e}");
                tell(ends, &Ended { attempt: task.attempt, exit, reason })?;
            }
        },
        Order::Stop(attempt, how) => {
            // It may have ended while the order was on its way.
            if let Some(job) = running.iter().find(|job| job.attempt == attempt) {
                match how {
                    Stop::Ask => {
                        session::signal(job.leader, Signal::TERM);
                        session::signal(job.leader, Signal::CONT);
                    }
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

/// The leader ended: so does what it left in the background.
fn finish(mut job: Running) -> io::Result<Ended> {
    session::kill(job.leader);
    let status = job.child.wait()?;
    Ok(Ended { attempt: job.attempt, exit: exit_of(status), reason: reason_of(status) })
}

fn exit_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(CANNOT_RUN)
}

fn reason_of(status: ExitStatus) -> String {
    status.signal().map_or_else(String::new, |signal| format!("ended by signal {signal}"))
}

fn start(task: &Task) -> io::Result<Running> {
    let (program, args) =
        task.argv.split_first().ok_or_else(|| io::Error::other("the task names no program"))?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(task.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null());
    let own = task.clone();
    let become_job = move || become_job(&own);
    #[expect(unsafe_code, reason = "what the child does before it becomes the program has no other hook")]
    // SAFETY: this process has one thread, so the child may do after fork whatever the parent could.
    unsafe {
        command.pre_exec(become_job);
    }
    let child = command.spawn()?;
    let leader = Pid::from_child(&child);
    let ended = rustix::process::pidfd_open(leader, PidfdFlags::empty())?;
    Ok(Running { attempt: task.attempt, child, leader, ended })
}

/// In the child: its own session, its limits, its submitter; only then does it touch a file.
fn become_job(task: &Task) -> io::Result<()> {
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

fn append_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Lower a limit; one that is lower already stays.
fn limit(resource: Resource, max: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let max = now.maximum.map_or(max, |own| own.min(max));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })?)
}
