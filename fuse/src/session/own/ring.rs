//! Requests by io_uring instead of read(2) and write(2) on /dev/fuse: a queue with a ring and a pinned thread for each
//! processor the machine can have, as the kernel wants it. It carries requests and answers, and knows of none what it
//! means.
//!
//! What the kernel does (fs/fuse/dev_uring.c, since 6.14), and what follows for the caller:
//! - FORGET, INTERRUPT and INIT come by /dev/fuse all the same, and notifications go there: somebody has to read it.
//! - Once INIT is answered with `FUSE_OVER_IO_URING`, no request comes at all until each queue has an entry, or until a
//!   registration fails. So everything that can fail without the connection is done by [`Ring::prepare`], before that
//!   answer; and when [`Prepared::start`] fails, it makes a registration fail, after which requests come by /dev/fuse.
//!   Entries that were registered by then stay unused until the connection ends. Where not even that reaches the
//!   kernel, `usable` of [`Refused`] is false, and the connection is of no use.
//! - A queue whose first entry is registered counts as ready, with its thread or without. A queue that has begun and
//!   breaks leaves the requests of its processor's programs hanging: the caller has to end the connection.
//! - An entry is one request's, until its answer. Requests that find none wait in the kernel, in order, also those
//!   that others wait for; so entries are added while requests are kept for later ([`RingReply::may_wait`]).
//! - An entry that is added takes no request that waits already; only a commit does. So where everything that came is
//!   kept, the queue causes a request to itself (a RETRIEVE of 0 bytes of some file) and commits it. It needs a regular
//!   file that the kernel knows, from the requests that came, and a thread on its own processor. Where it has neither,
//!   what waits already goes on with the next request or answer of that processor's queue.
//! - An entry cannot be taken back but by the end of the ring or of the connection.
//! - A registration that fails later, for an entry more, has the kernel forget that the connection uses io_uring. It
//!   goes on; only when fuse's parameter `enable_uring` is set to N as well, it takes no answers any more.

mod memory;
mod queue;
mod reply;
mod submission;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::queue::Queue;
use self::reply::Mailbox;
pub(super) use self::reply::RingReply;
use crate::session::protocol::HEADER_BYTES;

/// The kernel's switch, for all mounts that are made from then on.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// Processors that the machine has or can have: the kernel wants a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Have the kernel offer rings to mounts that are made from now on. Whether it did not before.
///
/// # Errors
/// When this kernel has none (not found), or only root may.
pub(super) fn switch_on() -> io::Result<bool> {
    let on = |e: io::Error| io::Error::new(e.kind(), format!("{PARAMETER}: {e}"));
    if fs::read_to_string(PARAMETER).map_err(on)?.trim() == "Y" {
        return Ok(false);
    }
    fs::write(PARAMETER, "Y").map_err(on).map(|()| true)
}

/// What requests are handed to.
pub(super) trait Handler: Send + Sync + 'static {
    /// Answer a request here, or keep `answer` for later and return; never wait. `header` is `fuse_in_header`; `args` begins with the operation's
    /// structure and has 128 bytes always, the rest being of other requests; `payload` is what follows it: names, data.
    /// NOTIFY_REPLY wants an answer, too: any.
    fn handle(&self, header: &[u8; HEADER_BYTES], args: &[u8], payload: &[u8], answer: RingReply);
}

/// The size of queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of the longest payload: not less than `max_write`, nor than `max_pages` pages, nor than 8 KiB, or the kernel
    /// refuses.
    pub(super) payload_bytes: usize,
    /// Entries that each queue begins with, at least one: requests it has in hand or waiting for its thread.
    pub(super) depth: usize,
    /// Entries that each queue may come to have while requests are kept for later.
    pub(super) entries_max: usize,
}

/// Why there are no queues.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: io::Error,
    /// Requests come by /dev/fuse now. Else none ever does.
    pub(super) usable: bool,
}

/// Queues that have threads, rings and memory, and no connection. Dropped it is all gone.
pub(super) struct Prepared {
    members: Vec<Member>,
    ended: Receiver<io::Result<()>>,
}

/// Queues that take the requests of a connection, until it ends.
pub(super) struct Ring {
    members: Vec<Member>,
    ended: Receiver<io::Result<()>>,
}

struct Member {
    orders: Sender<Order>,
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<()>,
}

/// To the thread of a queue. It ends when there will be no more.
enum Order {
    /// The first entry.
    Register(Arc<OwnedFd>, Sender<io::Result<()>>),
    /// Tell the kernel that there will be no queues. Answers whether it heard.
    Refuse(Arc<OwnedFd>, Sender<bool>),
    /// Until the connection ends.
    Serve,
}

impl Ring {
    /// Get ready. To be called before INIT is answered with `FUSE_OVER_IO_URING`: see above.
    ///
    /// # Errors
    /// When the system allows no rings (ENOSYS, EPERM), or there is not enough of threads, descriptors or memory.
    pub(super) fn prepare<H: Handler>(shape: Shape, handler: &Arc<H>) -> io::Result<Prepared> {
        assert!(shape.depth > 0 && shape.entries_max >= shape.depth, "{shape:?}");
        let processors =
            possible(&fs::read_to_string(POSSIBLE)?).ok_or_else(|| io::Error::other(POSSIBLE))?;
        let mailboxes =
            (0..processors).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<Arc<[_]>>>()?;
        let (ending, ended) = mpsc::channel();
        let (reporting, reports) = mpsc::channel();
        let mut members = Vec::new();
        for (number, mailbox) in (0..processors).zip(&*mailboxes) {
            let (orders, to_follow) = mpsc::channel();
            let (ending, reporting) = (ending.clone(), reporting.clone());
            let (handler, all, own) = (Arc::clone(handler), Arc::clone(&mailboxes), Arc::clone(mailbox));
            let run = move || {
                let run = || run(number, shape, handler, own, &reporting, &to_follow);
                let result = catch_unwind(AssertUnwindSafe(run));
                let result = result.unwrap_or_else(|_| Err(io::Error::other("a queue's thread panicked")));
                if result.is_ok() {
                    // A queue that has no entry in the kernel does not hear from it that the connection is gone.
                    all.iter().for_each(|mailbox| mailbox.end());
                }
                // Nobody listens when the ring was dropped.
                let _ = ending.send(result);
            };
            let thread = thread::Builder::new().name(format!("ring-{number}")).spawn(run)?;
            members.push(Member { orders, mailbox: Arc::clone(mailbox), thread });
        }
        for _ in &members {
            reports.recv().map_err(io::Error::other)??;
        }
        Ok(Prepared { members, ended })
    }

    /// Wait for the connection's end. What is still kept for later then may be answered as before, to nobody.
    ///
    /// # Errors
    /// A queue's, at once, while the others go on: the caller has to end the connection.
    pub(super) fn join(self) -> io::Result<()> {
        for _ in &self.members {
            self.ended.recv().map_err(io::Error::other)??;
        }
        for member in self.members {
            // It said that it ended well.
            let _ = member.thread.join();
        }
        Ok(())
    }

    /// Ends the queues when /dev/fuse says ENODEV: they hear it from the kernel as well, but not when each has kept as
    /// many requests as it can.
    pub(super) fn ender(&self) -> impl Fn() + Send + Sync + 'static {
        let mailboxes = self.members.iter().map(|member| Arc::clone(&member.mailbox)).collect::<Vec<_>>();
        move || mailboxes.iter().for_each(|mailbox| mailbox.end())
    }
}

impl Prepared {
    /// Have the connection of `device` send its requests here. INIT was answered, with `FUSE_OVER_IO_URING`.
    ///
    /// # Errors
    /// When the kernel refuses an entry of any queue: EINVAL for a payload too small, EOPNOTSUPP when the module's
    /// parameter `enable_uring` was changed, EPERM or EACCES by a security module, ENOMEM. Then all is given back.
    pub(super) fn start(self, device: &Arc<OwnedFd>) -> Result<Ring, Refused> {
        let (reporting, reports) = mpsc::channel();
        let mut failed = None;
        for member in &self.members {
            if member.orders.send(Order::Register(Arc::clone(device), reporting.clone())).is_err() {
                failed = Some(io::Error::other("a queue's thread is gone"));
            }
        }
        drop(reporting);
        for report in reports {
            if let Err(e) = report {
                failed = Some(e);
            }
        }
        match failed {
            None => {
                for member in &self.members {
                    // One that is gone is seen by `join`.
                    let _ = member.orders.send(Order::Serve);
                }
                Ok(Ring { members: self.members, ended: self.ended })
            }
            Some(error) => Err(Refused { error, usable: self.refuse(device) }),
        }
    }

    /// True once one of the threads has told the kernel.
    fn refuse(self, device: &Arc<OwnedFd>) -> bool {
        let usable = self.members.iter().any(|member| {
            let (reporting, report) = mpsc::channel();
            member.orders.send(Order::Refuse(Arc::clone(device), reporting)).is_ok()
                && report.recv() == Ok(true)
        });
        for Member { orders, thread, .. } in self.members {
            drop(orders);
            // A panic has been told of by its hook.
            let _ = thread.join();
        }
        usable
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("queues", &self.members.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("queues", &self.members.len()).finish_non_exhaustive()
    }
}

/// A queue's thread.
fn run<H: Handler>(
    number: u16,
    shape: Shape,
    handler: Arc<H>,
    mailbox: Arc<Mailbox>,
    prepared: &Sender<io::Result<()>>,
    orders: &Receiver<Order>,
) -> io::Result<()> {
    pin(usize::from(number));
    let made = Queue::new(number, shape, handler, mailbox);
    // Whoever asked may be gone: then there are no orders either.
    let mut queue = match made {
        Ok(queue) => {
            let _ = prepared.send(Ok(()));
            queue
        }
        Err(e) => {
            let _ = prepared.send(Err(e));
            return Ok(());
        }
    };
    while let Ok(order) = orders.recv() {
        match order {
            Order::Register(device, report) => drop(report.send(queue.register(device))),
            Order::Refuse(device, report) => drop(report.send(queue.refuse(&device))),
            Order::Serve => return queue.serve(),
        }
    }
    Ok(())
}

/// Keep this thread on a processor. Where that may not be, or the processor is not there, it runs anywhere.
fn pin(processor: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if processor < CpuSet::MAX_CPU && allowed.is_set(processor) {
        let mut only = CpuSet::new();
        only.set(processor);
        let _ = sched_setaffinity(None, &only);
    }
}

/// How many processors a list like `0-3,6` has.
fn possible(list: &str) -> Option<u16> {
    let mut count = 0u16;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}
