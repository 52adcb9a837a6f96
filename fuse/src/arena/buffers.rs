//! Buffers in an arena: bytes that are written and not flushed. Each has a header that says whose it is, so that the next
//! process finds it; the header is changed behind the bytes, and what overlaps is told apart by its order.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::limits::{DIRTY_BYTES_MAX, STRIPE_BYTES_MAX};
use kos_types::{Error, Ino, Kind, Result, Time};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Arena, BUFFERS, HEADERS, PAGE_BYTES, Slot, Slots, Table, WORD_BYTES};

/// Sizes of buffers. Each is four times the one before, so that a range takes four times its bytes at most if it is not
/// tiny; and only pages that are touched take memory.
pub(super) const CLASSES: usize = 8;
const SMALLEST: usize = 256;
/// Bytes of all buffers at most: what may be buffered, in ranges of any size but tiny ones. Whoever writes those
/// flushes earlier.
const TAKEN_BYTES_MAX: usize = 4 * DIRTY_BYTES_MAX;
/// Room for the buffers of one size: the bound of all is reached first.
pub(super) const REGION_BYTES: usize = TAKEN_BYTES_MAX + (64 << 20);
/// Bytes of free buffers that keep their pages, which cost more to get than to fill: what one file has in memory while it
/// is written at full speed.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Bytes of buffers smaller than a page, of each size, that keep their pages when all are free.
const SMALL_BYTES_KEPT: usize = 1 << 20;

/// Words of a header.
const WORDS: usize = 8;
const INO: usize = 0;
const OFF: usize = 1;
const LEN: usize = 2;
const ORDER: usize = 3;
const WRITTEN: usize = 4;
/// Bits of the nanoseconds in the last one.
const NANOS_BITS: u32 = 30;

const fn size_of(class: usize) -> usize {
    SMALLEST << (2 * class)
}

const _: () =
    assert!(size_of(CLASSES - 1) == STRIPE_BYTES_MAX && REGION_BYTES.is_multiple_of(STRIPE_BYTES_MAX));
const _: () = assert!(PAGE_BYTES.is_multiple_of(SMALLEST));

/// The tables of headers, behind another one.
pub(super) const fn headers(after: Table) -> [Table; CLASSES] {
    let mut tables = [after; CLASSES];
    let (mut last, mut class) = (after, 0);
    while class < CLASSES {
        last = last.then(WORDS, REGION_BYTES / size_of(class));
        tables[class] = last;
        class += 1;
    }
    tables
}

/// The smallest buffers with room for so many bytes.
fn class_of(bytes: usize) -> usize {
    assert!(bytes <= STRIPE_BYTES_MAX, "a buffer of {bytes} bytes");
    (0..CLASSES).find(|&class| size_of(class) >= bytes).unwrap_or(CLASSES - 1)
}

/// Bytes before a buffer.
const fn begin(class: usize, slot: Slot) -> usize {
    BUFFERS + class * REGION_BYTES + slot.number() as usize * size_of(class)
}

/// What a header says of the time of the last write: 0 is none. One word, so that it is there or not.
fn word_of(time: Option<Time>) -> u64 {
    time.map_or(0, |time| time.secs.cast_unsigned() << NANOS_BITS | u64::from(time.nanos))
}

fn time_of(word: u64) -> Option<Time> {
    let nanos = (word & ((1 << NANOS_BITS) - 1)) as u32;
    (word != 0).then_some(Time { secs: (word >> NANOS_BITS).cast_signed(), nanos })
}

/// All buffers of a mount.
#[derive(Debug)]
pub(crate) struct Buffers {
    arena: Arc<Arena>,
    classes: [Slots<WORDS>; CLASSES],
    /// Of the next range: a larger one is newer.
    order: AtomicU64,
    /// Bytes of all that are taken.
    taken: AtomicUsize,
    spare: Mutex<Spare>,
    /// What the process before left and nobody asked for yet.
    left: Mutex<Vec<(usize, Slot)>>,
}

/// Free buffers that have their pages, the last one freed at the end.
#[derive(Debug, Default)]
struct Spare {
    kept: [Vec<Slot>; CLASSES],
    bytes: usize,
}

/// Whose a buffer is, and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) ino: Ino,
}

/// A range that the process before buffered.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) ino: Ino,
    pub(crate) off: u64,
    pub(crate) buf: Buf,
}

impl Buffers {
    pub(crate) fn new(arena: Arc<Arena>) -> Arc<Self> {
        let classes = HEADERS.map(|table| Slots::new(Arc::clone(&arena), table));
        let (mut order, mut taken, mut left) = (0, 0, Vec::new());
        for (class, slots) in classes.iter().enumerate() {
            for (slot, words) in slots.taken() {
                order = order.max(words[ORDER]);
                taken += size_of(class);
                left.push((class, slot));
            }
        }
        let buffers = Self {
            arena,
            classes,
            order: AtomicU64::new(order + 1),
            taken: AtomicUsize::new(taken),
            spare: Mutex::default(),
            left: Mutex::new(left),
        };
        // The process before has kept the pages of some.
        for class in 0..CLASSES {
            buffers.empty(class, buffers.classes[class].unused());
        }
        Arc::new(buffers)
    }

    /// What the process before left, the oldest first. The first call answers it.
    pub(crate) fn left(self: &Arc<Self>) -> Vec<Left> {
        let mut left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.sort_by_key(|&(class, slot)| self.classes[class].word(slot, ORDER));
        let buf = |(class, slot): (usize, Slot)| {
            let words = self.classes[class].get(slot);
            let len = (words[LEN] as usize).min(size_of(class));
            let buf = Buf { buffers: Arc::clone(self), class, slot, len };
            Left { ino: Ino(words[INO]), off: words[OFF], buf }
        };
        left.into_iter().map(buf).collect()
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all that are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// A free buffer with room for `bytes`.
    fn claim(&self, bytes: usize) -> Result<(usize, Slot)> {
        let class = class_of(bytes);
        let full = || Error::new(Kind::NoSpace, "write: all buffers are taken");
        // Writers at one time may go over it by a buffer each.
        if self.taken.load(Ordering::Relaxed) + size_of(class) > TAKEN_BYTES_MAX {
            return Err(full());
        }
        let kept = {
            let mut spare = self.spare();
            let kept = spare.kept[class].pop();
            spare.bytes -= kept.map_or(0, |_| size_of(class));
            kept
        };
        let slot = kept.or_else(|| self.classes[class].claim()).ok_or_else(full)?;
        self.taken.fetch_add(size_of(class), Ordering::Relaxed);
        Ok((class, slot))
    }

    fn free(&self, class: usize, slot: Slot) {
        self.classes[class].set(slot, INO, 0);
        self.taken.fetch_sub(size_of(class), Ordering::Relaxed);
        if size_of(class) >= PAGE_BYTES {
            let mut spare = self.spare();
            if spare.bytes + size_of(class) <= KEPT_BYTES_MAX {
                spare.bytes += size_of(class);
                spare.kept[class].push(slot);
                return;
            }
            drop(spare);
            self.empty(class, vec![slot]);
        }
        self.classes[class].put_back(slot);
    }

    /// Give the pages of half of the free buffers back: called each second, so that idle mounts have none.
    pub(crate) fn trim(&self) {
        for (class, headers) in HEADERS.iter().enumerate() {
            if size_of(class) < PAGE_BYTES {
                // They share pages. As long as one is taken there are as many as there ever were at a time, which
                // what may be buffered bounds; when a flush has taken all, their pages go together.
                let least = SMALL_BYTES_KEPT / size_of(class);
                self.classes[class].restart(least, |used| {
                    self.punch(headers.begin, used * WORDS * WORD_BYTES);
                    self.punch(begin(class, Slot::at(0)), used * size_of(class));
                });
                continue;
            }
            let old: Vec<Slot> = {
                let mut spare = self.spare();
                let kept = &mut spare.kept[class];
                let old: Vec<_> = kept.drain(..kept.len().div_ceil(2)).collect();
                spare.bytes -= old.len() * size_of(class);
                old
            };
            self.empty(class, old.clone());
            old.into_iter().for_each(|slot| self.classes[class].put_back(slot));
        }
    }

    /// Give the pages of free buffers back, of neighbours together.
    fn empty(&self, class: usize, mut slots: Vec<Slot>) {
        if size_of(class) < PAGE_BYTES {
            return;
        }
        slots.sort_unstable_by_key(|slot| slot.number());
        for run in slots.chunk_by(|a, b| a.number() + 1 == b.number()) {
            self.punch(begin(class, run[0]), run.len() * size_of(class));
        }
    }

    fn punch(&self, off: usize, len: usize) {
        #[cfg(test)]
        if !super::kill::is_alive() {
            return;
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(e) =
            fallocate(self.arena.memory(), mode, off as u64, len.next_multiple_of(PAGE_BYTES) as u64)
        {
            kos_types::log!("kos-fuse: memory of free buffers stays: {e}");
        }
    }

    /// The bytes of a buffer.
    fn bytes(&self, class: usize, slot: Slot) -> *mut [u8] {
        let end = begin(class, slot) + size_of(class);
        assert!(end <= BUFFERS + (class + 1) * REGION_BYTES, "a buffer behind its region's end");
        let first = self.arena.map.as_mut_ptr().wrapping_add(begin(class, slot));
        std::ptr::slice_from_raw_parts_mut(first, size_of(class))
    }
}

/// One buffer, and the only one that touches its bytes.
#[derive(Debug)]
pub(crate) struct Buf {
    buffers: Arc<Buffers>,
    class: usize,
    slot: Slot,
    len: usize,
}

impl Buf {
    /// One for bytes at `off` of the owner's file, with room for `room` in all.
    ///
    /// # Errors
    /// `NoSpace` when all are taken.
    pub(crate) fn new(owner: &Owner, off: u64, data: &[u8], room: usize) -> Result<Self> {
        let order = owner.buffers.order.fetch_add(1, Ordering::Relaxed);
        Self::filled(&owner.buffers, [owner.ino.0, off, 0, order, 0, 0, 0, 0], data, room)
    }

    /// One with this header but for the length.
    fn filled(buffers: &Arc<Buffers>, mut words: [u64; WORDS], data: &[u8], room: usize) -> Result<Self> {
        let (class, slot) = buffers.claim(room.max(data.len()))?;
        let mut new = Self { buffers: Arc::clone(buffers), class, slot, len: data.len() };
        copy(&mut new.room()[..data.len()], data);
        words[LEN] = data.len() as u64;
        buffers.classes[class].fill(slot, words);
        Ok(new)
    }

    fn room(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "the bytes are shared with the process before and the one after")]
        // SAFETY: inside of the map, which lives as long as the buffers that this holds. A slot is claimed by one at a
        // time, which is not cloned and is borrowed here for as long as the answer; the process before is dead.
        unsafe {
            &mut *self.buffers.bytes(self.class, self.slot)
        }
    }

    const fn size(&self) -> usize {
        size_of(self.class)
    }

    fn header(&self) -> [u64; WORDS] {
        self.buffers.classes[self.class].get(self.slot)
    }

    fn set(&self, at: usize, word: u64) {
        self.buffers.classes[self.class].set(self.slot, at, word);
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
        self.set(LEN, len as u64);
    }

    /// How many bytes fit without another buffer.
    pub(crate) const fn spare(&self) -> usize {
        self.size() - self.len
    }

    /// Put bytes behind those that are here; all of them fit one stripe.
    ///
    /// # Errors
    /// `NoSpace` when it is full and all larger ones are taken: nothing has changed.
    pub(crate) fn extend(&mut self, data: &[u8]) -> Result<()> {
        if data.len() > self.spare() {
            // Until the old one goes both are there, and are equal.
            *self = Self::filled(&self.buffers, self.header(), self, self.len + data.len())?;
        }
        let (from, to) = (self.len, self.len + data.len());
        copy(&mut self.room()[from..to], data);
        self.set_len(to);
        Ok(())
    }

    /// Put bytes over those that are here, from the byte `at` on.
    pub(crate) fn overwrite(&mut self, at: usize, data: &[u8]) {
        let len = self.len;
        copy(&mut self.room()[..len][at..at + data.len()], data);
    }

    /// Keep only the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a buffer that is cut grows");
        self.set_len(len);
        // It keeps the room of the whole range, and so would each piece of one that is cut up.
        if class_of(len) < self.class
            && let Ok(smaller) = Self::filled(&self.buffers, self.header(), self, len)
        {
            *self = smaller;
        }
    }

    /// A copy of the bytes from `at` on, which are as old.
    ///
    /// # Errors
    /// `NoSpace` when all are taken.
    pub(crate) fn tail(&self, at: usize) -> Result<Self> {
        let mut words = self.header();
        words[OFF] += at as u64;
        Self::filled(&self.buffers, words, &self[at..], 0)
    }

    /// When it was last written, where that is to be the file's time.
    pub(crate) fn written(&self) -> Option<Time> {
        time_of(self.buffers.classes[self.class].word(self.slot, WRITTEN))
    }

    pub(crate) fn set_written(&self, time: Option<Time>) {
        self.set(WRITTEN, word_of(time));
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "the bytes are shared with the process before and the one after")]
        // SAFETY: as in `room`; what is borrowed here is not borrowed to be changed meanwhile.
        let all = unsafe { &*self.buffers.bytes(self.class, self.slot) };
        &all[..self.len]
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.buffers.free(self.class, self.slot);
    }
}

/// Tests kill it in the middle.
fn copy(to: &mut [u8], from: &[u8]) {
    #[cfg(test)]
    if !super::kill::is_alive() {
        return;
    }
    #[cfg(test)]
    let (to, from) = {
        let (head, rest) = to.split_at_mut(from.len() / 2);
        head.copy_from_slice(&from[..from.len() / 2]);
        if !super::kill::is_alive() {
            return;
        }
        (rest, &from[from.len() / 2..])
    };
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use rustix::fs::fstat;

    use super::*;

    fn owner() -> Owner {
        Owner { buffers: Buffers::new(Arena::new().expect("arena")), ino: Ino(1) }
    }

    /// Bytes of memory that all of it takes.
    fn memory(owner: &Owner) -> usize {
        fstat(owner.buffers.arena.memory()).expect("stat").st_blocks as usize * 512
    }

    #[test]
    fn free_buffers_are_used_again_and_their_memory_is_bounded_and_goes() {
        let owner = owner();
        let stripe = vec![1; STRIPE_BYTES_MAX];
        let first = Buf::new(&owner, 0, &stripe, 0).expect("room");
        let slot = first.slot;
        drop(first);
        assert_eq!(Buf::new(&owner, 0, &stripe, 0).expect("room").slot, slot, "the last one freed");
        let all: Vec<_> = (0..30).map(|_| Buf::new(&owner, 0, &stripe, 0).expect("room")).collect();
        assert!(memory(&owner) >= 30 * STRIPE_BYTES_MAX);
        drop(all);
        let tables = 1 << 20;
        assert!(memory(&owner) <= KEPT_BYTES_MAX + tables, "{}", memory(&owner));
        owner.buffers.trim();
        assert!(memory(&owner) <= KEPT_BYTES_MAX / 2 + tables, "{}", memory(&owner));
        for _ in 0..5 {
            owner.buffers.trim();
        }
        assert!(memory(&owner) <= tables, "{}", memory(&owner));
        assert_eq!(owner.buffers.taken(), 0);
    }

    #[test]
    fn the_memory_of_small_ones_goes_when_all_are_free() {
        let owner = owner();
        let mut all: Vec<_> = (0..50_000).map(|_| Buf::new(&owner, 0, &[1; 200], 0).expect("room")).collect();
        all.truncate(1);
        owner.buffers.trim();
        assert!(memory(&owner) > 12 << 20);
        assert_eq!(*all[0], [1; 200]);
        all.clear();
        owner.buffers.trim();
        assert!(memory(&owner) <= 1 << 20, "{}", memory(&owner));
        let again = Buf::new(&owner, 0, &[1; 200], 0).expect("room");
        assert_eq!((again.slot, owner.buffers.taken()), (Slot::at(0), 256));
    }

    #[test]
    fn one_that_grows_and_shrinks_keeps_its_bytes_and_its_age() {
        let owner = owner();
        let mut buf = Buf::new(&owner, 5, &[], 0).expect("room");
        let newer = Buf::new(&owner, 6, &[], 0).expect("room");
        let bytes: Vec<u8> = (0..STRIPE_BYTES_MAX).map(|i| (i % 251) as u8).collect();
        for part in bytes.chunks(99_999) {
            buf.extend(part).expect("room");
        }
        assert!(*buf == bytes && buf.spare() == 0);
        let time = Time { secs: 1_800_000_000, nanos: 999_999_999 };
        buf.set_written(Some(time));
        let tail = buf.tail(1_000_000).expect("room");
        assert!(*tail == bytes[1_000_000..]);
        buf.truncate(1000);
        assert_eq!((&*buf, buf.size()), (&bytes[..1000], 1024));
        assert_eq!((buf.written(), tail.written(), newer.written()), (Some(time), Some(time), None));
        assert!(buf.header()[ORDER] < newer.header()[ORDER]);
        assert_eq!((buf.header()[ORDER], tail.header()[OFF]), (tail.header()[ORDER], 1_000_005));
    }

    #[test]
    fn what_one_left_is_found_once_and_what_it_freed_has_no_memory() {
        let owner = owner();
        let memory = owner.buffers.arena.memory().try_clone_to_owned().expect("clone");
        let kept =
            [3, 200_000, 4000].map(|len| Buf::new(&owner, len, &vec![7; len as usize], 0).expect("room"));
        drop((0..10).map(|_| Buf::new(&owner, 0, &[0; 4096], STRIPE_BYTES_MAX)).collect::<Vec<_>>());
        super::super::kill::after(0, || drop((kept, owner)));
        let next = Buffers::new(Arena::adopt(memory).expect("adopt"));
        let left = next.left();
        let found: Vec<_> = left.iter().map(|left| (left.ino.0, left.off, left.buf.len())).collect();
        assert_eq!(found, [(1, 3, 3), (1, 200_000, 200_000), (1, 4000, 4000)]);
        assert!(left.iter().all(|left| left.buf.iter().all(|&byte| byte == 7)));
        let newest = left[2].buf.header()[ORDER];
        assert!(next.left().is_empty());
        let owner = Owner { buffers: next, ino: Ino(1) };
        assert!(self::memory(&owner) <= 1 << 20);
        assert!(Buf::new(&owner, 0, &[1], 0).expect("room").header()[ORDER] > newest);
        drop(left);
        assert_eq!(owner.buffers.taken(), 0);
    }

    #[test]
    fn all_of_any_size_may_be_taken_and_no_more() {
        let owner = owner();
        for size in [STRIPE_BYTES_MAX, 256 << 10, 16 << 10] {
            let all: Vec<_> = (0..).map_while(|at| Buf::new(&owner, at, &[], size).ok()).collect();
            assert_eq!(all.len(), TAKEN_BYTES_MAX / size);
        }
        assert!(Buf::new(&owner, 0, &[], STRIPE_BYTES_MAX).is_ok());
    }
}
