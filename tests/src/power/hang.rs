//! Requests that a hanging disk does not answer: they wait here until it is let go. A process that is killed
//! meanwhile ends only then, so whoever lets it hang holds a [`Hang`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Request = Box<dyn FnOnce() + Send>;

/// What hangs of a disk.
#[derive(Default)]
pub(crate) struct Hanging(Mutex<State>);

#[derive(Default)]
struct State {
    what: What,
    requests: Vec<Request>,
}

#[derive(Default)]
pub(crate) enum What {
    #[default]
    Nothing,
    /// These inodes.
    These(BTreeSet<u64>),
    /// fsync of these; the page cache takes what is written.
    SyncsOf(BTreeSet<u64>),
}

impl What {
    fn holds(&self, ino: u64, is_sync: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(inodes) => inodes.contains(&ino),
            Self::SyncsOf(inodes) => is_sync && inodes.contains(&ino),
        }
    }
}

impl fmt::Debug for Hanging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hanging").finish_non_exhaustive()
    }
}

impl Hanging {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Let this hang; directories together with those that do already.
    pub(crate) fn hang(&self, what: What) {
        let mut state = self.state();
        match (&mut state.what, what) {
            (What::These(old), What::These(new)) => old.extend(new),
            (old, new) => *old = new,
        }
    }

    /// Whether requests to this inode wait, but for fsync.
    pub(crate) fn holds(&self, ino: u64) -> bool {
        self.state().what.holds(ino, false)
    }

    /// Answer a request to this inode, now or when it is let go.
    pub(crate) fn answer(&self, ino: u64, is_sync: bool, request: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.what.holds(ino, is_sync) {
            state.requests.push(Box::new(request));
            return;
        }
        drop(state);
        request();
    }

    fn requests(&self) -> usize {
        self.state().requests.len()
    }

    pub(crate) fn let_go(&self) {
        let requests = {
            let mut state = self.state();
            state.what = What::Nothing;
            std::mem::take(&mut state.requests)
        };
        requests.into_iter().for_each(|request| request());
    }
}

/// Directories of a disk answer nothing until this is dropped; the first of several lets all go.
#[derive(Debug)]
#[must_use]
pub struct Hang(pub(crate) Arc<Hanging>);

impl Hang {
    /// Requests that wait.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.0.requests()
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.let_go();
    }
}
