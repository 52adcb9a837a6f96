//! What fsync(2) and close(2) promise, and whom they tell of what failed.

use kos_types::{Class, Fabric, Ino, Result};

use super::Fs;
use crate::control;

impl<F: Fabric> Fs<F> {
    /// close(2) of one descriptor: what failed in the background is told, and by fsync still. A forked child
    /// closes its copy unasked, and would take the error with it.
    pub(crate) fn closing(&self, ino: Ino, handle: u64) -> Result<()> {
        if self.handles.file(handle).is_some_and(|opened| opened.writes) {
            self.files.quiet(ino);
            // What fails is told below.
            drop(self.release_to_others(ino));
        }
        self.unseen_error(handle).0?;
        self.job_flushed(ino, handle)
    }

    /// The flush error that a descriptor has not told, and how many there are.
    fn unseen_error(&self, handle: u64) -> (Result<()>, u64) {
        let Some(opened) = self.handles.file(handle) else { return (Ok(()), 0) };
        let mut seen = opened.errors_seen;
        (self.files.unseen_error(opened.ino, &mut seen), seen)
    }

    fn tell_error(&self, handle: u64) -> Result<()> {
        let (told, seen) = self.unseen_error(handle);
        self.handles.set_errors_seen(handle, seen);
        told
    }

    pub(crate) fn fsync(&self, ino: Ino, handle: u64) -> Result<()> {
        if control::owns(ino) {
            return Ok(());
        }
        let flushed = self.files.flush(ino);
        // Also marks an error of this very flush as told.
        let told = self.tell_error(handle);
        flushed.and(told)?;
        // What is kept in memory survives a killed process without a disk's help, and no more
        // was promised.
        match self.fabric.policy(ino)?.class {
            Class::Disk => self.fabric.sync(),
            Class::Memory | Class::Scratch => Ok(()),
        }
    }

    /// Names need no flush; the root stands for the whole fabric, and is not for a thread that serves requests: other
    /// mounts are waited for, and this one's pages.
    pub(crate) fn fsync_dir(&self, ino: Ino) -> Result<()> {
        if control::owns(ino) {
            self.files.flush_all()?;
            self.fabric.flush_mounts()?;
        }
        self.fabric.sync()
    }

    pub(crate) fn flush_all(&self) -> Result<()> {
        self.files.reap();
        self.files.flush_all().and_then(|()| self.fabric.sync())
    }
}
