//! The answers to READDIR and READDIRPLUS.

use super::reply::{Entry, put_entry};
use super::small::Small;

/// Each name begins at such a boundary.
const ALIGNMENT: usize = 8;
/// The bits of a mode that are the type, and where they begin.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_SHIFT: u32 = 12;

/// A name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'n> {
    /// Its inode.
    pub(crate) ino: u64,
    /// The cookie after which the next names begin.
    pub(crate) next: u64,
    /// The inode's type; its permissions may be there.
    pub(crate) mode: u32,
    /// 1 to 1024 bytes: the kernel refuses a listing with any other.
    pub(crate) name: &'n [u8],
}

/// Names, put one after another into a buffer.
#[derive(Debug)]
pub(crate) struct Listing<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl<'b> Listing<'b> {
    /// An empty one, of at most the buffer's bytes: no more than the request's `size`.
    pub(crate) const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// One name more. True when it is full, and the name not in it.
    #[must_use]
    pub(crate) fn add(&mut self, name: &Name<'_>) -> bool {
        self.put(Small::new(), name)
    }

    /// The same for READDIRPLUS, which counts as a lookup of `entry`'s inode but for "." and "..". Without an
    /// `entry` only the name is told.
    #[must_use]
    pub(crate) fn add_plus(&mut self, name: &Name<'_>, entry: Option<&Entry>) -> bool {
        let mut head = Small::new();
        match entry {
            Some(entry) => put_entry(&mut head, entry),
            None => _ = head.zeros::<128>(),
        }
        self.put(head, name)
    }

    fn put(&mut self, mut head: Small, name: &Name<'_>) -> bool {
        head.u64(name.ino).u64(name.next);
        head.u32(name.name.len() as u32).u32((name.mode & TYPE_MASK) >> TYPE_SHIFT);
        let head = head.as_bytes();
        let unpadded = head.len() + name.name.len();
        let Some(room) = self.buffer[self.len..].get_mut(..unpadded.next_multiple_of(ALIGNMENT)) else {
            return true;
        };
        room[..head.len()].copy_from_slice(head);
        room[head.len()..unpadded].copy_from_slice(name.name);
        room[unpadded..].fill(0);
        self.len += room.len();
        false
    }

    /// Bytes of it so far: the answer's. 0 is the end of the directory.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no name in it.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// It.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}
