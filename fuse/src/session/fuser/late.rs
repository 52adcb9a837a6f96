//! Answers in another thread's place.
//!
//! The kernel takes an answer only from the descriptor that the request came by, which is a thread's own. So all of this
//! process are tried: it must have one mount.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Tell the kernel `ETIMEDOUT`, by whichever descriptor the request came.
pub(super) fn give_up(request: u64) -> io::Result<()> {
    let mut text = Vec::with_capacity(16);
    text.extend(16_u32.to_ne_bytes());
    text.extend((-libc::ETIMEDOUT).to_ne_bytes());
    text.extend(request.to_ne_bytes());
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut told = Err(io::ErrorKind::NotFound.into());
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let is_device = fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("/dev/fuse"));
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(number) = number.filter(|_| is_device) else { continue };
        let device = pidfd_getfd(&own, number as ForeignRawFd, PidfdGetfdFlags::empty())?;
        match rustix::io::write(&device, &text) {
            Ok(_) => return Ok(()),
            // Not by this one.
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => told = Err(e.into()),
        }
    }
    told
}
