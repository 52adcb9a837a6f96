//! The locks that programs hold, where the next process finds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kos_types::{Fabric, FileLock, Ino, LockAnswer, LockKind, Result};

use crate::arena::{Arena, Slot, Slots};

/// Words of a slot: file, owner, range, process and kind, and the open file it came through.
const WORDS: usize = 6;
const WRITE: u64 = 1 << 32;
const FLOCK: u64 = 1 << 33;

/// Whose locks of which file; those of flock(2) are apart.
type Holder = (Ino, u64, bool);

/// All of a mount.
#[derive(Debug)]
pub(super) struct Record {
    slots: Slots<WORDS>,
    held: Mutex<HashMap<Holder, Vec<Slot>>>,
}

fn words(ino: Ino, handle: u64, lock: &FileLock) -> [u64; WORDS] {
    let write = if lock.kind == Some(LockKind::Write) { WRITE } else { 0 };
    let flock = if lock.flock { FLOCK } else { 0 };
    [ino.0, lock.owner, lock.start, lock.end, u64::from(lock.pid) | write | flock, handle]
}

fn lock_of([ino, owner, start, end, how, handle]: [u64; WORDS]) -> (Ino, u64, FileLock) {
    let kind = Some(if how & WRITE != 0 { LockKind::Write } else { LockKind::Read });
    // The process is the lower half.
    (Ino(ino), handle, FileLock { owner, kind, start, end, pid: how as u32, flock: how & FLOCK != 0 })
}

impl Record {
    pub(super) fn new(arena: &Arc<Arena>) -> Self {
        let slots = arena.locks();
        let mut held: HashMap<Holder, Vec<Slot>> = HashMap::new();
        for (slot, words) in slots.taken() {
            let (ino, _, lock) = lock_of(words);
            held.entry((ino, lock.owner, lock.flock)).or_default().push(slot);
        }
        Self { slots, held: Mutex::new(held) }
    }

    /// What an earlier process left.
    pub(super) fn left(&self) -> Vec<(Ino, u64, FileLock)> {
        self.slots.taken().into_iter().map(|(_, words)| lock_of(words)).collect()
    }

    /// After the fabric's answer to a change: what the owner has there now. The new comes before the old goes; who is killed
    /// in between is asked for the change again. What finds no room is not there after a kill.
    pub(super) fn keep<F: Fabric>(
        &self,
        fabric: &F,
        (ino, handle): (Ino, u64),
        changed: &FileLock,
        answer: &Result<LockAnswer>,
    ) {
        if !matches!(answer, Ok(LockAnswer::Granted)) {
            return;
        }
        // Held to the end, so that two changes of one owner are written in the order that they are asked for in.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fabric.locks_held(ino, changed.owner, changed.flock);
        let holder = (ino, changed.owner, changed.flock);
        let slots: Vec<Slot> =
            now.iter().filter_map(|lock| self.slots.take(words(ino, handle, lock))).collect();
        if slots.len() < now.len() {
            kos_types::log!("kos-fuse: too many locks: if this process is killed, some are lost");
        }
        let before = if slots.is_empty() { held.remove(&holder) } else { held.insert(holder, slots) };
        before.into_iter().flatten().for_each(|slot| self.slots.put_back(slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        for (kind, flock) in [(LockKind::Read, false), (LockKind::Write, true)] {
            let lock = FileLock { owner: 5, kind: Some(kind), start: 7, end: u64::MAX, pid: 99, flock };
            assert_eq!(lock_of(words(Ino(3), 11, &lock)), (Ino(3), 11, lock));
        }
    }
}
