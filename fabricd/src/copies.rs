//! Whole copies of sealed files in the memory tier, for programs to read in place. They are a cache:
//! the copier makes them, whoever needs memory drops those that nobody reads.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_types::{Error, Ino, Kind, Reply, Result};

use crate::inplace;

/// Copies at once: with each in use goes an open file of the kernel.
const COPIES_MAX: usize = 4096;
/// Files that wait for a copy, and files that were opened once.
const WANTED_MAX: usize = 4096;
const SEEN_MAX: usize = 4096;
/// A smaller file gains nothing over the page cache.
pub(crate) const BYTES_MIN: u64 = 64 << 10;

/// One whole copy.
struct Copy {
    bytes: u64,
    /// The tick of its last use.
    used: u64,
}

#[derive(Default)]
struct State {
    whole: HashMap<Ino, Copy>,
    tick: u64,
    /// Files of which a copy is wanted, each with whether others may make way for it.
    wanted: VecDeque<(Ino, bool)>,
    /// Files that were opened without a copy, oldest first.
    seen: VecDeque<Ino>,
    /// What the copier works at; taken away when it is not to be finished.
    making: Option<Ino>,
    /// Files that are gone, whose copies the kernel had not let go of when they went.
    gone: BTreeSet<Ino>,
    /// Files whose seal is being taken off.
    barred: BTreeSet<Ino>,
}

/// All copies of a node.
pub(crate) struct Copies {
    /// Where they are; none without a memory tier.
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

impl Copies {
    /// Copies of an earlier process are dropped: who reads one goes on with it. But those are kept that `keeps` answers the
    /// bytes of, asked with the file and the copy's size: the kernel reads them for a mount that goes on.
    pub(crate) fn open(dir: Option<PathBuf>, keeps: impl Fn(Ino, u64) -> Option<u64>) -> Result<Self> {
        let mut state = State::default();
        if let Some(dir) = &dir {
            let step = |e| Error::io("copies of sealed files", &e);
            fs::create_dir_all(dir).map_err(step)?;
            for entry in fs::read_dir(dir).map_err(step)? {
                let entry = entry.map_err(step)?;
                let ino = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Ino);
                let size = entry.metadata().map_err(step)?.len();
                match ino.and_then(|ino| Some((ino, keeps(ino, size)?))) {
                    Some((ino, bytes)) => drop(state.whole.insert(ino, Copy { bytes, used: 0 })),
                    None => fs::remove_file(entry.path()).map_err(step)?,
                }
            }
        }
        Ok(Self { dir, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, ino: Ino) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(ino.0.to_string()))
    }

    /// Where the copier fills the next copy.
    pub(crate) fn unfinished(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("new"))
    }

    /// A copy to read in place; without one the file may get one. The kernel knows for how long it is in use.
    pub(crate) fn lend(&self, ino: Ino) -> Option<File> {
        let path = self.path(ino)?;
        let mut state = self.state();
        state.tick += 1;
        let tick = state.tick;
        if state.barred.contains(&ino) {
            return None;
        }
        let Some(copy) = state.whole.get_mut(&ino) else {
            state.opened(ino);
            return None;
        };
        let file = File::open(path).inspect_err(|e| kos_types::log!("fabricd: copy of inode {}: {e}", ino.0));
        copy.used = tick;
        file.ok()
    }

    /// A copy of a file is wanted if there is room.
    pub(crate) fn want(&self, ino: Ino) {
        if self.dir.is_some() {
            self.state().want(ino, false);
        }
    }

    /// Take the seal off a file by `change`: nobody reads a copy of it, and none is made meanwhile.
    ///
    /// # Errors
    /// `InUse` when one is read; what `change` answers.
    pub(crate) fn unseal(&self, ino: Ino, change: impl FnOnce() -> Result<Reply>) -> Result<Reply> {
        {
            let mut state = self.state();
            if !self.drop_idle(&mut state, ino) {
                return Err(Error::new(Kind::InUse, "unseal: it is read in place"));
            }
            state.barred.insert(ino);
        }
        let reply = change();
        self.state().barred.remove(&ino);
        reply
    }

    /// The file is gone, and with it whoever read it; the kernel may be a little behind.
    pub(crate) fn forget(&self, ino: Ino) {
        let mut state = self.state();
        if !self.drop_idle(&mut state, ino) {
            state.gone.insert(ino);
        }
    }

    /// Drop the copies of files that are gone.
    pub(crate) fn tidy(&self) {
        let mut state = self.state();
        let gone = std::mem::take(&mut state.gone);
        let kept = gone.into_iter().filter(|&ino| !self.drop_idle(&mut state, ino)).collect();
        state.gone = kept;
    }

    /// Drop a copy that nobody reads; false when somebody does.
    fn drop_idle(&self, state: &mut State, ino: Ino) -> bool {
        let Some(path) = self.path(ino) else { return true };
        if state.whole.contains_key(&ino) {
            // Mappings outlive the descriptors that a mount knows of, and both outlive the mount.
            if inplace::is_open_elsewhere(&path) {
                return false;
            }
            if let Err(e) = fs::remove_file(&path) {
                kos_types::log!("fabricd: copy of inode {}: {e}; the next start drops it", ino.0);
            }
            state.whole.remove(&ino);
        }
        state.wanted.retain(|(wanted, _)| *wanted != ino);
        state.making = state.making.filter(|&making| making != ino);
        true
    }

    /// Drop copies that nobody reads, those first that were not used for longest, until `bytes` are free. Answers
    /// how many that were.
    pub(crate) fn shrink(&self, bytes: u64) -> u64 {
        let mut state = self.state();
        let mut all: Vec<_> = state.whole.iter().map(|(&ino, copy)| (copy.used, ino)).collect();
        all.sort_unstable();
        let mut freed = 0;
        for (_, ino) in all {
            if freed >= bytes {
                break;
            }
            let own = state.whole.get(&ino).map_or(0, |copy| copy.bytes);
            if self.drop_idle(&mut state, ino) {
                freed += own;
            }
        }
        freed
    }

    /// Bytes of all copies.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().whole.values().map(|copy| copy.bytes).sum()
    }

    /// The next file to copy, and whether others may make way for it.
    pub(crate) fn begin(&self) -> Option<(Ino, bool)> {
        let mut state = self.state();
        if state.whole.len() >= COPIES_MAX {
            return None;
        }
        let (ino, pushes) = state.wanted.pop_front()?;
        if state.barred.contains(&ino) || state.whole.contains_key(&ino) {
            return None;
        }
        state.making = Some(ino);
        Some((ino, pushes))
    }

    /// Whether what was begun is still to be finished.
    pub(crate) fn is_making(&self, ino: Ino) -> bool {
        self.state().making == Some(ino)
    }

    /// What was begun is whole, in the file [`Self::unfinished`]: from now on it is lent.
    ///
    /// # Errors
    /// `Stale` when it was not to be finished; `Io`.
    pub(crate) fn finish(&self, ino: Ino, bytes: u64) -> Result<()> {
        let mut state = self.state();
        let (Some(from), Some(to)) = (self.unfinished(), self.path(ino)) else { return Ok(()) };
        if state.making.take() != Some(ino) {
            return Err(Error::new(Kind::Stale, "copy: the file is not sealed any more"));
        }
        fs::rename(from, to).map_err(|e| Error::io("copy", &e))?;
        state.tick += 1;
        let used = state.tick;
        state.whole.insert(ino, Copy { bytes, used });
        Ok(())
    }

    /// What was begun is not finished.
    pub(crate) fn give_up(&self) {
        self.state().making = None;
    }

    /// Drop all, also those that are read: the node ends.
    pub(crate) fn end(&self) -> Result<()> {
        let mut state = self.state();
        state.whole.clear();
        match &self.dir {
            Some(dir) => fs::remove_dir_all(dir).map_err(|e| Error::io("copies of sealed files", &e)),
            None => Ok(()),
        }
    }
}

impl State {
    fn want(&mut self, ino: Ino, pushes: bool) {
        let known = self.wanted.iter().any(|(wanted, _)| *wanted == ino) || self.making == Some(ino);
        if !known && self.wanted.len() < WANTED_MAX {
            self.wanted.push_back((ino, pushes));
        }
    }

    /// Who reads a file once may never come again; the second time it is worth other copies' room.
    fn opened(&mut self, ino: Ino) {
        if let Some(at) = self.seen.iter().position(|seen| *seen == ino) {
            self.seen.remove(at);
            self.want(ino, true);
            return;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(ino);
    }
}
