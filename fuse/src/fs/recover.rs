//! Going on where an earlier process was killed: what it left in the arena is as it was.

use kos_types::{Access, Fabric, Ino, Result};

use super::Fs;
use super::handles::Opened;
use crate::seal::Backing;
use crate::session::Caches;

impl<F: Fabric> Fs<F> {
    /// Take everything over that an earlier process left, before requests come. `copy` answers what the kernel calls so.
    ///
    /// # Errors
    /// When the fabric cannot be asked. What is of no use any more is left out, and said in the log.
    pub(crate) fn recover(&self, copy: &dyn Fn(u32) -> Backing) -> Result<()> {
        let bytes = self.files.recover();
        let files = self.handles.files();
        for &(number, opened) in &files {
            if let Err(e) = self.reopen(opened, copy) {
                kos_types::log!("kos-fuse: inode {} is open and gone: {e}", opened.ino.0);
                self.handles.remove(number);
            }
        }
        self.locks.recover(&*self.fabric);
        for ino in self.fabric.unnamed()? {
            // It lost its last name, and is in use where the kernel knows it.
            if self.known.unnamed(ino) {
                self.files.abandon(ino);
            }
        }
        kos_types::log!(
            "kos-fuse: taken over from the process before: {bytes} bytes to be flushed, {} open files, {} inodes",
            files.len(),
            self.known.all().len()
        );
        Ok(())
    }

    fn reopen(&self, opened: Opened, copy: &dyn Fn(u32) -> Backing) -> Result<()> {
        let Opened { ino, way, writes, flags, copy: id, .. } = opened;
        self.fabric.open(ino, if writes { Access::Write } else { Access::Read })?;
        let consistency = self.consistency_of(ino)?;
        let node = self.files.node(ino);
        {
            let mut state = node.state();
            state.opens.reopen(way);
            state.users.writers += u32::from(writes);
            state.users.consistency = consistency;
            if id > 0 && state.users.backing.is_none() {
                state.users.backing = Some(copy(id));
                drop(state);
                // The kernel reads what it has; unsealing is refused meanwhile.
                drop(self.fabric.lend_copy(ino));
            }
        }
        self.held.opened(ino, flags);
        Ok(())
    }

    /// The handles of this file that may write.
    pub(crate) fn writers_of(&self, ino: Ino) -> Vec<u64> {
        let all = self.handles.files().into_iter();
        all.filter(|(_, opened)| opened.ino == ino && opened.writes).map(|(number, _)| number).collect()
    }

    /// The leases that an earlier process had are gone: what the kernel keeps under them goes too, and what is buffered is
    /// committed, before others can be given them. Requests are served meanwhile.
    pub(crate) fn forget_leases_before(&self, kernel: &dyn Caches) {
        if !self.fabric.shared() {
            return;
        }
        for ino in self.known.all() {
            if let Err(e) = kernel.drop_pages(ino) {
                kos_types::log!("kos-fuse: inode {} may be read as it was: {e}", ino.0);
            }
        }
        // Nobody is asked for it, either. What fails stays, and is told.
        if let Err(e) = self.files.flush_all() {
            kos_types::log!("kos-fuse: what was written before may not be seen by other mounts yet: {e}");
        }
    }

    /// A request comes that an earlier process may have begun: what it opened, and the kernel never heard of, goes.
    pub(crate) fn forget_opened(&self, unique: u64) {
        if let Some(handle) = self.handles.left_by(unique) {
            self.release(handle);
        }
    }
}
