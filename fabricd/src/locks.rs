//! Locks of fcntl(2) and flock(2) between the mounts of a node: soft state that goes with the mount.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kos_core::lease::{Lock, Locks as Table, Owner, Span, Waiter};
use kos_types::{Error, FileLock, Ino, Kind, LockAnswer, LockKind, Result, SessionId};

use crate::bell::Bell;

/// The locks of all mounts. A mount is named by its number, not by its logged session.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    table: Mutex<Table>,
    /// Rung when one that waits may have been granted.
    granted: Bell,
}

fn lock_of(mount: u64, lock: &FileLock) -> Result<(Lock, bool)> {
    if lock.start >= lock.end {
        return Err(Error::new(Kind::Invalid, "lock: an empty range"));
    }
    let owner = Owner { session: SessionId(mount), owner: lock.owner, flock: lock.flock };
    let kind = lock.kind.unwrap_or(LockKind::Write);
    let span = Span { start: lock.start, end: lock.end };
    Ok((Lock { owner, kind, span, pid: lock.pid }, lock.kind.is_none()))
}

const fn told(held: &Lock) -> FileLock {
    FileLock {
        owner: held.owner.owner,
        kind: Some(held.kind),
        start: held.span.start,
        end: held.span.end,
        pid: held.pid,
        flock: held.owner.flock,
    }
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, woken: &[Waiter]) {
        if !woken.is_empty() {
            self.granted.ring();
        }
    }

    pub(crate) fn test(&self, mount: u64, ino: Ino, lock: &FileLock) -> Result<Option<FileLock>> {
        let (wanted, _) = lock_of(mount, lock)?;
        Ok(self.table().test(ino, &wanted).as_ref().map(told))
    }

    pub(crate) fn set(&self, mount: u64, ino: Ino, lock: &FileLock, wait: Option<u64>) -> Result<LockAnswer> {
        let (wanted, unlock) = lock_of(mount, lock)?;
        let mut table = self.table();
        if unlock {
            let woken = table.unlock(ino, wanted.owner, wanted.span);
            self.tell(&woken);
            return Ok(LockAnswer::Granted);
        }
        let waiter = wait.map(|request| Waiter { session: SessionId(mount), request });
        // Asked again: it keeps its place, and one that was granted meanwhile is granted again.
        if waiter.is_some_and(|waiter| table.waits(waiter)) {
            return Ok(LockAnswer::Waiting);
        }
        let (answer, woken) = table.set(ino, wanted, waiter);
        self.tell(&woken);
        Ok(answer)
    }

    /// What an owner has of a file.
    pub(crate) fn held(&self, mount: u64, ino: Ino, owner: u64, flock: bool) -> Vec<FileLock> {
        let owner = Owner { session: SessionId(mount), owner, flock };
        self.table().of(ino).filter(|lock| lock.owner == owner).map(told).collect()
    }

    pub(crate) fn cancel(&self, mount: u64, request: u64) {
        self.table().cancel(Waiter { session: SessionId(mount), request });
    }

    pub(crate) fn end(&self, mount: u64) {
        let woken = self.table().end_session(SessionId(mount));
        self.tell(&woken);
    }

    pub(crate) fn changed(&self, seen: u64, wait: Duration) -> u64 {
        self.granted.wait(seen, wait)
    }
}
