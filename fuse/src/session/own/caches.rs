//! What the kernel remembers of files, thrown out by notifications.

use std::io;
use std::sync::Weak;

use kos_types::Ino;

use super::device::Channels;
use crate::session::Caches;
use crate::session::enlarge::enlarge;
use crate::session::protocol::notify;

/// The kernel's caches of one mount.
pub(super) struct Kernel(pub(super) Weak<Channels>);

impl Kernel {
    pub(super) fn tell(&self, message: &[u8]) -> io::Result<()> {
        let Some(channels) = self.0.upgrade() else { return Ok(()) };
        match rustix::io::write(channels.first().device(), message) {
            // It has forgotten the inode.
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Caches for Kernel {
    fn drop_range(&self, file: Ino, off: u64, len: u64) -> io::Result<()> {
        self.tell(&notify::inval_inode(file.0, off.cast_signed(), len.cast_signed()))
    }

    fn drop_attributes(&self, file: Ino) -> io::Result<()> {
        self.tell(&notify::inval_inode(file.0, -1, 0))
    }

    fn enlarge(&self, file: Ino, size: u64) -> io::Result<()> {
        self.0.upgrade().map_or(Ok(()), |channels| enlarge(channels.first().device(), file.0, size))
    }
}
