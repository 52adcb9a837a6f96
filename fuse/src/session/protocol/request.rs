//! What every request begins with, and where its parts are.

use super::cursor::{Cursor, Fault, Malformed};
use super::init::{Agreed, flag};

/// Bytes of a [`Header`].
pub(crate) const HEADER_BYTES: usize = 40;
/// In [`Header::unique`]: it was sent before, and may have been done.
pub(crate) const UNIQUE_RESEND: u64 = 1 << 63;
/// Extensions are counted in these.
const EXTENSION_UNIT: u32 = 8;

/// What a request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the request, with this header.
    pub(crate) len: u32,
    /// One of [`opcode`].
    pub(crate) opcode: u32,
    /// Names the request in its answer. May have [`UNIQUE_RESEND`], and the answer the same then.
    pub(crate) unique: u64,
    /// The inode that is asked about.
    pub(crate) node: u64,
    /// Who asks: the user of the process.
    pub(crate) uid: u32,
    /// The group of the process.
    pub(crate) gid: u32,
    /// The process; 0 for one of another namespace, or the kernel itself.
    pub(crate) pid: u32,
    /// Bytes at the payload's end that are extensions.
    pub(crate) extensions: u32,
}

impl Header {
    /// From the beginning of `bytes`.
    ///
    /// # Errors
    /// When they are fewer than [`HEADER_BYTES`], or say that the request has fewer.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Cursor::new(bytes, "header");
        let header = Self {
            len: from.u32()?,
            opcode: from.u32()?,
            unique: from.u64()?,
            node: from.u64()?,
            uid: from.u32()?,
            gid: from.u32()?,
            pid: from.u32()?,
            extensions: u32::from(from.u16()?) * EXTENSION_UNIT,
        };
        from.skip::<2>()?;
        if (header.len as usize) < HEADER_BYTES {
            return Err(Malformed::new("length in the header", Fault::Range));
        }
        Ok(header)
    }
}

/// Bytes of the fixed structure of a request, its args. None for INIT, which is apart, and for what is unknown.
pub(crate) const fn args_bytes(op: u32, agreed: &Agreed) -> usize {
    match op {
        opcode::FORGET
        | opcode::MKDIR
        | opcode::RENAME
        | opcode::LINK
        | opcode::OPEN
        | opcode::GETXATTR
        | opcode::LISTXATTR
        | opcode::OPENDIR
        | opcode::ACCESS
        | opcode::INTERRUPT
        | opcode::BATCH_FORGET
        | opcode::SYNCFS => 8,
        opcode::SETXATTR if !agreed.has(flag::SETXATTR_EXT) => 8,
        opcode::GETATTR
        | opcode::MKNOD
        | opcode::FSYNC
        | opcode::SETXATTR
        | opcode::FSYNCDIR
        | opcode::CREATE
        | opcode::BMAP
        | opcode::RENAME2
        | opcode::TMPFILE => 16,
        opcode::RELEASE
        | opcode::FLUSH
        | opcode::RELEASEDIR
        | opcode::POLL
        | opcode::LSEEK
        | opcode::STATX => 24,
        opcode::IOCTL | opcode::FALLOCATE => 32,
        opcode::READ | opcode::WRITE | opcode::READDIR | opcode::READDIRPLUS => 40,
        opcode::GETLK | opcode::SETLK | opcode::SETLKW => 48,
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => 56,
        opcode::SETATTR => 88,
        // NOTIFY_REPLY has a structure, which the kernel gives as a part of the payload.
        _ => 0,
    }
}

/// The args and the payload of what was read from /dev/fuse, behind its header.
///
/// # Errors
/// When there are fewer bytes than args.
pub(crate) fn split<'a>(op: u32, body: &'a [u8], agreed: &Agreed) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let parts = body.split_at_checked(args_bytes(op, agreed));
    parts.ok_or(Malformed::new("arguments", Fault::Short))
}

pub(crate) mod opcode {
    //! What is asked, named as in linux/fuse.h, without FUSE_.

    pub(crate) const LOOKUP: u32 = 1;
    /// Has no answer.
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BMAP: u32 = 37;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    /// Has no answer.
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SETUPMAPPING: u32 = 48;
    pub(crate) const REMOVEMAPPING: u32 = 49;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const STATX: u32 = 52;
    pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
}
