//! Sealing files, and what is read of them in place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rustix::fs::{XattrFlags, removexattr, setxattr};
use rustix::io::Errno;

use crate::{Daemon, wait_for};

/// The attribute that seals.
pub const SEAL: &str = "user.kos.seal";

/// Seal a file.
pub fn seal(path: &Path) {
    setxattr(path, SEAL, b"1", XattrFlags::empty()).expect("seal");
}

/// Unseal a file.
///
/// # Errors
/// `BUSY` while it is read in place.
pub fn unseal(path: &Path) -> Result<(), Errno> {
    removexattr(path, SEAL)
}

/// Write a file through one mount, seal it, and wait for its copy.
pub fn sealed(daemon: &Daemon, path: PathBuf, data: &[u8]) -> PathBuf {
    fs::write(&path, data).expect("write");
    let before = daemon.metric("kos_copies_made_total");
    seal(&path);
    wait_for("the copy", || daemon.metric("kos_copies_made_total") > before);
    path
}

/// A mapping of a sealed file.
#[must_use]
pub fn map(file: &File) -> Mmap {
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; nobody changes a sealed one")]
    // SAFETY: the file is sealed.
    unsafe { Mmap::map(file) }.expect("map")
}
