//! The session by the crate fuser: its requests as calls of [`Fs`], and answers back. Nothing is
//! decided here.

mod caches;
mod convert;
mod late;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    Config, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use kos_types::{Fabric, FileKind, SetAttr, SetSize};

use self::convert::{
    attributes, created, data, empty, entry, held, ino, lock, position, space, time_change, value, written,
};
use super::requests::{From, Requests, Write, kind_of_mode};
use super::{BACKGROUND_MAX, Caches, Session, WRITE_BYTES_MAX};
use crate::fs::{Fs, is_privileged};

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
pub(crate) struct Fuser<F: Fabric + 'static> {
    session: fuser::Session<Kernel<F>>,
    /// For what fuser cannot tell the kernel.
    device: Arc<OwnedFd>,
}

impl<F: Fabric> Session<F> for Fuser<F> {
    fn begin(fs: Arc<Fs<F>>, device: OwnedFd, threads: usize) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let kernel = Kernel(Requests::new(fs, late::give_up, || ()));
        let own = Arc::new(device.try_clone()?);
        let session = fuser::Session::from_fd(kernel, device, SessionACL::All, config)?;
        Ok(Self { session, device: own })
    }

    fn caches(&self) -> Box<dyn Caches> {
        Box::new(caches::Kernel::new(self.session.notifier(), Arc::downgrade(&self.device)))
    }

    fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// What the kernel asks.
struct Kernel<F>(Requests<F>);

fn from(request: &Request) -> From {
    From::new(request.unique().0, (request.uid(), request.gid(), request.pid()))
}

impl<F: Fabric + 'static> Filesystem for Kernel<F> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not flock's, which fuser does not tell apart: those stay the kernel's, and this mount's.
        let locks = self.0.fs.share_locks.then_some(InitFlags::FUSE_POSIX_LOCKS);
        for flag in WANTED.into_iter().chain(locks) {
            let refused = config.add_capabilities(flag).is_err();
            if refused {
                kos_types::log!("kos-fuse: this kernel has no {flag:?}; the mount works without");
            }
            if flag == InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP {
                self.0.fs.streams.store(!refused && super::takes_pages(WRITE_BYTES_MAX), Ordering::Relaxed);
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
        self.0.fs.in_place.store(in_place, Ordering::Relaxed);
        // Refused values leave the kernel's own: slower, not wrong.
        if config.set_max_write(WRITE_BYTES_MAX).is_err()
            || config.set_max_background(BACKGROUND_MAX).is_err()
        {
            kos_types::log!("kos-fuse: the kernel keeps its own request sizes");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookup((ino(parent), name.as_bytes()), entry(reply));
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.0.fs.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattr(ino(node), attributes(reply));
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
        let set = SetAttr {
            mode,
            uid,
            gid,
            size: size.map(|size| SetSize { size }),
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            kill_suidgid: size.is_some() && !is_privileged(req.uid()),
        };
        self.0.setattr(ino(node), set, from(req), attributes(reply));
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
        let bits = (mode & 0o7777, umask, rdev);
        self.0.make((ino(parent), name.as_bytes()), kind_of_mode(mode), bits, from(req), b"", entry(reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let bits = (mode & 0o7777, umask, 0);
        self.0.make((ino(parent), name.as_bytes()), Some(FileKind::Dir), bits, from(req), b"", entry(reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.unlink((ino(parent), name.as_bytes()), from(req), empty(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.rmdir((ino(parent), name.as_bytes()), from(req), empty(reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target) = ((ino(parent), name.as_bytes()), target.as_os_str().as_bytes());
        let bits = (0o777, 0, 0);
        self.0.make(name, Some(FileKind::Symlink), bits, from(req), target, entry(reply));
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
        let (old, new) = ((ino(parent), name.as_bytes()), (ino(newparent), newname.as_bytes()));
        self.0.rename(old, new, flags.bits(), from(req), empty(reply));
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.0.link(ino(node), (ino(newparent), newname.as_bytes()), from(req), entry(reply));
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.0.open(ino(node), flags.0, from(req), reply);
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
        let name = (ino(parent), name.as_bytes());
        self.0.create(name, (mode, umask), flags, from(req), created(reply));
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
        // The kernel names an owner where a program's read comes as it is.
        self.0.read((ino(node), fh.0), (offset, size), lock_owner.is_none(), from(req), reply);
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
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let write = Write { off: offset, data, flags: flags.0, mapped, kill };
        self.0.write(ino(node), write, from(req), written(reply));
    }

    fn flush(&self, req: &Request, node: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        empty(reply)(self.0.flush(ino(node), fh.0, lock_owner.0, from(req)));
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
        held(reply, self.0.getlk(ino(node), lock(lock_owner, (start, end), typ, pid)));
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
        let wanted = lock(lock_owner, (start, end), typ, pid);
        self.0.setlk((ino(node), fh.0), wanted, sleep, from(req), empty(reply));
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
        empty(reply)(self.0.release(fh.0));
    }

    fn fsync(&self, req: &Request, node: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.fsync(ino(node), fh.0, from(req), empty(reply));
    }

    fn fsyncdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.fsyncdir(ino(node), empty(reply));
    }

    fn readdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.0.readdir(ino(node), offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.0.readdir(ino(node), offset, reply);
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        space(reply, self.0.statfs());
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
        self.0.setxattr(ino(node), (name.as_bytes(), value), flags, from(req), empty(reply));
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        value(reply, self.0.getxattr(ino(node), name.as_bytes(), size));
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        value(reply, self.0.listxattr(ino(node), size));
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.removexattr(ino(node), name.as_bytes(), from(req), empty(reply));
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
        self.0.fallocate(ino(node), (offset, length), mode, from(req), empty(reply));
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
        self.0.lseek(ino(node), offset, whence, position(reply));
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
        // The reply counts in 32 bits; whole blocks keep the next call aligned.
        let len = len.min(1 << 30);
        let (source, target) = ((ino(ino_in), offset_in), (ino(ino_out), offset_out));
        self.0.copy(source, target, len, from(req), written(reply));
    }
}
