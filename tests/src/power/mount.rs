//! The kernel's requests as calls of [`Disk`]. Nothing is decided here.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL,
    TimeOrNow, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};

use super::content::{BLOCK, Change};
use super::cut::Cut;
use super::disk::{Disk, Meta, Name, ROOT};
use super::hang::{Hang, Hanging, What};
use crate::{Rng, is_mounted};

/// Only this mount changes the disk.
const TTL: Duration = Duration::from_secs(3600);
const THREADS: usize = 4;
/// More than any test needs.
const HANG_MAX: Duration = Duration::from_mins(10);
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// A mounted disk that can lose its power; unmounted when dropped.
#[derive(Debug)]
pub struct PowerFs {
    dir: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None while there is no power.
    disk: Mutex<Option<Disk>>,
    hanging: Arc<Hanging>,
}

impl PowerFs {
    /// Mount `disk` at `dir`.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn mount(dir: &Path, disk: Disk) -> Self {
        Self { dir: dir.to_path_buf(), shared: serve(dir, disk) }
    }

    /// The power goes: from now on every operation fails. What was answered before is all there is.
    #[must_use]
    pub fn cut_power(&self) -> Disk {
        self.shared.lock().take().expect("has power")
    }

    /// The power comes back: mount what the cut left. Whoever used the old mount must be gone.
    pub fn restart(&mut self, off: &Disk, cut: Cut, rng: &mut Rng) {
        self.unmount();
        self.shared = serve(&self.dir, off.after(cut, rng));
    }

    /// From now on fsync answers and does nothing, over cuts too.
    pub fn ignore_fsync(&self) {
        if let Some(disk) = self.shared.lock().as_mut() {
            disk.ignores_fsync = true;
        }
    }

    /// Others fill the disk, or leave it: it has so many bytes from now on.
    pub fn set_capacity(&self, bytes: u64) {
        if let Some(disk) = self.shared.lock().as_mut() {
            disk.capacity = bytes;
        }
    }

    /// Let what needs the disk hang of a directory, which is given as a path below the mount.
    ///
    /// # Panics
    /// When it is not there.
    pub fn hang_dir(&self, dir: &str) -> Hang {
        self.hang_what(What::These(self.tree(dir)))
    }

    /// The same of fsync alone.
    ///
    /// # Panics
    /// When it is not there.
    pub fn hang_syncs(&self, dir: &str) -> Hang {
        self.hang_what(What::SyncsOf(self.tree(dir)))
    }

    fn tree(&self, dir: &str) -> BTreeSet<u64> {
        let tree = self.shared.with(|disk| {
            let mut ino = ROOT;
            for name in dir.split('/') {
                ino = disk.lookup(&(ino, name.as_bytes().to_vec()))?;
            }
            Ok(disk.tree(ino))
        });
        tree.expect("the directory")
    }

    fn hang_what(&self, what: What) -> Hang {
        self.shared.hanging.hang(what);
        let hanging = Arc::downgrade(&self.shared.hanging);
        // A test that hangs itself must not leave processes behind that nothing ends.
        std::thread::spawn(move || {
            std::thread::sleep(HANG_MAX);
            hanging.upgrade().inspect(|hanging| hanging.let_go());
        });
        Hang(Arc::clone(&self.shared.hanging))
    }

    /// Bytes allocated for what programs see.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.shared.lock().as_ref().map_or(0, Disk::bytes_used)
    }
}

impl Drop for PowerFs {
    fn drop(&mut self) {
        // The daemon's end may have unmounted it with everything else.
        if is_mounted(&self.dir) {
            self.unmount();
        }
    }
}

impl PowerFs {
    fn unmount(&self) {
        if let Err(e) = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH) {
            eprintln!("power: unmount {}: {e}", self.dir.display());
        }
    }
}

/// Mount `disk` and answer the kernel until it is unmounted.
fn serve(dir: &Path, disk: Disk) -> Arc<Shared> {
    let shared = Arc::new(Shared { disk: Mutex::new(Some(disk)), hanging: Arc::default() });
    let device = attach(dir).expect("mount: needs root and /dev/fuse");
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = fuser::Session::from_fd(Session(Arc::clone(&shared)), device, SessionACL::All, config)
        .expect("handshake with the kernel");
    std::thread::spawn(move || {
        if let Err(e) = session.run() {
            eprintln!("power: the session ended: {e}");
        }
    });
    shared
}

fn attach(dir: &Path) -> io::Result<OwnedFd> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    rustix::mount::mount(
        "kos-power",
        dir,
        "fuse.kos-power",
        MountFlags::empty(),
        Some(&*CString::new(data)?),
    )?;
    Ok(device.into())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, run: impl FnOnce(&mut Disk) -> Result<T, rustix::io::Errno>) -> Result<T, Errno> {
        let mut disk = self.lock();
        let disk = disk.as_mut().ok_or(Errno::EIO)?;
        run(disk).map_err(|e| Errno::from_i32(e.raw_os_error()))
    }

    fn attr(disk: &Disk, ino: u64) -> Result<FileAttr, rustix::io::Errno> {
        let inode = disk.inode(ino)?;
        let Meta { is_dir, mode, uid, gid, mtime } = inode.meta;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size: inode.now.size(),
            blocks: inode.now.bytes() / 512,
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: if is_dir { FileType::Directory } else { FileType::RegularFile },
            perm: (mode & 0o7777) as u16,
            nlink: inode.links,
            uid,
            gid,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        })
    }
}

struct Session(Arc<Shared>);

fn name(dir: INodeNo, name: &OsStr) -> Name {
    (dir.0, name.as_bytes().to_vec())
}

fn entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

impl Session {
    /// Answer what needs the disk: at once, or when it hangs no more. Attributes, names and sizes that are known
    /// are answered from memory by disk filesystems too.
    fn answer(&self, ino: INodeNo, request: impl FnOnce(&Self) + Send + 'static) {
        let own = Self(Arc::clone(&self.0));
        self.0.hanging.answer(ino.0, false, move || request(&own));
    }

    fn sync(
        &self,
        ino: INodeNo,
        reply: ReplyEmpty,
        sync: impl FnOnce(&mut Disk) -> Result<(), rustix::io::Errno> + Send + 'static,
    ) {
        let own = Self(Arc::clone(&self.0));
        self.0.hanging.answer(ino.0, true, move || empty(reply, own.0.with(sync)));
    }

    fn create(&self, (uid, gid): (u32, u32), path: Name, is_dir: bool, mode: u32) -> Result<FileAttr, Errno> {
        let mtime = SystemTime::now();
        let meta = Meta { is_dir, mode: mode & 0o7777, uid, gid, mtime };
        self.0.with(|disk| {
            let ino = disk.create(path, meta)?;
            if !is_dir {
                disk.open(ino, false)?;
            }
            Shared::attr(disk, ino)
        })
    }
}

impl Filesystem for Session {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Kernels without these are slower here, not wrong.
        let _ = config.add_capabilities(InitFlags::FUSE_MAX_PAGES);
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, file: &OsStr, reply: ReplyEntry) {
        entry(
            reply,
            self.0.with(|disk| disk.lookup(&name(parent, file)).and_then(|ino| Shared::attr(disk, ino))),
        );
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.with(|disk| Shared::attr(disk, ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.answer(ino, move |own| {
            let changed = own.0.with(|disk| {
                if let Some(size) = size {
                    disk.change(ino.0, Change::Size(size))?;
                }
                disk.set_meta(ino.0, |meta| {
                    meta.mode = mode.map_or(meta.mode, |mode| mode & 0o7777);
                    meta.uid = uid.unwrap_or(meta.uid);
                    meta.gid = gid.unwrap_or(meta.gid);
                })?;
                Shared::attr(disk, ino.0)
            });
            match changed {
                Ok(attr) => reply.attr(&TTL, &attr),
                Err(e) => reply.error(e),
            }
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, file: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (path, owner) = (name(parent, file), (req.uid(), req.gid()));
        self.answer(parent, move |own| entry(reply, own.create(owner, path, true, mode)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, file: &OsStr, reply: ReplyEmpty) {
        let path = name(parent, file);
        self.answer(parent, move |own| empty(reply, own.0.with(|disk| disk.remove(path, false))));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, file: &OsStr, reply: ReplyEmpty) {
        let path = name(parent, file);
        self.answer(parent, move |own| empty(reply, own.0.with(|disk| disk.remove(path, true))));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        file: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = match flags {
            flags if flags.is_empty() => true,
            RenameFlags::RENAME_NOREPLACE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = (name(parent, file), name(newparent, newname));
        let dir = if self.0.hanging.holds(parent.0) { parent } else { newparent };
        self.answer(dir, move |own| empty(reply, own.0.with(|disk| disk.rename(from, to, replace))));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        self.answer(ino, move |own| match own.0.with(|disk| disk.open(ino.0, truncate)) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(e),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        file: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (path, owner) = (name(parent, file), (req.uid(), req.gid()));
        self.answer(parent, move |own| match own.create(owner, path, false, mode) {
            Ok(attr) => {
                reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(e),
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let released = self.0.with(|disk| {
            disk.release(ino.0);
            Ok(())
        });
        empty(reply, released);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(ino, move |own| match own.0.with(|disk| disk.read(ino.0, offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(e) => reply.error(e),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = move |own: &Self, data: &[u8]| {
            let written = own.0.with(|disk| {
                disk.write(ino.0, offset, data)?;
                disk.set_meta(ino.0, |meta| meta.mtime = SystemTime::now())
            });
            match written {
                // A request holds at most WRITE_BYTES_MAX bytes.
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(e),
            }
        };
        if self.0.hanging.holds(ino.0) {
            let data = data.to_vec();
            self.answer(ino, move |own| write(own, &data));
        } else {
            write(self, data);
        }
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply, move |disk| disk.fsync(ino.0));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply, move |disk| {
            disk.fsync_dir(ino.0);
            Ok(())
        });
    }

    fn readdir(&self, _req: &Request, dir: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.0.with(|disk| {
            for (ino, file) in disk.list(dir.0, offset) {
                let is_dir = disk.inode(ino)?.meta.is_dir;
                let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
                if reply.add(INodeNo(ino), ino, kind, OsStr::from_bytes(file)) {
                    break;
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.0.with(|disk| Ok((disk.capacity, disk.bytes_used()))) {
            Ok((total, used)) => {
                let (total, free) = (total / BLOCK, total.saturating_sub(used) / BLOCK);
                reply.statfs(total, free, free, free, free, BLOCK as u32, 255, BLOCK as u32);
            }
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let end = offset.saturating_add(length);
        self.answer(ino, move |own| {
            let done = own.0.with(|disk| match mode {
                PUNCH => disk.change(ino.0, Change::Punch(offset..end)),
                // Nothing is reserved: a full disk shows at the write.
                libc::FALLOC_FL_KEEP_SIZE => Ok(()),
                0 if disk.inode(ino.0)?.now.size() < end => disk.change(ino.0, Change::Size(end)),
                0 => Ok(()),
                _ => Err(rustix::io::Errno::OPNOTSUPP),
            });
            empty(reply, done);
        });
    }
}
