//! The mount's root: the control tree as a table.

use kos_types::{Attr, FileKind, Ino, ROOT, Time};

/// The mount's root directory, FUSE's own root.
pub(crate) const TOP: Ino = Ino(1);

/// Entries of the root: position in listings, name and inode.
const ENTRIES: [(u64, &[u8], Ino); 1] = [(16, b"mem", ROOT)];

/// Whether an inode belongs to the control tree and not to the fabric.
pub(crate) fn owns(ino: Ino) -> bool {
    ino == TOP
}

/// What a name in the root stands for.
pub(crate) fn lookup(name: &[u8]) -> Option<Ino> {
    ENTRIES.iter().find(|(_, entry, _)| *entry == name).map(|&(.., ino)| ino)
}

/// Entries behind a position.
pub(crate) fn list(after: u64) -> impl Iterator<Item = (u64, &'static [u8], Ino)> {
    ENTRIES.into_iter().filter(move |&(cookie, ..)| cookie > after)
}

/// The root's attributes; `since` is when it was mounted.
pub(crate) fn attr(since: Time) -> Attr {
    Attr {
        ino: TOP,
        kind: FileKind::Dir,
        mode: 0o755,
        nlink: 2 + ENTRIES.len() as u32,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        bytes: 0,
        atime: since,
        mtime: since,
        ctime: since,
        btime: since,
    }
}
