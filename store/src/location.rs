//! Where a shard lies within a place, as the caller's index keeps it.

use kos_types::limits::BLOCK_BYTES;
use kos_types::{Error, Kind, Result};

/// A range of one segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Number of the segment within its place.
    pub segment: u64,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
}

impl Location {
    /// Bytes of an encoded location.
    pub const BYTES: usize = 24;

    /// Segment, offset and length, little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (out, field) in bytes.chunks_exact_mut(8).zip([self.segment, self.offset, self.len]) {
            out.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// What [`Self::to_bytes`] encoded.
    ///
    /// # Errors
    /// `Io` when no append can have returned this.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (fields, rest) = bytes.as_chunks::<8>();
        let &[segment, offset, len] = fields else { return Err(bad("length")) };
        if !rest.is_empty() {
            return Err(bad("length"));
        }
        let number = u64::from_le_bytes;
        let location = Self { segment: number(segment), offset: number(offset), len: number(len) };
        if location.is_possible() { Ok(location) } else { Err(bad("range")) }
    }

    /// Whether an append can have returned this.
    pub(crate) fn is_possible(&self) -> bool {
        let block = BLOCK_BYTES as u64;
        // No number is the last one: there is always a next segment.
        self.segment < u64::MAX
            && self.len > 0
            && self.len.is_multiple_of(block)
            && self.offset.is_multiple_of(block)
            && self.offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok())
    }
}

fn bad(what: &str) -> Error {
    Error::new(Kind::Io, format!("location: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_little_endian() {
        let location = Location { segment: 0x0102, offset: 4096, len: 8192 };
        let bytes = location.to_bytes();
        assert_eq!((bytes[0], bytes[1], bytes[9], bytes[17]), (2, 1, 0x10, 0x20));
        assert_eq!(Location::from_bytes(&bytes), Ok(location));
    }

    #[test]
    fn what_no_append_returned_is_refused() {
        let refused = |bytes: &[u8]| Location::from_bytes(bytes).expect_err("refused").kind();
        let good = Location { segment: 1, offset: 4096, len: 8192 };
        for len in [0, 8, 23, 25, 32] {
            assert_eq!(refused(&vec![0; len]), Kind::Io, "{len}");
        }
        for bad in [
            Location { len: 0, ..good },
            Location { len: 1, ..good },
            Location { offset: 1, ..good },
            Location { offset: !4095, ..good },
            Location { offset: (1 << 63) - 4096, ..good },
            Location { segment: u64::MAX, ..good },
        ] {
            assert_eq!(refused(&bad.to_bytes()), Kind::Io, "{bad:?}");
        }
    }
}
