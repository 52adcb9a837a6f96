//! What is agreed upon before anything else: INIT.

use std::fmt;

use super::cursor::{Cursor, Malformed};
use super::small::Small;

/// The protocol's version that is spoken.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor one, and the oldest.
pub(crate) const MINOR: u32 = 45;
/// Older kernels would need other structures: 7.31 is that of Linux 5.4.
pub(crate) const MINOR_LEAST: u32 = 31;

/// The kernel makes no request smaller.
const WRITE_BYTES_LEAST: u32 = 4096;
/// Pages of a request where [`flag::MAX_PAGES`] is not agreed upon.
const PAGES_DEFAULT: u16 = 32;
/// The kernel takes no smaller buffer for a request, on either way.
const BUFFER_BYTES_LEAST: usize = 8192;
/// Headers before the data of a WRITE.
const WRITE_HEAD_BYTES: usize = 80;

pub(crate) mod flag {
    //! What a kernel may offer, and a filesystem want, named as in linux/fuse.h, without FUSE_.

    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const FILE_OPS: u64 = 1 << 2;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const SPLICE_WRITE: u64 = 1 << 7;
    pub(crate) const SPLICE_MOVE: u64 = 1 << 8;
    pub(crate) const SPLICE_READ: u64 = 1 << 9;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const ABORT_ERROR: u64 = 1 << 21;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const MAP_ALIGNMENT: u64 = 1 << 26;
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    /// Those from 32 on are there. [`agree`](super::agree) sees to it.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    /// Means nothing, and is never agreed upon.
    pub(crate) const INIT_RESERVED: u64 = 1 << 31;
    pub(crate) const SECURITY_CTX: u64 = 1 << 32;
    pub(crate) const HAS_INODE_DAX: u64 = 1 << 33;
    pub(crate) const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub(crate) const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// With a stack depth, and not beside [`WRITEBACK_CACHE`].
    pub(crate) const PASSTHROUGH: u64 = 1 << 37;
    pub(crate) const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
    pub(crate) const ALLOW_IDMAP: u64 = 1 << 40;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
    pub(crate) const REQUEST_TIMEOUT: u64 = 1 << 42;
}

/// Flags that the first word has.
const FIRST_WORD: u64 = u32::MAX as u64;

/// What the kernel offers: the body of INIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InitIn {
    /// The protocol's version.
    pub(crate) major: u32,
    /// The minor one.
    pub(crate) minor: u32,
    /// Bytes it reads ahead.
    pub(crate) max_readahead: u32,
    /// Some of [`flag`].
    pub(crate) flags: u64,
}

impl InitIn {
    /// From the body. That of another major version is not known but for the version.
    ///
    /// # Errors
    /// When it is too short.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Cursor::new(body, "body of INIT");
        let (major, minor) = (from.u32()?, from.u32()?);
        if major != MAJOR {
            return Ok(Self { major, minor, ..Self::default() });
        }
        let max_readahead = from.u32()?;
        let mut flags = u64::from(from.u32()?);
        if flags & flag::INIT_EXT != 0 {
            flags |= u64::from(from.u32()?) << u32::BITS;
        }
        Ok(Self { major, minor, max_readahead, flags })
    }
}

/// What the filesystem would have. The kernel may make each number smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Some of [`flag`].
    pub(crate) flags: u64,
    /// Bytes of the largest write.
    pub(crate) max_write: u32,
    /// Bytes to read ahead.
    pub(crate) max_readahead: u32,
    /// Pages of the largest request, where [`flag::MAX_PAGES`] is wanted.
    pub(crate) max_pages: u16,
    /// Requests in the background at once; 0 for the kernel's own.
    pub(crate) max_background: u16,
    /// So many are congestion; 0 for the kernel's own.
    pub(crate) congestion_threshold: u16,
    /// Nanoseconds that times are multiples of; 0 for 1.
    pub(crate) time_gran: u32,
    /// How many filesystems lie upon each other with one below ours: 1 or 2; 0 goes without [`flag::PASSTHROUGH`].
    pub(crate) max_stack_depth: u32,
    /// Seconds, where [`flag::REQUEST_TIMEOUT`] is wanted.
    pub(crate) request_timeout: u16,
}

/// What holds for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The smaller of both minor versions.
    pub(crate) minor: u32,
    /// What is offered and wanted of [`flag`].
    pub(crate) flags: u64,
    /// Bytes of the largest write.
    pub(crate) max_write: u32,
    /// Bytes the kernel reads ahead at most.
    pub(crate) max_readahead: u32,
    /// Pages of the largest request, where the kernel's own limit is not smaller.
    pub(crate) max_pages: u16,
}

impl Agreed {
    /// As words, the first of which is not 0.
    pub(crate) fn to_words(self) -> [u64; 8] {
        let version = u64::from(MAJOR) << u32::BITS | u64::from(self.minor);
        let sizes = [self.max_write, self.max_readahead, self.max_pages.into()].map(u64::from);
        [version, self.flags, sizes[0], sizes[1], sizes[2], 0, 0, 0]
    }

    /// What was made words of. None of those of another version.
    pub(crate) fn of_words(words: [u64; 8]) -> Option<Self> {
        let [version, flags, max_write, max_readahead, max_pages, ..] = words;
        if version >> u32::BITS != u64::from(MAJOR) {
            return None;
        }
        Some(Self {
            // The lower half.
            minor: version as u32,
            flags,
            max_write: max_write.try_into().ok()?,
            max_readahead: max_readahead.try_into().ok()?,
            max_pages: max_pages.try_into().ok()?,
        })
    }

    /// Whether one of [`flag`] is.
    pub(crate) const fn has(&self, flag: u64) -> bool {
        self.flags & flag == flag
    }

    /// Those of [`flag`] that were wanted and are not.
    pub(crate) const fn lacks(&self, wanted: &Wanted) -> u64 {
        wanted.flags & !self.flags
    }

    /// Bytes of a buffer to read requests from /dev/fuse into: the kernel takes no smaller one.
    pub(crate) const fn buffer_bytes(&self) -> usize {
        larger(BUFFER_BYTES_LEAST, WRITE_HEAD_BYTES + self.max_write as usize)
    }

    /// Bytes of a payload's buffer of a ring. The kernel may take a smaller one, and no larger one is of use.
    pub(crate) const fn ring_payload_bytes(&self, page_bytes: usize) -> usize {
        let pages = self.max_pages as usize * page_bytes;
        larger(BUFFER_BYTES_LEAST, larger(pages, self.max_write as usize))
    }
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Why there is no agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The kernel speaks a newer major version. Answered with these bytes it sends INIT again, in ours.
    Newer(Vec<u8>),
    /// It is older than [`MINOR_LEAST`]: its major and minor version.
    Older(u32, u32),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(_) => write!(f, "the kernel speaks a FUSE protocol newer than {MAJOR}"),
            Self::Older(major, minor) => write!(
                f,
                "the kernel speaks FUSE's protocol {major}.{minor}; {MAJOR}.{MINOR_LEAST} (Linux 5.4) is needed"
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// The terms, and the body of the answer that tells the kernel.
///
/// # Errors
/// When it speaks another version.
pub(crate) fn agree(kernel: &InitIn, wanted: &Wanted) -> Result<(Agreed, Vec<u8>), Refused> {
    if kernel.major > MAJOR {
        let nothing = Agreed { minor: MINOR, ..Agreed::default() };
        return Err(Refused::Newer(answer(&nothing, &Wanted::default())));
    }
    if kernel.major < MAJOR || kernel.minor < MINOR_LEAST {
        return Err(Refused::Older(kernel.major, kernel.minor));
    }
    let flags = common(kernel.flags, wanted);
    let agreed = Agreed {
        minor: kernel.minor.min(MINOR),
        flags,
        max_write: wanted.max_write.max(WRITE_BYTES_LEAST),
        max_readahead: wanted.max_readahead.min(kernel.max_readahead),
        max_pages: if flags & flag::MAX_PAGES != 0 { wanted.max_pages.max(1) } else { PAGES_DEFAULT },
    };
    Ok((agreed, answer(&agreed, wanted)))
}

/// Flags that both have. [`flag::INIT_EXT`] only says that the others are whole: it is there when it is offered.
const fn common(offered: u64, wanted: &Wanted) -> u64 {
    let mut flags = offered & (wanted.flags | flag::INIT_EXT) & !flag::INIT_RESERVED;
    if offered & flag::INIT_EXT == 0 {
        flags &= FIRST_WORD;
    }
    // The kernel would take it for not said.
    if wanted.max_stack_depth == 0 || flags & flag::WRITEBACK_CACHE != 0 {
        flags &= !flag::PASSTHROUGH;
    }
    flags
}

fn answer(agreed: &Agreed, wanted: &Wanted) -> Vec<u8> {
    let passes_through = agreed.has(flag::PASSTHROUGH);
    let times_out = agreed.has(flag::REQUEST_TIMEOUT);
    let mut out = Small::new();
    out.u32(MAJOR).u32(agreed.minor).u32(agreed.max_readahead).u32((agreed.flags & FIRST_WORD) as u32);
    out.u16(wanted.max_background).u16(wanted.congestion_threshold);
    out.u32(agreed.max_write).u32(wanted.time_gran.max(1));
    out.u16(agreed.max_pages).u16(0);
    out.u32((agreed.flags >> u32::BITS) as u32);
    out.u32(if passes_through { wanted.max_stack_depth } else { 0 });
    out.u16(if times_out { wanted.request_timeout } else { 0 }).zeros::<22>();
    out.as_bytes().to_vec()
}
