//! The inodes the kernel knows: how often it was told of each and has not forgotten it. One that
//! lost its last name lives until then, because open files, mappings and working directories hold
//! it. The table has an entry of about 32 bytes for each inode in the kernel's own cache.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::Ino;

use crate::arena::{Arena, Slot, Slots};

/// Parts with a lock of their own: every lookup passes here.
const SHARDS: usize = 16;

#[derive(Debug)]
struct Inode {
    /// Answers that named it, less those the kernel forgot.
    lookups: u64,
    /// Where the next process finds it.
    slot: Option<Slot>,
    /// It has no name any more.
    orphan: bool,
    /// An earlier process told the kernel of it too, who knows how often.
    inherited: bool,
    /// What the kernel at least takes for its size, where it may have ignored what it was told.
    size_least: Option<u64>,
}

/// All of a mount.
#[derive(Debug)]
pub(crate) struct Known {
    shards: [Mutex<HashMap<Ino, Inode>>; SHARDS],
    slots: Slots<1>,
}

fn lock(shard: &Mutex<HashMap<Ino, Inode>>) -> MutexGuard<'_, HashMap<Ino, Inode>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    pub(crate) fn new(arena: &Arc<Arena>) -> Self {
        let known = Self { shards: Default::default(), slots: arena.known() };
        for (slot, [ino]) in known.slots.taken() {
            // What it takes for their sizes is not known either.
            let inherited =
                Inode { lookups: 0, slot: Some(slot), orphan: false, inherited: true, size_least: Some(0) };
            known.shard(Ino(ino)).insert(Ino(ino), inherited);
        }
        known
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, HashMap<Ino, Inode>> {
        lock(&self.shards[(ino.0 % SHARDS as u64) as usize])
    }

    /// The kernel is about to be told of it once more.
    pub(crate) fn told(&self, ino: Ino) {
        let new = || {
            let slot = self.slots.take([ino.0]);
            Inode { lookups: 0, slot, orphan: false, inherited: false, size_least: None }
        };
        self.shard(ino).entry(ino).or_insert_with(new).lookups += 1;
    }

    /// The kernel forgot so many of them. A forget may be late: the kernel may have been told of
    /// the inode again since it decided to forget. Whether the inode is to be dropped.
    pub(crate) fn forgot(&self, ino: Ino, times: u64) -> bool {
        let mut shard = self.shard(ino);
        let Entry::Occupied(mut entry) = shard.entry(ino) else { return false };
        let inode = entry.get_mut();
        // It forgets an inode's answers all at once; only one that it could not use goes by itself.
        if inode.inherited && times <= inode.lookups {
            inode.lookups -= times;
            return false;
        }
        inode.lookups = inode.lookups.saturating_sub(times);
        inode.lookups == 0 && self.gone(entry.remove())
    }

    /// The kernel knows it no more. Whether it is to be dropped.
    fn gone(&self, inode: Inode) -> bool {
        if let Some(slot) = inode.slot {
            self.slots.put_back(slot);
        }
        inode.orphan
    }

    /// It lost its last name. Whether it is to be dropped at once: the kernel does not know it.
    pub(crate) fn unnamed(&self, ino: Ino) -> bool {
        match self.shard(ino).get_mut(&ino) {
            Some(inode) => {
                inode.orphan = true;
                false
            }
            None => true,
        }
    }

    /// It has a name, which may be the first.
    pub(crate) fn named(&self, ino: Ino) {
        if let Some(inode) = self.shard(ino).get_mut(&ino) {
            inode.orphan = false;
        }
    }

    /// Its pages or attributes are thrown out: of requests from before, the kernel ignores the attributes it is told.
    pub(crate) fn thrown_out(&self, ino: Ino) {
        if let Some(inode) = self.shard(ino).get_mut(&ino) {
            inode.size_least.get_or_insert(0);
        }
    }

    /// The kernel is about to be told its size. Whether it then surely takes it to have so many bytes.
    pub(crate) fn sized(&self, ino: Ino, size: u64) -> bool {
        match self.shard(ino).get_mut(&ino).and_then(|inode| inode.size_least.as_mut()) {
            Some(least) if *least < size => false,
            Some(least) => {
                *least = size;
                true
            }
            None => true,
        }
    }

    /// The kernel was made to take it to have so many.
    pub(crate) fn enlarged(&self, ino: Ino, size: u64) {
        if let Some(least) = self.shard(ino).get_mut(&ino).and_then(|inode| inode.size_least.as_mut()) {
            *least = size.max(*least);
        }
    }

    /// All that the kernel knows: those whose pages it may have, also of files that are closed.
    pub(crate) fn all(&self) -> Vec<Ino> {
        self.shards.iter().flat_map(|shard| lock(shard).keys().copied().collect::<Vec<_>>()).collect()
    }

    /// The kernel forgot all of them with its mount. Those to be dropped.
    pub(crate) fn end(&self) -> Vec<Ino> {
        let all = self.shards.iter().flat_map(|shard| std::mem::take(&mut *lock(shard)));
        all.filter_map(|(ino, inode)| self.gone(inode).then_some(ino)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(77);

    fn known() -> Known {
        Known::new(&Arena::new().expect("arena"))
    }

    #[test]
    fn what_the_process_before_told_is_known_until_all_of_it_is_forgotten() {
        let arena = Arena::new().expect("arena");
        let first = Known::new(&arena);
        [FILE, FILE, Ino(78), Ino(79)].into_iter().for_each(|ino| first.told(ino));
        assert!(!first.forgot(Ino(79), 1));
        drop(first);

        let next = Known::new(&arena);
        let mut all = next.all();
        all.sort_unstable();
        assert_eq!(all, [FILE, Ino(78)]);
        assert!(!next.unnamed(FILE), "the kernel knows it");
        next.told(FILE);
        assert!(!next.forgot(FILE, 1), "an answer that it could not use");
        next.told(FILE);
        assert!(next.forgot(FILE, 3), "all of them");
        assert!(!next.sized(Ino(78), 5), "it may have heard of another size");
    }

    #[test]
    fn a_size_is_sure_until_something_is_thrown_out() {
        let known = known();
        known.thrown_out(FILE);
        assert!(known.sized(FILE, 5), "the kernel does not know it");
        known.told(FILE);
        assert!(known.sized(FILE, 9));
        known.thrown_out(FILE);
        assert!(!known.sized(FILE, 9));
        known.enlarged(FILE, 9);
        known.thrown_out(FILE);
        assert!(known.sized(FILE, 9) && !known.sized(FILE, 10));
        assert!(known.sized(FILE, 4), "it was cut");
        assert!(!known.sized(FILE, 5), "and longer again");
        known.enlarged(FILE, 5);
        assert!(known.sized(FILE, 5));
        known.forgot(FILE, 1);
        known.told(FILE);
        assert!(known.sized(FILE, 99));
    }

    #[test]
    fn an_orphan_goes_with_the_last_of_what_was_told() {
        let known = known();
        known.told(FILE);
        known.told(FILE);
        assert!(!known.forgot(FILE, 1), "it has a name");
        assert!(!known.unnamed(FILE), "the kernel knows it");
        known.told(FILE);
        assert!(!known.forgot(FILE, 1), "an old forget that came late");
        assert!(known.forgot(FILE, 1));
        assert!(!known.forgot(FILE, 1), "once");
        assert!(known.unnamed(FILE), "nobody knows it");
    }

    #[test]
    fn what_gets_its_first_name_stays() {
        let known = known();
        known.told(FILE);
        assert!(!known.unnamed(FILE));
        known.named(FILE);
        assert!(!known.forgot(FILE, 1));
        known.named(FILE);
        assert!(known.unnamed(FILE), "what the kernel does not know is not kept");
    }

    #[test]
    fn orphans_go_with_the_mount() {
        let known = known();
        known.told(FILE);
        known.told(Ino(78));
        assert!(!known.unnamed(FILE));
        assert_eq!(known.end(), [FILE]);
        assert!(known.end().is_empty());
    }
}
