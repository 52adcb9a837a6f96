//! Writing what has a fixed size.

use std::fmt;

/// Room for the largest: the answer to STATX.
const SMALL_BYTES: usize = 288;

/// The bytes of a small answer, without its [`OutHeader`](super::OutHeader).
#[derive(Clone, Copy)]
pub(crate) struct Small {
    bytes: [u8; SMALL_BYTES],
    len: usize,
}

impl Small {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; SMALL_BYTES], len: 0 }
    }

    /// All of them.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) -> &mut Self {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
        self
    }

    pub(super) fn u16(&mut self, n: u16) -> &mut Self {
        self.put(n.to_ne_bytes())
    }

    pub(super) fn u32(&mut self, n: u32) -> &mut Self {
        self.put(n.to_ne_bytes())
    }

    pub(super) fn i32(&mut self, n: i32) -> &mut Self {
        self.put(n.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, n: u64) -> &mut Self {
        self.put(n.to_ne_bytes())
    }

    pub(super) fn i64(&mut self, n: i64) -> &mut Self {
        self.put(n.to_ne_bytes())
    }

    pub(super) fn zeros<const N: usize>(&mut self) -> &mut Self {
        self.put([0; N])
    }
}

impl AsRef<[u8]> for Small {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Small").field(&self.as_bytes()).finish()
    }
}
