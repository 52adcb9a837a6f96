//! Making files longer in the kernel's eyes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;

use super::protocol::notify;

/// Have the kernel take a file to have at least `size` bytes, more than none. It takes the end of what is put into its
/// pages for the file's, before it looks for the bytes: here these are nowhere, so that the pages stay as they are.
pub(super) fn enlarge(device: &OwnedFd, file: u64, size: u64) -> io::Result<()> {
    let mut message = notify::store(file, size - 1, 1);
    let parts = [
        libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() },
        libc::iovec { iov_base: ptr::null_mut(), iov_len: 1 },
    ];
    #[expect(unsafe_code, reason = "a write from memory that is not there")]
    // SAFETY: the kernel reads the message, which lives, and fails at the byte of no memory.
    let written = unsafe { libc::writev(device.as_raw_fd(), parts.as_ptr(), parts.len() as i32) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It may have forgotten the inode.
        _ if written >= 0 => Ok(()),
        Some(libc::EFAULT | libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}
