//! What the kernel remembers of files, thrown out by notifications.

use std::io;

use fuser::{INodeNo, Notifier};
use kos_types::Ino;

use crate::session::Caches;

/// The kernel's caches of one mount.
pub(super) struct Kernel(Notifier);

impl Kernel {
    pub(super) const fn new(notifier: Notifier) -> Self {
        Self(notifier)
    }
}

impl Caches for Kernel {
    fn drop_range(&self, file: Ino, off: u64, len: u64) -> io::Result<()> {
        known(self.0.inval_inode(INodeNo(file.0), off.cast_signed(), len.cast_signed()))
    }

    fn drop_attributes(&self, file: Ino) -> io::Result<()> {
        known(self.0.inval_inode(INodeNo(file.0), -1, 0))
    }
}

/// The kernel may have forgotten an inode.
fn known(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
