//! Files without a name whose mount goes without a word: killed, it does not ask to have them dropped. Nobody else could
//! open what was never named, and the last close here drops nothing that nobody asked to drop.

use std::time::{Duration, Instant};

use kos_types::{Fabric, Ino, Reply, Result, SessionId};

use super::{Hub, Session, lock};

/// A mount that lost its connections and lives comes back, and opens them again, long before.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one mount left, and when.
#[derive(Debug)]
pub(super) struct Left(Vec<(Instant, Ino)>);

impl Left {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Hub {
    /// Drop what mounts have left that are away for [`PATIENCE`] at `now`.
    pub(super) fn drop_left(&self, now: Instant) -> Result<()> {
        let Some(before) = now.checked_sub(PATIENCE) else { return Ok(()) };
        let sessions: Vec<SessionId> = {
            let table = lock(&self.table);
            let have_left = table.logged.iter().filter(|(_, logged)| !logged.left.0.is_empty());
            have_left.map(|(&session, _)| session).collect()
        };
        sessions.into_iter().try_for_each(|session| self.drop_left_of(session, before))
    }

    /// Drop what a mount had left at `before`. After an error the next call goes on.
    pub(super) fn drop_left_of(&self, session: SessionId, before: Instant) -> Result<()> {
        let next = || {
            let table = lock(&self.table);
            let left = &table.logged.get(&session)?.left.0;
            left.iter().find(|(since, _)| *since <= before).map(|&(_, ino)| ino)
        };
        while let Some(ino) = next() {
            self.reap(ino)?;
            if let Some(logged) = lock(&self.table).logged.get_mut(&session) {
                logged.left.0.retain(|&(_, left)| left != ino);
            }
        }
        Ok(())
    }
}

impl Session {
    /// The mount may be killed before it opens what it has made.
    pub(super) fn note_made(&self, made: Result<Reply>) -> Result<Reply> {
        if self.is_remote()
            && let Ok(Reply::Attr(attr)) = &made
        {
            lock(&self.made).insert(attr.ino);
        }
        made
    }

    /// From here on the table of opens, or nobody, knows of it.
    pub(super) fn forget_made(&self, ino: Ino) {
        if self.is_remote() {
            lock(&self.made).remove(&ino);
        }
    }

    /// The mount is gone: `held` it had open. Before they are closed.
    pub(super) fn leave_unnamed(&self, held: &[Ino]) {
        if !self.is_remote() {
            return;
        }
        let made = std::mem::take(&mut *lock(&self.made));
        let unnamed = |ino: &Ino| self.hub.node.attr(*ino).is_ok_and(|attr| attr.nlink == 0);
        let left: Vec<Ino> = held.iter().copied().chain(made).filter(unnamed).collect();
        let mut table = lock(&self.hub.table);
        // With others of the same session the client is back already.
        if let Some(logged) = table.logged.get_mut(&self.origin.session)
            && logged.users == 0
        {
            let now = Instant::now();
            logged.left.0.extend(left.into_iter().map(|ino| (now, ino)));
        }
    }
}
