//! Mounting, unmounting, and what a mount asks of the machine.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use kos_types::lease::{Cache, Leases};
use kos_types::{Error, Fabric, Ino, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{major, minor};
pub use rustix::mount::MountFlags;

use crate::arena::Arena;
use crate::attach::{Detach, abort, attach, detach};
use crate::control::ControlFile;
use crate::file::Flusher;
use crate::fs::{Fs, TTL};
use crate::jobs::Answerer;
use crate::leases::{Noted, Returns, Watch};
use crate::locks;
use crate::session::{Caches, Fuser, Own, READ_BYTES_MAX, Session, WRITE_BYTES_MAX, raise_pages};
use crate::supervisor::{Kept, Link};

/// The kernel offers 128 KiB; sequential readers gain up to here.
const READAHEAD_KIB: u32 = 4096;

/// An answer under way when sharing began may reach the kernel a little later.
const SETTLE_MARGIN: Duration = Duration::from_millis(100);
/// Far more than requests in flight take.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// After so long somebody else must have the mount, too.
const ALONE: Duration = Duration::from_secs(2);

/// How and where to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The mount directory.
    pub dir: PathBuf,
    /// What mount(8) shows as the source.
    pub source: String,
    /// Requests served at once.
    pub threads: usize,
    /// No other mount of the fabric can have files that are just being dropped into the jobs' tree.
    pub first: bool,
    /// What mount(2) is told: read-only, no devices and the like.
    pub flags: MountFlags,
    /// The fabric is another process: what it says of directories is kept while others do not change them, and what it is asked
    /// takes longer.
    pub remote: bool,
    /// POSIX locks are the fabric's, for all mounts, and not the kernel's, for this one.
    pub share_locks: bool,
    /// Who speaks with the kernel.
    pub session: SessionKind,
}

/// Who speaks with the kernel, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionKind {
    /// The crate fuser, on /dev/fuse.
    Fuser,
    /// We, on /dev/fuse.
    #[default]
    Dev,
    /// We, by io_uring.
    Uring,
}

impl SessionKind {
    /// The environment's word for it.
    pub const VARIABLE: &str = "KOS_SESSION";

    /// What the environment says; the default where it does not.
    ///
    /// # Errors
    /// When it is no such word.
    pub fn of_environment() -> std::result::Result<Self, String> {
        std::env::var(Self::VARIABLE).map_or_else(|_| Ok(Self::default()), |word| word.parse())
    }
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fuser => "fuser",
            Self::Dev => "dev",
            Self::Uring => "uring",
        })
    }
}

impl FromStr for SessionKind {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        match word {
            "fuser" => Ok(Self::Fuser),
            "dev" => Ok(Self::Dev),
            "uring" => Ok(Self::Uring),
            _ => Err(format!("there is no session {word:?}: it is uring, dev or fuser")),
        }
    }
}

/// A mount in this process.
pub struct Mounted {
    dir: PathBuf,
    /// The connection's number.
    connection: u32,
    flush: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Throw all pages out, once nothing runs that began without a lease.
    drop_pages: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Fetch what mappings hold of open files.
    write_back: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Drop what only the mount's users held.
    end: Box<dyn Fn() + Send + Sync>,
    /// The mount had gone when this process took it over.
    was_gone: bool,
    /// Disconnected when the session has ended and holds the fabric no more.
    ended: Receiver<()>,
    _flusher: Flusher,
    _answerer: Answerer,
    _lock_answerer: locks::Answerer,
    _watch: Option<Watch>,
    _leases: Option<Arc<dyn Leases>>,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Mount `fabric`, with `control` beside the regions' tree. The mount answers when this returns; `ended` is called when it is gone, whoever
/// unmounted it. `lease` is given what the mount keeps in memory, and gives its leases; a fabric that is never
/// [`Fabric::shared`] needs none. With a supervisor, the next process goes on with the mount if this one is killed, as this
/// one does with what it `Kept`.
///
/// # Errors
/// `Io` when the kernel refuses: no /dev/fuse, no privilege, no directory.
pub fn mount<F: Fabric + 'static>(
    fabric: Arc<F>,
    options: &MountOptions,
    supervised: Option<(&Link, Kept)>,
    control: Vec<ControlFile>,
    lease: impl FnOnce(Arc<dyn Cache>) -> Result<Option<Arc<dyn Leases>>>,
    ended: impl FnOnce() + Send + 'static,
) -> Result<Mounted> {
    match options.session {
        SessionKind::Fuser => mount_by::<F, Fuser<F>>(fabric, options, supervised, control, lease, ended),
        SessionKind::Dev => mount_by::<F, Own<F, false>>(fabric, options, supervised, control, lease, ended),
        SessionKind::Uring => mount_by::<F, Own<F, true>>(fabric, options, supervised, control, lease, ended),
    }
}

/// Attach a new mount and agree with the kernel on its terms.
fn begin<F: Fabric + 'static, S: Session<F>>(fs: &Arc<Fs<F>>, options: &MountOptions) -> Result<S> {
    if let Err(e) = raise_pages(WRITE_BYTES_MAX) {
        kos_types::log!("kos-fuse: {e}: what is only written goes through the page cache");
    }
    let device = attach(options, READ_BYTES_MAX)?;
    S::begin(Arc::clone(fs), device, options.threads).map_err(|e| {
        // Nothing serves it: a mount left behind would only answer "not connected".
        let _ = detach(&options.dir, Detach::Lazy);
        Error::io("mount: handshake with the kernel", &e)
    })
}

/// Leave the mount to the next process, where one could go on with it.
fn keep<F: Fabric, S: Session<F>>(link: &Link, arena: &Arena, session: &S) -> io::Result<()> {
    let devices = if link.watches() { session.notifier().into_iter().collect() } else { session.devices() };
    if devices.is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "nobody else could go on with this session"));
    }
    // First what the connections are of no use without.
    link.keep_memory(arena.memory())?;
    devices.iter().try_for_each(|device| link.keep_device(device.as_fd()))
}

/// Whether the kernel has ended a connection.
fn is_over(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    let asked = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    asked.is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

fn mount_by<F: Fabric + 'static, S: Session<F>>(
    fabric: Arc<F>,
    options: &MountOptions,
    supervised: Option<(&Link, Kept)>,
    control: Vec<ControlFile>,
    lease: impl FnOnce(Arc<dyn Cache>) -> Result<Option<Arc<dyn Leases>>>,
    ended: impl FnOnce() + Send + 'static,
) -> Result<Mounted> {
    let (link, kept) = supervised.map_or_else(|| (None, Kept::default()), |(link, kept)| (Some(link), kept));
    let arena = kept.memory.map_or_else(Arena::new, Arena::adopt);
    let arena = arena.map_err(|e| Error::io("mount: memory for the next process", &e))?;
    let resumes = !kept.devices.is_empty();
    let mut fs = Fs::new(fabric, control, arena);
    fs.outlives.store(link.is_some_and(|link| !link.watches()), Ordering::Relaxed);
    fs.share_locks = options.share_locks;
    fs.is_remote = options.remote;
    let fs = Arc::new(fs);
    let session = if resumes {
        let resumed = S::resume(Arc::clone(&fs), kept.devices).map_err(|e| Error::io("mount: go on", &e))?;
        fs.recover(&|id| resumed.copy(id))?;
        resumed
    } else {
        begin(&fs, options)?
    };
    if options.first {
        fs.job_leftovers(resumes)?;
    }
    if let Some(link) = link.filter(|_| !resumes)
        && let Err(e) = keep(link, &fs.arena, &session)
    {
        kos_types::log!(
            "kos-fuse: the supervisor takes nothing: {e}: the mount does not outlive this process"
        );
    }

    let caches: Arc<dyn Caches> = session.caches().into();
    let noted: Arc<dyn Caches> = Arc::new(Noted { fs: Arc::clone(&fs), kernel: Arc::clone(&caches) });
    let returns = Returns { fs: Arc::clone(&fs), kernel: Arc::clone(&noted) };
    let leases = lease(Arc::new(returns)).inspect_err(|_| {
        let _ = detach(&options.dir, Detach::Lazy);
    })?;
    let mut watch = None;
    if let Some(leases) = &leases {
        fs.held.begin(leases);
        watch = Some(Watch::start(&fs, Arc::clone(leases), Arc::clone(&noted))?);
    }
    if resumes {
        // Before any is read: what is being done would be asked again, too.
        session.ask_again().map_err(|e| Error::io("mount: requests of before", &e))?;
    }
    let was_gone = resumes && session.devices().iter().any(|device| is_over(device));
    let (alive, session_ended) = mpsc::channel();
    let serve = move || {
        if let Err(e) = session.serve() {
            kos_types::log!("kos-fuse: the session ended: {e}");
        }
        drop::<Sender<()>>(alive);
        ended();
    };
    thread::Builder::new().name("session".into()).spawn(serve).map_err(|e| Error::io("mount: thread", &e))?;
    if resumes {
        fs.forget_leases_before(&*noted);
    }
    let dev = fs::metadata(&options.dir).map_err(|e| Error::io("mount: stat", &e))?.dev();
    if !was_gone && let Err(e) = raise_readahead(dev) {
        kos_types::log!("kos-fuse: readahead stays at the kernel's default: {e}");
    }
    let flusher = Flusher::start(Arc::clone(&fs.files))?;
    let answerer = Answerer::start(Arc::clone(&fs.fabric), Arc::clone(&fs.jobs.waiters))?;
    let lock_answerer = locks::Answerer::start(Arc::clone(&fs.fabric), Arc::clone(&fs.locks))?;
    Ok(Mounted {
        dir: options.dir.clone(),
        connection: minor(dev),
        write_back: Arc::new({
            let files = Arc::clone(&fs.files);
            let caches = Arc::clone(&caches);
            move || write_back(&*caches, &files.open_files())
        }),
        end: Box::new({
            let fs = Arc::clone(&fs);
            move || fs.end()
        }),
        drop_pages: Arc::new({
            let (fs, caches) = (Arc::clone(&fs), Arc::clone(&caches));
            move || fs.drain().and_then(|()| write_back(&*caches, &fs.known.all()))
        }),
        flush: Arc::new(move || fs.flush_all()),
        was_gone,
        ended: session_ended,
        _flusher: flusher,
        _answerer: answerer,
        _lock_answerer: lock_answerer,
        _watch: watch,
        _leases: leases,
    })
}

/// Have the kernel hand over the dirty pages of mappings. syncfs(2) does not wait for those of a
/// FUSE filesystem; throwing a file's pages out does. Never from a thread that serves requests.
fn write_back(caches: &dyn Caches, files: &[Ino]) -> Result<()> {
    let mut files = files.iter();
    files
        .try_for_each(|&file| caches.drop_pages(file))
        .map_err(|e| Error::io("unmount: pages of mappings", &e))
}

fn raise_readahead(dev: u64) -> io::Result<()> {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(dev), minor(dev));
    fs::write(path, READAHEAD_KIB.to_string())
}

/// Takes back what a mount holds in memory without leases.
pub struct Recall {
    drop_pages: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    flush: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

impl fmt::Debug for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recall").finish_non_exhaustive()
    }
}

impl Recall {
    /// With [`Fabric::shared`] in force already: write out what is buffered, and wait until no
    /// name and no attribute is answered from the kernel's memory.
    ///
    /// # Errors
    /// As [`Mounted::flush_all`].
    pub fn settle(&self) -> Result<()> {
        (self.drop_pages)()?;
        (self.flush)()?;
        thread::sleep(TTL + SETTLE_MARGIN);
        Ok(())
    }
}

impl Mounted {
    /// What others need to share the fabric with this mount.
    #[must_use]
    pub fn recall(&self) -> Recall {
        Recall { drop_pages: Arc::clone(&self.drop_pages), flush: Arc::clone(&self.flush) }
    }

    /// Whether there was nothing to go on with: an earlier process was killed when its mount had gone, or while it went.
    /// What that one had buffered is flushed at the end.
    #[must_use]
    pub const fn was_gone(&self) -> bool {
        self.was_gone
    }

    /// Everything written so far is committed and on stable storage.
    ///
    /// # Errors
    /// The first file's error; its bytes stay in memory.
    pub fn flush_all(&self) -> Result<()> {
        (self.flush)()
    }

    /// [`Self::flush_all`], for others to call.
    #[must_use]
    pub fn flusher(&self) -> Box<dyn Fn() -> Result<()> + Send> {
        let flush = Arc::clone(&self.flush);
        Box::new(move || flush())
    }

    /// Flush, take the mount out of the tree and end the session. Programs that still have files
    /// open on it lose them.
    ///
    /// # Errors
    /// As [`Self::flush_all`], after unmounting all the same: what does not fit now is lost then.
    /// `Io` when the kernel refuses to unmount or the session does not end.
    pub fn unmount(self) -> Result<()> {
        if let Err(e) = self.flush_all() {
            kos_types::log!("kos-fuse: {}: not all could be flushed: {e}", self.dir.display());
        }
        let gone = match detach(&self.dir, Detach::Unused) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => self.cut_off(),
            other => other.map_err(|e| Error::io("unmount", &e)),
        };
        gone?;
        self.finish()
    }

    /// After an unmount by somebody else: wait for the session's end, and flush.
    ///
    /// # Errors
    /// As [`Self::flush_all`], and `TimedOut` when the session does not end.
    pub fn finish(self) -> Result<()> {
        if self.ended.recv_timeout(ALONE) == Err(RecvTimeoutError::Timeout) {
            self.cut_off_elsewhere()?;
        }
        if self.ended.recv_timeout(END_DEADLINE) == Err(RecvTimeoutError::Timeout) {
            return Err(Error::new(Kind::TimedOut, "unmount: the session does not end"));
        }
        (self.end)();
        self.flush_all()
    }

    /// End the connection of a mount that is gone here and lives on in another mount namespace: a
    /// container's, which copied all mounts when it was made.
    fn cut_off_elsewhere(&self) -> Result<()> {
        kos_types::log!("kos-fuse: another mount namespace has {}: it is cut off", self.dir.display());
        (self.write_back)()?;
        self.flush_all()?;
        self.end_connection()
    }

    fn end_connection(&self) -> Result<()> {
        match abort(self.connection) {
            // It ended by itself.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| Error::io("unmount: abort", &e)),
        }
    }

    /// Unmount although programs use it.
    fn cut_off(&self) -> Result<()> {
        kos_types::log!("kos-fuse: {} is in use: its open files are cut off", self.dir.display());
        if let Err(e) = (self.write_back)() {
            kos_types::log!("kos-fuse: {}: not all stores could be taken: {e}", self.dir.display());
        }
        if let Err(e) = self.flush_all() {
            kos_types::log!("kos-fuse: {}: not all could be flushed: {e}", self.dir.display());
        }
        detach(&self.dir, Detach::Forced).map_err(|e| Error::io("unmount", &e))?;
        // fusermount3 takes it out of the tree, and forces nothing.
        if rustix::process::geteuid().is_root() { Ok(()) } else { self.end_connection() }
    }
}
