//! Memory that outlives the process: a memfd that a supervisor keeps, so that the next process goes on where this one was
//! killed. What is in it is right at every moment: a word that says that something is there is written last and taken
//! away first. Nothing in it is on disk; a power cut takes it as it takes the page cache.

mod buffers;
#[cfg(test)]
pub(crate) mod kill;
mod slots;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};

pub(crate) use self::buffers::{Buf, Buffers, Left, Owner};
pub(crate) use self::slots::{Slot, Slots};

/// "kosfs ar" and the number of this layout: another one is not taken over.
const MAGIC: u64 = u64::from_le_bytes(*b"kosfsar1");
const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = 8;

/// Words of the first page: what it is, and whose.
const MAGIC_AT: usize = 0;
const NONCE_AT: usize = 1;
/// When the session is over, unless it is renewed by then.
const VALID_AT: usize = 2;
/// How often it was adopted, by whoever only watches the mount too.
const PROCESS_AT: usize = 3;
/// How far each table was ever in use.
const USED_AT: usize = 8;
/// What the session agreed on with the kernel.
const TERMS_AT: usize = 64;
/// Words of it.
pub(crate) const TERMS: usize = 8;

/// Slots of equal size. Most are never touched, and take no memory then.
#[derive(Debug, Clone, Copy)]
struct Table {
    /// Bytes before it.
    begin: usize,
    /// Words of a slot.
    words: usize,
    slots: usize,
    /// Its number in the first page.
    number: usize,
}

impl Table {
    const fn end(self) -> usize {
        self.begin + (self.words * self.slots * WORD_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// The next one, of `slots` slots with `words` words each.
    const fn then(self, words: usize, slots: usize) -> Self {
        Self { begin: self.end(), words, slots, number: self.number + 1 }
    }
}

/// Open files.
const HANDLES: Table = Table { begin: PAGE_BYTES, words: 5, slots: 1 << 20, number: 0 };
/// Inodes that the kernel knows.
const KNOWN: Table = HANDLES.then(1, 1 << 24);
/// Requests that are not to be done twice.
const REQUESTS: Table = KNOWN.then(2, 1 << 12);
/// Locks that programs of the mount hold.
const LOCKS: Table = REQUESTS.then(6, 1 << 16);
/// Of buffers, by their size.
const HEADERS: [Table; buffers::CLASSES] = buffers::headers(LOCKS);
/// The buffers themselves: each size begins with a page.
const BUFFERS: usize = HEADERS[buffers::CLASSES - 1].end();
const BYTES: usize = BUFFERS + buffers::CLASSES * buffers::REGION_BYTES;

/// The memory of one mount.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: OwnedFd,
    map: MmapRaw,
}

impl Arena {
    /// An empty one.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let memory = memfd_create(c"kosfs-arena", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, BYTES as u64)?;
        let arena = Self::map(memory)?;
        let mut nonce = [0; 8];
        getrandom(&mut nonce, GetRandomFlags::empty())?;
        arena.word(NONCE_AT).store(u64::from_ne_bytes(nonce), Ordering::Relaxed);
        arena.word(MAGIC_AT).store(MAGIC, Ordering::Release);
        Ok(Arc::new(arena))
    }

    /// One that an earlier process left.
    ///
    /// # Errors
    /// `InvalidData` when it is of another layout.
    pub(crate) fn adopt(memory: OwnedFd) -> io::Result<Arc<Self>> {
        let other =
            || io::Error::new(io::ErrorKind::InvalidData, "the earlier process was of another version");
        if fstat(&memory)?.st_size.cast_unsigned() != BYTES as u64 {
            return Err(other());
        }
        let arena = Self::map(memory)?;
        if arena.word(MAGIC_AT).load(Ordering::Acquire) != MAGIC {
            return Err(other());
        }
        arena.word(PROCESS_AT).fetch_add(1, Ordering::AcqRel);
        Ok(Arc::new(arena))
    }

    /// A number that is larger for each process that has it.
    pub(crate) fn process(&self) -> u64 {
        self.word(PROCESS_AT).load(Ordering::Acquire)
    }

    fn map(memory: OwnedFd) -> io::Result<Self> {
        let map = MmapOptions::new().len(BYTES).no_reserve_swap().map_raw(&memory)?;
        Ok(Self { memory, map })
    }

    /// For who keeps it.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// A number that no other one has.
    pub(crate) fn nonce(&self) -> u64 {
        self.word(NONCE_AT).load(Ordering::Relaxed)
    }

    /// What the session agreed on, once it has: the first word is not 0 then.
    pub(crate) fn terms(&self) -> Option<[u64; TERMS]> {
        let words = std::array::from_fn(|at| self.word(TERMS_AT + at).load(Ordering::Acquire));
        (words[0] != 0).then_some(words)
    }

    pub(crate) fn set_terms(&self, words: [u64; TERMS]) {
        for at in (0..TERMS).rev() {
            self.word(TERMS_AT + at).store(words[at], Ordering::Release);
        }
    }

    /// Change a word. A process that is killed is killed before one of these or behind it.
    fn store(&self, at: usize, word: u64) {
        #[cfg(test)]
        if !kill::is_alive() {
            return;
        }
        self.word(at).store(word, Ordering::Release);
    }

    /// When the mount's session is over, unless it is renewed by then: microseconds of CLOCK_BOOTTIME. 0 without a session.
    pub(crate) fn valid_until(&self) -> u64 {
        self.word(VALID_AT).load(Ordering::Acquire)
    }

    pub(crate) fn set_valid_until(&self, micros: u64) {
        self.word(VALID_AT).store(micros, Ordering::Release);
    }

    /// The word number `at`.
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!((at + 1) * WORD_BYTES <= BUFFERS, "a word behind the tables' end");
        let word = self.map.as_mut_ptr().wrapping_add(at * WORD_BYTES).cast::<u64>();
        #[expect(unsafe_code, reason = "the memory is shared with the process before and the one after")]
        // SAFETY: inside of the map by the assertion, which begins with a page and lives as long as `self`; all that
        // touch these bytes do so as atomic words: the buffers lie behind.
        unsafe {
            AtomicU64::from_ptr(word)
        }
    }
}

macro_rules! tables {
    ($($table:ident: $name:ident, $words:literal;)*) => {
        impl Arena {
            $(
                pub(crate) fn $name(self: &Arc<Self>) -> Slots<$words> {
                    Slots::new(Arc::clone(self), $table)
                }
            )*
        }
    };
}

tables! {
    HANDLES: handles, 5;
    KNOWN: known, 1;
    REQUESTS: requests, 2;
    LOCKS: locks, 6;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_left_the_next_one_finds() {
        let first = Arena::new().expect("arena");
        assert_eq!(first.terms(), None);
        first.set_terms([1, 2, 3, 4, 5, 6, 7, 8]);
        let kept = first.memory().try_clone_to_owned().expect("clone");
        let nonce = first.nonce();
        drop(first);
        let next = Arena::adopt(kept).expect("adopt");
        assert_eq!((next.nonce(), next.terms()), (nonce, Some([1, 2, 3, 4, 5, 6, 7, 8])));
        assert_ne!(Arena::new().expect("arena").nonce(), nonce);
    }

    #[test]
    fn what_is_no_arena_is_refused() {
        let small = memfd_create(c"small", MemfdFlags::CLOEXEC).expect("memfd");
        assert!(Arena::adopt(small).is_err());
        let empty = memfd_create(c"empty", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&empty, BYTES as u64).expect("truncate");
        assert!(Arena::adopt(empty).is_err());
    }
}
