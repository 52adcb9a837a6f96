//! Locks against a model that knows one byte at a time, and rings of waiting owners.

use std::collections::BTreeMap;

use kos_core::lease::{Answer, Lock, LockKind, Locks, Owner, Span, Waiter};
use kos_types::{Ino, SessionId};

use crate::rng::{Rng, for_seeds};

const BYTES: u64 = 24;
const FILES: u64 = 2;

fn owner(rng: &mut Rng) -> Owner {
    Owner { session: SessionId(rng.within(0..2)), owner: rng.within(0..2), flock: rng.one_in(4) }
}

fn span(rng: &mut Rng) -> Span {
    let start = rng.within(0..BYTES);
    Span { start, end: rng.within(start + 1..BYTES + 1) }
}

/// What each owner has on each byte.
#[derive(Default)]
struct Model(BTreeMap<(Ino, u64, Owner), LockKind>);

impl Model {
    fn is_free(&self, ino: Ino, lock: &Lock) -> bool {
        !(lock.span.start..lock.span.end).any(|byte| {
            self.0.iter().any(|(&(i, b, o), &kind)| {
                let other = o != lock.owner && o.flock == lock.owner.flock;
                let exclusive = kind == LockKind::Write || lock.kind == LockKind::Write;
                (i, b) == (ino, byte) && other && exclusive
            })
        })
    }

    fn set(&mut self, ino: Ino, lock: &Lock) {
        for byte in lock.span.start..lock.span.end {
            self.0.insert((ino, byte, lock.owner), lock.kind);
        }
    }

    fn check(&self, locks: &Locks) {
        let mut found = BTreeMap::new();
        for ino in (0..FILES).map(Ino) {
            for lock in locks.of(ino) {
                for byte in lock.span.start..lock.span.end {
                    let twice = found.insert((ino, byte, lock.owner), lock.kind);
                    assert_eq!(twice, None, "{lock:?} lies over another of its owner");
                }
            }
        }
        assert_eq!(found, self.0);
    }
}

#[test]
fn ranges_split_merge_and_wait_as_in_the_model() {
    for_seeds(300, |seed| {
        let mut rng = Rng::new(seed);
        let (mut locks, mut model) = (Locks::default(), Model::default());
        let mut waiting: Vec<(Waiter, Ino, Lock)> = Vec::new();
        for request in 0..200 {
            let ino = Ino(rng.within(0..FILES));
            let kind = if rng.one_in(2) { LockKind::Read } else { LockKind::Write };
            let lock = Lock { owner: owner(&mut rng), kind, span: span(&mut rng), pid: 1 };
            let mut woken = Vec::new();
            match rng.within(0..10) {
                0..4 => {
                    let free = model.is_free(ino, &lock);
                    let (answer, others) = locks.set(ino, lock, None);
                    assert_eq!(answer, if free { Answer::Granted } else { Answer::Denied });
                    woken = others;
                    if free {
                        model.set(ino, &lock);
                    }
                }
                4..6 => {
                    let waiter = Waiter { session: lock.owner.session, request };
                    let free = model.is_free(ino, &lock);
                    let (answer, others) = locks.set(ino, lock, Some(waiter));
                    woken = others;
                    match answer {
                        Answer::Granted => {
                            assert!(free);
                            model.set(ino, &lock);
                        }
                        Answer::Waiting => waiting.push((waiter, ino, lock)),
                        other => assert!(!free && other == Answer::Deadlock, "{other:?}"),
                    }
                }
                6..9 => {
                    woken = locks.unlock(ino, lock.owner, lock.span);
                    model.0.retain(|&(i, byte, o), _| {
                        (i, o) != (ino, lock.owner) || !(lock.span.start..lock.span.end).contains(&byte)
                    });
                }
                _ if rng.one_in(5) => {
                    let session = lock.owner.session;
                    waiting.retain(|wait| wait.0.session != session);
                    model.0.retain(|&(_, _, o), _| o.session != session);
                    woken = locks.end_session(session);
                }
                _ => {
                    if let Some(&(waiter, ..)) = rng.pick(&waiting) {
                        assert!(locks.cancel(waiter));
                        waiting.retain(|wait| wait.0 != waiter);
                    }
                }
            }
            for waiter in woken {
                let at = waiting.iter().position(|wait| wait.0 == waiter).expect("it waited");
                let (_, ino, lock) = waiting.remove(at);
                assert!(model.is_free(ino, &lock));
                model.set(ino, &lock);
            }
            model.check(&locks);
            // Nobody waits for what is free.
            assert!(waiting.iter().all(|(_, ino, lock)| !model.is_free(*ino, lock)));
        }
    });
}

fn write(owner: u64, start: u64, end: u64) -> Lock {
    let owner = Owner { session: SessionId(owner), owner, flock: false };
    Lock { owner, kind: LockKind::Write, span: Span { start, end }, pid: 1 }
}

fn waiter(request: u64) -> Option<Waiter> {
    Some(Waiter { session: SessionId(request), request })
}

#[test]
fn a_ring_of_owners_is_a_deadlock() {
    let mut locks = Locks::default();
    // Each has its own byte and waits for the next one's; the last would close the ring.
    for n in 0..5 {
        assert_eq!(locks.set(Ino(n), write(n, 0, 1), None).0, Answer::Granted);
    }
    for n in 0..4 {
        assert_eq!(locks.set(Ino(n + 1), write(n, 0, 1), waiter(n)).0, Answer::Waiting);
    }
    assert_eq!(locks.set(Ino(0), write(4, 0, 1), waiter(4)).0, Answer::Deadlock);
    // Without one of them it is only a queue.
    assert!(locks.cancel(Waiter { session: SessionId(2), request: 2 }));
    assert_eq!(locks.set(Ino(0), write(4, 0, 1), waiter(4)).0, Answer::Waiting);
}

#[test]
fn a_waiter_gets_its_lock_when_the_holders_session_ends() {
    let mut locks = Locks::default();
    assert_eq!(locks.set(Ino(1), write(1, 0, u64::MAX), None).0, Answer::Granted);
    assert_eq!(locks.set(Ino(1), write(2, 5, 6), waiter(2)).0, Answer::Waiting);
    assert_eq!(locks.set(Ino(1), write(3, 5, 6), waiter(3)).0, Answer::Waiting);
    assert_eq!(locks.test(Ino(1), &write(2, 5, 6)).map(|lock| lock.owner.owner), Some(1));
    // First come, first served.
    assert_eq!(locks.end_session(SessionId(1)), vec![Waiter { session: SessionId(2), request: 2 }]);
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let mut locks = Locks::default();
    let mut other = write(2, 0, u64::MAX);
    other.owner.flock = true;
    assert_eq!(locks.set(Ino(1), write(1, 0, u64::MAX), None).0, Answer::Granted);
    assert_eq!(locks.set(Ino(1), other, None).0, Answer::Granted);
}

#[test]
fn a_session_has_a_bounded_number_of_locks() {
    let mut locks = Locks::default();
    let mut last = Answer::Granted;
    for n in 0..70_000 {
        // On different files, so that the search in one stays short.
        last = locks.set(Ino(n), write(1, 0, 1), None).0;
    }
    assert_eq!(last, Answer::Full);
    // Others have their own.
    assert_eq!(locks.set(Ino(1), write(2, 5, 6), None).0, Answer::Granted);
}
