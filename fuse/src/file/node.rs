//! One open or dirty file: its buffered bytes over what the fabric holds.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kos_types::{
    Attr, Consistency, Error, Fabric, Ino, Kind, Op, Reply, Result, SetAttr, SetSize, Source, Time, limits,
};

use super::deadline::{Deadline, Held, Turn};
use super::dirty::Dirty;
use super::opens::{Opens, Way};
use crate::arena::{Left, Owner};
use crate::once;
use crate::seal::Backing;

/// Times a read starts anew because a flush or another commit got in between.
const READ_TRIES: usize = 16;
/// Of these, the first ones let flushes go on: on a busy machine one may end each time.
const READ_TRIES_BESIDE: usize = 3;

/// What a file's buffer holds.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Written since the last flush began.
    dirty: Dirty,
    /// What the flush in progress writes; under `dirty`.
    flushing: Arc<Dirty>,
    /// The size, where it is beyond the committed one.
    size: Option<u64>,
    /// It is at least this, as long as no lease on its bytes is given back.
    pub(crate) size_least: Option<u64>,
    /// When it was last written, where that is not committed.
    mtime: Option<Time>,
    /// Since when it is dirty.
    pub(crate) since: Option<Instant>,
    /// Flushes done: a read that saw another number starts anew.
    flushes: u64,
    /// The last flush error and its number.
    error: Option<Error>,
    errors: u64,
    /// The last flush failed, and that was reported.
    failing: bool,
    pub(crate) opens: Opens,
    pub(crate) users: Users,
    /// It has no name any more and its last user went: nothing is to be written.
    dropped: bool,
    /// What is committed is being cut, and the buffer is not yet: neither may be seen, nor the buffer grow.
    cutting: bool,
}

/// What the users of a file hold against others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users {
    /// Opens for writing.
    pub(crate) writers: u32,
    /// Of the writers, those that are closing.
    pub(crate) leaving: u32,
    /// A descriptor was closed since the last write.
    pub(crate) quiet: bool,
    /// Seals and last closes under way: until they end, nobody begins to write.
    pub(crate) sealing: u32,
    /// The copy that all of them read.
    pub(crate) backing: Option<Backing>,
    /// What the first of them found.
    pub(crate) consistency: Consistency,
}

impl State {
    /// Bytes held in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.dirty.bytes() + self.flushing.bytes()
    }

    /// Worth a flush of its own now; one that failed waits as long as an old one.
    pub(crate) fn is_large(&self) -> bool {
        self.dirty.bytes() >= super::FLUSH_BYTES && !self.failing
    }

    pub(crate) const fn is_clean(&self) -> bool {
        self.since.is_none()
    }

    /// The time that is committed is the newest one, also to the next process.
    fn forget_mtime(&mut self) {
        self.mtime = None;
        self.dirty.forget_written();
    }
}

/// What a flush in progress writes.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) dirty: Arc<Dirty>,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Time>,
}

/// One file.
#[derive(Debug)]
pub(crate) struct Node {
    owner: Owner,
    state: Mutex<State>,
    /// Held by whoever flushes or changes what is committed; taken before `state`.
    flush: Turn,
    /// A writer went, a seal came, or a cut is done.
    closed: Condvar,
}

/// The buffer is to be cut as what is committed is. Without the lock of the state meanwhile, which is taken to find any
/// file: the fabric may take long.
struct Cut<'a>(&'a Node);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.state().cutting = false;
        self.0.closed.notify_all();
    }
}

pub(crate) fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() },
        Err(_) => Time::default(),
    }
}

pub(crate) fn attr_of(reply: Reply) -> Result<Attr> {
    match reply {
        Reply::Attr(attr) => Ok(attr),
        other => Err(Error::new(Kind::Io, format!("fabric: unexpected reply {other:?}"))),
    }
}

impl Node {
    pub(crate) fn new(owner: Owner) -> Self {
        Self { owner, state: Mutex::default(), flush: Turn::default(), closed: Condvar::new() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, while nobody cuts the file.
    fn uncut(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if !state.cutting {
            return Ok(state);
        }
        let waited = self.closed.wait_timeout_while(state, super::PATIENCE, |state| state.cutting);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Error::new(Kind::TimedOut, "file: a change of its size takes too long"));
        }
        Ok(state)
    }

    /// Begin a cut, which ends when the answer is dropped. By whoever has the turn.
    fn cut(&self) -> Cut<'_> {
        self.state().cutting = true;
        Cut(self)
    }

    pub(crate) const fn ino(&self) -> Ino {
        self.owner.ino
    }

    /// A handle goes; the last one answers the copy that was read.
    pub(crate) fn close(&self, way: Way, writes: bool) -> Option<Backing> {
        let mut state = self.state();
        state.opens.close(way);
        if writes {
            state.users.writers = state.users.writers.saturating_sub(1);
            state.users.leaving = state.users.leaving.saturating_sub(1);
            self.closed.notify_all();
        }
        if state.opens.any() { None } else { state.users.backing.take() }
    }

    /// A seal or a last close is done.
    pub(crate) fn end_sealing(&self) {
        let mut state = self.state();
        state.users.sealing = state.users.sealing.saturating_sub(1);
        self.closed.notify_all();
    }

    /// Wait until `done`, at most `time`: whether it is.
    pub(crate) fn await_close(&self, time: Duration, done: impl Fn(&Users) -> bool) -> bool {
        let state = self.closed.wait_timeout_while(self.state(), time, |state| !done(&state.users));
        !state.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Taken before the state, and by whoever takes several in the order of the inodes.
    pub(crate) fn turn(&self, deadline: Deadline) -> Result<Held<'_>> {
        self.flush.take(deadline)
    }

    /// What stat shows: the committed attributes with the buffer's size and time.
    pub(crate) fn attr<F: Fabric>(&self, fabric: &F) -> Result<Attr> {
        self.shown(fabric).map(|(_, attr)| attr)
    }

    /// The same, and the state that it is true in. The fabric is not asked under the lock of the state: whoever
    /// closes the file takes that too, and the fabric may be away until he has.
    fn shown<F: Fabric>(&self, fabric: &F) -> Result<(MutexGuard<'_, State>, Attr)> {
        loop {
            let flushes = self.uncut()?.flushes;
            let attr = fabric.attr(self.ino())?;
            let state = self.uncut()?;
            // A flush that ended meanwhile has forgotten what it committed.
            if state.flushes == flushes {
                let attr = overlay(&state, attr);
                return Ok((state, attr));
            }
        }
    }

    /// Write at `off`, or at the end when there is none. Answers where, and the change of buffered bytes.
    pub(crate) fn write<F: Fabric>(&self, fabric: &F, off: Option<u64>, data: &[u8]) -> Result<(u64, usize)> {
        let (mut state, off) = match (off, self.uncut()?) {
            (Some(off), state) => (state, off),
            (None, state) => {
                drop(state);
                let (state, attr) = self.shown(fabric)?;
                (state, once::append_at(attr.size))
            }
        };
        let end = off
            .checked_add(data.len() as u64)
            .filter(|&end| end <= limits::FILE_BYTES_MAX)
            .ok_or_else(|| Error::new(Kind::TooLarge, "write"))?;
        let before = state.dirty.bytes();
        state.users.quiet = false;
        state.dirty.insert(&self.owner, off, data)?;
        let written = now();
        state.dirty.touch(off, written);
        state.size = Some(state.size.unwrap_or(0).max(end));
        state.size_least = state.size_least.map(|least| least.max(end));
        state.mtime = Some(written);
        state.since.get_or_insert_with(Instant::now);
        Ok((off, state.dirty.bytes() - before))
    }

    /// Buffer what an earlier process did, the oldest first. Answers the bytes.
    pub(crate) fn recover(&self, left: Vec<Left>) -> usize {
        let mut state = self.state();
        let before = state.dirty.bytes();
        for Left { off, buf, .. } in left {
            state.dirty.lay(off, buf);
        }
        if !state.dirty.is_empty() {
            state.size = state.size.max(state.dirty.end());
            state.mtime = state.mtime.max(state.dirty.written());
            state.since.get_or_insert_with(Instant::now);
        }
        state.dirty.bytes() - before
    }

    /// Fill `out` from `off` on; answers how far, which is less only at the end of the file.
    pub(crate) fn read<F: Fabric>(
        &self,
        fabric: &F,
        off: u64,
        out: &mut [u8],
        deadline: Deadline,
    ) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            let (read, is_all) = self.read_mapped(fabric, off + done as u64, &mut out[done..], deadline)?;
            done += read;
            if is_all {
                break;
            }
        }
        Ok(done)
    }

    /// The same as far as one map of extents goes, and whether that was all.
    fn read_mapped<F: Fabric>(
        &self,
        fabric: &F,
        off: u64,
        out: &mut [u8],
        deadline: Deadline,
    ) -> Result<(usize, bool)> {
        let len = out.len() as u64;
        for nth in 0..READ_TRIES {
            let _no_flush = (nth >= READ_TRIES_BESIDE).then(|| self.turn(deadline)).transpose()?;
            let flushes = self.uncut()?.flushes;
            let map = fabric.extents(self.ino(), off, len)?;
            let mut end = off;
            let mut gone = false;
            for extent in &map.extents {
                let part = &mut out[(extent.off - off) as usize..(extent.off - off + extent.len) as usize];
                end = extent.off + extent.len;
                match &extent.source {
                    Source::Hole => part.fill(0),
                    Source::Inline(bytes) => part.copy_from_slice(bytes),
                    &Source::Stripe(id, at) => {
                        deadline.check("read: the fabric is too slow")?;
                        match fabric.read_stripe(id, at, part) {
                            Err(e) if e.kind() == Kind::NotFound => gone = true,
                            other => other?,
                        }
                    }
                }
            }
            let state = self.uncut()?;
            if gone || state.flushes != flushes {
                continue;
            }
            let size = map.size.max(state.size.unwrap_or(0));
            let wanted = size.min(off.saturating_add(len));
            // A map that was cut short ends before the bytes do: answer what is known.
            let complete = end >= wanted.min(map.size);
            let upto = if complete { wanted } else { end };
            let out = &mut out[..upto.saturating_sub(off) as usize];
            // Beyond the committed end there is what is buffered, and zeros between.
            if let Some(rest) = out.get_mut((end - off) as usize..) {
                rest.fill(0);
            }
            state.flushing.overlay(off, out);
            state.dirty.overlay(off, out);
            return Ok((out.len(), complete));
        }
        Err(Error::new(Kind::TimedOut, "read: the file changes faster than it can be read"))
    }

    /// Begin a flush, under the flush lock: none when there is nothing to write.
    pub(crate) fn take(&self) -> Option<Taken> {
        let mut state = self.state();
        if state.is_clean() || state.dropped {
            return None;
        }
        state.flushing = Arc::new(std::mem::take(&mut state.dirty));
        state.since = None;
        Some(Taken { dirty: Arc::clone(&state.flushing), size: state.size, mtime: state.mtime })
    }

    /// End a flush, under the same lock; after an error the bytes stay. Answers those that left memory.
    pub(crate) fn settle(&self, taken: Taken, result: Result<Attr>) -> usize {
        let mut state = self.state();
        state.flushing = Arc::default();
        let bytes = taken.dirty.bytes();
        match result {
            Ok(attr) => {
                state.flushes += 1;
                state.failing = false;
                state.size = state.size.filter(|&size| size > attr.size);
                state.mtime = state.mtime.filter(|&time| Some(time) != taken.mtime);
                bytes
            }
            Err(_) if state.dropped => bytes,
            Err(e) => {
                // Kept, under what was written since; a later flush tries again.
                let both = bytes + state.dirty.bytes();
                let Some(mut kept) = Arc::into_inner(taken.dirty) else {
                    unreachable!("only the flush that ends, and the state, had the ranges")
                };
                kept.merge(std::mem::take(&mut state.dirty));
                state.dirty = kept;
                state.since.get_or_insert_with(Instant::now);
                state.errors += 1;
                state.error = Some(e);
                both - state.dirty.bytes()
            }
        }
    }

    /// End a flush of a file that is gone. Answers the bytes that left memory.
    pub(crate) fn settle_gone(&self, taken: &Taken) -> usize {
        let mut state = self.state();
        let bytes = taken.dirty.bytes() + state.dirty.bytes();
        *state = State { opens: state.opens, dropped: true, ..State::default() };
        bytes
    }

    /// Change attributes; a size cuts the buffer too. Answers what stat shows then, and the
    /// bytes that left memory.
    pub(crate) fn set_attr<F: Fabric>(
        &self,
        fabric: &F,
        set: SetAttr,
        deadline: Deadline,
    ) -> Result<(Attr, usize)> {
        let _no_flush = self.turn(deadline)?;
        let (size, mtime) = (set.size, set.mtime);
        let _cut = size.is_some().then(|| self.cut());
        let attr = attr_of(fabric.propose(Op::SetAttr { ino: self.ino(), set })?)?;
        let mut state = self.state();
        let before = state.dirty.bytes();
        if let Some(SetSize { size }) = size {
            state.dirty.remove(size, u64::MAX);
            (state.size, state.size_least) = (None, None);
            state.flushes += 1;
        }
        if size.is_some() || mtime.is_some() {
            state.forget_mtime();
            state.flushes += 1;
        }
        clean_if_empty(&mut state);
        Ok((overlay(&state, attr), before - state.dirty.bytes()))
    }

    /// Make a range a hole; with `size_min` the file is at least that long then. Answers the
    /// bytes that left memory.
    pub(crate) fn punch<F: Fabric>(
        &self,
        fabric: &F,
        off: u64,
        len: u64,
        size_min: Option<u64>,
        deadline: Deadline,
    ) -> Result<usize> {
        let _no_flush = self.turn(deadline)?;
        let _cut = self.cut();
        let end = off.saturating_add(len);
        let size_min = {
            let mut state = self.state();
            state.dirty.cut(end)?;
            // The range that says how long the file is may go.
            size_min.max(state.size)
        };
        // The size in the same command: another mount may make the file longer meanwhile.
        let change = match size_min {
            None => Op::Punch { ino: self.ino(), off, len },
            Some(size_min) => Op::Commit {
                ino: self.ino(),
                stripes: Vec::new(),
                holes: vec![(off, len)],
                extents: Vec::new(),
                inline: Vec::new(),
                size_min,
                mtime: Some(now()),
            },
        };
        attr_of(fabric.propose(change)?)?;
        let mut state = self.state();
        state.flushes += 1;
        let before = state.dirty.bytes();
        state.dirty.remove(off, end);
        state.forget_mtime();
        clean_if_empty(&mut state);
        Ok(before - state.dirty.bytes())
    }

    /// Run `change`, which replaces the bytes of `off..end`, buffered ones too. Answers the
    /// bytes that left memory.
    pub(crate) fn replace(
        &self,
        (off, end): (u64, u64),
        change: impl FnOnce() -> Result<Reply>,
        deadline: Deadline,
    ) -> Result<usize> {
        let _no_flush = self.turn(deadline)?;
        let _cut = self.cut();
        self.state().dirty.cut(end)?;
        attr_of(change()?)?;
        let mut state = self.state();
        state.flushes += 1;
        let before = state.dirty.bytes();
        state.dirty.remove(off, end);
        clean_if_empty(&mut state);
        Ok(before - state.dirty.bytes())
    }

    /// Give the buffer up and tell whoever has the file open. Answers the bytes that left memory, if anything
    /// was lost.
    pub(crate) fn discard(&self, why: &Error, deadline: Deadline) -> Option<usize> {
        // What a flush that is under way cannot commit comes back before its turn ends.
        let _no_flush = self.turn(deadline);
        let mut state = self.state();
        if state.is_clean() {
            return None;
        }
        let bytes = state.dirty.bytes();
        state.dirty = Dirty::default();
        (state.size, state.size_least, state.mtime, state.since) = (None, None, None, None);
        state.flushes += 1;
        state.errors += 1;
        state.error = Some(why.clone());
        Some(bytes)
    }

    /// Forget the buffer: the file is gone. Answers the bytes that left memory.
    pub(crate) fn drop_buffer(&self, deadline: Deadline) -> usize {
        // A flush that takes this long meets a file that is gone; `settle` knows.
        let _no_flush = self.turn(deadline);
        let mut state = self.state();
        let bytes = state.dirty.bytes();
        let users = std::mem::take(&mut state.users);
        *state = State { users, dropped: true, ..State::default() };
        bytes
    }

    /// The flush error that a descriptor which has seen `seen` of them has not seen.
    pub(crate) fn unseen_error(&self, seen: &mut u64) -> Result<()> {
        let state = self.state();
        let unseen = state.errors > *seen;
        *seen = state.errors;
        match &state.error {
            Some(e) if unseen => Err(e.clone()),
            _ => Ok(()),
        }
    }

    /// Whether this failure is the first since a flush went well.
    pub(crate) fn begins_failing(&self) -> bool {
        !std::mem::replace(&mut self.state().failing, true)
    }

    /// Errors so far: a new descriptor has nothing to do with them.
    pub(crate) fn errors(&self) -> u64 {
        self.state().errors
    }
}

fn overlay(state: &State, mut attr: Attr) -> Attr {
    attr.size = attr.size.max(state.size.unwrap_or(0));
    attr.bytes += state.bytes() as u64;
    if let Some(time) = state.mtime {
        attr.mtime = attr.mtime.after_write(time, now());
        attr.ctime = attr.ctime.max(time);
    }
    attr
}

/// Nothing may be left to flush.
fn clean_if_empty(state: &mut State) {
    if state.dirty.is_empty() && state.size.is_none() && state.mtime.is_none() {
        state.since = None;
    }
}
