//! What is told the kernel without being asked: whole messages, written to /dev/fuse as they are. It answers by
//! the write's errno; ENOENT says that it knows no such inode or name.

use super::reply::{OUT_HEADER_BYTES, OutHeader};

/// Codes of the messages.
mod code {
    pub(super) const INVAL_INODE: i32 = 2;
    pub(super) const INVAL_ENTRY: i32 = 3;
    pub(super) const STORE: i32 = 4;
    pub(super) const RETRIEVE: i32 = 5;
    pub(super) const DELETE: i32 = 6;
    pub(super) const RESEND: i32 = 7;
    pub(super) const INC_EPOCH: i32 = 8;
    pub(super) const PRUNE: i32 = 9;
}

/// A name expires, and is looked up again when it is used, instead of being dropped at once. Of
/// [`HAS_EXPIRE_ONLY`](super::flag::HAS_EXPIRE_ONLY).
pub(crate) const EXPIRE_ONLY: u32 = 1 << 0;

/// Drop an inode's attributes, and `len` bytes of its pages from `off` on: to the end for 0, none for `off` below 0.
pub(crate) fn inval_inode(ino: u64, off: i64, len: i64) -> Vec<u8> {
    message(code::INVAL_INODE, &[&ino.to_ne_bytes(), &off.to_ne_bytes(), &len.to_ne_bytes()])
}

/// Drop a name; `flags` is 0 or [`EXPIRE_ONLY`].
pub(crate) fn inval_entry(parent: u64, name: &[u8], flags: u32) -> Vec<u8> {
    let len = name.len() as u32;
    message(
        code::INVAL_ENTRY,
        &[&parent.to_ne_bytes(), &len.to_ne_bytes(), &flags.to_ne_bytes(), name, b"\0"],
    )
}

/// Drop a name that was removed, and whose inode was `child`.
pub(crate) fn delete(parent: u64, child: u64, name: &[u8]) -> Vec<u8> {
    let len = name.len() as u32;
    message(
        code::DELETE,
        &[&parent.to_ne_bytes(), &child.to_ne_bytes(), &len.to_ne_bytes(), &[0; 4], name, b"\0"],
    )
}

/// Put `len` bytes of a file at `off`, which follow the message, into its pages; a file that ended before them ends behind them.
pub(crate) fn store(ino: u64, off: u64, len: u32) -> Vec<u8> {
    let mut bytes =
        message(code::STORE, &[&ino.to_ne_bytes(), &off.to_ne_bytes(), &len.to_ne_bytes(), &[0; 4]]);
    let whole = bytes.len() as u32 + len;
    bytes[..size_of::<u32>()].copy_from_slice(&whole.to_ne_bytes());
    bytes
}

/// Have the kernel hand over `len` bytes of what it has of a file's pages, from `off` on, by a NOTIFY_REPLY whose number is
/// `unique`.
pub(crate) fn retrieve(unique: u64, ino: u64, off: u64, len: u32) -> Vec<u8> {
    message(
        code::RETRIEVE,
        &[&unique.to_ne_bytes(), &ino.to_ne_bytes(), &off.to_ne_bytes(), &len.to_ne_bytes(), &[0; 4]],
    )
}

/// Send again what was not answered. Of [`HAS_RESEND`](super::flag::HAS_RESEND).
pub(crate) fn resend() -> Vec<u8> {
    message(code::RESEND, &[])
}

/// All names and listings are to be asked for again. From 7.44 on.
pub(crate) fn inc_epoch() -> Vec<u8> {
    message(code::INC_EPOCH, &[])
}

/// Forget inodes that nobody uses. From 7.45 on.
pub(crate) fn prune(nodes: &[u64]) -> Vec<u8> {
    let count = nodes.len() as u32;
    let nodes: Vec<u8> = nodes.iter().flat_map(|node| node.to_ne_bytes()).collect();
    message(code::PRUNE, &[&count.to_ne_bytes(), &[0; 12], &nodes])
}

fn message(code: i32, parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let header = OutHeader { error: code, ..OutHeader::answer(0, body) };
    debug_assert_eq!(header.len as usize, OUT_HEADER_BYTES + body, "a message is small");
    let mut bytes = header.encode().to_vec();
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}
