//! What file operations mean, without a word of the kernel's protocol.

mod handles;
mod recover;
mod sync;
mod unnamed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kos_types::{
    Attr, Consistency, Dirent, Error, Fabric, FileKind, Ino, JOBS, Kind, Op, ROOT, RenameMode, Reply, Result,
    SetAttr, Source, SpaceUsage, XattrMode, limits,
};

use self::handles::{Handle, Handles, Opened};
use crate::arena::{Arena, Buffers};
use crate::control::{self, ControlFile, SNAP, TOP, Tree};
use crate::file::{Access, Files, PATIENCE, Way, now};
use crate::jobs::{self, Caller, Jobs};
use crate::known::Known;
use crate::leases::{Held, is_shared};
use crate::locks::Locks;
use crate::once;
use crate::seal::{Backing, Register, SEAL};
use crate::signals::Signals;

/// `.` and `..` in listings.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;
const SUID_SGID: u32 = 0o6000;
const CAPABILITY: &[u8] = b"security.capability";
const PIN: &[u8] = b"user.kos.pin";
/// How long the kernel may answer from its caches while only this mount changes the tree: so this
/// bounds only how old the block count of a file flushed in the background may be, and how long
/// another mount waits for the caches to be empty.
pub(crate) const TTL: Duration = Duration::from_secs(1);

/// A file system call's target by name.
pub(crate) type Name<'a> = (Ino, &'a [u8]);

/// How the kernel is to treat an open file.
#[derive(Debug, Clone)]
pub(crate) enum Caching {
    /// Page cache, kept from the last open.
    Keep,
    /// Page cache, emptied at this open.
    Fresh,
    /// Every read and write comes here.
    Direct,
    /// The kernel reads a copy of the file, and asks nobody.
    InPlace(Backing),
}

/// fallocate(2)'s operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allocate {
    /// Make room; the file grows.
    Extend,
    /// Make room beyond the end without growing.
    Reserve,
    /// `PUNCH_HOLE`.
    Punch,
    /// `ZERO_RANGE`; with `true` the size is kept.
    Zero(bool),
}

/// A mounted fabric.
pub(crate) struct Fs<F> {
    pub(crate) fabric: Arc<F>,
    /// What the next process finds.
    pub(crate) arena: Arc<Arena>,
    once: Arc<once::Table>,
    pub(crate) files: Arc<Files<F>>,
    control: Tree,
    pub(crate) jobs: Jobs,
    handles: Handles,
    pub(crate) known: Known,
    pub(crate) held: Held,
    pub(crate) locks: Arc<Locks>,
    pub(crate) signals: Arc<Signals>,
    /// What is only written goes past the page cache: the kernel can map a file that is open that way.
    pub(crate) streams: AtomicBool,
    /// The fabric is another process.
    pub(crate) is_remote: bool,
    /// The next process goes on with this mount, if this one is killed.
    pub(crate) outlives: AtomicBool,
    /// POSIX locks are asked of the fabric.
    pub(crate) share_locks: bool,
    /// Relaxed files have been opened beside other mounts.
    pub(crate) was_shared: AtomicBool,
    /// The kernel reads copies in place when it is told of them.
    pub(crate) in_place: AtomicBool,
}

/// Whose changes leave setuid and setgid alone. The kernel asks for CAP_FSETID, which requests do not
/// show.
pub(crate) const fn is_privileged(user: u32) -> bool {
    user == 0
}

/// What is pinned takes memory from everybody else: root decides where, and bounds it by a quota there (ADR 65).
fn may_pin(name: &[u8], user: u32) -> Result<()> {
    if name == PIN && !is_privileged(user) {
        return Err(Error::new(Kind::NotPermitted, "setxattr: only root pins to memory"));
    }
    Ok(())
}

fn fixed() -> Error {
    Error::new(Kind::NotPermitted, "the mount's root holds only kosfs's own directories: use mem/")
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(Kind::Io, format!("fabric: unexpected reply {reply:?}"))
}

impl<F: Fabric> Fs<F> {
    pub(crate) fn new(fabric: Arc<F>, control: Vec<ControlFile>, arena: Arc<Arena>) -> Self {
        Self::with_patience(fabric, control, arena, PATIENCE)
    }

    /// `patience` is what a request waits for one thing.
    pub(crate) fn with_patience(
        fabric: Arc<F>,
        control: Vec<ControlFile>,
        arena: Arc<Arena>,
        patience: Duration,
    ) -> Self {
        let has_jobs = fabric.attr(JOBS).is_ok();
        let signals = Arc::<Signals>::default();
        Self {
            files: Arc::new(Files::new(Arc::clone(&fabric), patience, Buffers::new(Arc::clone(&arena)))),
            fabric,
            control: Tree::new(control, now(), has_jobs),
            jobs: Jobs::new(Arc::clone(&signals)),
            handles: Handles::new(&arena),
            once: Arc::new(once::Table::new(&arena)),
            known: Known::new(&arena),
            held: Held::default(),
            locks: Arc::new(Locks::new(Arc::clone(&signals), &arena)),
            signals,
            streams: AtomicBool::new(false),
            is_remote: false,
            share_locks: false,
            was_shared: AtomicBool::new(false),
            in_place: AtomicBool::new(false),
            outlives: AtomicBool::new(false),
            arena,
        }
    }

    /// A request begins that must not be done twice. What another process is asked it does once anyway.
    pub(crate) fn once(&self, unique: u64) -> once::Request {
        if self.is_remote { once::Request::default() } else { self.once.begin(unique) }
    }

    /// How long the kernel may answer for us. A program's setuid is never old: the kernel does not
    /// look at its mode again after a write that cleared it.
    pub(crate) fn ttl(&self, attr: &Attr) -> Duration {
        let privileged = attr.kind == FileKind::File && attr.mode & SUID_SGID != 0;
        if privileged || self.fabric.shared() { Duration::ZERO } else { TTL }
    }

    pub(crate) fn lookup(&self, (parent, name): Name<'_>) -> Result<Attr> {
        if let Some((id, file)) = self.job_file((parent, name))? {
            return self.job_file_attr(id, file);
        }
        if parent == SNAP {
            let found = self.fabric.snapshots()?.into_iter().find(|snapshot| snapshot.name == name);
            let found = found.ok_or_else(|| Error::new(Kind::NotFound, "lookup: no such snapshot"))?;
            return self.fabric.attr(ROOT.in_view(found.view));
        }
        if control::owns(parent) {
            return self.attr(self.control.lookup(parent, name)?);
        }
        self.files.fresh(|| self.fabric.lookup(parent, name))
    }

    /// What of the regions' tree a control directory names.
    pub(crate) fn control_target(&self, (parent, name): Name<'_>) -> Option<Ino> {
        let found = if control::owns(parent) { self.control.lookup(parent, name).ok() } else { None };
        found.filter(|&ino| is_shared(ino))
    }

    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        if let Some((id, file)) = jobs::file_of(ino) {
            return self.job_file_attr(id, file);
        }
        if control::owns(ino) {
            return self.control.attr(ino);
        }
        self.files.fresh(|| self.fabric.attr(ino))
    }

    pub(crate) fn set_attr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        if let Some((id, file)) = jobs::file_of(ino) {
            return self.job_file_set(id, file, &set);
        }
        if control::owns(ino) {
            // What O_TRUNC asks for: a write replaces nothing.
            let only_size = SetAttr { size: set.size, ..SetAttr::default() };
            let truncates = set.size.is_some() && set == only_size && self.control.file(ino)?.write.is_some();
            return if truncates { self.control.attr(ino) } else { Err(fixed()) };
        }
        if set.size.is_some() {
            self.await_seal(ino)?;
        }
        let attr = self.files.set_attr(ino, set);
        self.held.kept.forget(ino);
        attr
    }

    pub(crate) fn create(
        &self,
        (parent, name): Name<'_>,
        kind: FileKind,
        (mode, umask, rdev): (u32, u32, u32),
        who: Caller,
        target: &[u8],
    ) -> Result<Attr> {
        if parent == SNAP && kind == FileKind::Dir {
            return self.take_snapshot(name);
        }
        if control::owns(parent) {
            return Err(fixed());
        }
        let mode = self.job_create((parent, name), kind, mode)?;
        let (cred, target, own) = (who.cred, target.to_vec(), name.to_vec());
        let op = Op::Create { parent, name: own, kind, mode, umask, cred, rdev, target };
        let created = self.files.propose(op);
        self.held.kept.changed(parent, name);
        match created? {
            Reply::Attr(attr) => {
                self.job_created((parent, name), attr.ino, who);
                Ok(attr)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) fn link(&self, ino: Ino, (parent, name): Name<'_>, who: Caller) -> Result<Attr> {
        if control::owns(parent) || control::owns(ino) {
            return Err(fixed());
        }
        if let Some(attr) = self.job_linked(ino, (parent, name), who)? {
            return Ok(attr);
        }
        let link = Op::Link { ino, parent, name: name.to_vec() };
        let linked = self.fabric.propose_once(link, once::name());
        self.held.kept.changed(parent, name);
        linked?;
        self.known.named(ino);
        self.attr(ino)
    }

    pub(crate) fn unlink(&self, (parent, name): Name<'_>) -> Result<()> {
        if let Some((id, _)) = self.job_file((parent, name))? {
            return self.job_cancel(id);
        }
        self.remove((parent, name), Op::Unlink { parent, name: name.to_vec() })
    }

    /// What programs have written is in it, also what they did not flush.
    fn take_snapshot(&self, name: &[u8]) -> Result<Attr> {
        self.files.flush_all()?;
        // Or it would hold what nobody can see in it.
        self.files.reap();
        match self.fabric.propose(Op::TakeSnapshot { name: name.to_vec() })? {
            Reply::Snapshot(taken) => self.fabric.attr(ROOT.in_view(taken.view)),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) fn rmdir(&self, (parent, name): Name<'_>) -> Result<()> {
        if parent == SNAP {
            return self.fabric.propose(Op::DropSnapshot { name: name.to_vec() }).map(drop);
        }
        self.remove((parent, name), Op::Rmdir { parent, name: name.to_vec() })
    }

    fn remove(&self, (parent, name): Name<'_>, op: Op) -> Result<()> {
        if control::owns(parent) {
            return Err(fixed());
        }
        self.job_unlinking((parent, name));
        let removed = self.fabric.propose_once(op, once::name());
        self.held.kept.changed(parent, name);
        match removed? {
            Reply::Unlinked(attr) => {
                self.held.kept.forget(attr.ino);
                self.job_unlinked(parent, attr.ino);
                self.unlinked(&attr);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The kernel forgets an inode without a name when its last user lets go.
    pub(crate) fn unlinked(&self, attr: &Attr) {
        if attr.nlink == 0 && self.known.unnamed(attr.ino) {
            self.files.abandon(attr.ino);
        }
    }

    /// The answer that is about to go to the kernel names an inode, which counts until it is
    /// forgotten.
    pub(crate) fn told(&self, ino: Ino) {
        if !control::owns(ino) {
            self.known.told(ino);
        }
    }

    /// The kernel forgot so many of the answers that named an inode.
    pub(crate) fn forget(&self, ino: Ino, times: u64) {
        if self.known.forgot(ino, times) {
            self.files.abandon(ino);
        }
    }

    /// The mount is gone, and with it every user of a file.
    pub(crate) fn end(&self) {
        self.known.end().into_iter().for_each(|ino| self.files.abandon(ino));
        self.files.reap();
    }

    pub(crate) fn rename(&self, from: Name<'_>, to: Name<'_>, mode: RenameMode, who: Caller) -> Result<()> {
        if control::owns(from.0) || control::owns(to.0) {
            return Err(fixed());
        }
        if self.job_renamed(from, to, mode, who)? {
            return Ok(());
        }
        // Programs replace files by writing a new one and renaming it over the old: its data
        // goes first, or a crash could leave an empty file where either was promised.
        if mode != RenameMode::NoReplace
            && self.fabric.lookup(to.0, to.1).is_ok()
            // What is not there may have been moved before this process was asked.
            && let Ok(source) = self.fabric.lookup(from.0, from.1)
        {
            self.files.flush(source.ino)?;
        }
        let op = Op::Rename {
            parent: from.0,
            name: from.1.to_vec(),
            new_parent: to.0,
            new_name: to.1.to_vec(),
            mode,
        };
        let renamed = self.files.propose(op);
        // What was moved or replaced may be a directory.
        self.held.kept.forget_all();
        match renamed? {
            Reply::Renamed { replaced, .. } => {
                if let Some(attr) = replaced {
                    self.unlinked(&attr);
                }
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.fabric.readlink(ino)
    }

    /// Give entries behind position `after` to `add` until it is full.
    pub(crate) fn list(&self, ino: Ino, after: u64, mut add: impl FnMut(&Dirent) -> bool) -> Result<()> {
        let dot = |cookie, name: &[u8], ino| -> Result<Dirent> {
            Ok(Dirent { cookie, name: name.to_vec(), attr: self.attr(ino)? })
        };
        if after < DOT && add(&dot(DOT, b".", ino)?) {
            return Ok(());
        }
        if after < DOTDOT {
            let parent = match ino {
                ROOT | JOBS => TOP,
                _ if ino == ROOT.in_view(ino.view()) => SNAP,
                _ if control::owns(ino) => self.control.parent(ino)?,
                _ => self.fabric.parent(ino)?,
            };
            if add(&dot(DOTDOT, b"..", parent)?) {
                return Ok(());
            }
        }
        if ino == SNAP {
            // Views are below the positions of everything else, and stay while others come and go.
            let mut all = self.fabric.snapshots()?;
            all.sort_unstable_by_key(|snapshot| snapshot.view);
            for snapshot in all {
                let cookie = DOTDOT + snapshot.view;
                if cookie > after && add(&dot(cookie, &snapshot.name, ROOT.in_view(snapshot.view))?) {
                    break;
                }
            }
            return Ok(());
        }
        if control::owns(ino) {
            for (cookie, name, ino) in self.control.list(ino, after)? {
                if add(&dot(cookie, name.as_bytes(), ino)?) {
                    break;
                }
            }
            return Ok(());
        }
        if self.job_files_list(ino, after, &mut add)? {
            return Ok(());
        }
        let mut after = after;
        loop {
            // The kernel asks for a page's worth; a buffer holds at most some hundred entries.
            let entries = self.fabric.list(ino, after, 128)?;
            let Some(last) = entries.last() else { return Ok(()) };
            after = last.cookie;
            for mut entry in entries {
                if entry.attr.kind == FileKind::File {
                    // It may be gone since the listing was read.
                    match self.attr(entry.attr.ino) {
                        Ok(attr) => entry.attr = attr,
                        Err(e) if e.kind() == Kind::Stale => continue,
                        Err(e) => return Err(e),
                    }
                }
                if add(&entry) {
                    return Ok(());
                }
            }
        }
    }

    pub(crate) fn open(
        &self,
        ino: Ino,
        (flags, consistency): (i32, Consistency),
        register: Register<'_>,
    ) -> Result<(u64, Caching)> {
        if let Some((id, file)) = jobs::file_of(ino) {
            let contents = self.job_file_open(id, file, flags)?;
            return Ok((self.handles.add(Handle::Control(Some(contents))), Caching::Direct));
        }
        if control::owns(ino) {
            let file = self.control.file(ino)?;
            if flags & libc::O_ACCMODE != libc::O_RDONLY && file.write.is_none() {
                return Err(fixed());
            }
            let contents = (!file.live).then(|| (file.read)().into());
            return Ok((self.handles.add(Handle::Control(contents)), Caching::Direct));
        }
        if ino.view() != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Error::new(Kind::ReadOnly, "open: a snapshot is not changed"));
        }
        self.opened(ino, (flags, consistency), register)
    }

    /// A handle for a region; it may have gone since the kernel looked it up.
    pub(crate) fn opened(
        &self,
        ino: Ino,
        (flags, consistency): (i32, Consistency),
        register: Register<'_>,
    ) -> Result<(u64, Caching)> {
        // O_DIRECT and O_APPEND go through the page cache: the kernel keeps those in step with it itself,
        // which it does not do for descriptors whose bytes all come here (ADR 10, 76). Where others change the
        // file too, it may not know where the file ends: nothing goes through it then, but what may be old (ADR 86).
        let shared = self.fabric.shared();
        let appends = flags & libc::O_APPEND != 0;
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::Read,
            _ if appends && shared => Access::Stream,
            libc::O_WRONLY if !appends && self.streams.load(Ordering::Relaxed) => Access::Stream,
            _ => Access::Write,
        };
        let attr = self.open_in_fabric(ino, access != Access::Read)?;
        let cacheable = !shared || consistency != Consistency::Strong;
        let lend = || self.lend(&attr, register);
        let (node, way, backing) = self.files.open(ino, (access, cacheable, consistency), lend);
        let writes = access != Access::Read;
        self.held.opened(ino, flags);
        let copy = backing.as_ref().map_or(0, |backing| backing.id);
        let opened = Opened { ino, way, writes, errors_seen: node.errors(), flags, copy };
        let handle = self.handles.add(Handle::File(opened));
        self.job_opened(ino, handle, flags);
        let ordinary = if way == Way::Cached { self.cached(consistency) } else { Caching::Direct };
        Ok((handle, backing.map_or(ordinary, Caching::InPlace)))
    }

    pub(crate) fn release(&self, handle: u64) {
        if let Some(Handle::File(Opened { ino, way, writes, flags, .. })) = self.handles.remove(handle) {
            self.held.released(ino, flags);
            self.job_released(ino, handle);
            if writes {
                self.writer_closed(ino, way);
            } else {
                self.reader_closed(ino, way);
            }
        }
    }

    /// Whether any handle is of this file.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.handles.any_of(ino)
    }

    /// Fill `out` from `off` on; answers how far, which is less only at the end of the file.
    pub(crate) fn read(&self, ino: Ino, handle: u64, off: u64, out: &mut [u8]) -> Result<usize> {
        if control::owns(ino) {
            let Some(Handle::Control(kept)) = self.handles.get(handle) else {
                return Err(Error::new(Kind::Stale, "read: control file"));
            };
            let contents = kept.map_or_else(|| self.contents(ino), Ok)?;
            let from = usize::try_from(off).unwrap_or(usize::MAX).min(contents.len());
            let len = out.len().min(contents.len() - from);
            out[..len].copy_from_slice(&contents[from..from + len]);
            return Ok(len);
        }
        self.files.read(ino, off, out)
    }

    /// What a control file or a job's says now.
    fn contents(&self, ino: Ino) -> Result<Arc<[u8]>> {
        match jobs::file_of(ino) {
            Some((id, file)) => self.job_file_open(id, file, libc::O_RDONLY),
            None => self.control.read(ino).map(Arc::from),
        }
    }

    /// Without an offset the bytes are appended: the kernel's idea of the end may be old, ours is
    /// taken under the file's lock. `kill` clears setuid and setgid: the kernel says so for
    /// writers without privilege. Answers where they are now.
    pub(crate) fn write(&self, ino: Ino, off: Option<u64>, data: &[u8], kill: bool) -> Result<u64> {
        if let Some((id, file)) = jobs::file_of(ino) {
            return self.job_file_write(id, file, data).map(|()| off.unwrap_or(0));
        }
        if control::owns(ino) {
            let write = self.control.file(ino)?.write.as_ref().ok_or_else(fixed)?;
            // What was removed before a command is gone for it.
            self.files.reap();
            return write(data, &|| self.flush_all()).map(|()| off.unwrap_or(0));
        }
        self.strip(ino, kill)?;
        let at = self.files.write(ino, off, data)?;
        self.job_written(ino);
        Ok(at)
    }

    /// What a change of a file's bytes takes from it: setuid and setgid with `kill`, and capabilities, which
    /// the kernel takes away itself but where bytes go past its cache.
    fn strip(&self, ino: Ino, kill: bool) -> Result<()> {
        if kill && self.fabric.attr(ino)?.mode & SUID_SGID != 0 {
            self.files.set_attr(ino, SetAttr { kill_suidgid: true, ..SetAttr::default() })?;
        }
        if !self.files.is_written_past(ino) {
            return Ok(());
        }
        let is_none = |e: &Error| e.kind() == Kind::NoAttr;
        match self.fabric.xattr(ino, CAPABILITY) {
            Err(e) if is_none(&e) => return Ok(()),
            found => drop(found?),
        }
        match self.fabric.propose(Op::RemoveXattr { ino, name: CAPABILITY.to_vec() }) {
            Err(e) if is_none(&e) => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// `by` is the user who asks.
    pub(crate) fn allocate(&self, ino: Ino, off: u64, len: u64, mode: Allocate, by: u32) -> Result<()> {
        let end = off
            .checked_add(len)
            .filter(|&end| end <= limits::FILE_BYTES_MAX)
            .ok_or_else(|| Error::new(Kind::TooLarge, "fallocate"))?;
        self.strip(ino, !is_privileged(by))?;
        match mode {
            Allocate::Extend | Allocate::Reserve => {
                // Stripes are never overwritten in place, so nothing can be set aside for a
                // range; but what cannot fit is told now.
                if len > self.fabric.usage()?.bytes_free {
                    return Err(Error::new(Kind::NoSpace, "fallocate: more than the pool has free"));
                }
                if mode == Allocate::Extend && self.attr(ino)?.size < end {
                    // An empty hole at the end: never shorter than others make it meanwhile.
                    self.files.punch(ino, end, 0, Some(end))?;
                }
                Ok(())
            }
            Allocate::Punch | Allocate::Zero(true) => self.files.punch(ino, off, len, None),
            Allocate::Zero(false) => self.files.punch(ino, off, len, Some(end)),
        }
    }

    /// The next data or hole from `off` on; none beyond the end of the file.
    pub(crate) fn seek(&self, ino: Ino, off: u64, data: bool) -> Result<Option<u64>> {
        self.files.flush(ino)?;
        let size = self.attr(ino)?.size;
        let (mut at, deadline) = (off, self.files.deadline());
        while at < size {
            deadline.check("lseek: the fabric is too slow")?;
            let map = self.fabric.extents(ino, at, size - at)?;
            if map.extents.is_empty() {
                break;
            }
            for extent in &map.extents {
                if (extent.source == Source::Hole) != data {
                    return Ok(Some(extent.off));
                }
                at = extent.off + extent.len;
            }
        }
        Ok((!data && off < size).then_some(size))
    }

    /// Answers the bytes copied: fewer at the end of the source. `by` is the user who asks.
    pub(crate) fn copy(&self, from: (Ino, u64), to: (Ino, u64), len: u64, by: u32) -> Result<u64> {
        if control::owns(from.0) || control::owns(to.0) {
            return Err(Error::new(Kind::Unsupported, "copy_file_range: a file without stripes"));
        }
        let size = self.attr(from.0)?.size;
        let len = len.min(size.saturating_sub(from.1));
        if len > 0 {
            self.strip(to.0, !is_privileged(by))?;
            self.files.clone_range(from, to, len)?;
            self.job_written(to.0);
        }
        Ok(len)
    }

    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if control::owns(ino) {
            return Err(Error::new(Kind::NoAttr, "xattr"));
        }
        // What is in force, also where a directory above says it.
        match name {
            b"user.kos.durability" => Ok(self.fabric.policy(ino)?.class.to_string().into_bytes()),
            b"user.kos.compress" => Ok(self.fabric.policy(ino)?.compress.to_string().into_bytes()),
            PIN => Ok(self.fabric.policy(ino)?.pin.to_string().into_bytes()),
            b"user.kos.ec" => Ok(self.fabric.policy(ino)?.geometry.to_string().into_bytes()),
            SEAL => self.seal_xattr(ino),
            b"user.kos.consistency" => Ok(self.fabric.sharing(ino)?.consistency.to_string().into_bytes()),
            _ => self.fabric.xattr(ino, name),
        }
    }

    pub(crate) fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if control::owns(ino) {
            return Ok(Vec::new());
        }
        self.fabric.xattrs(ino)
    }

    /// `by` is the user who asks.
    pub(crate) fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        (value, mode): (&[u8], XattrMode),
        by: u32,
    ) -> Result<()> {
        if control::owns(ino) {
            return Err(fixed());
        }
        if name == SEAL {
            return self.set_seal(ino, value, mode);
        }
        if value != b"none" {
            may_pin(name, by)?;
        }
        let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode };
        let set = self.fabric.propose_once(op, once::name());
        self.held.kept.forget(ino);
        set.map(drop)
    }

    /// `by` is the user who asks.
    pub(crate) fn remove_xattr(&self, ino: Ino, name: &[u8], by: u32) -> Result<()> {
        if control::owns(ino) {
            return Err(fixed());
        }
        if name == SEAL {
            return self.remove_seal(ino);
        }
        // The directory above may be pinned.
        may_pin(name, by)?;
        let remove = Op::RemoveXattr { ino, name: name.to_vec() };
        let removed = self.fabric.propose_once(remove, once::name());
        self.held.kept.forget(ino);
        removed.map(drop)
    }

    pub(crate) fn usage(&self) -> Result<SpaceUsage> {
        self.files.reap();
        self.fabric.usage()
    }
}
