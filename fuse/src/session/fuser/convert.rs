//! The crate fuser's words for ours, and our answers as its replies.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, LockOwner, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow,
};
use kos_types::{Attr, Dirent, FileKind, Ino, Time, TimeChange, limits};

use crate::fs::Caching;
use crate::seal::Backing;
use crate::session::requests::{Answer, Created, Fill, Found, Listing, Lock, Open, Reply, Space, Value};
use crate::session::room;

pub(super) const fn ino(node: INodeNo) -> Ino {
    Ino(node.0)
}

const fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDev => FileType::CharDevice,
        FileKind::BlockDev => FileType::BlockDevice,
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    // Out of SystemTime's range is out of the kernel's too; the epoch is the visible mark of it.
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let (secs, nanos) = (before.as_secs().cast_signed(), before.subsec_nanos());
            if nanos == 0 {
                Time { secs: -secs, nanos }
            } else {
                Time { secs: -secs - 1, nanos: 1_000_000_000 - nanos }
            }
        }
    }
}

pub(super) fn time_change(change: TimeOrNow) -> TimeChange {
    match change {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(at) => TimeChange::Set(time(at)),
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.bytes.div_ceil(512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: limits::BLOCK_BYTES as u32,
        flags: 0,
    }
}

pub(super) const fn lock(owner: LockOwner, (start, last): (u64, u64), kind: i32, pid: u32) -> Lock {
    Lock { owner: owner.0, start, last, kind, pid, flock: false }
}

const fn open_flags(caching: &Caching) -> FopenFlags {
    match caching {
        Caching::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Caching::Direct => FopenFlags::FOPEN_DIRECT_IO,
        // Its flag goes with the copy.
        Caching::Fresh | Caching::InPlace(_) => FopenFlags::empty(),
    }
}

pub(super) fn entry(reply: ReplyEntry) -> impl Reply<Found> {
    move |answer: Answer<Found>| match answer {
        Ok(Found { attr, ttl, .. }) => reply.entry(&ttl, &file_attr(&attr), Generation(0)),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn attributes(reply: ReplyAttr) -> impl Reply<Found> {
    move |answer: Answer<Found>| match answer {
        Ok(Found { attr, ttl, .. }) => reply.attr(&ttl, &file_attr(&attr)),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn created(reply: ReplyCreate) -> impl Reply<Created> {
    move |answer: Answer<Created>| match answer {
        Ok(Created { found: Found { attr, ttl, .. }, handle, caching }) => {
            let (handle, flags) = (FileHandle(handle), open_flags(&caching));
            reply.created(&ttl, &file_attr(&attr), Generation(0), handle, flags);
        }
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn empty(reply: ReplyEmpty) -> impl Reply<()> {
    move |answer: Answer<()>| match answer {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn data(reply: ReplyData, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(data) => reply.data(&data),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

/// A request holds at most a gigabyte.
pub(super) fn written<N: TryInto<u32>>(reply: ReplyWrite) -> impl Reply<N> {
    move |answer: Answer<N>| match answer.and_then(|len| len.try_into().map_err(|_| libc::EIO)) {
        Ok(len) => reply.written(len),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn held(reply: ReplyLock, answer: Answer<Lock>) {
    match answer {
        Ok(Lock { start, last, kind, pid, .. }) => reply.locked(start, last, kind, pid),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn value(reply: ReplyXattr, answer: Answer<Value>) {
    match answer {
        Ok(Value::Size(size)) => reply.size(size),
        Ok(Value::Bytes(bytes)) => reply.data(&bytes),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn space(reply: ReplyStatfs, answer: Answer<Space>) {
    match answer {
        Ok(Space { blocks, blocks_free, files, files_free }) => {
            let names = limits::NAME_BYTES_MAX as u32;
            let block = Space::BLOCK_BYTES;
            reply.statfs(blocks, blocks_free, blocks_free, files, files_free, block, names, block);
        }
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

pub(super) fn position(reply: ReplyLseek) -> impl Reply<i64> {
    move |answer: Answer<i64>| match answer {
        Ok(found) => reply.offset(found),
        Err(e) => reply.error(Errno::from_i32(e)),
    }
}

impl Fill for ReplyData {
    fn fill(self, len: usize, fill: impl FnOnce(&mut [u8]) -> Answer<usize>) {
        room::with(len, |out| match fill(out) {
            Ok(len) => self.data(&out[..len]),
            Err(e) => self.error(Errno::from_i32(e)),
        });
    }
}

impl Open for ReplyOpen {
    fn register(&self, copy: &File) -> io::Result<Backing> {
        self.open_backing(copy).map(|id| Backing { id: 0, held: Arc::new(id) })
    }

    fn opened(self, answer: Answer<(u64, Caching)>) {
        match answer {
            Ok((handle, Caching::InPlace(backing))) => match backing.held.downcast_ref::<BackingId>() {
                Some(id) => self.opened_passthrough(FileHandle(handle), FopenFlags::empty(), id),
                None => self.error(Errno::EIO),
            },
            Ok((handle, caching)) => Self::opened(self, FileHandle(handle), open_flags(&caching)),
            Err(e) => self.error(Errno::from_i32(e)),
        }
    }
}

impl Listing for ReplyDirectory {
    const LOOKS_UP: bool = false;

    fn add(&mut self, entry: &Dirent, _ttl: Duration) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        Self::add(self, INodeNo(entry.attr.ino.0), entry.cookie, file_type(entry.attr.kind), name)
    }

    fn done(self, answer: Answer<()>) {
        match answer {
            Ok(()) => self.ok(),
            Err(e) => self.error(Errno::from_i32(e)),
        }
    }
}

impl Listing for ReplyDirectoryPlus {
    const LOOKS_UP: bool = true;

    fn add(&mut self, entry: &Dirent, ttl: Duration) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        let (node, attr) = (INodeNo(entry.attr.ino.0), file_attr(&entry.attr));
        Self::add(self, node, entry.cookie, name, &ttl, &attr, Generation(0))
    }

    fn done(self, answer: Answer<()>) {
        match answer {
            Ok(()) => self.ok(),
            Err(e) => self.error(Errno::from_i32(e)),
        }
    }
}
