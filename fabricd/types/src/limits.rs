//! Every bound of the vocabulary, with its reason.

/// Bytes of a file name: what POSIX programs and the kernel's VFS expect.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symbolic link's target: PATH_MAX less the NUL.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Bytes of an extended attribute's name, as in the VFS.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Bytes of an extended attribute's value, as in the VFS.
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// The largest file: off_t is signed.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Links to one inode, as ext4 and xfs within an order: the count is a u32 with room.
pub const LINKS_MAX: u32 = 1_000_000;
/// User bytes of one stripe: large enough that coding and commits are cheap, small enough to
/// buffer several per open file.
pub const STRIPE_BYTES_MAX: usize = 4 << 20;
/// The largest file whose bytes are kept with its metadata: most files of source trees and mail are
/// below it, and records stay small enough for the log and the database.
pub const INLINE_BYTES_MAX: usize = 4096;
/// Inline bytes answered in one map of extents: it must fit a message.
pub const INLINE_ANSWER_MAX: usize = 256 << 10;
/// Bytes of one checksum block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes a mount buffers before writers wait for the flush.
pub const DIRTY_BYTES_MAX: usize = 256 << 20;
/// Seconds a dirty byte may wait before it is flushed: sync(2) may not reach a FUSE daemon.
pub const DIRTY_AGE_SECS_MAX: u64 = 5;
/// Changes applied together: the first waits for the last, and others for all of them.
pub const GROUP_MAX: usize = 64;
/// Entries of one listing request.
pub const LIST_ENTRIES_MAX: usize = 1024;
/// Bytes of a job's specification: scripts of any sane size, and a record that a database takes.
pub const JOB_SPEC_BYTES_MAX: usize = 1 << 20;
/// Jobs kept, ended ones too: records and directories stay small beside everything else.
pub const JOBS_MAX: u64 = 100_000;
/// Attempts of a job that asks to be restarted: one that takes its node down each time must end.
pub const JOB_ATTEMPTS_MAX: u32 = 8;
/// Extents answered at once.
pub const EXTENTS_MAX: usize = 4096;
/// Extended attributes of one inode: far above what programs set, and a listing stays below the
/// VFS's 64 KiB with common names.
pub const XATTRS_MAX: usize = 1024;
/// Answers kept for one session that its client has not said it has: its requests in flight are
/// far fewer.
pub const ANSWERS_MAX: u64 = 4096;
/// Sequence numbers stay below it, so that the first byte of one as a key is 0.
pub const SEQ_MAX: u64 = 1 << 56;
