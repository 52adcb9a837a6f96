//! Every bound of the disk tier, with its reason.

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

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
// A shard is at most a whole stripe, its header and its checksum table.
const _: () = assert!(SEGMENT_BYTES > 2 * STRIPE_BYTES_MAX as u64);
const _: () = assert!(READ_FDS_MAX / PLACES_MAX >= 1);
