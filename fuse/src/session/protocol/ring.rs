//! The protocol's form in an io_uring (7.42). Each entry of a queue has two buffers of ours: one for headers,
//! laid out as here, and one for the payload. FORGET, BATCH_FORGET, INTERRUPT and INIT still come by /dev/fuse,
//! and notifications go there.

use super::cursor::{Cursor, Malformed};

/// Bytes of the buffer for headers.
pub(crate) const HEADERS_BYTES: usize = 288;
/// In it: the request's [`Header`](super::Header), which the answer's [`OutHeader`](super::OutHeader) replaces.
pub(crate) const IN_OUT_AT: usize = 0;
/// In it: the request's args. An answer has nothing here: all of its body is payload.
pub(crate) const OP_IN_AT: usize = 128;
/// Bytes for each of those two.
pub(crate) const PART_BYTES: usize = 128;
/// In it: the [`Entry`].
pub(crate) const ENTRY_AT: usize = 256;
/// Bytes of an [`Entry`].
pub(crate) const ENTRY_BYTES: usize = 32;

/// The command's number of an SQE that gives an entry its buffers: `addr` is of two iovecs, `len` is 2.
pub(crate) const REGISTER: u32 = 1;
/// The one that answers an entry's request and waits for its next one.
pub(crate) const COMMIT_AND_FETCH: u32 = 2;
/// Bytes of [`command`], at the beginning of the 80 that an SQE of 128 has for its command.
pub(crate) const COMMAND_BYTES: usize = 24;

/// What an entry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// None are known.
    pub(crate) flags: u64,
    /// What a [`COMMIT_AND_FETCH`] of it has to say.
    pub(crate) commit_id: u64,
    /// Bytes of its payload: of the request, then of the answer.
    pub(crate) payload_bytes: u32,
}

impl Entry {
    /// Of a request, from [`ENTRY_AT`].
    ///
    /// # Errors
    /// When there are fewer than [`ENTRY_BYTES`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Cursor::new(bytes, "entry of the ring");
        let entry = Self { flags: from.u64()?, commit_id: from.u64()?, payload_bytes: from.u32()? };
        from.skip::<12>()?;
        Ok(entry)
    }

    /// Of an answer.
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.commit_id.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.payload_bytes.to_ne_bytes());
        bytes
    }
}

/// What an SQE says of an entry: the queue it is of, and what it commits (0 for [`REGISTER`]).
pub(crate) fn command(commit_id: u64, queue: u16) -> [u8; COMMAND_BYTES] {
    let mut bytes = [0; COMMAND_BYTES];
    bytes[8..16].copy_from_slice(&commit_id.to_ne_bytes());
    bytes[16..18].copy_from_slice(&queue.to_ne_bytes());
    bytes
}
