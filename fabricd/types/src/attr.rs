//! What stat(2), readdir(3) and statfs(2) show.

use crate::{Access, Error, Ino, Kind, Result};

/// A point in time since the Unix epoch, to the nanosecond; `nanos` is below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Time {
    /// Seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

impl Time {
    /// A file's time after a write at another. Several mounts hand in what they wrote to different ranges, in any order: an
    /// older write does not take the time back, but where somebody had set it beyond `now`.
    #[must_use]
    pub fn after_write(self, at: Self, now: Self) -> Self {
        if self > now { at } else { self.max(at) }
    }
}

/// The type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDev,
    /// Block device.
    BlockDev,
}

/// The attributes of one inode.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Permission, setuid, setgid and sticky bits (07777).
    pub mode: u32,
    /// Number of links; 2 and more for a directory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of data mapped, holes not counted.
    pub bytes: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Nobody may change the bytes or the size.
    pub sealed: bool,
}

impl Attr {
    /// These, if the inode may be opened so.
    ///
    /// # Errors
    /// `NotPermitted` for writing to a sealed file.
    pub fn opened(self, access: Access) -> Result<Self> {
        if self.sealed && access == Access::Write {
            return Err(Error::new(Kind::NotPermitted, "open: the file is sealed"));
        }
        Ok(self)
    }
}

/// One entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dirent {
    /// Position: entries are listed in its order and it never changes while the entry lives.
    pub cookie: u64,
    /// Name, 1 to 255 bytes, without `/` and NUL.
    pub name: Vec<u8>,
    /// Attributes of the inode it names.
    pub attr: Attr,
}

/// Space of the pool, in bytes of user data and in inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpaceUsage {
    /// Size of the pool.
    pub bytes_total: u64,
    /// What can still be written.
    pub bytes_free: u64,
    /// Inodes in use.
    pub inodes_used: u64,
}

/// A read-only tree of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// Its name under `snap/`.
    pub name: Vec<u8>,
    /// The view its inodes are seen in.
    pub view: u64,
    /// When it was taken.
    pub taken: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_writing_goes_back_only_from_the_future() {
        let at = |secs| Time { secs, nanos: 0 };
        for (was, wrote, is) in [(5, 7, 7), (7, 5, 7), (20, 7, 7), (10, 7, 10)] {
            assert_eq!(at(was).after_write(at(wrote), at(10)), at(is), "{was} {wrote}");
        }
    }
}
