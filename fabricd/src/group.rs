//! One flush for many waiters.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kos_types::{Error, Kind, Result};

#[derive(Default)]
struct State {
    /// Flushes begun and ended; they are numbered from 1.
    begun: u64,
    ended: u64,
    /// Somebody flushes, or finds out whether one may begin.
    busy: bool,
    /// Nothing is known of stable storage after a failure: never try again.
    failed: bool,
}

/// Shares flushes: whoever asks gets one that began after it asked.
#[derive(Default)]
pub(crate) struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

impl Group {
    /// Whether a flush has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// Wait for a flush that begins after this call. None begins while `ready` answers with an error, which is no
    /// failure of one.
    pub(crate) fn run<T>(
        &self,
        ready: impl Fn() -> Result<T>,
        flush: impl Fn(T) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        let wanted = state.begun + 1;
        loop {
            if state.failed {
                return Err(Error::new(Kind::Io, "sync: failed before, restart the node"));
            }
            if state.ended >= wanted {
                return Ok(());
            }
            if state.busy {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.busy = true;
            drop(state);
            // Both may wait for a disk.
            let ready = ready();
            let begun = ready.is_ok();
            if begun {
                self.state().begun += 1;
            }
            let result = ready.and_then(&flush);
            state = self.state();
            state.busy = false;
            match &result {
                Err(_) if !begun => {}
                // It has neither ended nor failed, and counts for nobody.
                Err(e) if e.kind() == Kind::TimedOut => state.begun = state.ended,
                other => {
                    state.ended = state.begun;
                    state.failed |= other.is_err();
                }
            }
            self.changed.notify_all();
            result?;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn each_waiter_gets_a_flush_that_began_after_its_write() {
        let (group, written, flushed, flushes) =
            (Group::default(), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let flush = |()| {
                            let upto = written.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            flushed.store(upto, Ordering::SeqCst);
                            flushes.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        };
                        group.run(|| Ok(()), flush).expect("flushes");
                        assert!(flushed.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(flushes.into_inner() <= 1600);
    }

    #[test]
    fn a_flush_that_was_given_up_counts_for_nobody() {
        let (group, flushes) = (Group::default(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let flush = |()| {
                        flushes.fetch_add(1, Ordering::SeqCst);
                        Err(Error::new(Kind::TimedOut, "disk"))
                    };
                    assert!(group.run(|| Ok(()), flush).is_err());
                });
            }
        });
        assert_eq!(flushes.into_inner(), 8, "each tries by itself");
        assert!(!group.has_failed());
        group.run(|| Ok(()), |()| Ok(())).expect("the disk answers");
    }

    #[test]
    fn a_failure_is_for_ever() {
        let group = Group::default();
        assert!(!group.has_failed());
        let error = || Err(Error::new(Kind::Io, "disk"));
        assert!(group.run(error, |()| Ok(())).is_err(), "not begun");
        assert!(group.run(|| Ok(()), |()| Ok(())).is_ok());
        assert!(group.run(|| Ok(()), |()| error()).is_err());
        assert!(group.run(|| Ok(()), |()| Ok(())).is_err());
        assert!(group.has_failed());
    }
}
