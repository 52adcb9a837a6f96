//! The seam to the kernel: a session speaks its protocol and calls [`Fs`]. Nothing else knows that
//! protocol, and a session decides nothing.

mod enlarge;
mod fuser;
mod own;
mod protocol;
mod requests;
mod room;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kos_types::{Fabric, Ino};

use crate::fs::Fs;
use crate::seal::Backing;

pub(crate) use self::fuser::Fuser;
pub(crate) use self::own::Own;
pub(crate) use self::protocol::notify::inval_inode;

/// Pages that the kernel lets a request have, in all mounts of the machine.
const PAGES_LIMIT: &str = "/proc/sys/fs/fuse/max_pages_limit";
const PAGE_BYTES: u32 = 4096;
/// Bytes of one write: 1 MiB, and one page more, which memory that does not begin with a page reaches into. Without it
/// the kernel would cut each write of 1 MiB from such memory in two, in the middle of a block.
pub(crate) const WRITE_BYTES_MAX: u32 = (1 << 20) + PAGE_BYTES;
/// Bytes of one read: a whole part of a stripe, where the kernel reads ahead.
pub(crate) const READ_BYTES_MAX: u32 = 1 << 20;
/// Requests the kernel may have in flight in the background.
const BACKGROUND_MAX: u16 = 64;

/// Have the kernel let requests have `bytes`. It looks when a mount is made; what it refuses leaves
/// requests smaller.
pub(crate) fn raise_pages(bytes: u32) -> io::Result<()> {
    if takes_pages(bytes) {
        return Ok(());
    }
    fs::write(PAGES_LIMIT, bytes.div_ceil(PAGE_BYTES).to_string())
}

/// Whether it does.
fn takes_pages(bytes: u32) -> bool {
    let limit = fs::read_to_string(PAGES_LIMIT).ok().and_then(|limit| limit.trim().parse::<u32>().ok());
    limit.is_some_and(|limit| limit >= bytes.div_ceil(PAGE_BYTES))
}

/// One mount's connection to the kernel, which is ready to be served.
pub(crate) trait Session<F: Fabric>: Sized + Send + 'static {
    /// Agree with the kernel on the terms. `device` is attached to a directory already, and
    /// `threads` requests are to be served at once.
    ///
    /// # Errors
    /// When the kernel speaks another protocol, or is gone.
    fn begin(fs: Arc<Fs<F>>, device: OwnedFd, threads: usize) -> io::Result<Self>;

    /// Go on with the connection of an earlier process, as that agreed on it. Nothing is served yet.
    ///
    /// # Errors
    /// When the session cannot.
    fn resume(_fs: Arc<Fs<F>>, _devices: Vec<OwnedFd>) -> io::Result<Self> {
        let what = "this session takes no connection over: stop the other one first";
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }

    /// Have what an earlier process did not answer asked again.
    ///
    /// # Errors
    /// When the kernel could not.
    fn ask_again(&self) -> io::Result<()> {
        Ok(())
    }

    /// The descriptors by which another process could go on; none where it could not.
    fn devices(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    /// A descriptor by which the kernel can be told what to throw out.
    fn notifier(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// A copy that an earlier process told the kernel of.
    fn copy(&self, id: u32) -> Backing {
        Backing { id, held: Arc::new(()) }
    }

    /// What the kernel caches of this mount.
    fn caches(&self) -> Box<dyn Caches>;

    /// Answer requests until the mount is gone.
    ///
    /// # Errors
    /// When the connection breaks.
    fn serve(self) -> io::Result<()>;
}

/// The kernel's caches of a mount. Whoever calls waits for requests to be served: it must not
/// serve any itself, nor hold a lock that one of them may want.
pub(crate) trait Caches: Send + Sync {
    /// Have the pages of a file written back and dropped. No error when the kernel knows none.
    ///
    /// # Errors
    /// When the kernel could not.
    fn drop_pages(&self, file: Ino) -> io::Result<()> {
        self.drop_range(file, 0, 0)
    }

    /// The same for `len` bytes from `off` on; all of them for none.
    ///
    /// # Errors
    /// When the kernel could not.
    fn drop_range(&self, file: Ino, off: u64, len: u64) -> io::Result<()>;

    /// Have the attributes of an inode asked for again.
    ///
    /// # Errors
    /// When the kernel could not.
    fn drop_attributes(&self, file: Ino) -> io::Result<()>;

    /// Have the kernel take a file to have at least `size` bytes, more than none. What it has of its pages stays.
    ///
    /// # Errors
    /// When the kernel could not.
    fn enlarge(&self, file: Ino, size: u64) -> io::Result<()>;
}
