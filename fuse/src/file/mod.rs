//! All files that are open or dirty, and when they are flushed.

mod deadline;
mod dirty;
mod flush;
mod node;
mod opens;
mod pack;
mod recover;
mod zeros;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_types::limits::{DIRTY_AGE_SECS_MAX, DIRTY_BYTES_MAX, GROUP_MAX};
use kos_types::{Attr, Consistency, Error, Fabric, FileKind, Ino, Kind, Op, Reply, Result, SetAttr, Source};

use deadline::Deadline;

use crate::arena::{Buffers, Owner};
use crate::once;
use crate::seal::Backing;
pub(crate) use node::{Node, Users, now};
pub(crate) use opens::{Access, Way};

/// A file's buffer that is worth a flush of its own: several stripes, so that one commit and one
/// round of syncs carry them.
const FLUSH_BYTES: usize = 32 << 20;
/// Bytes and files of one flush of several.
const BATCH_BYTES: usize = 16 << 20;
const BATCH_FILES: usize = 1024;
/// Threads that flush in the background.
const FLUSHERS: usize = 4;
/// Time between looks for old buffers.
const PERIOD: Duration = Duration::from_secs(1);

/// What a request waits at most, once or for each of a few files: what the kernel calls a hung task.
/// A whole buffer is flushed within it by anything faster than a megabyte a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The files of one mount.
pub(crate) struct Files<F> {
    fabric: Arc<F>,
    patience: Duration,
    /// Where what is written is until it is flushed.
    buffers: Arc<Buffers>,
    nodes: Mutex<HashMap<Ino, Arc<Node>>>,
    /// Bytes in all buffers.
    dirty: AtomicUsize,
    flusher: OnceLock<SyncSender<Order>>,
    /// Inodes without a name or a user, to be dropped together.
    reaps: Mutex<Vec<Ino>>,
    /// Held by whoever drops them.
    reaping: Mutex<()>,
    /// Nodes that left the table: whoever looked at attributes meanwhile looks again.
    left: AtomicU64,
}

impl<F: Fabric> Files<F> {
    pub(crate) fn new(fabric: Arc<F>, patience: Duration, buffers: Arc<Buffers>) -> Self {
        Self {
            fabric,
            patience,
            buffers,
            nodes: Mutex::default(),
            dirty: AtomicUsize::new(0),
            flusher: OnceLock::new(),
            reaps: Mutex::default(),
            reaping: Mutex::default(),
            left: AtomicU64::new(0),
        }
    }

    /// What a request waits for one thing.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Of a request that begins now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.patience)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Ino, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<Node>> {
        self.nodes().get(&ino).map(Arc::clone)
    }

    /// The node of an open file, or of one that is only touched.
    pub(crate) fn node(&self, ino: Ino) -> Arc<Node> {
        let new = || Arc::new(Node::new(Owner { buffers: Arc::clone(&self.buffers), ino }));
        Arc::clone(self.nodes().entry(ino).or_insert_with(new))
    }

    /// One more descriptor; `cacheable` says whether the page cache may be used for it at all, `lend` answers a copy to read in place. The first open of a file decides for all that live
    /// at a time, also how it is shared.
    pub(crate) fn open(
        &self,
        ino: Ino,
        (access, cacheable, consistency): (Access, bool, Consistency),
        lend: impl FnOnce() -> Option<Backing>,
    ) -> (Arc<Node>, Way, Option<Backing>) {
        let node = self.node(ino);
        let mut unused = None;
        let mut state = node.state();
        if !state.opens.any() {
            // Not under the lock: whoever closes the file takes that too, and the fabric may be away until he has.
            drop(state);
            unused = lend();
            state = node.state();
            if !state.opens.any() {
                state.users.backing = unused.take();
                state.users.consistency = consistency;
            }
        }
        let backing = state.users.backing.clone();
        let way =
            if backing.is_some() { state.opens.open_in_place() } else { state.opens.open(access, cacheable) };
        state.users.writers += u32::from(access != Access::Read);
        drop(state);
        if unused.take().is_some() {
            self.fabric.return_copy(ino);
        }
        (node, way, backing)
    }

    /// One less of those that were opened that way. The last one answers the copy that was read.
    pub(crate) fn close(&self, ino: Ino, way: Way, writes: bool) -> Option<Backing> {
        let ended = self.find(ino).and_then(|node| node.close(way, writes));
        self.leave(ino);
        ended
    }

    /// A descriptor of the file was closed; the last of an open one's, perhaps.
    pub(crate) fn quiet(&self, ino: Ino) {
        if let Some(node) = self.find(ino) {
            node.state().users.quiet = true;
        }
    }

    /// Whether writes of a file may have gone past the kernel's cache.
    pub(crate) fn is_written_past(&self, ino: Ino) -> bool {
        self.find(ino).is_some_and(|node| node.state().opens.any_writes_past())
    }

    /// Whether the kernel may have pages of a file for those who have it open.
    pub(crate) fn is_cached(&self, ino: Ino) -> bool {
        self.find(ino).is_some_and(|node| node.state().opens.any_cached())
    }

    /// What an open file has at least, if that is known; anybody may have cut it since, unless a lease says that nobody has.
    pub(crate) fn size_least(&self, ino: Ino) -> Option<u64> {
        self.find(ino).and_then(|node| node.state().size_least)
    }

    /// The same, found out under a lease on some of its bytes: nobody makes it shorter meanwhile.
    pub(crate) fn learn_size(&self, ino: Ino) -> Result<u64> {
        let node = self.node(ino);
        let known = node.state().size_least;
        let size = known.map_or_else(|| node.attr(&*self.fabric).map(|attr| attr.size), Ok)?;
        node.state().size_least.get_or_insert(size);
        Ok(size)
    }

    /// A lease on its bytes goes: anybody may make it shorter.
    pub(crate) fn forget_size(&self, ino: Ino) {
        if let Some(node) = self.find(ino) {
            node.state().size_least = None;
        }
    }

    /// Open files that are eventually the same everywhere.
    pub(crate) fn eventual_files(&self) -> HashSet<Ino> {
        let eventual = |node: &Node| {
            let state = node.state();
            state.opens.any() && state.users.consistency == Consistency::Eventual
        };
        self.nodes().iter().filter(|(_, node)| eventual(node)).map(|(&ino, _)| ino).collect()
    }

    /// All files that are open.
    pub(crate) fn open_files(&self) -> Vec<Ino> {
        let nodes = self.nodes();
        nodes.iter().filter(|(_, node)| node.state().opens.any()).map(|(&ino, _)| ino).collect()
    }

    /// Take a node that is clean and not open out of the table.
    pub(crate) fn leave(&self, ino: Ino) {
        if let Entry::Occupied(entry) = self.nodes().entry(ino) {
            let state = entry.get().state();
            let idle = !state.opens.any() && state.is_clean() && state.bytes() == 0;
            drop(state);
            // One reference in the table and no other: nobody is using it.
            if idle && Arc::strong_count(entry.get()) == 1 {
                self.left.fetch_add(1, Ordering::SeqCst);
                entry.remove();
            }
        }
    }

    /// Attributes as stat shows them, however the fabric's are found.
    pub(crate) fn fresh(&self, get: impl Fn() -> Result<Attr>) -> Result<Attr> {
        let left = self.left.load(Ordering::SeqCst);
        let attr = get()?;
        if attr.kind != FileKind::File {
            return Ok(attr);
        }
        if let Some(node) = self.find(attr.ino) {
            return node.attr(&*self.fabric);
        }
        if self.left.load(Ordering::SeqCst) == left {
            return Ok(attr);
        }
        // A node that was flushed and left since may have changed what was read.
        let again = self.node(attr.ino).attr(&*self.fabric);
        self.leave(attr.ino);
        again
    }

    /// Fill `out` from `off` on; answers how far, which is less only at the end of the file.
    pub(crate) fn read(&self, ino: Ino, off: u64, out: &mut [u8]) -> Result<usize> {
        self.node(ino).read(&*self.fabric, off, out, self.deadline())
    }

    /// Write at `off`, or at the end when there is none; answers where.
    pub(crate) fn write(&self, ino: Ino, off: Option<u64>, data: &[u8]) -> Result<u64> {
        let node = self.node(ino);
        let own = node.state().bytes();
        if self.dirty.load(Ordering::Relaxed) > DIRTY_BYTES_MAX || own > 2 * FLUSH_BYTES {
            // Whoever writes faster than the flushers can take it helps. A write that fails here has
            // buffered nothing, or programs that try again would fill the memory.
            self.flush_node(&node)?;
        }
        self.reserve(ino, off, data.len() as u64)?;
        let written = match node.write(&*self.fabric, off, data) {
            Err(e) if e.kind() == Kind::NoSpace => {
                // All buffers are taken, by ranges that are tiny. Errors are told to the files they are of.
                drop(self.flush_all());
                node.write(&*self.fabric, off, data)
            }
            result => result,
        };
        let grown = written.as_ref().map_or(0, |(_, grown)| *grown);
        self.fabric.release(ino, (data.len() - grown) as u64);
        let (at, _) = written?;
        self.dirty.fetch_add(grown, Ordering::Relaxed);
        if node.state().is_large() {
            self.wake_flusher();
        }
        Ok(at)
    }

    /// Flush what is large now. When an order waits already, that one will do.
    fn wake_flusher(&self) {
        if let Some(flusher) = self.flusher.get() {
            // An error says that one waits, or that the mount ends and flushes everything.
            let _ = flusher.try_send(Order::Flush);
        }
    }

    /// Room for a write: what does not fit is refused now and not when it is flushed.
    fn reserve(&self, ino: Ino, off: Option<u64>, bytes: u64) -> Result<()> {
        match self.fabric.reserve(ino, bytes, bytes) {
            Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::QuotaExceeded) => {
                self.reap();
                // Buffers may need less than was set aside for them, and what a flush has written and
                // not committed counts twice. Its errors are told to the files they are of.
                drop(self.flush_all());
                let grows = off.map_or(Ok(bytes), |off| self.unmapped(ino, off, bytes))?;
                self.fabric.reserve(ino, bytes, grows)
            }
            result => result,
        }
    }

    /// Bytes of a range that are not in the fabric yet.
    fn unmapped(&self, ino: Ino, off: u64, len: u64) -> Result<u64> {
        let map = self.fabric.extents(ino, off, len)?;
        let mapped: u64 = map.extents.iter().filter(|e| e.source != Source::Hole).map(|e| e.len).sum();
        Ok(len - mapped)
    }

    fn shrunk(&self, ino: Ino, bytes: usize) {
        self.dirty.fetch_sub(bytes, Ordering::Relaxed);
        self.fabric.release(ino, bytes as u64);
    }

    fn flush_node(&self, node: &Node) -> Result<()> {
        let (gone, failed) = flush::flush(&*self.fabric, std::iter::once(node), self.deadline());
        self.dirty.fetch_sub(gone, Ordering::Relaxed);
        failed.into_iter().next().map_or(Ok(()), |(_, e)| Err(e))
    }

    /// Write a file's buffer out.
    pub(crate) fn flush(&self, ino: Ino) -> Result<()> {
        self.find(ino).map_or(Ok(()), |node| self.flush_node(&node))
    }

    /// Give up what is buffered of a file, and tell its users why. Answers whether anything was lost.
    pub(crate) fn discard(&self, ino: Ino, why: &Error) -> bool {
        let discarded = self.find(ino).and_then(|node| node.discard(why, self.deadline()));
        self.shrunk(ino, discarded.unwrap_or(0));
        discarded.is_some()
    }

    /// The same of all files. Answers those that lost something.
    pub(crate) fn discard_all(&self, why: &Error) -> Vec<Ino> {
        let all: Vec<Ino> = self.nodes().keys().copied().collect();
        all.into_iter().filter(|&ino| self.discard(ino, why)).collect()
    }

    /// The flush error a descriptor has not told yet.
    pub(crate) fn unseen_error(&self, ino: Ino, seen: &mut u64) -> Result<()> {
        self.find(ino).map_or(Ok(()), |node| node.unseen_error(seen))
    }

    /// Write all buffers out; every file is tried, the first error is answered.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.flush_those(|_| true)
    }

    fn flush_those(&self, wanted: impl Fn(&Node) -> bool) -> Result<()> {
        let all: Vec<(Ino, Arc<Node>)> =
            self.nodes().iter().map(|(&ino, node)| (ino, Arc::clone(node))).collect();
        let (mut due, idle): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, node)| wanted(node));
        due.sort_unstable_by_key(|(ino, _)| *ino);
        let batches = batches(&due);
        let next = AtomicUsize::new(0);
        let first = Mutex::new(Ok(()));
        thread::scope(|scope| {
            for _ in 0..FLUSHERS.min(batches.len()) {
                scope.spawn(|| {
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let nodes = batch.iter().map(|(_, node)| &**node);
                        let (gone, failed) = flush::flush(&*self.fabric, nodes, self.deadline());
                        self.dirty.fetch_sub(gone, Ordering::Relaxed);
                        for (_, e) in failed {
                            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                            if first.is_ok() {
                                *first = Err(e);
                            }
                        }
                    }
                });
            }
        });
        drop(batches);
        for (ino, node) in due.into_iter().chain(idle) {
            drop(node);
            self.leave(ino);
        }
        first.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_attr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        let node = self.node(ino);
        let change = || node.set_attr(&*self.fabric, set.clone(), self.deadline());
        let (attr, gone) = match change() {
            Err(e) if e.kind() == Kind::QuotaExceeded => {
                self.reap();
                change()
            }
            result => result,
        }?;
        self.shrunk(ino, gone);
        drop(node);
        self.leave(ino);
        Ok(attr)
    }

    pub(crate) fn punch(&self, ino: Ino, off: u64, len: u64, size_min: Option<u64>) -> Result<()> {
        let gone = self.node(ino).punch(&*self.fabric, off, len, size_min, self.deadline())?;
        self.shrunk(ino, gone);
        Ok(())
    }

    /// Share `len` bytes of one file with another.
    pub(crate) fn clone_range(
        &self,
        (from, from_off): (Ino, u64),
        (to, to_off): (Ino, u64),
        len: u64,
    ) -> Result<()> {
        // The target too: a clone beyond its committed end must find the bytes before it.
        self.flush(from)?;
        self.flush(to)?;
        let op = Op::Clone { from, from_off, to, to_off, len };
        let range = (to_off, to_off.saturating_add(len));
        let gone = self.node(to).replace(range, || self.propose(op), self.deadline())?;
        self.shrunk(to, gone);
        Ok(())
    }

    /// Nobody has a name or a use for this inode any more. It is dropped with others, a second later at
    /// most: each by itself costs as much as its unlink.
    pub(crate) fn abandon(&self, ino: Ino) {
        if let Some(node) = self.find(ino) {
            self.shrunk(ino, node.drop_buffer(self.deadline()));
        }
        self.leave(ino);
        let waiting = {
            let mut reaps = self.reaps.lock().unwrap_or_else(PoisonError::into_inner);
            reaps.push(ino);
            reaps.len()
        };
        if waiting >= GROUP_MAX {
            self.reap();
        }
    }

    /// Drop what was abandoned before this call.
    pub(crate) fn reap(&self) {
        let _one_at_a_time = self.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        let inodes = std::mem::take(&mut *self.reaps.lock().unwrap_or_else(PoisonError::into_inner));
        for group in inodes.chunks(GROUP_MAX) {
            let replies = self.fabric.propose_all(group.iter().map(|&ino| Op::Reap { ino }).collect());
            for (ino, reply) in group.iter().zip(replies) {
                if let Err(e) = reply {
                    kos_types::log!("kos-fuse: dropping inode {}: {e}; the next start does it", ino.0);
                }
            }
        }
    }

    /// Apply a change that takes room or quota: what was abandoned gives its own back first, if it must.
    pub(crate) fn propose(&self, op: Op) -> Result<Reply> {
        match self.fabric.propose_once(op.clone(), once::name()) {
            Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::QuotaExceeded) => {
                self.reap();
                self.fabric.propose_once(op, once::name())
            }
            result => result,
        }
    }
}

/// Cut nodes into flushes of about [`BATCH_BYTES`]: files that are small share stripes, commits
/// and syncs.
fn batches(nodes: &[(Ino, Arc<Node>)]) -> Vec<&[(Ino, Arc<Node>)]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, (_, node)) in nodes.iter().enumerate() {
        bytes += node.state().bytes();
        if bytes >= BATCH_BYTES || at + 1 - start == BATCH_FILES {
            batches.push(&nodes[start..=at]);
            (start, bytes) = (at + 1, 0);
        }
    }
    if start < nodes.len() {
        batches.push(&nodes[start..]);
    }
    batches
}

/// What the flusher is told.
enum Order {
    Flush,
    End,
}

/// The thread that flushes old and large buffers; it ends when this is dropped.
pub(crate) struct Flusher {
    orders: SyncSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn start<F: Fabric + 'static>(files: Arc<Files<F>>) -> Result<Self> {
        let (orders, received) = mpsc::sync_channel(1);
        let old = Duration::from_secs(DIRTY_AGE_SECS_MAX);
        // A mount has one flusher.
        files.flusher.get_or_init(|| orders.clone());
        let run = move || {
            loop {
                match received.recv_timeout(PERIOD) {
                    Ok(Order::Flush) => (),
                    Err(RecvTimeoutError::Timeout) => files.buffers.trim(),
                    Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
                }
                let due = |node: &Node| {
                    let state = node.state();
                    state.since.is_some_and(|since| since.elapsed() >= old) || state.is_large()
                };
                files.reap();
                // Each error is reported where it happened and kept for the file's descriptors.
                drop(files.flush_those(due));
            }
        };
        let thread = thread::Builder::new()
            .name("flusher".into())
            .spawn(run)
            .map_err(|e| Error::io("flusher: thread", &e))?;
        Ok(Self { orders, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.orders.send(Order::End);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("kos-fuse: the flusher panicked");
        }
    }
}
