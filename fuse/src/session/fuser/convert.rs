//! The crate fuser's words for ours, and our answers as its replies.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, LockOwner, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
    Request, TimeOrNow,
};
use kos_types::{
    Attr, Consistency, Cred, Error, Fabric, FileKind, FileLock, Ino, Kind, LockAnswer, LockKind, Time,
    TimeChange, limits,
};

use crate::fs::{Caching, Fs};
use crate::jobs::{Caller, names_ttl};
use crate::seal::{Backing, no_copy};

pub(super) fn errno(e: &Error) -> Errno {
    if e.kind() == Kind::Io {
        kos_types::log!("kos-fuse: {e}");
    }
    Errno::from_i32(e.errno())
}

pub(super) const fn ino(node: INodeNo) -> Ino {
    Ino(node.0)
}

pub(super) const fn file_type(kind: FileKind) -> FileType {
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

pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDev),
        libc::S_IFBLK => Some(FileKind::BlockDev),
        _ => None,
    }
}

pub(super) fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    // Out of SystemTime's range is out of the kernel's too; the epoch is the visible mark of it.
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn time(time: SystemTime) -> Time {
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

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
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

/// A name in `parent`.
pub(super) fn entry<F: Fabric>(fs: &Fs<F>, reply: ReplyEntry, parent: Ino, result: Result<Attr, Error>) {
    match result {
        Ok(attr) => {
            fs.told(attr.ino);
            reply.entry(&names_ttl(parent, fs.ttl(&attr)), &file_attr(&attr), Generation(0));
        }
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn empty(reply: ReplyEmpty, result: Result<(), Error>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn data(reply: ReplyData, result: Result<Vec<u8>, Error>) {
    match result {
        Ok(data) => reply.data(&data),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn attributes<F: Fabric>(fs: &Fs<F>, reply: ReplyAttr, result: Result<Attr, Error>) {
    match result {
        Ok(attr) => reply.attr(&fs.ttl(&attr), &file_attr(&attr)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// The size protocol of getxattr and listxattr.
pub(super) fn value(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Error>) {
    match result {
        // At most 64 KiB, or 1024 names of 256 bytes.
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(errno(&e)),
    }
}

/// A lock as the kernel says it: `last` is its last byte.
pub(super) fn file_lock(owner: LockOwner, (start, last): (u64, u64), typ: i32, pid: u32) -> Option<FileLock> {
    let kind = match typ {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        libc::F_UNLCK => None,
        _ => return None,
    };
    Some(FileLock { owner: owner.0, kind, start, end: last.saturating_add(1), pid })
}

pub(super) fn locked(reply: ReplyEmpty, answer: Result<LockAnswer, Error>) {
    match answer {
        Ok(LockAnswer::Granted) => reply.ok(),
        Ok(LockAnswer::Denied | LockAnswer::Waiting) => reply.error(Errno::EAGAIN),
        Ok(LockAnswer::Deadlock) => reply.error(Errno::EDEADLK),
        Ok(LockAnswer::Full) => reply.error(Errno::ENOLCK),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { cred: Cred { uid: req.uid(), gid: req.gid() }, pid: req.pid() }
}

pub(super) fn open<F: Fabric>(
    fs: &Fs<F>,
    reply: ReplyOpen,
    ino: Ino,
    how: (i32, Consistency),
    leased: Result<(), Error>,
) {
    let register = |copy: &File| reply.open_backing(copy).map(|id| Backing(Arc::new(id)));
    match leased.and_then(|()| fs.open(ino, how, &register)) {
        Ok((handle, Caching::InPlace(backing))) => match backing.0.downcast_ref::<BackingId>() {
            Some(id) => reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), id),
            None => reply.error(Errno::EIO),
        },
        Ok((handle, caching)) => reply.opened(FileHandle(handle), open_flags(&caching)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Open what was just created.
pub(super) fn created<F: Fabric>(
    fs: &Fs<F>,
    reply: ReplyCreate,
    parent: Ino,
    flags: i32,
    result: Result<Attr, Error>,
) {
    let open = |attr: Attr| {
        let how = (flags, fs.consistency_of(attr.ino)?);
        Ok((fs.opened(attr.ino, how, &no_copy)?, attr))
    };
    match result.and_then(open) {
        Ok(((handle, caching), attr)) => {
            fs.told(attr.ino);
            let ttl = names_ttl(parent, fs.ttl(&attr));
            reply.created(&ttl, &file_attr(&attr), Generation(0), FileHandle(handle), open_flags(&caching));
        }
        // Through another mount, since the kernel looked: it looks again, and checks who may open.
        Err(e) if e.kind() == Kind::Exists && flags & libc::O_EXCL == 0 => reply.error(Errno::ESTALE),
        Err(e) => reply.error(errno(&e)),
    }
}

/// A request holds at most a megabyte.
pub(super) fn written(reply: ReplyWrite, len: usize, result: &Result<u64, Error>) {
    match result {
        Ok(_) => reply.written(len as u32),
        Err(e) => reply.error(errno(e)),
    }
}

/// Entries of a directory with their attributes. Those of files are looked at under leases: a file that is
/// not in `leased` ends the listing for now, unless it is the first.
pub(super) fn listing<F: Fabric>(
    fs: &Fs<F>,
    mut reply: ReplyDirectoryPlus,
    dir: Ino,
    after: u64,
    leased: Option<Vec<Ino>>,
) {
    let mut told = Vec::new();
    let mut first = true;
    let result = fs.list(dir, after, |entry| {
        let file = entry.attr.kind == FileKind::File;
        if file && !first && leased.as_ref().is_some_and(|leased| !leased.contains(&entry.attr.ino)) {
            return true;
        }
        first = false;
        let name = OsStr::from_bytes(&entry.name);
        let (node, attr) = (INodeNo(entry.attr.ino.0), file_attr(&entry.attr));
        let ttl = names_ttl(dir, fs.ttl(&entry.attr));
        let full = reply.add(node, entry.cookie, name, &ttl, &attr, Generation(0));
        // The kernel counts each entry as a lookup, but for these two.
        if !full && name != "." && name != ".." {
            told.push(entry.attr.ino);
        }
        full
    });
    match result {
        Ok(()) => {
            told.into_iter().for_each(|ino| fs.told(ino));
            reply.ok();
        }
        Err(e) => reply.error(errno(&e)),
    }
}

const fn open_flags(caching: &Caching) -> FopenFlags {
    match caching {
        Caching::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Caching::Direct => FopenFlags::FOPEN_DIRECT_IO,
        // Its flag goes with the copy.
        Caching::Fresh | Caching::InPlace(_) => FopenFlags::empty(),
    }
}
