//! What is asked of /dev/fuse beside requests and answers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{self, Opcode, Setter, opcode};

/// `struct fuse_backing_map` of linux/fuse.h.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

const GROUP: u8 = 229;
const CLONE: Opcode = opcode::read::<u32>(GROUP, 0);
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(GROUP, 1);
const BACKING_CLOSE: Opcode = opcode::write::<u32>(GROUP, 2);

/// Another descriptor of a connection, with a list of requests of its own.
pub(super) fn clone(device: &OwnedFd) -> io::Result<OwnedFd> {
    let other = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let number = device.as_raw_fd().cast_unsigned();
    #[expect(unsafe_code, reason = "an ioctl")]
    // SAFETY: the kernel reads a u32, the number of an open descriptor, and keeps none of it.
    unsafe { ioctl::ioctl(&other, Setter::<CLONE, u32>::new(number)) }?;
    Ok(other)
}

/// Tell the kernel of a file that it may read in place; answers by what it calls it.
pub(super) fn backing_open(device: &OwnedFd, file: &File) -> io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    #[expect(unsafe_code, reason = "an ioctl")]
    // SAFETY: the kernel reads the structure, whose descriptor is open, and answers a number.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
    u32::try_from(id).map_err(|_| io::Error::last_os_error())
}

/// It is of no use any more, but to files that are open.
pub(super) fn backing_close(device: &OwnedFd, id: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "an ioctl")]
    // SAFETY: the kernel reads a u32.
    Ok(unsafe { ioctl::ioctl(device, Setter::<BACKING_CLOSE, u32>::new(id)) }?)
}
