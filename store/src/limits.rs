//! Every bound of the disk tier, with its reason.

use std::time::Duration;

use kos_types::limits::{BLOCK_BYTES, STRIPE_BYTES_MAX};

/// Places of one node: far above the disks of one machine, and a place fits a bit of a u32.
pub(crate) const PLACES_MAX: usize = 32;
/// Bytes of one segment: so large that rolling over and its directory fsync cost nothing, so
/// small that a compactor can rewrite one in a second.
pub(crate) const SEGMENT_BYTES: u64 = 256 << 20;
/// Open files for reading, all places together: a quarter of the customary limit of 1024
/// descriptors. Each place has an equal share, so that one never waits for another's lock.
pub(crate) const READ_FDS_MAX: usize = 256;
/// Segments of one place that wait for their fdatasync; appends sync by themselves beyond it, so
/// that a caller who never does cannot use up the descriptors.
pub(crate) const UNSYNCED_SEGMENTS_MAX: usize = 8;
/// Parts in one pwritev(2): IOV_MAX of Linux.
pub(crate) const WRITE_PARTS_MAX: usize = 1024;
/// How long a read may take before its place is taken for one that hangs: the worst of a busy disk, and little
/// enough for whoever reads, as the bytes are also elsewhere.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(5);
/// The same for an append or a free, which wait while the kernel writes back what is dirty; less than the 30 s
/// after which Linux itself gives a command to a disk up.
pub const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// The same for a sync: what is appended between two is a few hundred megabytes, the work of a slow disk for
/// ten seconds.
pub const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// How long a place may take at a start to show what lies in it: a disk that was asleep, and a large directory.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// A disk that has been at one question for so long is asked nothing on the caller's own thread.
pub(crate) const SLOW: Duration = Duration::from_millis(200);
/// Threads of a place that read: what one disk does well at a time.
pub(crate) const READERS: usize = 4;
/// Threads of a place that append and free: they copy to the page cache, two at a time are enough.
pub(crate) const WRITERS: usize = 2;
/// Threads of a place that sync: one syncs, one waits to be the next, and the others find that theirs is done.
pub(crate) const SYNCERS: usize = 2;
/// Questions that wait for such a thread: more than there are threads in the daemon to ask them.
pub(crate) const QUESTIONS_MAX: usize = 256;
/// Buffers kept for shards on their way to and from disks, and bytes of one: a shard of a full stripe of 4+2. Larger
/// ones are of rare geometries.
pub(crate) const SPARE_BUFFERS: usize = 16;
pub(crate) const SPARE_BYTES_MAX: usize = (1 << 20) + (64 << 10);

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
// A shard is at most a whole stripe, its header and its checksum table.
const _: () = assert!(SEGMENT_BYTES > 2 * STRIPE_BYTES_MAX as u64);
const _: () = assert!(READ_FDS_MAX / PLACES_MAX >= 1);
