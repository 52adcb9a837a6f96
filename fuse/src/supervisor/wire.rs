//! What daemon and supervisor say to each other: a byte that says what, and at most one descriptor. They may be of different
//! versions, as an upgrade leaves the supervisor as it is: bytes and words are only ever added.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use std::time::{Duration, Instant};

/// A message's length; what is behind the first byte is nothing yet.
const LEN: usize = 8;

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The daemon's memory.
    Memory = 1,
    /// A connection of its mount.
    Device = 2,
    /// To a new daemon: that is all that is kept.
    All = 3,
    /// From the daemon: it serves.
    Serves = 4,
}

impl Word {
    fn of(byte: u8) -> Option<Self> {
        [Self::Memory, Self::Device, Self::All, Self::Serves].into_iter().find(|word| *word as u8 == byte)
    }
}

#[derive(Debug)]
pub(super) struct Message {
    /// None: of a later version.
    pub(super) word: Option<Word>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Say it, and never wait for whoever does not listen.
pub(super) fn send(socket: BorrowedFd<'_>, word: Word, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut bytes = [0; LEN];
    bytes[0] = word as u8;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for one");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)).map(drop)?)
}

/// What was said, if anything was.
///
/// # Errors
/// `WouldBlock` when nothing was; `UnexpectedEof` when the other end is gone.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Message> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LEN];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Message { word: Word::of(bytes[0]), descriptor })
}

/// The same, waited for until then.
///
/// # Errors
/// `TimedOut`.
pub(super) fn await_message(socket: BorrowedFd<'_>, until: Instant) -> io::Result<Message> {
    loop {
        match receive(socket) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(left))?;
    }
}

/// Until something happens, a signal at the least, or so long.
pub(super) fn wait(descriptors: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    // Longer than anybody means.
    let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 }));
    match poll(descriptors, limit.as_ref()) {
        Err(Errno::INTR) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
