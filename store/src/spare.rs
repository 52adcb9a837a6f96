//! Buffers for bytes on their way to and from a disk. They belong to the question that is asked, as its thread may
//! hold them long after everybody else has gone on; used again, as memory fresh from the kernel costs more than
//! filling it.

use std::sync::Mutex;

use crate::limits::{SPARE_BUFFERS, SPARE_BYTES_MAX};
use crate::lock;

/// A few buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// One that is empty, with room for `len` bytes and no more: what grew as it was filled would be too large to keep.
    pub(crate) fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.clear();
        buffer.reserve_exact(len);
        buffer
    }

    /// One of `len` bytes, whichever they are.
    pub(crate) fn take_filled(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.take();
        if buffer.len() < len {
            // Not what is there already.
            buffer.reserve_exact(len - buffer.len());
            buffer.resize(len, 0);
        }
        buffer.truncate(len);
        buffer
    }

    fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// It is not used any more.
    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut kept = lock(&self.0);
        if kept.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_BYTES_MAX {
            kept.push(buffer);
        }
    }
}
