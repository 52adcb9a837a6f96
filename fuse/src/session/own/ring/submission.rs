//! The commands of FUSE for an io_uring, and the ring of one thread that takes them.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::memory::{Buffers, IOVECS};
use crate::session::protocol::notify;
use crate::session::protocol::ring::{COMMAND_BYTES, COMMIT_AND_FETCH, REGISTER, command};

/// SQEs that wait for an enter. When they are more, they are submitted earlier.
const SUBMISSIONS: u32 = 64;
/// `user_data` of the mailbox's bell; others are indices of entries.
const BELL: u64 = u64::MAX;
/// And of what is no entry.
const NOTHING: u64 = u64::MAX - 1;

/// In the number of requests that are caused here. The kernel counts its own up from 2 by 2, and no mount lives to see
/// them come here.
const NUDGE: u64 = 1 << 62;

/// What a CQE says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// The mailbox has something, or had.
    Bell,
    /// The entry is ours: with a request if the result is 0.
    Entry { index: usize, result: i32 },
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Woken,
    /// Nothing came in the time given.
    Idle,
}

/// The ring of the thread that made it: no other may submit.
pub(super) struct Submission {
    ring: IoUring<Entry128, cqueue::Entry>,
    queue: u16,
    bell: Option<RawFd>,
}

impl Submission {
    /// For the queue of this number, with up to `entries` entries.
    ///
    /// # Errors
    /// When the kernel allows no ring: ENOSYS, EPERM, ENOMEM.
    pub(super) fn new(queue: u16, entries: usize) -> io::Result<Self> {
        let completions =
            u32::try_from(entries).map_err(|_| io::ErrorKind::InvalidInput)?.saturating_add(SUBMISSIONS);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(completions)
            .setup_clamp()
            .build(SUBMISSIONS)?;
        Ok(Self { ring, queue, bell: None })
    }

    /// Take commands for this connection, and have `bell` wake this thread.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub(super) fn open(&mut self, device: &OwnedFd, bell: &OwnedFd) -> io::Result<()> {
        self.ring.submitter().register_files(&[device.as_raw_fd()])?;
        self.bell = Some(bell.as_raw_fd());
        self.watch()
    }

    /// Be told of each ring of the bell. The poll is for good: an eventfd says so at each write, read or not.
    fn watch(&mut self) -> io::Result<()> {
        let Some(bell) = self.bell else { return Ok(()) };
        let poll = opcode::PollAdd::new(Fd(bell), libc::POLLIN as u32).multi(true).build().user_data(BELL);
        self.push(poll.into())
    }

    /// Give the kernel an entry, at the next enter.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn register(&mut self, index: usize, buffers: &Buffers) -> io::Result<()> {
        let sqe = opcode::UringCmd80::new(Fixed(0), REGISTER).addr(Some(buffers.iovecs()));
        self.push(with_len(sqe.cmd(self.command(0)).build().user_data(index as u64), IOVECS))
    }

    /// Have the kernel take the answer that is in the entry's memory, at the next enter.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn commit(&mut self, index: usize, commit_id: u64) -> io::Result<()> {
        let sqe = opcode::UringCmd80::new(Fixed(0), COMMIT_AND_FETCH).cmd(self.command(commit_id));
        self.push(sqe.build().user_data(index as u64))
    }

    /// Register nothing, which fails: the kernel has no other way to be told that there will be no queues. Gives the errno.
    ///
    /// # Errors
    /// When the ring is broken.
    pub(super) fn register_nothing(&mut self, device: &OwnedFd) -> io::Result<i32> {
        let sqe = opcode::UringCmd80::new(Fd(device.as_raw_fd()), REGISTER).cmd(self.command(0));
        self.push(sqe.build().user_data(NOTHING))?;
        self.submit()?;
        let refusal = self.ring.completion().find(|cqe| cqe.user_data() == NOTHING);
        refusal.map(|cqe| -cqe.result()).ok_or_else(|| io::Error::other("the kernel did not refuse nothing"))
    }

    fn command(&self, commit_id: u64) -> [u8; 80] {
        let mut room = [0; 80];
        room[..COMMAND_BYTES].copy_from_slice(&command(commit_id, self.queue));
        room
    }

    fn push(&mut self, sqe: Entry128) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        #[expect(unsafe_code, reason = "what an SQE points to has to be there")]
        // SAFETY: SQEs are made above only. A poll points to nothing. A command names the memory of an entry, which
        // the kernel touches in this thread's enters only: the queue that calls them keeps its entries meanwhile.
        let pushed = unsafe { self.ring.submission().push(&sqe) };
        pushed.map_err(|_| io::Error::other("the ring takes no submission"))
    }

    /// Submit what is pushed, and don't wait. What the kernel completes at once is in [`Self::events`] afterwards.
    ///
    /// # Errors
    /// When the ring is broken.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(e) if !passes(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Submit what is pushed, and wait for an event, or for so long if a time is given.
    ///
    /// # Errors
    /// When the ring is broken.
    pub(super) fn wait(&mut self, time: Option<Duration>) -> io::Result<Waited> {
        let waited = match time {
            None => self.ring.submit_and_wait(1),
            Some(time) => {
                let time = Timespec::from(time);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match waited {
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => Ok(Waited::Idle),
            Err(e) if !passes(&e) => Err(e),
            _ => Ok(Waited::Woken),
        }
    }

    /// Put all events that are there behind those in `into`.
    ///
    /// # Errors
    /// When the ring is broken.
    pub(super) fn events(&mut self, into: &mut Vec<Event>) -> io::Result<()> {
        let mut watch = false;
        for cqe in self.ring.completion() {
            into.push(match cqe.user_data() {
                BELL => {
                    watch |= !cqueue::more(cqe.flags());
                    Event::Bell
                }
                index => Event::Entry { index: index as usize, result: cqe.result() },
            });
        }
        if watch { self.watch() } else { Ok(()) }
    }
}

/// Cause a request to the queue of this thread's processor, at once and without waiting for it: the kernel is asked for 0
/// bytes of its cache of a file, and NOTIFY_REPLY brings them. `number` is another one each time. False when the kernel
/// did not: it knows no such inode, or it is no regular file, or the connection is gone.
pub(super) fn nudge(device: &OwnedFd, number: u64, node: u64) -> bool {
    rustix::io::write(device, &notify::retrieve(NUDGE | number << 1, node, 0, 0)).is_ok()
}

/// Whether the request of this number is one of [`nudge`]'s.
pub(super) fn is_nudge(commit_id: u64) -> bool {
    commit_id & NUDGE != 0
}

/// Interrupted, or short of memory for the moment: the next enter goes on with what is left.
fn passes(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// The builder of commands leaves out `len`, which REGISTER needs.
fn with_len(mut sqe: Entry128, len: u32) -> Entry128 {
    const LEN_AT: usize = 24;
    const { assert!(size_of::<Entry128>() == 128 && align_of::<Entry128>() >= align_of::<u32>()) };
    #[expect(unsafe_code, reason = "its fields are private")]
    // SAFETY: it is `struct io_uring_sqe` with 64 bytes behind it, in C's layout, whose `len` is a u32 at 24.
    unsafe {
        (&raw mut sqe).cast::<u8>().add(LEN_AT).cast::<u32>().write(len);
    }
    sqe
}
