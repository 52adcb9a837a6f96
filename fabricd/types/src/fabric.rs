//! The seam between front ends (a mount, a tool) and the fabric (daemon, peers, model).

use std::fs::File;
use std::time::Duration;

use crate::{
    Attr, Dirent, Error, FileLock, Ino, Job, JobId, Kind, LockAnswer, Once, Op, Policy, Reply, Result,
    Sharing, Snapshot, SpaceUsage, StripeId,
};

/// Where the bytes of a range are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Source {
    /// A hole: zeros.
    Hole,
    /// In a stripe, from this byte of its user bytes on.
    Stripe(StripeId, u64),
    /// With the metadata: these are the bytes.
    Inline(Vec<u8>),
}

/// One range of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Extent {
    /// First byte in the file.
    pub off: u64,
    /// Bytes.
    pub len: u64,
    /// Where they are.
    pub source: Source,
}

/// The answer to "where are these bytes".
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtentMap {
    /// The committed size of the file.
    pub size: u64,
    /// Gap-free from the asked offset, in order, up to the asked end, the end of the file or
    /// [`crate::limits::EXTENTS_MAX`] ranges, or [`crate::limits::INLINE_ANSWER_MAX`] bytes that are
    /// inline, whichever comes first.
    pub extents: Vec<Extent>,
}

/// What an inode is open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Access {
    /// Reading alone.
    Read,
    /// Writing, whether reading or not.
    Write,
}

/// What a front end can ask of the fabric. All methods may be called from many threads and
/// return within a deadline; none calls back into the front end.
pub trait Fabric: Send + Sync {
    /// Apply one change; visible to every later read when it returns, durable after [`Self::sync`].
    ///
    /// # Errors
    /// As the operation says; on an error nothing has changed.
    fn propose(&self, op: Op) -> Result<Reply>;

    /// The same for a request that may be asked again by the next process: it is applied once. A fabric that is another
    /// process sees to that itself.
    ///
    /// # Errors
    /// As [`Self::propose`].
    fn propose_once(&self, op: Op, _once: Option<Once>) -> Result<Reply> {
        self.propose(op)
    }

    /// The same for several, in order: each is applied or refused by itself. Cheaper than one after the
    /// other where nobody needs the first one's answer to ask for the next.
    fn propose_all(&self, ops: Vec<Op>) -> Vec<Result<Reply>> {
        ops.into_iter().map(|op| self.propose(op)).collect()
    }

    /// The inode that `name` in `parent` names.
    ///
    /// # Errors
    /// `NotFound`, `NotDir`, `NameTooLong`.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;

    /// Inodes without a name that an earlier process of this mount may have had in use.
    ///
    /// # Errors
    /// As the fabric says.
    fn unnamed(&self) -> Result<Vec<Ino>> {
        Ok(Vec::new())
    }

    /// Attributes.
    ///
    /// # Errors
    /// `Stale` when the inode is gone.
    fn attr(&self, ino: Ino) -> Result<Attr>;

    /// The directory that holds a directory.
    ///
    /// # Errors
    /// `Stale`, `NotDir`.
    fn parent(&self, dir: Ino) -> Result<Ino>;

    /// At most `max` entries with a cookie above `after`, in cookie order, without `.` and `..`.
    ///
    /// # Errors
    /// `Stale`, `NotDir`.
    fn list(&self, dir: Ino, after: u64, max: usize) -> Result<Vec<Dirent>>;

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` when it is none.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;

    /// Value of an extended attribute as it was set on this inode.
    ///
    /// # Errors
    /// `NoAttr`.
    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;

    /// Names of the extended attributes set on this inode.
    ///
    /// # Errors
    /// `Stale`.
    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;

    /// What new stripes of this inode are written with.
    ///
    /// # Errors
    /// `Stale`.
    fn policy(&self, ino: Ino) -> Result<Policy>;

    /// How this inode is shared by its users.
    ///
    /// # Errors
    /// `Stale`.
    fn sharing(&self, _ino: Ino) -> Result<Sharing> {
        Ok(Sharing::default())
    }

    /// Where the bytes `off..off+len` are.
    ///
    /// # Errors
    /// `Stale`.
    fn extents(&self, ino: Ino, off: u64, len: u64) -> Result<ExtentMap>;

    /// The snapshots, oldest first. Their trees are read as the live one is, by inodes of their
    /// view; the root of each is [`crate::ROOT`] in it.
    ///
    /// # Errors
    /// `Io`.
    fn snapshots(&self) -> Result<Vec<Snapshot>>;

    /// Set room aside for `bytes` that will be written to a file, which grows by `grows` of them:
    /// what is refused here and not later.
    ///
    /// # Errors
    /// `NoSpace`, `QuotaExceeded`.
    fn reserve(&self, ino: Ino, bytes: u64, grows: u64) -> Result<()>;

    /// Of what was set aside for a file, `bytes` are committed or will not be written.
    fn release(&self, ino: Ino, bytes: u64);

    /// Code and store one stripe of 1 to [`crate::limits::STRIPE_BYTES_MAX`] bytes. A commit that
    /// names it makes it as durable as `policy` says, then visible; without one within ten
    /// minutes it is dropped.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    fn write_stripe(&self, policy: Policy, data: &[u8]) -> Result<StripeId>;

    /// No commit will name this stripe: its space is wanted back now.
    fn drop_stripe(&self, _stripe: StripeId) {}

    /// Fill `out` with the stripe's user bytes from `at` on.
    ///
    /// # Errors
    /// `NotFound` when the stripe is gone (ask for the extents again), `Io` when too many shards
    /// are lost.
    fn read_stripe(&self, stripe: StripeId, at: u64, out: &mut [u8]) -> Result<()>;

    /// Everything proposed before this call is on stable storage when it returns.
    ///
    /// # Errors
    /// `Io`; the fabric refuses changes from then on.
    fn sync(&self) -> Result<()>;

    /// Have all mounts commit what they have buffered, as far as the fabric knows of them.
    ///
    /// # Errors
    /// `TimedOut` when one neither does nor is given up in time.
    fn flush_mounts(&self) -> Result<()> {
        Ok(())
    }

    /// Keep a line about something that the people who run the node should know of; `kind` is one
    /// word. A fabric without such a list says it on standard error.
    fn report(&self, kind: &'static str, text: &str) {
        crate::log!("kosfs: {kind}: {text}");
    }

    /// Space of the pool.
    ///
    /// # Errors
    /// `Io`.
    fn usage(&self) -> Result<SpaceUsage>;

    /// A job's record.
    ///
    /// # Errors
    /// `NotFound`.
    fn job(&self, _id: JobId) -> Result<Job> {
        Err(no_jobs())
    }

    /// The specification a job was submitted with.
    ///
    /// # Errors
    /// `NotFound`.
    fn job_spec(&self, _id: JobId) -> Result<Vec<u8>> {
        Err(no_jobs())
    }

    /// The job whose directory this is.
    ///
    /// # Errors
    /// `Io`.
    fn job_of(&self, _dir: Ino) -> Result<Option<JobId>> {
        Ok(None)
    }

    /// Wait until jobs have changed since the count was `seen`, at most `wait`. Answers the count.
    ///
    /// # Errors
    /// `Io`.
    fn jobs_changed(&self, _seen: u64, _wait: Duration) -> Result<u64> {
        Err(no_jobs())
    }

    /// Somebody here uses the inode until [`Self::close`] is called as often: it lives so long
    /// without a name, and while it is open for writing it is not sealed. Answers its attributes.
    ///
    /// # Errors
    /// `Stale`; `NotPermitted` for writing to a sealed file.
    fn open(&self, ino: Ino, access: Access) -> Result<Attr> {
        self.attr(ino)?.opened(access)
    }

    /// The end of one [`Self::open`].
    fn close(&self, _ino: Ino, _access: Access) {}

    /// A copy of a sealed file is worth making, if there is room.
    fn want_copy(&self, _ino: Ino) {}

    /// A file with all bytes of a sealed one, to be read in place until [`Self::return_copy`] is called as
    /// often; none while there is no such copy here, or when too many were lent. It is lent only while the
    /// inode is open here.
    fn lend_copy(&self, _ino: Ino) -> Option<File> {
        None
    }

    /// The end of one [`Self::lend_copy`].
    fn return_copy(&self, _ino: Ino) {}

    /// The first lock in the way of this one, of any mount.
    ///
    /// # Errors
    /// `Invalid`.
    fn test_lock(&self, _ino: Ino, _lock: &FileLock) -> Result<Option<FileLock>> {
        Err(no_locks())
    }

    /// Take a lock in place of what its owner has there, or give it back. With the number of a request,
    /// one that is in the way is waited for: asking again, after [`Self::locks_changed`], answers
    /// whether it still waits. Asking twice is as good as asking once. Without one it is answered `Waiting` only when it is
    /// not known yet what others hold.
    ///
    /// # Errors
    /// `Invalid`.
    fn set_lock(&self, _ino: Ino, _lock: &FileLock, _wait: Option<u64>) -> Result<LockAnswer> {
        Err(no_locks())
    }

    /// Take a lock again that an earlier process of this mount had.
    ///
    /// # Errors
    /// As [`Self::set_lock`].
    fn keep_lock(&self, ino: Ino, lock: &FileLock) -> Result<LockAnswer> {
        self.set_lock(ino, lock, None)
    }

    /// What an owner holds of a file, for who keeps it over the end of this process. A fabric that is another process keeps
    /// it itself.
    fn locks_held(&self, _ino: Ino, _owner: u64, _flock: bool) -> Vec<FileLock> {
        Vec::new()
    }

    /// The request of that number waits no more.
    ///
    /// # Errors
    /// `Io`.
    fn cancel_lock(&self, _request: u64) -> Result<()> {
        Err(no_locks())
    }

    /// Wait until locks were granted to some who waited since the count was `seen`, at most `wait`.
    /// Answers the count.
    ///
    /// # Errors
    /// `Io`.
    fn locks_changed(&self, _seen: u64, _wait: Duration) -> Result<u64> {
        Err(no_locks())
    }

    /// Whether others change the same tree at the moment: then nothing that was written may
    /// wait in a buffer here, and nothing that was read may be answered from memory.
    fn shared(&self) -> bool {
        false
    }
}

/// For fabrics that keep no locks, as a test's.
fn no_locks() -> Error {
    Error::new(Kind::Unsupported, "this fabric keeps no locks")
}

/// For fabrics that run no jobs, as a test's.
fn no_jobs() -> Error {
    Error::new(Kind::Unsupported, "this fabric runs no jobs")
}
