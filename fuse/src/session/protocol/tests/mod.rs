//! Every request is encoded here, and only here.

mod answers;
mod requests;
mod samples;
mod terms;

use super::{Agreed, Header, flag};

/// Fields of a structure, one after another.
#[derive(Clone, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u16(mut self, n: u16) -> Self {
        self.0.extend(n.to_ne_bytes());
        self
    }

    pub(super) fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_ne_bytes());
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// A kernel with all that there is.
pub(super) const NEWEST: Agreed = Agreed {
    minor: 45,
    flags: flag::SETXATTR_EXT,
    max_write: 1 << 20,
    max_readahead: 1 << 20,
    max_pages: 256,
};
/// One of the oldest kind.
pub(super) const OLDEST: Agreed = Agreed { minor: 31, flags: 0, ..NEWEST };

pub(super) fn header(opcode: u32, extensions: u32) -> Header {
    Header { len: 40, opcode, unique: 6, node: 1, uid: 1000, gid: 100, pid: 77, extensions }
}

/// 32 bits, or 64, at a place in bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().expect("within"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().expect("within"))
}
