//! The locks that a client holds, to be taken again from a server that has forgotten them.

use std::collections::BTreeMap;

use kos_types::{FileLock, Ino};

/// Ranges that are remembered of one owner in one file; more go lost with the daemon.
const RANGES_MAX: usize = 1024;

/// What each owner did to each file, in order; what later changes undo is left out.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<(Ino, u64, bool), Vec<FileLock>>);

impl Held {
    /// A lock was granted or given back.
    pub(crate) fn note(&mut self, ino: Ino, lock: FileLock) {
        let own = self.0.entry((ino, lock.owner, lock.flock)).or_default();
        own.retain(|old| old.start < lock.start || lock.end < old.end);
        let overlaps = own.iter().any(|old| old.start < lock.end && lock.start < old.end);
        if lock.kind.is_some() || overlaps {
            own.push(lock);
        }
        if own.len() > RANGES_MAX {
            own.remove(0);
        }
        if own.is_empty() {
            self.0.remove(&(ino, lock.owner, lock.flock));
        }
    }

    /// What to ask for, in this order.
    pub(crate) fn all(&self) -> Vec<(Ino, FileLock)> {
        self.0.iter().flat_map(|((ino, ..), locks)| locks.iter().map(|lock| (*ino, *lock))).collect()
    }
}

#[cfg(test)]
mod tests {
    use kos_types::LockKind;

    use super::*;

    fn lock(owner: u64, kind: Option<LockKind>, start: u64, end: u64) -> FileLock {
        FileLock { owner, kind, start, end, pid: 1, flock: false }
    }

    #[test]
    fn what_is_undone_is_not_kept() {
        let (ino, write, read) = (Ino(2), Some(LockKind::Write), Some(LockKind::Read));
        let mut held = Held::default();
        for nth in 0..10_000 {
            held.note(ino, lock(1, write, 10, 20));
            held.note(ino, lock(1, read, 0, 15));
            held.note(ino, lock(1, None, 10 + nth % 3, 12));
            held.note(ino, lock(2, read, 5, 6));
        }
        assert!(held.all().len() < 10, "{:?}", held.all());
        held.note(ino, lock(1, None, 0, u64::MAX));
        assert_eq!(held.all(), [(ino, lock(2, read, 5, 6))]);
        held.note(ino, lock(2, None, 5, 6));
        assert_eq!(held.all(), []);
    }
}
