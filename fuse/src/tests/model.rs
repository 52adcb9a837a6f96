//! A fabric in memory: the state machine over its own tables, and stripes in a map. A stripe goes
//! the moment it dies, so that readers meet that as often as can be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use kos_core::{Effect, MemTables, apply, initialise, policy, read};
use kos_types::{
    Attr, Command, Dirent, Error, ExtentMap, Fabric, Ino, Kind, Op, Origin, Policy, Reply, Result, Sharing,
    Snapshot, SpaceUsage, StripeId, limits,
};

use crate::file::now;

/// What the pool pretends to hold.
const POOL_BYTES: u64 = 1 << 40;

struct Inner {
    tables: MemTables,
    stripes: BTreeMap<StripeId, Vec<u8>>,
    next_stripe: u64,
}

/// The fabric.
pub(super) struct Model {
    inner: RwLock<Inner>,
    /// No stripe can be written.
    pub(super) full: AtomicBool,
    /// Milliseconds that every commit and every stripe takes.
    pub(super) slow: AtomicU64,
    /// Calls that take that time now.
    pub(super) waiting: AtomicU64,
    /// A file whose commits are refused, as when its owner has no quota left; or 0.
    pub(super) refused: AtomicU64,
    /// Bytes set aside and not released.
    pub(super) reserved: AtomicI64,
    /// Calls of `sync`.
    pub(super) syncs: AtomicU64,
}

impl Default for Model {
    fn default() -> Self {
        let mut tables = MemTables::default();
        tables.write(initialise(now()));
        let inner = RwLock::new(Inner { tables, stripes: BTreeMap::new(), next_stripe: 1 });
        Self {
            inner,
            full: AtomicBool::default(),
            slow: AtomicU64::default(),
            waiting: AtomicU64::default(),
            refused: AtomicU64::default(),
            reserved: AtomicI64::default(),
            syncs: AtomicU64::default(),
        }
    }
}

impl Model {
    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        // Looked at again, so that a test can let go of what waits.
        while start.elapsed() < Duration::from_millis(self.slow.load(Ordering::Relaxed)) {
            thread::sleep(Duration::from_millis(1));
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Stripes that are kept.
    pub(super) fn stripes(&self) -> usize {
        self.inner().stripes.len()
    }

    /// Inodes without a name that nobody has dropped.
    pub(super) fn orphans(&self) -> Vec<Ino> {
        read::orphans(&self.inner().tables).expect("orphans")
    }
}

impl Fabric for Model {
    fn propose(&self, op: Op) -> Result<Reply> {
        if let Op::Commit { ino, .. } = op {
            self.wait();
            if self.refused.load(Ordering::Relaxed) == ino.0 {
                return Err(Error::new(Kind::QuotaExceeded, "model: refused"));
            }
        }
        let mut inner = self.inner_mut();
        let applied = apply(&inner.tables, &Command { now: now(), origin: Origin::default(), op })?;
        inner.tables.write(applied.changes);
        for Effect::Free(stripe) in applied.effects {
            inner.stripes.remove(&stripe);
        }
        Ok(applied.reply)
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        read::lookup(&self.inner().tables, parent, name)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        Ok(read::inode(&self.inner().tables, ino)?.attr)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        read::parent(&self.inner().tables, dir)
    }

    fn list(&self, dir: Ino, after: u64, max: usize) -> Result<Vec<Dirent>> {
        read::list(&self.inner().tables, dir, after, max)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        read::readlink(&self.inner().tables, ino)
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        read::xattr(&self.inner().tables, ino, name)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        read::xattrs(&self.inner().tables, ino)
    }

    fn policy(&self, ino: Ino) -> Result<Policy> {
        policy::of(&self.inner().tables, ino)
    }

    fn sharing(&self, ino: Ino) -> Result<Sharing> {
        policy::sharing(&self.inner().tables, ino)
    }

    fn extents(&self, ino: Ino, off: u64, len: u64) -> Result<ExtentMap> {
        read::extents(&self.inner().tables, ino, off, len)
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        kos_core::snapshots(&self.inner().tables)
    }

    fn reserve(&self, _ino: Ino, bytes: u64, _grows: u64) -> Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::NoSpace, "model: full"));
        }
        self.reserved.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, _ino: Ino, bytes: u64) {
        self.reserved.fetch_sub(bytes.cast_signed(), Ordering::Relaxed);
    }

    fn write_stripe(&self, _policy: Policy, data: &[u8]) -> Result<StripeId> {
        assert!((1..=limits::STRIPE_BYTES_MAX).contains(&data.len()), "stripe of {} bytes", data.len());
        self.wait();
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::NoSpace, "model: full"));
        }
        let mut inner = self.inner_mut();
        let id = StripeId::in_batch(0, inner.next_stripe).expect("a test writes fewer stripes");
        inner.next_stripe += 1;
        inner.stripes.insert(id, data.to_vec());
        Ok(id)
    }

    fn read_stripe(&self, stripe: StripeId, at: u64, out: &mut [u8]) -> Result<()> {
        self.wait();
        let inner = self.inner();
        let data =
            inner.stripes.get(&stripe).ok_or_else(|| Error::new(Kind::NotFound, "model: stripe is gone"))?;
        out.copy_from_slice(&data[at as usize..at as usize + out.len()]);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn usage(&self) -> Result<SpaceUsage> {
        let used: usize = self.inner().stripes.values().map(Vec::len).sum();
        let free = if self.full.load(Ordering::Relaxed) { 0 } else { POOL_BYTES - used as u64 };
        Ok(SpaceUsage { bytes_total: POOL_BYTES, bytes_free: free, inodes_used: 1 })
    }
}
