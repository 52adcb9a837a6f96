//! Names under leases. Whoever changes a directory has its names alone meanwhile; so a mount whose fabric is another
//! process may keep what it was told of them, and of the directory itself, until the lease is wanted back (ADR 88).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::lease::{Mode, Want};
use kos_types::{Attr, Error, Fabric, FileKind, Ino, JOBS, Kind, ROOT, Result};

use super::whole;
use crate::fs::Fs;
use crate::jobs;

/// Names that are kept: some megabytes. Beyond it all are forgotten.
const NAMES_MAX: usize = 65_536;

/// A name in a directory.
pub(crate) type OwnedName = (Ino, Vec<u8>);
/// What a name stands for; nothing.
type Target = Option<(Ino, FileKind)>;

#[derive(Default)]
struct Dir {
    attr: Option<Attr>,
    names: HashMap<Vec<u8>, Target>,
}

#[derive(Default)]
struct State {
    dirs: HashMap<Ino, Dir>,
    names: usize,
    /// Changes so far: what was asked before the last one is not kept.
    changes: u64,
}

/// What a mount keeps of directories.
#[derive(Default)]
pub(crate) struct Kept {
    state: Mutex<State>,
}

/// What a lookup has found.
pub(crate) enum Found {
    Nothing,
    /// True as it is.
    Attr(Attr),
    /// To be looked at under these leases.
    Inode(Ino, Want),
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> u64 {
        self.state().changes
    }

    fn target(&self, dir: Ino, name: &[u8]) -> Option<Target> {
        self.state().dirs.get(&dir)?.names.get(name).copied()
    }

    fn attr(&self, dir: Ino) -> Option<Attr> {
        self.state().dirs.get(&dir)?.attr.clone()
    }

    fn keep(&self, changes: u64, dir: Ino, add: impl FnOnce(&mut Dir) -> usize) {
        let mut state = self.state();
        if state.changes != changes {
            return;
        }
        if state.names >= NAMES_MAX {
            state.dirs.clear();
            state.names = 0;
        }
        state.names += add(state.dirs.entry(dir).or_default());
    }

    /// This mount has changed a directory and that name in it.
    pub(crate) fn changed(&self, dir: Ino, name: &[u8]) {
        let mut state = self.state();
        state.changes += 1;
        if let Some(kept) = state.dirs.get_mut(&dir) {
            kept.attr = None;
            let gone = kept.names.remove(name).is_some();
            state.names -= usize::from(gone);
        }
    }

    /// All of a directory may be different.
    pub(crate) fn forget(&self, dir: Ino) {
        let mut state = self.state();
        state.changes += 1;
        if let Some(gone) = state.dirs.remove(&dir) {
            state.names -= gone.names.len();
        }
    }

    pub(crate) fn forget_all(&self) {
        let mut state = self.state();
        *state = State { changes: state.changes + 1, ..State::default() };
    }
}

impl<F: Fabric> Fs<F> {
    /// Run a change of these directories. `names` are those in them that may be directories themselves, which the change
    /// moves or removes.
    pub(crate) fn under_names(
        self: &Arc<Self>,
        dirs: Vec<Ino>,
        names: Vec<OwnedName>,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        if let Some(_alone) = self.alone() {
            return run(self, Ok(()));
        }
        let wants = match self.wants_of_names(&dirs, &names) {
            Ok(wants) => wants,
            Err(e) => return run(self, Err(e)),
        };
        self.ask(wants.clone(), move |fs, leased| {
            // Another mount may have put something else there meanwhile.
            let same = names.is_empty() || fs.wants_of_names(&dirs, &names).is_ok_and(|now| now == wants);
            if leased.is_ok() && !same {
                return fs.under_names(dirs, names, run);
            }
            run(fs, leased);
        });
    }

    fn wants_of_names(&self, dirs: &[Ino], names: &[OwnedName]) -> Result<Vec<Want>> {
        let mut wants: Vec<Want> = Vec::new();
        let mut add = |want: Want| {
            if !wants.contains(&want) {
                wants.push(want);
            }
        };
        dirs.iter().for_each(|&dir| add(Want::names(dir, Mode::Exclusive)));
        for (dir, name) in names {
            match self.lookup((*dir, name)) {
                Ok(attr) if attr.kind == FileKind::Dir => add(Want::names(attr.ino, Mode::Exclusive)),
                // What is flushed before it takes another's place may be in another mount's buffer.
                Ok(attr) if attr.kind == FileKind::File => add(whole(attr.ino, Mode::Shared)),
                Ok(_) => {}
                // Whoever does it says so.
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale | Kind::NotDir) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(wants)
    }

    /// Whether names of a directory may be kept. The daemon itself puts jobs into their directories, without a lease.
    fn may_keep(&self, dir: Ino) -> Result<bool> {
        if jobs::is_ours(dir) {
            return Ok(false);
        }
        let known = self.held.kept.state().dirs.contains_key(&dir);
        Ok(known || dir == ROOT || self.fabric.parent(dir)? != JOBS)
    }

    /// What a name stands for, under a shared lease on the names of its directory.
    pub(crate) fn find(&self, (dir, name): (Ino, &[u8])) -> Result<Found> {
        let kept = &self.held.kept;
        if let Some(target) = kept.target(dir, name) {
            return Ok(match target {
                None => Found::Nothing,
                Some((ino, FileKind::Dir)) => Found::Inode(ino, Want::names(ino, Mode::Shared)),
                Some((ino, _)) => Found::Inode(ino, whole(ino, Mode::Shared)),
            });
        }
        let changes = kept.changes();
        let found = match self.lookup((dir, name)) {
            Err(e) if e.kind() == Kind::NotFound => None,
            other => Some(other?),
        };
        let target = found.as_ref().map(|attr| (attr.ino, attr.kind));
        if self.may_keep(dir)? {
            kept.keep(changes, dir, |kept| usize::from(kept.names.insert(name.to_vec(), target).is_none()));
        }
        Ok(match found {
            None => Found::Nothing,
            Some(attr) if attr.kind == FileKind::File => {
                Found::Inode(attr.ino, whole(attr.ino, Mode::Shared))
            }
            Some(attr) => Found::Attr(attr),
        })
    }

    /// The attributes of an inode that a lookup has found, under the lease that it named. One that was removed since
    /// is not found.
    pub(crate) fn found(&self, ino: Ino) -> Result<Attr> {
        let kept = &self.held.kept;
        if let Some(attr) = kept.attr(ino) {
            return Ok(attr);
        }
        let changes = kept.changes();
        let attr = self.attr(ino).map_err(|e| match e.kind() {
            Kind::Stale => Error::new(Kind::NotFound, "lookup"),
            _ => e,
        })?;
        if attr.kind == FileKind::Dir && self.may_keep(ino)? {
            kept.keep(changes, ino, |kept| {
                kept.attr = Some(attr.clone());
                0
            });
        }
        Ok(attr)
    }

    /// The attributes of an inode, which may be a directory that is kept, under a shared lease on its names.
    pub(crate) fn kept_or_asked(&self, ino: Ino) -> Result<Attr> {
        self.held.kept.attr(ino).map_or_else(|| self.attr(ino), Ok)
    }

    /// Whether the attributes of a directory are kept.
    pub(crate) fn keeps(&self, dir: Ino) -> bool {
        self.held.kept.attr(dir).is_some()
    }
}
