//! Throws what the kernel keeps of a mount out when the mount's session is over and its own process does not do so: one that
//! is stopped, or hangs. Others may change the files from then on, and what the kernel kept would be old.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::time::{ClockId, clock_gettime};

use super::link::{self, Link};
use super::wire::{self, Word};
use crate::arena::Arena;
use crate::session::inval_inode;

/// Between looks at a mount without a session.
const IDLE: Duration = Duration::from_millis(500);
/// What is thrown out within it is so before anybody else is given a lease.
const LIMIT: Duration = Duration::from_millis(300);
/// A thread waits where its file has changed pages, until the mount's process runs again.
const THREADS_MAX: usize = 64;
const THREADS_AT_ONCE: usize = 8;
const STALL: Duration = Duration::from_millis(10);
/// They do next to nothing.
const STACK_BYTES: usize = 128 << 10;

/// As [`Arena::valid_until`].
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Since the machine's start, so neither is negative.
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

/// Of one mount.
#[derive(Debug)]
pub(super) struct Watchdog {
    arena: Arc<Arena>,
    device: Arc<OwnedFd>,
    /// The end that was answered already.
    answered: u64,
}

impl Watchdog {
    pub(super) const fn new(arena: Arc<Arena>, device: Arc<OwnedFd>) -> Self {
        Self { arena, device, answered: 0 }
    }

    /// Until the next look.
    pub(super) fn rest(&self) -> Duration {
        match self.arena.valid_until() {
            0 => IDLE,
            until if until == self.answered => IDLE,
            until => Duration::from_micros(until.saturating_sub(now())).min(IDLE),
        }
    }

    /// Throw everything out, if the session is over.
    pub(super) fn look(&mut self) {
        let until = self.arena.valid_until();
        if until == 0 || until == self.answered || now() < until {
            return;
        }
        self.answered = until;
        let inodes: Vec<u64> = self.arena.known().taken().into_iter().map(|(_, [ino])| ino).collect();
        let count = inodes.len();
        let waiting = self.throw_out(inodes);
        kos_types::log!(
            "kos-fuse: the mount's process has not renewed its session in time: {count} inodes are thrown out of the kernel's \
             memory, {waiting} of them when it runs again"
        );
    }

    /// Answers how many are not done yet.
    fn throw_out(&self, inodes: Vec<u64>) -> usize {
        let start = Instant::now();
        let (inodes, next, done) =
            (Arc::new(inodes), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut threads = 0;
        while done.load(Ordering::Acquire) < inodes.len() && start.elapsed() < LIMIT {
            let more = THREADS_AT_ONCE.min(THREADS_MAX - threads);
            for _ in 0..more {
                let (inodes, next, done) = (Arc::clone(&inodes), Arc::clone(&next), Arc::clone(&done));
                let device = Arc::clone(&self.device);
                let run = move || {
                    while let Some(&ino) = inodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                        tell(&device, ino);
                        done.fetch_add(1, Ordering::Release);
                    }
                };
                if let Err(e) = thread::Builder::new().stack_size(STACK_BYTES).spawn(run) {
                    kos_types::log!("kos-fuse: watchdog: thread: {e}");
                }
            }
            threads += more;
            // While some go on, no more are needed.
            let mut before = usize::MAX;
            while before != done.load(Ordering::Acquire) {
                before = done.load(Ordering::Acquire);
                thread::sleep(STALL);
            }
        }
        inodes.len() - done.load(Ordering::Acquire)
    }
}

fn tell(device: &OwnedFd, ino: u64) {
    match rustix::io::write(device, &inval_inode(ino, 0, 0)) {
        // The kernel has forgotten it; or the mount is gone.
        Ok(_) | Err(Errno::NOENT | Errno::NOTCONN | Errno::NODEV | Errno::CONNABORTED) => {}
        Err(e) => kos_types::log!("kos-fuse: inode {ino} may be read as it was: {e}"),
    }
}

/// Start `command` as the watchdog of this process's mount, which calls [`watch`]. It ends with this process.
///
/// # Errors
/// When it cannot be started.
pub fn watched(mut command: Command) -> io::Result<Link> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
    Ok(Link::to_watchdog(ours, child.id()))
}

/// Be the watchdog of the process that is at the other end of the standard input, until that ends.
#[must_use]
pub fn watch() -> ExitCode {
    // What is on the way out to a swap file cannot wait for a disk. Without the right to it, it is swapped at worst.
    let _unlocked = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    match link::standard_input().and_then(|socket| watch_by(&socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            kos_types::log!("kos-fuse: watchdog: {e}");
            ExitCode::FAILURE
        }
    }
}

fn watch_by(socket: &OwnedFd) -> io::Result<()> {
    let (mut memory, mut watchdog) = (None, None::<Watchdog>);
    loop {
        match wire::receive(socket.as_fd()) {
            Ok(message) => match (message.word, message.descriptor) {
                (Some(Word::Memory), Some(shared)) => memory = Some(Arena::adopt(shared)?),
                (Some(Word::Device), Some(device)) => {
                    watchdog = memory.take().map(|arena| Watchdog::new(arena, Arc::new(device)));
                }
                _ => {}
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let rest = watchdog.as_ref().map_or(IDLE, Watchdog::rest);
                wire::wait(&mut [PollFd::new(socket, PollFlags::IN)], Some(rest))?;
                watchdog.iter_mut().for_each(Watchdog::look);
            }
            // The mount's process has ended.
            Err(_) => return Ok(()),
        }
    }
}
