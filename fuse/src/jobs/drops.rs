//! Files that are being dropped into the jobs' tree: who made each name, who still writes it, and the last verdict.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kos_types::{Cred, Error, Ino, JobId, Kind, Result, Submitter};

use crate::seal::RELEASE_MAX;

/// Files being dropped at once.
const DROPS_MAX: usize = 4096;

/// A process that asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    /// As whom.
    pub(crate) cred: Cred,
    /// Its thread; 0 when it is in no namespace of ours.
    pub(crate) pid: u32,
}

impl Caller {
    /// Its whole identity. It waits for our answer, so /proc still has it; of a process that we cannot see the
    /// supplementary groups are left out.
    pub(crate) fn submitter(self) -> Submitter {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        let groups = groups.split_whitespace().filter_map(|group| group.parse().ok()).collect();
        Submitter { uid: self.cred.uid, gid: self.cred.gid, groups }
    }
}

/// What was last said of a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing was written yet.
    None,
    /// The job that it is.
    Good(JobId),
    /// Its close was refused.
    Bad,
}

/// One file being dropped.
#[derive(Debug)]
pub(crate) struct Dropped {
    pub(crate) name: Vec<u8>,
    pub(crate) submitter: Submitter,
    /// Handles open for writing.
    pub(crate) writers: HashSet<u64>,
    /// Written since the last verdict.
    pub(crate) written: bool,
    pub(crate) verdict: Verdict,
}

/// As the others see it.
struct Entry {
    name: Vec<u8>,
    /// It is a job as far as it was written, and a descriptor was closed since: the last one, perhaps.
    leaving: bool,
    dropped: Arc<Mutex<Dropped>>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Drops {
    all: Mutex<HashMap<Ino, Entry>>,
    /// One was taken out.
    taken: Condvar,
    /// How many, so that writes to other files cost nothing.
    count: AtomicUsize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drops {
    /// Whether one more may begin.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.count.load(Ordering::Relaxed) >= DROPS_MAX {
            return Err(Error::new(Kind::Busy, "jobs: too many files are being dropped"));
        }
        Ok(())
    }

    pub(crate) fn begin(&self, ino: Ino, name: &[u8], submitter: Submitter) {
        let writers = HashSet::new();
        let dropped =
            Dropped { name: name.to_vec(), submitter, writers, written: false, verdict: Verdict::None };
        let dropped = Arc::new(Mutex::new(dropped));
        lock(&self.all).insert(ino, Entry { name: name.to_vec(), leaving: false, dropped });
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<Mutex<Dropped>>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        lock(&self.all).get(&ino).map(|entry| Arc::clone(&entry.dropped))
    }

    pub(crate) fn take(&self, ino: Ino) -> Option<Arc<Mutex<Dropped>>> {
        let taken = lock(&self.all).remove(&ino)?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.taken.notify_all();
        Some(taken.dropped)
    }

    /// A descriptor was closed, and what was written by then is a job.
    pub(crate) fn leaves(&self, ino: Ino) {
        if let Some(entry) = lock(&self.all).get_mut(&ino) {
            entry.leaving = true;
        }
    }

    /// Before a name is looked at: close(2) returns before its release arrives here, and whoever closed the file knows that
    /// its name is free. It ends in vain where a copied descriptor was closed, and another one is still open.
    pub(crate) fn await_leaving(&self, name: &[u8]) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let leaving =
            |all: &mut HashMap<Ino, Entry>| all.values().any(|entry| entry.leaving && entry.name == name);
        drop(self.taken.wait_timeout_while(lock(&self.all), RELEASE_MAX, leaving));
    }

    pub(crate) fn opened(&self, ino: Ino, handle: u64) {
        if let Some(dropped) = self.find(ino) {
            lock(&dropped).writers.insert(handle);
        }
    }

    pub(crate) fn written(&self, ino: Ino) {
        if let Some(dropped) = self.find(ino) {
            lock(&dropped).written = true;
            if let Some(entry) = lock(&self.all).get_mut(&ino) {
                entry.leaving = false;
            }
        }
    }
}
