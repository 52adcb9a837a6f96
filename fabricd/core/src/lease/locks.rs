//! fcntl and flock locks between mounts: soft state beside the leases, gone with the session. A lock
//! is granted when nothing held conflicts; those who wait are tried in the order they came, as the
//! kernel does for a local filesystem.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kos_types::{Ino, SessionId};
pub use kos_types::{LockAnswer as Answer, LockKind};

use super::Span;

/// Locks of one session: beyond it ENOLCK, as a kernel's table would.
const SESSION_LOCKS_MAX: usize = 65_536;
/// Requests that wait at once, all sessions together.
const WAITERS_MAX: usize = 4096;
/// Owners a search for a deadlock visits; a longer ring waits until a signal ends it.
const SEARCH_MAX: usize = 256;

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The mount it came through.
    pub session: SessionId,
    /// The kernel's name of the process or open file.
    pub owner: u64,
    /// An flock, which fcntl locks neither see nor conflict with.
    pub flock: bool,
}

/// A lock on a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Whose.
    pub owner: Owner,
    /// Of which kind.
    pub kind: LockKind,
    /// On which bytes.
    pub span: Span,
    /// What F_GETLK answers.
    pub pid: u32,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        let apart = self.owner == other.owner || self.owner.flock != other.owner.flock;
        let exclusive = self.kind == LockKind::Write || other.kind == LockKind::Write;
        !apart && exclusive && self.span.overlaps(other.span)
    }
}

/// A request that may wait, as its session numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter {
    /// Whose.
    pub session: SessionId,
    /// Which.
    pub request: u64,
}

#[derive(Debug)]
struct Wait {
    waiter: Waiter,
    ino: Ino,
    lock: Lock,
}

/// The locks of all files.
#[derive(Debug, Default)]
pub struct Locks {
    held: BTreeMap<Ino, Vec<Lock>>,
    /// In the order they came.
    waiting: Vec<Wait>,
    counts: BTreeMap<SessionId, usize>,
}

impl Locks {
    /// The first lock that is in the way of this one.
    #[must_use]
    pub fn test(&self, ino: Ino, lock: &Lock) -> Option<Lock> {
        self.of(ino).filter(|held| held.conflicts(lock)).min_by_key(|held| held.span).copied()
    }

    /// Take a lock, in place of what the owner has there. Answers also who got a lock that it waited
    /// for: a weaker lock makes room.
    pub fn set(&mut self, ino: Ino, lock: Lock, wait: Option<Waiter>) -> (Answer, Vec<Waiter>) {
        // A range in the middle of another lock makes two more of it.
        let full = self.counts.get(&lock.owner.session).is_some_and(|held| held + 2 > SESSION_LOCKS_MAX);
        if self.test(ino, &lock).is_none() {
            if full {
                return (Answer::Full, Vec::new());
            }
            self.put(ino, lock);
            return (Answer::Granted, self.wake());
        }
        let Some(waiter) = wait else { return (Answer::Denied, Vec::new()) };
        if !lock.owner.flock && self.is_ring(ino, &lock) {
            return (Answer::Deadlock, Vec::new());
        }
        if full || self.waiting.len() >= WAITERS_MAX {
            return (Answer::Full, Vec::new());
        }
        self.waiting.push(Wait { waiter, ino, lock });
        (Answer::Waiting, Vec::new())
    }

    /// Give a range back. Answers who got a lock by it.
    pub fn unlock(&mut self, ino: Ino, owner: Owner, span: Span) -> Vec<Waiter> {
        self.cut(ino, owner, span);
        self.wake()
    }

    /// Whether a request waits.
    #[must_use]
    pub fn waits(&self, waiter: Waiter) -> bool {
        self.waiting.iter().any(|wait| wait.waiter == waiter)
    }

    /// A waiting request is no longer wanted. Answers whether it still waited.
    pub fn cancel(&mut self, waiter: Waiter) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|wait| wait.waiter != waiter);
        self.waiting.len() < before
    }

    /// A session is over. Answers who got a lock by it.
    pub fn end_session(&mut self, session: SessionId) -> Vec<Waiter> {
        self.waiting.retain(|wait| wait.waiter.session != session);
        self.held.retain(|_, locks| {
            locks.retain(|lock| lock.owner.session != session);
            !locks.is_empty()
        });
        self.counts.remove(&session);
        self.wake()
    }

    /// All locks of a file, in no order that means anything.
    pub fn of(&self, ino: Ino) -> impl Iterator<Item = &Lock> {
        self.held.get(&ino).into_iter().flatten()
    }

    /// Whether somebody whom `lock` waits for waits for its owner.
    fn is_ring(&self, ino: Ino, lock: &Lock) -> bool {
        let holders =
            |ino, lock: Lock| self.of(ino).filter(move |held| held.conflicts(&lock)).map(|held| held.owner);
        let mut seen = BTreeSet::new();
        let mut next: Vec<Owner> = holders(ino, *lock).collect();
        while let Some(owner) = next.pop() {
            if owner == lock.owner {
                return true;
            }
            if seen.len() < SEARCH_MAX && seen.insert(owner) {
                let waits = self.waiting.iter().filter(|wait| wait.lock.owner == owner);
                next.extend(waits.flat_map(|wait| holders(wait.ino, wait.lock)));
            }
        }
        false
    }

    /// Grant what can be granted, first come, first served.
    fn wake(&mut self) -> Vec<Waiter> {
        let mut woken = Vec::new();
        let mut at = 0;
        while let Some(wait) = self.waiting.get(at) {
            if self.test(wait.ino, &wait.lock).is_some() {
                at += 1;
                continue;
            }
            let wait = self.waiting.remove(at);
            self.put(wait.ino, wait.lock);
            woken.push(wait.waiter);
            // It may have put a read lock in place of a write lock.
            at = 0;
        }
        woken
    }

    fn put(&mut self, ino: Ino, mut lock: Lock) {
        self.cut(ino, lock.owner, lock.span);
        let locks = self.held.entry(ino).or_default();
        let before = locks.len();
        locks.retain(|held| {
            let alike = (held.owner, held.kind) == (lock.owner, lock.kind);
            let joins = alike && (held.span.end == lock.span.start || lock.span.end == held.span.start);
            if joins {
                lock.span.start = lock.span.start.min(held.span.start);
                lock.span.end = lock.span.end.max(held.span.end);
            }
            !joins
        });
        locks.push(lock);
        let joined = before + 1 - locks.len();
        let count = self.counts.entry(lock.owner.session).or_default();
        *count = *count + 1 - joined;
    }

    /// Take a range out of what the owner has.
    fn cut(&mut self, ino: Ino, owner: Owner, span: Span) {
        let Some(locks) = self.held.get_mut(&ino) else { return };
        let before = locks.len();
        let mut left = Vec::with_capacity(before + 1);
        for lock in locks.drain(..) {
            if lock.owner == owner && lock.span.overlaps(span) {
                left.extend(lock.span.minus(span).map(|span| Lock { span, ..lock }));
            } else {
                left.push(lock);
            }
        }
        let after = left.len();
        *locks = left;
        if after == 0 {
            self.held.remove(&ino);
        }
        let count = self.counts.entry(owner.session).or_default();
        *count = *count + after - before;
        if *count == 0 {
            self.counts.remove(&owner.session);
        }
    }
}
