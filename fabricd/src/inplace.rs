//! What no safe wrapper does with files that are read in place.
#![expect(unsafe_code, reason = "F_SETLEASE has no safe wrapper, and others may change a mapped file")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};

/// Whether anybody has this file open, be it through a mapping or through a mount that passes it on. In
/// doubt somebody has.
pub(crate) fn is_open_elsewhere(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return path.exists() };
    // The kernel gives a write lease only to whoever alone has the file open; it goes with `file`.
    // SAFETY: the call takes a descriptor, which lives, and numbers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) != 0 }
}

/// Bytes of a file, to be filled where they will be read.
///
/// # Errors
/// The kernel's.
pub(crate) fn map(file: &File, off: u64, len: usize) -> io::Result<MmapMut> {
    // SAFETY: the file is in a directory of root's alone; nobody else has it open before it is filled, and
    // nothing makes it shorter.
    unsafe { MmapOptions::new().offset(off).len(len).map_mut(file) }
}
