//! What the simulated cluster has agreed on, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet};

use kos_core::lease::{Commit, Epoch, Lane, Mode, Want};
use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Ino, SessionId};

/// The smallest thing a lease is about: a stripe of a file, its size, or a directory's entries.
pub(super) type Cell = (u64, Lane, u64);

pub(super) fn want(cell: Cell, mode: Mode) -> Want {
    let stripe = STRIPE_BYTES_MAX as u64;
    match cell {
        (ino, Lane::Data, number) => Want::data(Ino(ino), number * stripe, stripe, mode),
        (ino, Lane::Attr, _) => Want::attr(Ino(ino), mode),
        (ino, Lane::Names, _) => Want::names(Ino(ino), mode),
    }
}

/// A version and the session that wrote it.
type Version = (u64, Option<SessionId>);

#[derive(Debug, Default)]
pub(super) struct Log {
    epochs: BTreeMap<SessionId, Epoch>,
    open: BTreeSet<SessionId>,
    replies: BTreeSet<(SessionId, u64)>,
    committed: BTreeMap<Cell, u64>,
    /// What every mount must read: committed, or buffered by the one that may.
    current: BTreeMap<Cell, Version>,
    versions: u64,
}

impl Log {
    pub(super) fn sessions(&self) -> Vec<(SessionId, Epoch)> {
        self.open.iter().map(|&id| (id, self.epochs[&id])).collect()
    }

    pub(super) fn epoch(&self, session: SessionId) -> Epoch {
        self.epochs.get(&session).copied().unwrap_or(Epoch(0))
    }

    /// Nothing of the old epoch is applied any more, so what it buffered is lost.
    pub(super) fn raise(&mut self, session: SessionId) -> Epoch {
        let epoch = Epoch(self.epoch(session).0 + 1);
        self.epochs.insert(session, epoch);
        self.open.insert(session);
        for (cell, current) in &mut self.current {
            if current.1 == Some(session) {
                *current = (self.committed.get(cell).copied().unwrap_or(0), None);
            }
        }
        epoch
    }

    pub(super) fn close(&mut self, session: SessionId, epoch: Epoch) {
        if self.epoch(session) == epoch {
            self.open.remove(&session);
        }
    }

    pub(super) fn committed(&self, cell: Cell) -> u64 {
        self.committed.get(&cell).copied().unwrap_or(0)
    }

    pub(super) fn current(&self, cell: Cell) -> u64 {
        self.current.get(&cell).map_or(0, |current| current.0)
    }

    pub(super) fn new_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// A program's write has returned.
    pub(super) fn written(&mut self, cell: Cell, version: u64, by: SessionId) {
        self.current.insert(cell, (version, Some(by)));
    }

    /// A mount has discarded what it had buffered.
    pub(super) fn discarded(&mut self, cell: Cell, version: u64) {
        if self.current(cell) == version {
            self.current.insert(cell, (self.committed(cell), None));
        }
    }

    pub(super) fn has_reply(&self, commit: &Commit) -> bool {
        self.replies.contains(&(commit.session, commit.seq))
    }

    /// Apply a commit. `others` believe to hold a lease on the cell.
    pub(super) fn apply(
        &mut self,
        commit: &Commit,
        cell: Cell,
        version: u64,
        others: bool,
    ) -> Result<(), String> {
        let (committed, current) = (self.committed(cell), self.current(cell));
        if version < committed {
            return Err(format!("{cell:?}: {version} overwrites the newer {committed}"));
        }
        if version != current && others {
            return Err(format!("{cell:?}: {version} appears under another's lease, current is {current}"));
        }
        self.replies.insert((commit.session, commit.seq));
        self.committed.insert(cell, version);
        if current <= version {
            self.current.insert(cell, (version, None));
        }
        Ok(())
    }

    /// At the end, when all is flushed.
    pub(super) fn settled(&self) -> Result<(), String> {
        let lost = self.current.iter().find(|(cell, current)| self.committed(**cell) != current.0);
        lost.map_or(Ok(()), |(cell, current)| Err(format!("{cell:?}: version {} was lost", current.0)))
    }
}
