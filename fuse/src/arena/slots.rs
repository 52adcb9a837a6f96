//! A table of slots in an arena: each is there or not, whenever a process is killed.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Arena, Table, USED_AT, WORD_BYTES};

/// One slot of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    pub(super) const fn at(place: u32) -> Self {
        // Tables are far smaller.
        Self(NonZeroU32::MIN.saturating_add(place))
    }

    /// Its place in the table.
    pub(crate) const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

/// A table whose slots have `N` words. The first word of a slot that is taken is not 0.
#[derive(Debug)]
pub(crate) struct Slots<const N: usize> {
    arena: Arc<Arena>,
    table: Table,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// Below `used`, those that are free.
    list: Vec<u32>,
    /// So many were ever taken.
    used: u32,
}

impl<const N: usize> Slots<N> {
    pub(super) fn new(arena: Arc<Arena>, table: Table) -> Self {
        assert_eq!(table.words, N, "the table's own size of a slot");
        // What the process before counted, and at most the table.
        let used = arena.word(USED_AT + table.number).load(Ordering::Acquire).min(table.slots as u64) as u32;
        let slots = Self { arena, table, free: Mutex::new(Free { list: Vec::new(), used }) };
        let list = (0..used).rev().filter(|&slot| slots.word(Slot::at(slot), 0) == 0).collect();
        slots.free().list = list;
        slots
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take one for `words`. None when all are taken.
    pub(crate) fn take(&self, words: [u64; N]) -> Option<Slot> {
        let slot = self.claim()?;
        self.fill(slot, words);
        Some(slot)
    }

    /// One that nobody else takes, and that is free until it is filled. None when all are taken.
    pub(super) fn claim(&self) -> Option<Slot> {
        let mut free = self.free();
        if let Some(slot) = free.list.pop() {
            return Some(Slot::at(slot));
        }
        if free.used as usize == self.table.slots {
            return None;
        }
        free.used += 1;
        self.arena.store(USED_AT + self.table.number, free.used.into());
        Some(Slot::at(free.used - 1))
    }

    /// Take one that was claimed for `words`.
    pub(super) fn fill(&self, slot: Slot, words: [u64; N]) {
        assert_ne!(words[0], 0, "a slot that would be taken for a free one");
        for (at, word) in words.into_iter().enumerate().rev() {
            self.set(slot, at, word);
        }
    }

    /// Set one word of a slot that is taken.
    pub(crate) fn set(&self, slot: Slot, at: usize, word: u64) {
        self.arena.store(self.at(slot, at), word);
    }

    pub(super) fn word(&self, slot: Slot, at: usize) -> u64 {
        self.arena.word(self.at(slot, at)).load(Ordering::Acquire)
    }

    fn at(&self, slot: Slot, at: usize) -> usize {
        let place = slot.number() as usize;
        assert!(at < N && place < self.table.slots, "a word of the slot");
        self.table.begin / WORD_BYTES + place * N + at
    }

    /// What a slot holds.
    pub(crate) fn get(&self, slot: Slot) -> [u64; N] {
        std::array::from_fn(|at| self.word(slot, at))
    }

    /// Give one back.
    pub(crate) fn put_back(&self, slot: Slot) {
        self.set(slot, 0, 0);
        self.free().list.push(slot.number());
    }

    /// Those that were taken once and are free.
    pub(super) fn unused(&self) -> Vec<Slot> {
        self.free().list.iter().copied().map(Slot::at).collect()
    }

    /// When all are free, at least `least` of which were ever taken: begin with the first again, once `clear` has emptied so many.
    pub(super) fn restart(&self, least: usize, clear: impl FnOnce(usize)) {
        let mut free = self.free();
        let used = free.used as usize;
        if used < least || free.list.len() < used {
            return;
        }
        free.list = Vec::new();
        free.used = 0;
        self.arena.store(USED_AT + self.table.number, 0);
        clear(used);
    }

    /// All that are taken: at first, what the process before left.
    pub(crate) fn taken(&self) -> Vec<(Slot, [u64; N])> {
        let used = self.free().used;
        let all = (0..used).map(Slot::at).map(|slot| (slot, self.get(slot)));
        all.filter(|(_, words)| words[0] != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_found_again_and_free_ones_used_again() {
        let arena = Arena::new().expect("arena");
        let slots = arena.requests();
        let taken: Vec<_> = (1..=10).map(|n| slots.take([n, n * 2]).expect("room")).collect();
        slots.put_back(taken[3]);
        slots.set(taken[4], 1, 77);
        let found = |slots: &Slots<2>| slots.taken().into_iter().map(|(_, words)| words).collect::<Vec<_>>();
        let before = found(&slots);
        assert_eq!((before.len(), before[3]), (9, [5, 77]));
        drop(slots);
        let again = arena.requests();
        assert_eq!(found(&again), before);
        assert_eq!(again.take([9, 0]), Some(taken[3]));
        assert_eq!(again.get(taken[3]), [9, 0]);
    }

    #[test]
    fn a_full_table_says_so() {
        let arena = Arena::new().expect("arena");
        let slots = arena.requests();
        let all: Vec<_> = (0..slots.table.slots).map(|_| slots.take([1; 2]).expect("room")).collect();
        assert_eq!(slots.take([1; 2]), None);
        slots.put_back(all[7]);
        assert_eq!(slots.take([1; 2]), Some(all[7]));
    }
}
