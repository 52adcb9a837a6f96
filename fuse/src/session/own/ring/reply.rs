//! Answers: from any thread, once, into the entry's slot; the queue's thread takes them to the kernel.

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::memory::Buffers;

/// Answers up to here are kept in the slot: the longest of fixed length, STATX's, has 288.
const SMALL_BYTES: usize = 352;

/// The handler has the request, and did not return yet.
const HANDLED: u8 = 0;
/// It returned without an answer: whoever answers tells the queue.
const PARKED: u8 = 1;
/// The answer is there. Where the handler did not return yet, the queue will look.
const ANSWERED: u8 = 2;

/// One entry of a queue, and its answer.
#[derive(Debug)]
pub(super) struct Slot {
    index: u32,
    pub(super) buffers: Buffers,
    mailbox: Arc<Mailbox>,
    state: AtomicU8,
    answer: Mutex<Answer>,
}

#[derive(Debug)]
struct Answer {
    kind: Kind,
    small: [u8; SMALL_BYTES],
}

#[derive(Debug)]
enum Kind {
    /// Positive.
    Errno(i32),
    /// So many bytes of `small`.
    Small(usize),
    Owned(Vec<u8>),
    /// So many bytes are in the payload already.
    Filled(usize),
}

impl Slot {
    pub(super) fn new(index: u32, buffers: Buffers, mailbox: Arc<Mailbox>) -> Arc<Self> {
        let answer = Mutex::new(Answer { kind: Kind::Errno(libc::EIO), small: [0; SMALL_BYTES] });
        Arc::new(Self { index, buffers, mailbox, state: AtomicU8::new(HANDLED), answer })
    }

    /// For a request that just came. `has_payload` says whether its payload is borrowed by the handler.
    pub(super) fn begin(self: &Arc<Self>, has_payload: bool, may_wait: bool) -> RingReply {
        self.state.store(HANDLED, Ordering::Relaxed);
        RingReply { slot: Some(Arc::clone(self)), has_payload, may_wait }
    }

    /// The handler returned. True when no answer is there yet: then the mailbox will have it.
    pub(super) fn park(&self) -> bool {
        self.state.compare_exchange(HANDLED, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Write the answer to where the kernel looks for it. Gives the bytes of its payload.
    ///
    /// # Safety
    /// The entry is ours, an answer is there, and the handler returned.
    #[expect(unsafe_code, reason = "whose the memory is, the caller knows")]
    pub(super) unsafe fn deliver(&self, unique: u64) -> usize {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = mem::replace(&mut answer.kind, Kind::Errno(libc::EIO));
        // SAFETY: the handler returned, and with it the loan of the payload; the one reply of this request is used up.
        let copy = |bytes: &[u8]| unsafe {
            self.buffers.with_payload(bytes.len(), |to| to.copy_from_slice(bytes));
            (0, bytes.len())
        };
        let (error, len) = match kind {
            Kind::Errno(errno) => (-errno, 0),
            Kind::Small(len) => copy(&answer.small[..len]),
            Kind::Owned(bytes) => copy(&bytes),
            Kind::Filled(len) => (0, len),
        };
        // SAFETY: as above; the request's headers are not borrowed either.
        unsafe { self.buffers.answer(unique, error, len as u32) };
        len
    }

    fn answer(&self, write: impl FnOnce(&mut Answer)) {
        write(&mut self.answer.lock().unwrap_or_else(PoisonError::into_inner));
        if self.state.swap(ANSWERED, Ordering::AcqRel) == PARKED {
            self.mailbox.post(self.index);
        }
    }
}

/// What a request is answered by, once and from any thread. Dropped without an answer it answers EIO. It may outlive
/// the connection: then it answers nobody.
pub(in super::super) struct RingReply {
    /// None when answered.
    slot: Option<Arc<Slot>>,
    has_payload: bool,
    may_wait: bool,
}

impl RingReply {
    /// Whether the request may be kept for later. Where not, nearly all entries that the queue may have are kept, and
    /// it has to be answered by [`Handler::handle`](super::Handler::handle): with one more kept, the queue could stand
    /// still, and what the kept ones wait for with it.
    pub(in super::super) fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// A positive errno, which the kernel knows (below 512).
    pub(in super::super) fn error(mut self, errno: i32) {
        debug_assert!((1..512).contains(&errno), "errno {errno}");
        self.give(|answer| answer.kind = Kind::Errno(errno));
    }

    /// A short body: copied here, and to the payload later, which may still be borrowed. More than fits becomes a `Vec`.
    pub(in super::super) fn bytes(mut self, bytes: &[u8]) {
        if bytes.len() > SMALL_BYTES {
            return self.owned(bytes.to_vec());
        }
        self.give(|answer| {
            answer.small[..bytes.len()].copy_from_slice(bytes);
            answer.kind = Kind::Small(bytes.len());
        });
    }

    /// A longer body. EIO when it does not fit into a payload.
    pub(in super::super) fn owned(mut self, bytes: Vec<u8>) {
        let fits = self.slot.as_ref().is_some_and(|slot| bytes.len() <= slot.buffers.payload_bytes());
        self.give(|answer| answer.kind = if fits { Kind::Owned(bytes) } else { Kind::Errno(libc::EIO) });
    }

    /// A body of up to `len` bytes that `fill` writes to where the kernel takes it from, without a copy; it says how many
    /// it wrote, or an errno. What stands there before is of earlier requests. Where the request has a payload of its own, the
    /// bytes go by a `Vec`. EIO when `len` does not fit into a payload, or `fill` says more than `len` or panics.
    pub(in super::super) fn fill(mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, i32>) {
        let Some(slot) = &self.slot else { return };
        if len > slot.buffers.payload_bytes() {
            return self.error(libc::EIO);
        }
        if self.has_payload {
            let mut bytes = vec![0; len];
            return match fill(&mut bytes) {
                Ok(filled) if filled <= len => {
                    bytes.truncate(filled);
                    self.owned(bytes);
                }
                Ok(_) => self.error(libc::EIO),
                Err(errno) => self.error(errno),
            };
        }
        #[expect(unsafe_code, reason = "the kernel takes it from there")]
        // SAFETY: the entry is ours until this reply is used up, and there is one for a request; nobody borrows the
        // payload, for the request has none.
        let filled = unsafe { slot.buffers.with_payload(len, fill) };
        self.give(|answer| {
            answer.kind = match filled {
                Ok(filled) if filled <= len => Kind::Filled(filled),
                Ok(_) => Kind::Errno(libc::EIO),
                Err(errno) => Kind::Errno(errno),
            };
        });
    }

    fn give(&mut self, write: impl FnOnce(&mut Answer)) {
        if let Some(slot) = self.slot.take() {
            slot.answer(write);
        }
    }
}

impl Drop for RingReply {
    fn drop(&mut self) {
        self.give(|answer| answer.kind = Kind::Errno(libc::EIO));
    }
}

impl fmt::Debug for RingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingReply").finish_non_exhaustive()
    }
}

/// Answers that came after the handler returned, for the queue's thread to take. Never more than the queue has entries.
#[derive(Debug)]
pub(super) struct Mailbox {
    answered: Mutex<Vec<u32>>,
    /// Something was put in since the last look.
    any: AtomicBool,
    /// The queue's thread waits for the kernel, or is about to.
    asleep: AtomicBool,
    ended: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn new() -> std::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let no = || AtomicBool::new(false);
        Ok(Self { answered: Mutex::default(), any: no(), asleep: no(), ended: no(), bell })
    }

    /// Becomes readable, and is never read, when the queue's thread is to wake up: its ring is told of each time.
    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    fn post(&self, index: u32) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        self.wake();
    }

    /// The queue's thread is to end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.any.store(true, Ordering::SeqCst);
        // The first of many wakes it up.
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It fails only when it has been rung 2^64 times.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// The queue's thread is going to wait. False when it must not: something is here, or the end.
    pub(super) fn sleep(&self) -> bool {
        // Either this sees what a post has put in, or that post sees that the bell is wanted.
        self.asleep.store(true, Ordering::SeqCst);
        !self.any.load(Ordering::SeqCst)
    }

    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Exchange `empty` for the entries answered so far.
    pub(super) fn take(&self, empty: &mut Vec<u32>) {
        if self.any.swap(false, Ordering::SeqCst) {
            mem::swap(&mut *self.answered.lock().unwrap_or_else(PoisonError::into_inner), empty);
        }
    }
}
