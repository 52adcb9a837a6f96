//! One queue: the thread that takes its requests, and its entries.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::memory::Buffers;
use super::reply::{Mailbox, Slot};
use super::submission::{self, Event, Submission, Waited};
use super::{Handler, Shape};

/// Entries that wait in the kernel while requests are kept for later: with none, requests queue up behind those that are
/// kept, and the kept ones may wait for just them (a lease that is called back waits for pages to be written).
const KEPT_FREE: usize = 16;
/// So many entries are left to others when a queue has as many as it may.
const RESERVE: usize = 2;
/// Inodes that a [nudge](Queue::nudge) is tried with.
const TRIES: usize = 8;
/// An entry's payload with more bytes than this is worth giving back.
const TOUCHED_BYTES: usize = 64 << 10;
/// Memory of entries beyond the first ones is given back after so long without any request.
const IDLE: Duration = Duration::from_secs(1);

pub(super) struct Queue<H> {
    shape: Shape,
    handler: Arc<H>,
    mailbox: Arc<Mailbox>,
    // Before the entries: closed before their memory goes.
    submission: Submission,
    entries: Vec<Entry>,
    /// How many the kernel has, for requests to come.
    free: usize,
    /// How many of these show that nothing is queued in the kernel: an entry takes what is queued when it is committed,
    /// but not when it is registered.
    sure: usize,
    /// How often the queue was [nudged](Self::nudge), and whether the last one is under way, with nothing parked since.
    nudges: u64,
    nudged: bool,
    /// A file that was read or written here.
    file: Option<u64>,
    /// How many have requests that are answered later.
    parked: usize,
    /// How many there may be: fewer than the shape says once the kernel refused one.
    entries_max: usize,
    /// Payloads worth giving back, among the entries beyond the first ones.
    touched: usize,
    // Empty between rounds; kept for their memory.
    events: Vec<Event>,
    answered: Vec<u32>,
    /// The connection is gone.
    gone: bool,
    /// Held while the ring uses it.
    device: Option<Arc<OwnedFd>>,
}

struct Entry {
    slot: Arc<Slot>,
    holder: Holder,
    /// Of the request that came last. None came yet with 0.
    commit_id: u64,
    /// And its inode.
    node: u64,
    /// Counted in [`Queue::sure`], if the kernel has it.
    sure: bool,
    touched: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Kernel,
    Us,
    /// The kernel refused it.
    Nobody,
}

impl<H: Handler> Queue<H> {
    /// With a ring of the calling thread, and memory for the first entries.
    ///
    /// # Errors
    /// When the system gives no ring, or no memory.
    pub(super) fn new(number: u16, shape: Shape, handler: Arc<H>, mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let submission = Submission::new(number, shape.entries_max)?;
        let mut queue = Self {
            shape,
            handler,
            mailbox,
            submission,
            entries: Vec::with_capacity(shape.depth),
            free: 0,
            sure: 0,
            nudges: 0,
            nudged: false,
            file: None,
            parked: 0,
            entries_max: shape.entries_max,
            touched: 0,
            events: Vec::new(),
            answered: Vec::new(),
            gone: false,
            device: None,
        };
        while queue.entries.len() < shape.depth {
            queue.add_entry()?;
        }
        Ok(queue)
    }

    /// Register the first entry.
    ///
    /// # Errors
    /// The kernel's, which then has no entry of this queue.
    pub(super) fn register(&mut self, device: Arc<OwnedFd>) -> io::Result<()> {
        self.submission.open(&device, self.mailbox.bell())?;
        self.device = Some(device);
        // Nothing can be queued yet.
        self.entries[0].sure = true;
        self.sure += 1;
        self.give(0)?;
        self.submission.submit()?;
        // A refusal is here by now. A request may be, too: then all queues are registered.
        self.submission.events(&mut self.events)?;
        let refused = self.events.iter().find_map(|event| match event {
            Event::Entry { result, .. } if *result < 0 => Some(-result),
            _ => None,
        });
        refused.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Tell the kernel that there will be no queues, so that it sends requests by /dev/fuse. False when it did not hear.
    pub(super) fn refuse(&mut self, device: &OwnedFd) -> bool {
        match self.submission.register_nothing(device) {
            // It was to take requests by queues, and failed to; or was not to.
            Ok(errno) => matches!(errno, libc::EINVAL | libc::EOPNOTSUPP),
            Err(_) => false,
        }
    }

    /// Serve until the connection is gone.
    ///
    /// # Errors
    /// When the ring breaks, or the kernel takes no entry any more. Requests of this queue hang then until somebody ends
    /// the connection.
    pub(super) fn serve(mut self) -> io::Result<()> {
        for index in 1..self.entries.len() {
            self.give(index)?;
        }
        loop {
            self.take_events()?;
            self.take_answered()?;
            if self.gone || self.mailbox.ended() {
                return Ok(());
            }
            self.keep_free()?;
            self.nudge()?;
            self.wait()?;
        }
    }

    /// One enter, for everything that was answered. It waits unless something is in the mailbox.
    fn wait(&mut self) -> io::Result<()> {
        if self.mailbox.sleep() {
            let waited = self.submission.wait((self.touched > 0).then_some(IDLE));
            self.mailbox.awake();
            let waited = waited?;
            self.submission.events(&mut self.events)?;
            if waited == Waited::Idle && self.events.is_empty() {
                self.give_back();
            }
            Ok(())
        } else {
            self.mailbox.awake();
            self.submission.submit()?;
            self.submission.events(&mut self.events)
        }
    }

    fn take_events(&mut self) -> io::Result<()> {
        let mut events = mem::take(&mut self.events);
        for event in events.drain(..) {
            if let Event::Entry { index, result } = event {
                self.entry_came(index, result)?;
            }
        }
        // What came meanwhile, because there was no room for submissions, is taken after the next enter.
        self.events = events;
        Ok(())
    }

    fn entry_came(&mut self, index: usize, result: i32) -> io::Result<()> {
        let entry = &mut self.entries[index];
        assert!(entry.holder == Holder::Kernel, "a CQE of an entry that the kernel does not have");
        entry.holder = Holder::Us;
        self.free -= 1;
        self.sure -= usize::from(mem::take(&mut entry.sure));
        match -result {
            0 => self.request_came(index),
            libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED => {
                self.gone = true;
                Ok(())
            }
            errno => {
                entry.holder = Holder::Nobody;
                let e = io::Error::from_raw_os_error(errno);
                if entry.commit_id == 0 {
                    // It goes on with those there are.
                    kos_types::log!("kos-fuse: the kernel takes no more entries for requests: {e}");
                    self.entries_max = self.entries.len();
                } else {
                    kos_types::log!("kos-fuse: the kernel did not take an answer: {e}");
                }
                if self.free + self.parked == 0 { Err(e) } else { Ok(()) }
            }
        }
    }

    fn request_came(&mut self, index: usize) -> io::Result<()> {
        let kept_at_most = self.entries_max.saturating_sub(RESERVE);
        let slot = Arc::clone(&self.entries[index].slot);
        #[expect(unsafe_code, reason = "the request is in memory that the kernel wrote")]
        // SAFETY: the CQE gave us the entry. An answer is written by `commit`, after the loan; or to the payload by the
        // reply, when that is empty.
        let request = unsafe { slot.buffers.request() };
        let (commit_id, payload_len) = (request.commit_id, request.payload.len());
        self.entries[index].commit_id = commit_id;
        self.entries[index].node = request.node();
        if request.is_of_file() {
            self.file = Some(request.node());
        }
        self.nudged = false;
        if submission::is_nudge(commit_id) {
            slot.begin(false, false).bytes(&[]);
            return self.commit(index);
        }
        let reply = slot.begin(payload_len > 0, self.parked < kept_at_most);
        // A reply that a panic drops answers EIO. The panic's hook tells of it.
        let handled = catch_unwind(AssertUnwindSafe(|| {
            self.handler.handle(request.header, request.args, request.payload, reply);
        }));
        drop(handled);
        self.touch(index, payload_len);
        if slot.park() {
            self.parked += 1;
            return Ok(());
        }
        self.commit(index)
    }

    fn take_answered(&mut self) -> io::Result<()> {
        let mut answered = mem::take(&mut self.answered);
        self.mailbox.take(&mut answered);
        for index in answered.drain(..) {
            self.parked -= 1;
            self.commit(index as usize)?;
        }
        self.answered = answered;
        Ok(())
    }

    /// The answer of an entry of ours goes with the next enter.
    fn commit(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.entries[index];
        assert!(entry.holder == Holder::Us, "an answer of an entry that the kernel has");
        let commit_id = entry.commit_id;
        #[expect(unsafe_code, reason = "the answer goes into memory that the kernel reads")]
        // SAFETY: it is ours, and no reply lives: the handler returned, and it or the mailbox says that it is answered.
        let len = unsafe { entry.slot.deliver(commit_id) };
        entry.holder = Holder::Kernel;
        self.free += 1;
        entry.sure = true;
        self.sure += 1;
        self.touch(index, len);
        self.submission.commit(index, commit_id)
    }

    /// Add entries while too many requests are kept.
    fn keep_free(&mut self) -> io::Result<()> {
        let wanted = if self.parked == 0 { 1 } else { KEPT_FREE };
        while self.free < wanted && self.entries.len() < self.entries_max {
            match self.add_entry() {
                Ok(index) => self.give(index)?,
                Err(e) => {
                    kos_types::log!("kos-fuse: no memory for more entries for requests: {e}");
                    self.entries_max = self.entries.len();
                }
            }
        }
        Ok(())
    }

    /// Have the kernel send what may be queued, once everything that came is parked. Requests are queued when they find
    /// no entry, and leave when an answer is committed: an entry that is registered meanwhile lies beside them unused. So
    /// a request is caused that is answered here, and what its commit brings is handled, and so on, until nothing comes.
    fn nudge(&mut self) -> io::Result<()> {
        let Some(device) = self.device.as_ref().filter(|_| self.sure == 0 && self.free > 0 && !self.nudged)
        else {
            return Ok(());
        };
        // The entries that it needs.
        self.submission.submit()?;
        self.nudges += 1;
        self.nudged = true;
        // The kernel takes a file that it knows. Rather a kept request's, for somebody has that open: this thread must
        // not be the one that ends an inode.
        let parked = self.entries.iter().filter(|entry| entry.holder == Holder::Us).map(|entry| entry.node);
        let mut nodes = parked.take(TRIES).chain(self.file);
        if !nodes.any(|node| submission::nudge(device, self.nudges, node)) {
            self.file = None;
        }
        Ok(())
    }

    fn add_entry(&mut self) -> io::Result<usize> {
        let index = self.entries.len();
        let number = u32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let slot = Slot::new(number, Buffers::new(self.shape.payload_bytes)?, Arc::clone(&self.mailbox));
        self.entries.push(Entry {
            slot,
            holder: Holder::Us,
            commit_id: 0,
            node: 0,
            sure: false,
            touched: false,
        });
        Ok(index)
    }

    /// The kernel gets the entry with the next enter.
    fn give(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.entries[index];
        entry.holder = Holder::Kernel;
        self.free += 1;
        self.submission.register(index, &entry.slot.buffers)
    }

    fn touch(&mut self, index: usize, bytes: usize) {
        let extra = index >= self.shape.depth;
        let entry = &mut self.entries[index];
        if extra && bytes > TOUCHED_BYTES && !entry.touched {
            entry.touched = true;
            self.touched += 1;
        }
    }

    /// Give back the memory of entries that only a crowd needed.
    fn give_back(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.touched && entry.holder == Holder::Kernel) {
            #[expect(unsafe_code, reason = "the memory is the kernel's to write")]
            // SAFETY: the kernel has it, this is its thread, and it just saw that there is no event.
            let given = unsafe { entry.slot.buffers.drop_payload() };
            // What was not given back stays as it is.
            drop(given);
            entry.touched = false;
            self.touched -= 1;
        }
    }
}
