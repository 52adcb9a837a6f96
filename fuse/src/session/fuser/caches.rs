//! What the kernel remembers of files, thrown out by notifications.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use fuser::{INodeNo, Notifier};
use kos_types::Ino;

use crate::session::Caches;
use crate::session::enlarge::enlarge;

/// The kernel's caches of one mount.
pub(super) struct Kernel {
    notifier: Notifier,
    /// The same connection.
    device: Weak<OwnedFd>,
}

impl Kernel {
    pub(super) const fn new(notifier: Notifier, device: Weak<OwnedFd>) -> Self {
        Self { notifier, device }
    }
}

impl Caches for Kernel {
    fn drop_range(&self, file: Ino, off: u64, len: u64) -> io::Result<()> {
        known(self.notifier.inval_inode(INodeNo(file.0), off.cast_signed(), len.cast_signed()))
    }

    fn drop_attributes(&self, file: Ino) -> io::Result<()> {
        known(self.notifier.inval_inode(INodeNo(file.0), -1, 0))
    }

    fn enlarge(&self, file: Ino, size: u64) -> io::Result<()> {
        self.device.upgrade().map_or(Ok(()), |device| enlarge(&device, file.0, size))
    }
}

/// The kernel may have forgotten an inode.
fn known(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
