//! Open files, as the kernel names them. The next process finds them in the arena.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::Ino;

use crate::arena::{Arena, Slot, Slots};
use crate::file::Way;
use crate::once;

/// Words of a slot: the handle's number, the file, how it is open, the request that opened it, and what the kernel calls
/// the copy that it reads.
const WORDS: usize = 5;
/// Above open(2)'s flags.
const WAY_AT: u32 = 32;
const WRITES: u64 = 1 << 40;
/// No region's.
const CONTROL: u64 = 1 << 41;

/// Handles of one process have fewer bits.
const PROCESS_BITS: u32 = 40;

/// One open file description.
#[derive(Debug, Clone)]
pub(crate) enum Handle {
    /// Of a region.
    File(Opened),
    /// Of a control file or a job's: its contents when it was opened, unless they grow.
    Control(Option<Arc<[u8]>>),
}

/// A region that is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) ino: Ino,
    pub(crate) way: Way,
    pub(crate) writes: bool,
    /// Flush errors it has reported or was opened after.
    pub(crate) errors_seen: u64,
    /// As open(2) was called.
    pub(crate) flags: i32,
    /// What the kernel calls the copy that it reads in place; 0 for none.
    pub(crate) copy: u32,
}

/// All of a mount.
#[derive(Debug)]
pub(crate) struct Handles {
    slots: Slots<WORDS>,
    all: Mutex<HashMap<u64, Entry>>,
    last: AtomicU64,
    /// Those of an earlier process, by the requests that made them.
    left: Mutex<HashMap<u64, u64>>,
}

#[derive(Debug)]
struct Entry {
    handle: Handle,
    /// None where the table is full: the next process does not know it.
    slot: Option<Slot>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(number: u64, handle: &Handle) -> [u64; WORDS] {
    let request = once::name().map_or(0, |once| once.request);
    match handle {
        Handle::Control(_) => [number, 0, CONTROL, request, 0],
        Handle::File(open) => {
            let writes = if open.writes { WRITES } else { 0 };
            let how = u64::from(open.flags.cast_unsigned()) | (open.way as u64) << WAY_AT | writes;
            [number, open.ino.0, how, request, open.copy.into()]
        }
    }
}

fn handle_of([_, ino, how, _, copy]: [u64; WORDS]) -> Handle {
    if how & CONTROL != 0 {
        return Handle::Control(None);
    }
    let way = [Way::Cached, Way::ReadPast, Way::WritePast, Way::InPlace][(how >> WAY_AT) as usize & 3];
    // The words were made of these types.
    let (flags, copy) = ((how as u32).cast_signed(), copy as u32);
    Handle::File(Opened { ino: Ino(ino), way, writes: how & WRITES != 0, errors_seen: 0, flags, copy })
}

impl Handles {
    pub(crate) fn new(arena: &Arc<Arena>) -> Self {
        let slots = arena.handles();
        // No number is used again, also not one whose release the kernel sends once more.
        let (mut all, mut left, mut last) = (HashMap::new(), HashMap::new(), arena.process() << PROCESS_BITS);
        for (slot, words) in slots.taken() {
            let [number, _, _, request, _] = words;
            last = number.max(last);
            left.insert(request, number);
            all.insert(number, Entry { handle: handle_of(words), slot: Some(slot) });
        }
        Self { slots, all: Mutex::new(all), last: AtomicU64::new(last), left: Mutex::new(left) }
    }

    pub(crate) fn add(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = self.slots.take(words(number, &handle));
        lock(&self.all).insert(number, Entry { handle, slot });
        number
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Handle> {
        let gone = lock(&self.all).remove(&number)?;
        if let Some(slot) = gone.slot {
            self.slots.put_back(slot);
        }
        Some(gone.handle)
    }

    /// The handle that an earlier process made for a request which the kernel sends again: it never heard of it.
    pub(crate) fn left_by(&self, unique: u64) -> Option<u64> {
        let request = unique & !once::AGAIN;
        if unique == request { None } else { lock(&self.left).remove(&request) }
    }

    pub(crate) fn get(&self, number: u64) -> Option<Handle> {
        lock(&self.all).get(&number).map(|entry| entry.handle.clone())
    }

    /// That of a region.
    pub(crate) fn file(&self, number: u64) -> Option<Opened> {
        match lock(&self.all).get(&number)?.handle {
            Handle::File(opened) => Some(opened),
            Handle::Control(_) => None,
        }
    }

    pub(crate) fn set_errors_seen(&self, number: u64, seen: u64) {
        if let Some(Entry { handle: Handle::File(opened), .. }) = lock(&self.all).get_mut(&number) {
            opened.errors_seen = seen;
        }
    }

    /// Whether any is of this file.
    pub(crate) fn any_of(&self, ino: Ino) -> bool {
        lock(&self.all).values().any(|open| matches!(&open.handle, Handle::File(of) if of.ino == ino))
    }

    /// All of regions.
    pub(crate) fn files(&self) -> Vec<(u64, Opened)> {
        let all = lock(&self.all);
        let file = |(&number, entry): (&u64, &Entry)| match entry.handle {
            Handle::File(opened) => Some((number, opened)),
            Handle::Control(_) => None,
        };
        all.iter().filter_map(file).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_finds_them_as_they_were() {
        let arena = Arena::new().expect("arena");
        let first = Handles::new(&arena);
        let opened = Opened {
            ino: Ino(7),
            way: Way::InPlace,
            writes: true,
            errors_seen: 0,
            flags: libc::O_RDWR | libc::O_APPEND,
            copy: 9,
        };
        let kept = first.add(Handle::File(opened));
        let gone = first.add(Handle::Control(None));
        let control = first.add(Handle::Control(Some([1, 2, 3].into())));
        assert!(first.remove(gone).is_some());
        drop(first);

        let memory = arena.memory().try_clone_to_owned().expect("clone");
        let next = Handles::new(&Arena::adopt(memory).expect("adopt"));
        assert!(next.get(gone).is_none() && matches!(next.get(control), Some(Handle::Control(None))));
        let found = next.file(kept).expect("the file");
        assert_eq!((found.ino, found.way, found.writes), (Ino(7), Way::InPlace, true));
        assert_eq!((found.flags, found.copy), (opened.flags, 9));
        assert!(next.add(Handle::Control(None)) > 1 << PROCESS_BITS, "none is used again");
        assert!(next.any_of(Ino(7)) && !next.any_of(Ino(8)));
    }
}
