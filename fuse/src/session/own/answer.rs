//! Our answers in the kernel's words.

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kos_types::{Attr, Dirent, FileKind, Time, TimeChange, limits};

use super::device::Channels;
use super::ioctl;
use super::reply::Reply;
use crate::fs::Caching;
use crate::seal::Backing;
use crate::session::protocol::reply::{self, Entry, Statfs, fopen};
use crate::session::protocol::{self, Name, Small, TimeSet};
use crate::session::requests::{Answer, Created, Fill, Found, Listing, Lock, Open, Space, Value};

const fn file_type(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Dir => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDev => libc::S_IFCHR,
        FileKind::BlockDev => libc::S_IFBLK,
    }
}

const fn time(time: Time) -> (i64, u32) {
    (time.secs, time.nanos)
}

pub(super) const fn time_change(change: TimeSet) -> TimeChange {
    match change {
        TimeSet::Now => TimeChange::Now,
        TimeSet::At(secs, nanos) => TimeChange::Set(Time { secs, nanos }),
    }
}

const fn attr(attr: &Attr) -> reply::Attr {
    reply::Attr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.bytes.div_ceil(512),
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: file_type(attr.kind) | attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: limits::BLOCK_BYTES as u32,
    }
}

/// Numbers of inodes are never used again.
const fn entry_of(found: &Attr, ttl: Duration) -> Entry {
    Entry { attr: attr(found), generation: 0, entry_ttl: ttl, attr_ttl: ttl }
}

pub(super) fn entry(found: &Found) -> Small {
    reply::entry(&entry_of(&found.attr, found.ttl))
}

pub(super) fn attributes(found: &Found) -> Small {
    reply::attr(&attr(&found.attr), found.ttl)
}

pub(super) fn statx(found: &Found) -> Small {
    reply::statx(&attr(&found.attr), Some(time(found.attr.btime)), found.ttl)
}

pub(super) fn created(created: &Created) -> Small {
    let Created { found, handle, caching } = created;
    reply::create(&entry_of(&found.attr, found.ttl), *handle, open_flags(caching), 0)
}

pub(super) fn lock(lock: Lock) -> Small {
    reply::lock(lock.start, lock.last, lock.kind, lock.pid)
}

pub(super) fn space(space: &Space) -> Small {
    reply::statfs(&Statfs {
        blocks: space.blocks,
        bfree: space.blocks_free,
        bavail: space.blocks_free,
        files: space.files,
        ffree: space.files_free,
        bsize: Space::BLOCK_BYTES,
        namelen: limits::NAME_BYTES_MAX as u32,
        frsize: Space::BLOCK_BYTES,
    })
}

pub(super) fn value(to: Reply, answer: Answer<Value>) {
    match answer {
        Ok(Value::Size(size)) => to.bytes(reply::xattr_size(size)),
        Ok(Value::Bytes(bytes)) => to.bytes(bytes),
        Err(e) => to.error(e),
    }
}

const fn open_flags(caching: &Caching) -> u32 {
    match caching {
        Caching::Keep => fopen::KEEP_CACHE,
        Caching::Direct => fopen::DIRECT_IO,
        Caching::Fresh => 0,
        Caching::InPlace(_) => fopen::PASSTHROUGH,
    }
}

impl Fill for Reply {
    fn fill(self, len: usize, fill: impl FnOnce(&mut [u8]) -> Answer<usize>) {
        Self::fill(self, len, fill);
    }
}

/// A copy that the kernel was told of. It is told when the last clone goes.
struct Copy {
    id: u32,
    channels: Weak<Channels>,
}

impl Drop for Copy {
    fn drop(&mut self) {
        // With the connection they all go.
        let Some(channels) = self.channels.upgrade() else { return };
        if let Err(e) = ioctl::backing_close(channels.first().device(), self.id) {
            kos_types::log!("kos-fuse: a copy of a sealed file stays open: {e}");
        }
    }
}

/// A copy that the kernel calls so.
pub(super) fn backing(id: u32, channels: &Weak<Channels>) -> Backing {
    Backing { id, held: Arc::new(Copy { id, channels: Weak::clone(channels) }) }
}

/// The answer to an open.
pub(super) struct Opening {
    pub(super) reply: Reply,
    pub(super) channels: Weak<Channels>,
}

impl Open for Opening {
    fn register(&self, copy: &File) -> io::Result<Backing> {
        let channels = self.channels.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let id = ioctl::backing_open(channels.first().device(), copy)?;
        Ok(backing(id, &self.channels))
    }

    fn opened(self, answer: Answer<(u64, Caching)>) {
        let (handle, caching) = match answer {
            Ok(opened) => opened,
            Err(e) => return self.reply.error(e),
        };
        let copy = match &caching {
            Caching::InPlace(backing) => backing.id.cast_signed(),
            _ => 0,
        };
        self.reply.bytes(reply::open(handle, open_flags(&caching), copy));
    }
}

/// Names, as many as there is room for.
struct Names<const PLUS: bool> {
    reply: Reply,
    room: Vec<u8>,
    used: usize,
}

/// The answer to a READDIR or READDIRPLUS of at most `size` bytes.
pub(super) fn names<const PLUS: bool>(reply: Reply, size: u32) -> impl Listing {
    Names::<PLUS> { reply, room: vec![0; size as usize], used: 0 }
}

impl<const PLUS: bool> Listing for Names<PLUS> {
    const LOOKS_UP: bool = PLUS;

    fn add(&mut self, entry: &Dirent, ttl: Duration) -> bool {
        let mut rest = protocol::Listing::new(&mut self.room[self.used..]);
        let mode = file_type(entry.attr.kind);
        let name = Name { ino: entry.attr.ino.0, next: entry.cookie, mode, name: &entry.name };
        let full =
            if PLUS { rest.add_plus(&name, Some(&entry_of(&entry.attr, ttl))) } else { rest.add(&name) };
        self.used += rest.len();
        full
    }

    fn done(self, answer: Answer<()>) {
        self.reply.answer(answer.map(|()| &self.room[..self.used]));
    }
}
