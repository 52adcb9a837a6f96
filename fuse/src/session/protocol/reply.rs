//! The answers of a fixed size. A listing is [`Listing`](super::Listing); data, links and values of attributes
//! are their bare bytes.

use std::time::Duration;

use super::small::Small;

/// Bytes of an [`OutHeader`].
pub(crate) const OUT_HEADER_BYTES: usize = 16;

/// What an answer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutHeader {
    /// Bytes of the answer, with this header.
    pub(crate) len: u32,
    /// 0, or an errno negated, with which nothing follows. Of a notification: its code.
    pub(crate) error: i32,
    /// As the request had it. Of a notification: 0.
    pub(crate) unique: u64,
}

impl OutHeader {
    /// For an answer of `body` bytes.
    pub(crate) const fn answer(unique: u64, body: usize) -> Self {
        Self { len: (OUT_HEADER_BYTES + body) as u32, error: 0, unique }
    }

    /// For an answer that is an errno.
    pub(crate) const fn error(unique: u64, errno: i32) -> Self {
        Self { len: OUT_HEADER_BYTES as u32, error: -errno, unique }
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> [u8; OUT_HEADER_BYTES] {
        let mut bytes = [0; OUT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.len.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.unique.to_ne_bytes());
        bytes
    }
}

pub(crate) mod fopen {
    //! What the kernel may do with an open file, named as in linux/fuse.h.

    pub(crate) const DIRECT_IO: u32 = 1 << 0;
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const NONSEEKABLE: u32 = 1 << 2;
    pub(crate) const CACHE_DIR: u32 = 1 << 3;
    pub(crate) const STREAM: u32 = 1 << 4;
    pub(crate) const NOFLUSH: u32 = 1 << 5;
    pub(crate) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    /// With a `backing_id`.
    pub(crate) const PASSTHROUGH: u32 = 1 << 7;
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    /// Its number, by which the kernel names it.
    pub(crate) ino: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Units of 512 bytes that it takes.
    pub(crate) blocks: u64,
    /// When it was read last: seconds since 1970, nanoseconds.
    pub(crate) atime: (i64, u32),
    /// When it was written last.
    pub(crate) mtime: (i64, u32),
    /// When it was changed last.
    pub(crate) ctime: (i64, u32),
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Names.
    pub(crate) nlink: u32,
    /// The owner.
    pub(crate) uid: u32,
    /// The group.
    pub(crate) gid: u32,
    /// The device, as the kernel's 32 bits.
    pub(crate) rdev: u32,
    /// Bytes that are good to read and write at once.
    pub(crate) blksize: u32,
}

/// An inode that the kernel learns of by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its attributes.
    pub(crate) attr: Attr,
    /// Differs between inodes that had the same number.
    pub(crate) generation: u64,
    /// How long the name is known.
    pub(crate) entry_ttl: Duration,
    /// How long the attributes are.
    pub(crate) attr_ttl: Duration,
}

/// To LOOKUP, MKNOD, MKDIR, SYMLINK and LINK.
pub(crate) fn entry(entry: &Entry) -> Small {
    let mut out = Small::new();
    put_entry(&mut out, entry);
    out
}

/// To LOOKUP: there is no such name, and will not be for `entry_ttl`.
pub(crate) fn no_entry(entry_ttl: Duration) -> Small {
    let (attr, attr_ttl) = (Attr::default(), Duration::ZERO);
    entry(&Entry { attr, generation: 0, entry_ttl, attr_ttl })
}

/// To GETATTR and SETATTR.
pub(crate) fn attr(attr: &Attr, ttl: Duration) -> Small {
    let mut out = Small::new();
    out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).zeros::<4>();
    put_attr(&mut out, attr);
    out
}

/// To OPEN and OPENDIR; `flags` of [`fopen`].
pub(crate) fn open(fh: u64, flags: u32, backing_id: i32) -> Small {
    let mut out = Small::new();
    put_open(&mut out, fh, flags, backing_id);
    out
}

/// To CREATE and TMPFILE.
pub(crate) fn create(entry: &Entry, fh: u64, flags: u32, backing_id: i32) -> Small {
    let mut out = Small::new();
    put_entry(&mut out, entry);
    put_open(&mut out, fh, flags, backing_id);
    out
}

/// To WRITE, and to COPY_FILE_RANGE: bytes that are done.
pub(crate) fn write(len: u32) -> Small {
    with_padding(len)
}

/// To COPY_FILE_RANGE_64.
pub(crate) fn copied(len: u64) -> Small {
    one(len)
}

/// To GETXATTR and LISTXATTR that ask for the size.
pub(crate) fn xattr_size(len: u32) -> Small {
    with_padding(len)
}

/// To LSEEK.
pub(crate) fn lseek(off: u64) -> Small {
    one(off)
}

/// To BMAP.
pub(crate) fn bmap(block: u64) -> Small {
    one(block)
}

/// To POLL: the events that are there.
pub(crate) fn poll(events: u32) -> Small {
    with_padding(events)
}

/// To IOCTL: what it returns. The data for the caller follow.
pub(crate) fn ioctl(result: i32) -> Small {
    let mut out = Small::new();
    out.i32(result).zeros::<12>();
    out
}

/// To GETLK: a lock from its first byte to its last; F_UNLCK when nothing is in the way.
pub(crate) fn lock(start: u64, end: u64, kind: i32, pid: u32) -> Small {
    let mut out = Small::new();
    out.u64(start).u64(end).i32(kind).u32(pid);
    out
}

/// How full a filesystem is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statfs {
    /// Units of `frsize`.
    pub(crate) blocks: u64,
    /// Free ones.
    pub(crate) bfree: u64,
    /// Free ones for users.
    pub(crate) bavail: u64,
    /// Inodes.
    pub(crate) files: u64,
    /// Free ones.
    pub(crate) ffree: u64,
    /// Bytes that are good to read and write at once.
    pub(crate) bsize: u32,
    /// Bytes of the longest name.
    pub(crate) namelen: u32,
    /// Bytes of a unit.
    pub(crate) frsize: u32,
}

/// To STATFS.
pub(crate) fn statfs(fs: &Statfs) -> Small {
    let mut out = Small::new();
    out.u64(fs.blocks).u64(fs.bfree).u64(fs.bavail).u64(fs.files).u64(fs.ffree);
    out.u32(fs.bsize).u32(fs.namelen).u32(fs.frsize).zeros::<28>();
    out
}

/// All that stat(2) has, and what only statx(2) has.
const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

/// To STATX: attributes for `ttl`, and when the inode was made.
pub(crate) fn statx(attr: &Attr, btime: Option<(i64, u32)>, ttl: Duration) -> Small {
    let mask = STATX_BASIC_STATS | if btime.is_some() { STATX_BTIME } else { 0 };
    let mut out = Small::new();
    out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).zeros::<20>();
    out.u32(mask).u32(attr.blksize).zeros::<8>();
    out.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u16(attr.mode as u16).zeros::<2>();
    out.u64(attr.ino).u64(attr.size).u64(attr.blocks).zeros::<8>();
    for (seconds, nanos) in [attr.atime, btime.unwrap_or_default(), attr.ctime, attr.mtime] {
        out.i64(seconds).u32(nanos).zeros::<4>();
    }
    let major = attr.rdev >> 8 & 0xfff;
    let minor = attr.rdev & 0xff | attr.rdev >> 12 & 0xf_ff00;
    out.u32(major).u32(minor).zeros::<120>();
    out
}

fn one(n: u64) -> Small {
    let mut out = Small::new();
    out.u64(n);
    out
}

fn with_padding(n: u32) -> Small {
    let mut out = Small::new();
    out.u32(n).zeros::<4>();
    out
}

pub(super) fn put_entry(out: &mut Small, entry: &Entry) {
    out.u64(entry.attr.ino).u64(entry.generation);
    out.u64(entry.entry_ttl.as_secs()).u64(entry.attr_ttl.as_secs());
    out.u32(entry.entry_ttl.subsec_nanos()).u32(entry.attr_ttl.subsec_nanos());
    put_attr(out, &entry.attr);
}

fn put_attr(out: &mut Small, attr: &Attr) {
    out.u64(attr.ino).u64(attr.size).u64(attr.blocks);
    out.i64(attr.atime.0).i64(attr.mtime.0).i64(attr.ctime.0);
    out.u32(attr.atime.1).u32(attr.mtime.1).u32(attr.ctime.1);
    out.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid).u32(attr.rdev).u32(attr.blksize);
    // Neither a mount below, nor DAX.
    out.u32(0);
}

fn put_open(out: &mut Small, fh: u64, flags: u32, backing_id: i32) {
    out.u64(fh).u32(flags).i32(backing_id);
}
