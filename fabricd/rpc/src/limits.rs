//! Every bound of the protocol, with its reason.

use std::time::Duration;

use kos_types::limits::{LIST_ENTRIES_MAX, NAME_BYTES_MAX, STRIPE_BYTES_MAX};

/// Bytes of a message without a stripe's bytes: the longest listing, or a commit of some hundred
/// thousand extents.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes that follow a message: one stripe.
pub const DATA_BYTES_MAX: usize = STRIPE_BYTES_MAX;
/// Connections of a server: eight busy mounts. Each holds at most a message and a stripe in
/// memory.
pub const CONNECTIONS_MAX: usize = 64;
/// Connections of a client: as many as a mount serves requests at once.
pub const CLIENT_CONNECTIONS_MAX: usize = 8;
/// From the first byte of a frame to its last, at the other end's usual speed of GB/s.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// From a request to its answer: a sync of much on a slow disk.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Messages about leases that wait to be sent: all that one end may wait for, and recalls beside it.
pub const LEASE_MESSAGES_MAX: usize = 4096;
/// Bytes of the names a client gives of itself.
pub const ABOUT_BYTES_MAX: usize = 8192;
/// Files of which a client has copies to read in place; opens of others go on without one. More than a
/// node has copies at once.
pub const LENT_FILES_MAX: usize = 8192;
/// Locks that a client tells a new server of before others are given any; it tells of more afterwards.
pub const LOCKS_TOLD_MAX: usize = 8192;
/// Times that a client is lent one file's copy at once: it needs one, and requests that find it open
/// meanwhile give theirs back.
pub const LENT_TIMES_MAX: u32 = 2 * CLIENT_CONNECTIONS_MAX as u32;
/// Processes of other builds that are remembered, so that the log names each once.
pub const STRANGERS_MAX: usize = 256;

const _: () = assert!(LIST_ENTRIES_MAX * (NAME_BYTES_MAX + 160) < MESSAGE_BYTES_MAX);
const _: () = assert!((LENT_FILES_MAX + 8 * LOCKS_TOLD_MAX) * 16 < MESSAGE_BYTES_MAX);
const _: () = assert!(CONNECTIONS_MAX * (MESSAGE_BYTES_MAX + DATA_BYTES_MAX) <= 512 << 20);
