//! Group sync of one place: callers share a round of fdatasync that began after what they wait
//! for was written. After a failed round nothing here succeeds again: the kernel has dropped the
//! dirty pages and a second fsync would say that all is well.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use kos_types::{Error, Kind, Result};
use rustix::fs::{fdatasync, fsync};
use rustix::io::retry_on_intr;

use crate::limits::UNSYNCED_SEGMENTS_MAX;
use crate::{fault, lock};

/// What of a place is written but not yet stable.
#[derive(Debug)]
pub(crate) struct Flush {
    dir: File,
    state: Mutex<State>,
    round_over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Changes made so far; the ticket of the latest one.
    changes: u64,
    /// All changes up to this ticket are stable.
    stable: u64,
    /// The ticket of the latest new entry of the directory.
    created: u64,
    dirty: Dirty,
    /// A round runs outside of the lock.
    running: bool,
    poison: Option<Error>,
}

/// What the next round syncs.
#[derive(Debug, Default)]
struct Dirty {
    files: Vec<Arc<File>>,
    dir: bool,
}

impl Flush {
    /// Nothing is dirty; `dir` is the open directory of the place.
    pub(crate) fn new(dir: File) -> Self {
        Self { dir, state: Mutex::default(), round_over: Condvar::new() }
    }

    /// The directory of the place.
    pub(crate) const fn dir(&self) -> &File {
        &self.dir
    }

    /// A write to `file` has finished.
    pub(crate) fn wrote(&self, file: &Arc<File>) {
        let mut state = lock(&self.state);
        state.changes += 1;
        if !state.dirty.files.iter().any(|dirty| Arc::ptr_eq(dirty, file)) {
            state.dirty.files.push(Arc::clone(file));
        }
    }

    /// The directory has a new entry.
    pub(crate) fn created(&self) {
        let mut state = lock(&self.state);
        state.changes += 1;
        state.created = state.changes;
        state.dirty.dir = true;
    }

    /// The error of the failed round, if one has failed.
    pub(crate) fn check(&self) -> Result<()> {
        lock(&self.state).poison.clone().map_or(Ok(()), Err)
    }

    /// Whether so many files wait that somebody must sync.
    pub(crate) fn is_crowded(&self) -> bool {
        lock(&self.state).dirty.files.len() > UNSYNCED_SEGMENTS_MAX
    }

    /// Everything that is written now: what [`Self::sync_to`] makes stable.
    pub(crate) fn ticket(&self) -> u64 {
        lock(&self.state).changes
    }

    /// Return when everything that was written before the call is stable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.sync_to(self.ticket())
    }

    /// Return when everything that was written before that ticket was taken is stable.
    pub(crate) fn sync_to(&self, ticket: u64) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            if let Some(error) = &state.poison {
                return Err(error.clone());
            }
            if state.stable >= ticket {
                return Ok(());
            }
            state = if state.running {
                self.round_over.wait(state).expect("nothing panics under this lock")
            } else {
                self.lead(state)
            };
        }
    }

    /// Return when every new entry of the directory is stable.
    pub(crate) fn sync_dir(&self) -> Result<()> {
        let (created, stable) = {
            let state = lock(&self.state);
            (state.created, state.stable)
        };
        if created > stable { self.sync() } else { self.check() }
    }

    /// Run one round for everybody.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.running = true;
        let (ticket, dirty) = (state.changes, mem::take(&mut state.dirty));
        drop(state);
        let outcome = self.round(&dirty);
        let mut state = lock(&self.state);
        state.running = false;
        match outcome {
            Ok(()) => state.stable = ticket,
            Err(e) => {
                state.poison = Some(Error::new(Kind::Io, format!("sync of a place failed for good: {e}")))
            }
        }
        self.round_over.notify_all();
        state
    }

    fn round(&self, dirty: &Dirty) -> io::Result<()> {
        fault::at(fault::PLACE_SYNC)?;
        if fault::fsync_is_out() {
            return Ok(());
        }
        for file in &dirty.files {
            retry_on_intr(|| fdatasync(file))?;
        }
        if dirty.dir {
            retry_on_intr(|| fsync(&self.dir))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/dev/null` takes every write and refuses fsync.
    fn null() -> Arc<File> {
        Arc::new(File::options().write(true).open("/dev/null").expect("/dev/null"))
    }

    fn flush() -> Flush {
        Flush::new(File::open(std::env::temp_dir()).expect("temporary directory"))
    }

    #[test]
    fn a_failed_round_is_never_repeated() {
        let flush = flush();
        flush.created();
        assert_eq!(flush.sync(), Ok(()));
        flush.wrote(&null());
        assert_eq!(flush.check(), Ok(()));
        for _ in 0..3 {
            assert_eq!(flush.sync().map_err(|e| e.kind()), Err(Kind::Io));
            assert_eq!(flush.check().map_err(|e| e.kind()), Err(Kind::Io));
        }
    }

    #[test]
    fn nothing_new_needs_no_round() {
        let flush = flush();
        let file = Arc::new(tempfile::tempfile().expect("temporary file"));
        flush.wrote(&file);
        flush.wrote(&file);
        assert_eq!(lock(&flush.state).dirty.files.len(), 1);
        assert_eq!(flush.sync(), Ok(()));
        assert!(lock(&flush.state).dirty.files.is_empty());
        lock(&flush.state).running = true;
        assert_eq!(flush.sync(), Ok(()), "does not wait for a round it does not need");
    }

    #[test]
    fn a_round_that_began_before_the_write_does_not_count() {
        let flush = flush();
        flush.wrote(&Arc::new(tempfile::tempfile().expect("temporary file")));
        lock(&flush.state).running = true;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flush.sync());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!waiting.is_finished());
            // The running round ends without having seen the write: the waiter leads its own.
            lock(&flush.state).running = false;
            flush.round_over.notify_all();
            assert_eq!(waiting.join().expect("no panic"), Ok(()));
        });
        assert_eq!(lock(&flush.state).stable, 1);
    }

    #[test]
    fn waiters_of_a_failed_round_all_fail() {
        let flush = flush();
        flush.wrote(&null());
        let failed = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| flush.sync().is_err())).collect();
            all.into_iter().map(|t| t.join().expect("no panic")).filter(|&f| f).count()
        });
        assert_eq!(failed, 8);
    }
}
