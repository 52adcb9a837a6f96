//! Requests, decoded. Names and data lie in the bytes that were decoded.

/// What the kernel asks. [`Header::node`](super::Header::node) is the inode that it asks about; for what
/// has a `name`, the directory in which that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    /// So many answers with this inode are forgotten. Has no answer.
    Forget {
        nlookup: u64,
    },
    /// The same of many. Has no answer.
    BatchForget(Forgets<'a>),
    Getattr {
        fh: Option<u64>,
    },
    Setattr(Setattr),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
        group: Option<u32>,
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        group: Option<u32>,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        group: Option<u32>,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    /// `flags` as of renameat2(2).
    Rename {
        name: &'a [u8],
        new_dir: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    /// A `name` in this directory for `node`.
    Link {
        node: u64,
        name: &'a [u8],
    },
    /// `flags` as of open(2).
    Open {
        flags: i32,
        kill_suidgid: bool,
    },
    Read {
        fh: u64,
        off: u64,
        size: u32,
        lock_owner: Option<u64>,
        flags: i32,
    },
    /// `cache`: from the page cache, where `fh` is a guess.
    Write {
        fh: u64,
        off: u64,
        data: &'a [u8],
        lock_owner: Option<u64>,
        cache: bool,
        kill_suidgid: bool,
        flags: i32,
    },
    Statfs,
    Release {
        fh: u64,
        flags: i32,
        lock_owner: u64,
        flush: bool,
        flock_unlock: bool,
    },
    Fsync {
        fh: u64,
        datasync: bool,
    },
    /// `flags` as of setxattr(2).
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
        acl_kill_sgid: bool,
    },
    /// `size` 0 asks for the size.
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    /// `size` 0 asks for the size.
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush {
        fh: u64,
        lock_owner: u64,
    },
    Opendir {
        flags: i32,
    },
    /// `off`: the cookie after which to begin. `plus`: with attributes, each of which counts as a lookup.
    Readdir {
        fh: u64,
        off: u64,
        size: u32,
        plus: bool,
    },
    Releasedir {
        fh: u64,
    },
    Fsyncdir {
        fh: u64,
        datasync: bool,
    },
    Getlk(Lock),
    /// `wait`: until it is granted, or interrupted.
    Setlk {
        lock: Lock,
        wait: bool,
    },
    /// `mask` as of access(2).
    Access {
        mask: u32,
    },
    Create {
        name: &'a [u8],
        flags: i32,
        mode: u32,
        umask: u32,
        kill_suidgid: bool,
        group: Option<u32>,
    },
    /// The request `unique` is waited for no more. Has no answer, but for EAGAIN to have it asked again.
    Interrupt {
        unique: u64,
    },
    Bmap {
        block: u64,
        block_bytes: u32,
    },
    /// The mount is gone.
    Destroy,
    /// `data` are what the caller gave; `out_size` bytes it takes back.
    Ioctl {
        fh: u64,
        flags: u32,
        command: u32,
        arg: u64,
        data: &'a [u8],
        out_size: u32,
    },
    Poll {
        fh: u64,
        kh: u64,
        flags: u32,
        events: u32,
    },
    /// What was asked for by a notification.
    NotifyReply {
        off: u64,
        data: &'a [u8],
    },
    /// `mode` as of fallocate(2).
    Fallocate {
        fh: u64,
        off: u64,
        len: u64,
        mode: i32,
    },
    Lseek {
        fh: u64,
        off: i64,
        whence: i32,
    },
    /// `is_64`: answered by [`copied`](super::reply::copied), else by [`write`](super::reply::write).
    CopyFileRange {
        fh_in: u64,
        off_in: u64,
        node_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
        is_64: bool,
    },
    SyncFs,
    Tmpfile {
        flags: i32,
        mode: u32,
        umask: u32,
        kill_suidgid: bool,
        group: Option<u32>,
    },
    /// `sx_flags` and `mask` as of statx(2).
    Statx {
        flags: u32,
        fh: Option<u64>,
        sx_flags: u32,
        mask: u32,
    },
    /// Whatever is not above: its opcode.
    Unknown(u32),
}

/// What to change of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setattr {
    /// Permissions, and maybe the type.
    pub(crate) mode: Option<u32>,
    /// The owner.
    pub(crate) uid: Option<u32>,
    /// The group.
    pub(crate) gid: Option<u32>,
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// When it was read last.
    pub(crate) atime: Option<TimeSet>,
    /// When it was written last.
    pub(crate) mtime: Option<TimeSet>,
    /// When it was changed last: seconds, nanoseconds.
    pub(crate) ctime: Option<(i64, u32)>,
    /// The open file by which.
    pub(crate) fh: Option<u64>,
    /// Whose locks let it.
    pub(crate) lock_owner: Option<u64>,
    /// Whether the setuid and setgid bits go.
    pub(crate) kill_suidgid: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeSet {
    /// The current one.
    Now,
    /// Seconds since 1970, and nanoseconds, below 10^9.
    At(i64, u32),
}

/// A lock on a part of a file, or on the whole of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// The open file.
    pub(crate) fh: u64,
    /// Whose it is.
    pub(crate) owner: u64,
    /// Its first byte.
    pub(crate) start: u64,
    /// Its last byte.
    pub(crate) end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub(crate) kind: i32,
    /// The process.
    pub(crate) pid: u32,
    /// Whether it is one of flock(2).
    pub(crate) flock: bool,
}

/// Bytes of each of [`Forgets`].
pub(super) const FORGET_BYTES: usize = 16;

/// Inodes, and how many answers with each are forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forgets<'a>(pub(super) &'a [[u8; FORGET_BYTES]]);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        let (node, nlookup) = first.split_first_chunk::<8>()?;
        Some((u64::from_ne_bytes(*node), u64::from_ne_bytes(*nlookup.first_chunk()?)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl ExactSizeIterator for Forgets<'_> {}
