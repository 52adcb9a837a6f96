//! The daemon's half.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_peercred, socket_type};
use rustix::stdio::{dup2_stdin, stdin};

use super::wire::{self, Word};
use super::{DEVICES_MAX, Kept};

/// The supervisor has sent it before this process ran.
const LIMIT: Duration = Duration::from_secs(10);
/// Behind the three standard ones.
const FIRST: i32 = 3;

/// The connection that is this process's standard input, which is empty afterwards.
pub(super) fn standard_input() -> io::Result<OwnedFd> {
    let socket = fcntl_dupfd_cloexec(stdin(), FIRST)?;
    if socket_type(&socket).ok() != Some(SocketType::SEQPACKET) {
        let what = "the standard input is no connection to a supervisor";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    dup2_stdin(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)?;
    Ok(socket)
}

/// The daemon's end of the connection to its supervisor.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    supervisor: u32,
    devices: AtomicUsize,
    watches: bool,
}

impl Link {
    /// Take the connection over that is this process's standard input, and what is kept. The standard input is empty
    /// afterwards, so that no child inherits the connection.
    ///
    /// # Errors
    /// `InvalidInput` when the standard input is no such connection, `TimedOut` when nothing comes, and `UnexpectedEof`
    /// when the supervisor is gone.
    pub fn take() -> io::Result<(Self, Kept)> {
        Self::over(standard_input()?, LIMIT)
    }

    /// To a watchdog, which keeps nothing.
    pub(super) const fn to_watchdog(socket: OwnedFd, watchdog: u32) -> Self {
        Self { socket, supervisor: watchdog, devices: AtomicUsize::new(0), watches: true }
    }

    /// Whether it only watches this process.
    pub(crate) const fn watches(&self) -> bool {
        self.watches
    }

    pub(super) fn over(socket: OwnedFd, limit: Duration) -> io::Result<(Self, Kept)> {
        let supervisor = socket_peercred(&socket)?.pid.as_raw_nonzero().get().cast_unsigned();
        let until = Instant::now() + limit;
        let mut kept = Kept::default();
        loop {
            let message = wire::await_message(socket.as_fd(), until)?;
            match (message.word, message.descriptor) {
                (Some(Word::Memory), Some(memory)) => kept.memory = Some(memory),
                (Some(Word::Device), Some(device)) => kept.devices.push(device),
                (Some(Word::All), _) => break,
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the supervisor says what is unknown",
                    ));
                }
            }
        }
        let devices = AtomicUsize::new(kept.devices.len());
        Ok((Self { socket, supervisor, devices, watches: false }, kept))
    }

    /// The supervisor's process.
    #[must_use]
    pub fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// Leave memory to the next daemon, in place of any that was left before.
    ///
    /// # Errors
    /// `BrokenPipe` when the supervisor is gone.
    pub fn keep_memory(&self, memory: BorrowedFd<'_>) -> io::Result<()> {
        self.say(Word::Memory, Some(memory))
    }

    /// Leave a connection of the mount to the next daemon. What [`Link::take`] gave stays kept.
    ///
    /// # Errors
    /// `BrokenPipe` when the supervisor is gone, `QuotaExceeded` when it has as many as it takes.
    pub fn keep_device(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        if self.devices.fetch_add(1, Ordering::SeqCst) >= DEVICES_MAX {
            self.devices.fetch_sub(1, Ordering::SeqCst);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.say(Word::Device, Some(device))
    }

    /// It serves: from here on its crash is answered by a restart.
    ///
    /// # Errors
    /// `BrokenPipe` when the supervisor is gone.
    pub fn serving(&self) -> io::Result<()> {
        self.say(Word::Serves, None)
    }

    /// Whether the next daemon would find the mount's connections.
    #[must_use]
    pub fn keeps_devices(&self) -> bool {
        self.devices.load(Ordering::SeqCst) > 0 && !self.is_lost()
    }

    /// Whether the supervisor is gone, and all that it kept.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
        let asked = wire::wait(&mut socket, Some(Duration::ZERO));
        asked.is_ok() && socket[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn say(&self, word: Word, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        wire::send(self.socket.as_fd(), word, descriptor).map_err(|e| match e.kind() {
            // Gone all the same, before it read the last of what was said.
            io::ErrorKind::ConnectionReset => io::ErrorKind::BrokenPipe.into(),
            _ => e,
        })
    }
}
