//! The session by the crate fuser: its requests as calls of [`Fs`], and answers back. Nothing is
//! decided here.

mod convert;
mod kernel;
mod names;
mod overdue;
mod room;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::SystemTime;

use fuser::{
    Config, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use kos_types::lease::{Mode, Want};
use kos_types::{
    Consistency, Error, Fabric, FileKind, LockKind, RenameMode, SetAttr, SetSize, XattrMode, limits,
};

use self::convert::{
    attributes, caller, created, data, empty, entry, errno, file_lock, file_type, ino, kind_of_mode, listing,
    locked, open, time_change, value, written,
};
use self::kernel::Kernel;
use self::names::{found_entry, leased_entry};
use self::overdue::{Overdue, Watched};
use super::{Caches, Session};
use crate::control;
use crate::fs::{Allocate, Fs};
use crate::leases::{Touched, is_shared, may_change, whole};
use crate::seal::SEAL;

/// Bytes of one write: 1 MiB, and one page more, which memory that does not begin with a page reaches into. Without it
/// the kernel would cut each write of 1 MiB from such memory in two, in the middle of a block.
const MAX_WRITE: u32 = (1 << 20) + 4096;
/// Bytes of one read: a whole part of a stripe, where the kernel reads ahead.
const MAX_READ: u32 = 1 << 20;
/// Requests the kernel may have in flight in the background.
const MAX_BACKGROUND: u16 = 64;
/// statfs's unit.
const STATFS_BLOCK: u32 = 4096;
/// What the mount wants from the kernel; each is left out where the kernel lacks it.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// The connection.
pub(crate) struct Fuser<F: Fabric + 'static>(fuser::Session<Requests<F>>);

impl<F: Fabric> Session<F> for Fuser<F> {
    const WRITE_BYTES_MAX: u32 = MAX_WRITE;
    const READ_BYTES_MAX: u32 = MAX_READ;

    fn begin(fs: Arc<Fs<F>>, device: OwnedFd, threads: usize) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(threads);
        config.clone_fd = true;
        fuser::Session::from_fd(Requests(fs, Overdue::new()), device, SessionACL::All, config).map(Self)
    }

    fn caches(&self) -> Box<dyn Caches> {
        Box::new(Kernel::new(self.0.notifier()))
    }

    fn serve(self) -> io::Result<()> {
        self.0.run()
    }
}

/// What the kernel asks.
struct Requests<F>(Arc<Fs<F>>, Overdue);

impl<F> Requests<F> {
    /// What is done in this call may be held up by a disk.
    fn watch(&self, request: &Request) -> Watched {
        self.1.watch(request.unique().0)
    }
}

impl<F: Fabric + 'static> Filesystem for Requests<F> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not flock's, which fuser does not tell apart: those stay the kernel's, and this mount's.
        let locks = self.0.share_locks.then_some(InitFlags::FUSE_POSIX_LOCKS);
        for flag in WANTED.into_iter().chain(locks) {
            let refused = config.add_capabilities(flag).is_err();
            if refused {
                kos_types::log!("kos-fuse: this kernel has no {flag:?}; the mount works without");
            }
            if flag == InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP {
                self.0.streams.store(!refused && super::takes_pages(MAX_WRITE), Ordering::Relaxed);
            }
        }
        // A copy lies on a filesystem that is on no other one.
        let in_place = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        if !in_place {
            kos_types::log!(
                "kos-fuse: this kernel reads no copies in place; sealed files are read as others"
            );
        }
        self.0.in_place.store(in_place, Ordering::Relaxed);
        // Refused values leave the kernel's own: slower, not wrong.
        if config.set_max_write(MAX_WRITE).is_err() || config.set_max_background(MAX_BACKGROUND).is_err() {
            kos_types::log!("kos-fuse: the kernel keeps its own request sizes");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let alone = self.0.alone();
        let dir = ino(parent);
        if alone.is_none() && self.0.keep_names {
            match self.0.control_target((dir, name.as_bytes())) {
                Some(found) => {
                    return found_entry(&self.0, reply, dir, found, Want::names(found, Mode::Shared));
                }
                None if is_shared(dir) => return self.kept_entry(reply, dir, name.as_bytes().to_vec()),
                None => {}
            }
        }
        let found = self.0.lookup((dir, name.as_bytes()));
        if alone.is_some() {
            return entry(&self.0, reply, dir, found);
        }
        leased_entry(&self.0, reply, dir, found);
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.0.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let node = ino(node);
        if self.0.keeps(node) && self.0.alone().is_none() {
            return self.0.ask(vec![Want::names(node, Mode::Shared)], move |fs, leased| {
                attributes(fs, reply, leased.and_then(|()| fs.kept_or_asked(node)));
            });
        }
        let want = || vec![whole(node, Mode::Shared)];
        self.0.under(want, move |fs, leased| attributes(fs, reply, leased.and_then(|()| fs.attr(node))));
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let held_up = self.watch(req);
        let set = SetAttr {
            mode,
            uid,
            gid,
            size: size.map(|size| SetSize { size }),
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            kill_suidgid: false,
        };
        let (node, by) = (ino(node), req.uid());
        // It may be a directory, or its bytes may change.
        let want = || vec![whole(node, Mode::Exclusive), Want::names(node, Mode::Exclusive)];
        self.0.under(want, move |fs, leased| {
            let _held_up = held_up;
            attributes(fs, reply, leased.and_then(|()| fs.set_attr(node, set, by)));
        });
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        data(reply, self.0.readlink(ino(node)));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        self.make(reply, (parent, name), kind, (mode & 0o7777, umask, rdev), req, Vec::new());
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let bits = (mode & 0o7777, umask, 0);
        self.make(reply, (parent, name), FileKind::Dir, bits, req, Vec::new());
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let held_up = self.watch(req);
        let (dir, name) = (ino(parent), name.as_bytes().to_vec());
        self.0.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let _held_up = held_up;
            empty(reply, leased.and_then(|()| fs.unlink((dir, &name))));
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let held_up = self.watch(req);
        let (dir, name) = (ino(parent), name.as_bytes().to_vec());
        self.0.under_names(vec![dir], vec![(dir, name.clone())], move |fs, leased| {
            let _held_up = held_up;
            empty(reply, leased.and_then(|()| fs.rmdir((dir, &name))));
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes().to_vec();
        self.make(reply, (parent, name), FileKind::Symlink, (0o777, 0, 0), req, target);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let held_up = self.watch(req);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let from = (ino(parent), name.as_bytes().to_vec());
        let to = (ino(newparent), newname.as_bytes().to_vec());
        let who = caller(req);
        self.0.under_names(vec![from.0, to.0], vec![from.clone(), to.clone()], move |fs, leased| {
            let _held_up = held_up;
            let rename = |()| fs.rename((from.0, &from.1), (to.0, &to.1), mode, who);
            empty(reply, leased.and_then(rename));
        });
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let held_up = self.watch(req);
        let (node, dir, name) = (ino(node), ino(newparent), newname.as_bytes().to_vec());
        let who = caller(req);
        if let Some(_alone) = self.0.alone() {
            return entry(&self.0, reply, dir, self.0.link(node, (dir, &name), who));
        }
        self.0.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let _held_up = held_up;
            let linked = leased.and_then(|()| fs.link(node, (dir, &name), who));
            leased_entry(fs, reply, dir, linked);
        });
    }

    fn open(&self, _req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (node, flags) = (ino(node), flags.0);
        let consistency = match self.0.consistency_of(node) {
            Ok(consistency) => consistency,
            Err(e) => return reply.error(errno(&e)),
        };
        // From here on its pages may be changed without a word.
        let asks = may_change(flags) && consistency == Consistency::Strong;
        let want = || asks.then(|| whole(node, Mode::Exclusive)).into_iter().collect();
        self.0.under(want, move |fs, leased| open(fs, reply, node, (flags, consistency), leased));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let held_up = self.watch(req);
        let bits = (mode & 0o7777, umask, 0);
        let (dir, name, who) = (ino(parent), name.as_bytes().to_vec(), caller(req));
        if let Some(_alone) = self.0.alone() {
            let attr = self.0.create((dir, &name), FileKind::File, bits, who, b"");
            return created(&self.0, reply, dir, flags, attr);
        }
        self.0.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let _held_up = held_up;
            match leased.and_then(|()| fs.create((dir, &name), FileKind::File, bits, who, b"")) {
                // It is about to be written.
                Ok(attr) => fs.ask(vec![whole(attr.ino, Mode::Exclusive)], move |fs, leased| {
                    created(fs, reply, dir, flags, leased.and_then(|()| fs.attr(attr.ino)));
                }),
                Err(e) => created(fs, reply, dir, flags, Err(e)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.0.is_wait(ino(node)) {
            let deliver = move |text| data(reply, text);
            return self.0.wait(ino(node), req.pid(), offset, Box::new(deliver));
        }
        let node = ino(node);
        let answer = move |fs: &Fs<F>, leased: Result<(), Error>| {
            room::with(size as usize, |out| match leased.and_then(|()| fs.read(node, fh.0, offset, out)) {
                Ok(len) => reply.data(&out[..len]),
                Err(e) => reply.error(errno(&e)),
            });
        };
        if let Some(_alone) = self.0.alone() {
            return answer(&self.0, Ok(()));
        }
        // The kernel names an owner where a program's read comes as it is.
        let touched = Touched { range: (offset, size.into()), pages: lock_owner.is_none() };
        self.0.read_under(node, touched, move |fs, leased| answer(fs, leased));
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let held_up = self.watch(req);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // The flags are the descriptor's as they are now, after any fcntl(2). A mapping's pages come
        // through whichever descriptor may write, and belong where they are.
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let at = (flags.0 & libc::O_APPEND == 0 || mapped).then_some(offset);
        let node = ino(node);
        if let Some(_alone) = self.0.alone() {
            return written(reply, data.len(), &self.0.write(node, at, data, kill));
        }
        if mapped {
            return written(reply, data.len(), &self.0.write_back(node, offset, data, kill));
        }
        let (data, range) = (data.to_vec(), (offset, data.len() as u64));
        self.0.write_under(node, (at, range.1), range, move |fs, leased| {
            let _held_up = held_up;
            let result = leased.and_then(|()| fs.write(node, at, &data, kill));
            written(reply, data.len(), &result);
            fs.landed(node, range, result.unwrap_or(offset));
        });
    }

    fn flush(&self, req: &Request, node: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let _held_up = self.watch(req);
        let closed = self.0.closing(ino(node), fh.0);
        let unlocked = self.0.locks.closed(&*self.0.fabric, ino(node), lock_owner.0);
        empty(reply, closed.and(unlocked));
    }

    fn getlk(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(lock) = file_lock(lock_owner, (start, end), typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        match self.0.fabric.test_lock(ino(node), &lock) {
            Ok(Some(held)) => {
                let typ = if held.kind == Some(LockKind::Read) { libc::F_RDLCK } else { libc::F_WRLCK };
                reply.locked(held.start, held.end - 1, typ, held.pid);
            }
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(lock) = file_lock(lock_owner, (start, end), typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        if sleep && lock.kind.is_some() {
            let fs = Arc::clone(&self.0);
            let tell =
                move |answer| fs.acquire_from_others(ino(node), answer, |answer| locked(reply, answer));
            let deliver = Box::new(tell);
            return self.0.locks.wait(&*self.0.fabric, (ino(node), fh.0), lock, req.pid(), deliver);
        }
        if lock.kind.is_none() {
            // What fails is told at fsync or close; the lock goes all the same.
            drop(self.0.release_to_others(ino(node)));
            return locked(reply, self.0.locks.set(&*self.0.fabric, ino(node), fh.0, &lock));
        }
        let answer = self.0.locks.set(&*self.0.fabric, ino(node), fh.0, &lock);
        self.0.acquire_from_others(ino(node), answer, |answer| locked(reply, answer));
    }

    fn release(
        &self,
        _req: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(fh.0);
        empty(reply, self.0.locks.released(&*self.0.fabric, fh.0));
    }

    fn fsync(&self, req: &Request, node: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let held_up = self.watch(req);
        let node = ino(node);
        // Also of what was written through other mounts.
        let want = || vec![whole(node, Mode::Shared)];
        self.0.under(want, move |fs, leased| {
            let _held_up = held_up;
            empty(reply, leased.and_then(|()| fs.fsync(node, fh.0)));
        });
    }

    fn fsyncdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (fs, node) = (Arc::clone(&self.0), ino(node));
        if control::owns(node) {
            // Without a thread the reply is EIO.
            let flush = move || empty(reply, fs.fsync_dir(node));
            drop(thread::Builder::new().name("sync".into()).spawn(flush));
            return;
        }
        empty(reply, fs.fsync_dir(node));
    }

    fn readdir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.0.list(ino(node), offset, |entry| {
            let name = OsStr::from_bytes(&entry.name);
            reply.add(INodeNo(entry.attr.ino.0), entry.cookie, file_type(entry.attr.kind), name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let dir = ino(node);
        if let Some(_alone) = self.0.alone() {
            return listing(&self.0, reply, dir, offset, None);
        }
        match self.0.wants_of_listing(dir, offset) {
            Ok(wants) => {
                let files = wants.iter().map(|want| want.ino).collect();
                self.0.ask(wants, move |fs, leased| match leased {
                    Ok(()) => listing(fs, reply, dir, offset, Some(files)),
                    Err(e) => reply.error(errno(&e)),
                });
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.0.usage() {
            Ok(usage) => {
                let block = u64::from(STATFS_BLOCK);
                let (total, free) = (usage.bytes_total / block, usage.bytes_free / block);
                // Inodes are limited by space alone.
                let files = usage.inodes_used + free;
                let names = limits::NAME_BYTES_MAX as u32;
                reply.statfs(total, free, free, files, free, STATFS_BLOCK, names, STATFS_BLOCK);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let held_up = self.watch(req);
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (node, by) = (ino(node), req.uid());
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        // It may be a directory, whose mode an access list changes. What is sealed is also what was written through
        // other mounts.
        let mut want = vec![Want::names(node, Mode::Exclusive)];
        want.extend((name == SEAL).then(|| whole(node, Mode::Exclusive)));
        self.0.under(
            || want,
            move |fs, leased| {
                let _held_up = held_up;
                empty(reply, leased.and_then(|()| fs.set_xattr(node, &name, (&value, mode), by)));
            },
        );
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        value(reply, size, self.0.xattr(ino(node), name.as_bytes()));
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self
            .0
            .xattrs(ino(node))
            .map(|names| names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect::<Vec<u8>>());
        value(reply, size, names);
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let held_up = self.watch(req);
        let (node, by, name) = (ino(node), req.uid(), name.as_bytes().to_vec());
        let want = || vec![Want::names(node, Mode::Exclusive)];
        self.0.under(want, move |fs, leased| {
            let _held_up = held_up;
            empty(reply, leased.and_then(|()| fs.remove_xattr(node, &name, by)));
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let held_up = self.watch(req);
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let mode = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::Reserve,
            PUNCH => Allocate::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero(false),
            ZERO_KEEP => Allocate::Zero(true),
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let (node, by) = (ino(node), req.uid());
        let want = || vec![whole(node, Mode::Exclusive)];
        self.0.under(want, move |fs, leased| {
            let _held_up = held_up;
            empty(reply, leased.and_then(|()| fs.allocate(node, offset, length, mode, by)));
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let node = ino(node);
        let want = || vec![whole(node, Mode::Shared)];
        self.0.under(want, move |fs, leased| match leased.and_then(|()| fs.seek(node, from, data)) {
            // Files end at i64::MAX.
            Ok(Some(found)) => reply.offset(found.cast_signed()),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let held_up = self.watch(req);
        // The reply counts in 32 bits; whole blocks keep the next call aligned.
        let len = len.min(1 << 30);
        let (from, to, by) = ((ino(ino_in), offset_in), (ino(ino_out), offset_out), req.uid());
        let source = if from.0 == to.0 { Mode::Exclusive } else { Mode::Shared };
        let want = || vec![whole(from.0, source), whole(to.0, Mode::Exclusive)];
        self.0.under(want, move |fs, leased| {
            let _held_up = held_up;
            match leased.and_then(|()| fs.copy(from, to, len, by)) {
                Ok(copied) => reply.written(copied as u32),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }
}
