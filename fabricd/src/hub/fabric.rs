//! The fabric as one mount has it: the node's, and what the hub knows of all mounts.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kos_types::{
    Access, Attr, Dirent, ExtentMap, Fabric, FileLock, Ino, Job, JobId, LockAnswer, Once, Op, Origin, Policy,
    Reply, Result, Sharing, Snapshot, SpaceUsage, StripeId,
};

use super::{Session, lock, seals};

impl Fabric for Session {
    fn propose(&self, op: Op) -> Result<Reply> {
        self.propose_as(self.origin, op)
    }

    fn propose_once(&self, op: Op, once: Option<Once>) -> Result<Reply> {
        self.propose_as(Origin { once, ..self.origin }, op)
    }

    fn propose_all(&self, ops: Vec<Op>) -> Vec<Result<Reply>> {
        if self.is_remote() || ops.iter().any(|op| seals(op).is_some()) {
            return ops.into_iter().map(|op| self.propose(op)).collect();
        }
        // Held to the end: an open that comes meanwhile finds gone what is dropped here.
        let mut table = lock(&self.hub.table);
        let (mut now, mut later) = (Vec::with_capacity(ops.len()), Vec::new());
        for (at, op) in ops.into_iter().enumerate() {
            match op {
                Op::Reap { ino } if table.opens.contains_key(&ino) => {
                    table.orphans.insert(ino);
                    later.push(at);
                }
                op => now.push(op),
            }
        }
        let table = now.iter().any(|op| matches!(op, Op::Reap { .. })).then_some(table);
        let mut replies = self.hub.node.propose_all(now);
        drop(table);
        later.into_iter().for_each(|at| replies.insert(at, Ok(Reply::Done)));
        replies
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.hub.node.lookup(parent, name)
    }

    fn unnamed(&self) -> Result<Vec<Ino>> {
        self.hub.node.unnamed()
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.hub.node.attr(ino)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.hub.node.parent(dir)
    }

    fn list(&self, dir: Ino, after: u64, max: usize) -> Result<Vec<Dirent>> {
        self.hub.node.list(dir, after, max)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.hub.node.readlink(ino)
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.hub.node.xattr(ino, name)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.hub.node.xattrs(ino)
    }

    fn policy(&self, ino: Ino) -> Result<Policy> {
        self.hub.node.policy(ino)
    }

    fn sharing(&self, ino: Ino) -> Result<Sharing> {
        self.hub.node.sharing(ino)
    }

    fn extents(&self, ino: Ino, off: u64, len: u64) -> Result<ExtentMap> {
        self.hub.node.extents(ino, off, len)
    }

    fn write_stripe(&self, policy: Policy, data: &[u8]) -> Result<StripeId> {
        self.hub.node.write_stripe(policy, data)
    }

    fn drop_stripe(&self, stripe: StripeId) {
        self.hub.node.drop_stripe(stripe);
    }

    fn read_stripe(&self, stripe: StripeId, at: u64, out: &mut [u8]) -> Result<()> {
        self.hub.node.read_stripe(stripe, at, out)
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.hub.node.snapshots()
    }

    fn reserve(&self, ino: Ino, bytes: u64, grows: u64) -> Result<()> {
        self.hub.node.reserve(ino, bytes, grows)?;
        if self.is_remote() {
            *lock(&self.reserved).entry(ino).or_default() += bytes;
        }
        Ok(())
    }

    fn release(&self, ino: Ino, bytes: u64) {
        if !self.is_remote() {
            return self.hub.node.release(ino, bytes);
        }
        // Of an earlier daemon's time nothing is set aside.
        let mut reserved = lock(&self.reserved);
        let Some(own) = reserved.get_mut(&ino) else { return };
        let bytes = bytes.min(*own);
        *own -= bytes;
        if *own == 0 {
            reserved.remove(&ino);
        }
        self.hub.node.release(ino, bytes);
    }

    fn report(&self, kind: &'static str, text: &str) {
        self.hub.node.report(kind, text);
    }

    fn sync(&self) -> Result<()> {
        self.hub.node.sync()
    }

    fn flush_mounts(&self) -> Result<()> {
        self.hub.flush_all()
    }

    fn usage(&self) -> Result<SpaceUsage> {
        self.hub.node.usage()
    }

    fn job(&self, id: JobId) -> Result<Job> {
        self.hub.node.job(id)
    }

    fn job_spec(&self, id: JobId) -> Result<Vec<u8>> {
        self.hub.node.job_spec(id)
    }

    fn job_of(&self, dir: Ino) -> Result<Option<JobId>> {
        self.hub.node.job_of(dir)
    }

    fn jobs_changed(&self, seen: u64, wait: Duration) -> Result<u64> {
        self.hub.node.jobs_changed(seen, wait)
    }

    fn want_copy(&self, ino: Ino) {
        self.hub.node.want_copy(ino);
    }

    fn lend_copy(&self, ino: Ino) -> Option<File> {
        let mut table = lock(&self.hub.table);
        table.opens.get(&ino)?.get(&self.number)?;
        let copy = self.hub.node.lend_copy(ino)?;
        table.loans.begin(self.number, ino).then_some(copy)
    }

    fn return_copy(&self, ino: Ino) {
        lock(&self.hub.table).loans.end(self.number, ino);
    }

    fn open(&self, ino: Ino, access: Access) -> Result<Attr> {
        {
            let mut table = lock(&self.hub.table);
            *table.opens.entry(ino).or_default().entry(self.number).or_default().of(access) += 1;
        }
        // Looked at when it is known to be open: from then on it stays, and is not sealed.
        self.forget_made(ino);
        let attr = self.hub.node.attr(ino).and_then(|attr| attr.opened(access));
        attr.inspect_err(|_| self.hub.close(self.number, ino, Some(access)))
    }

    fn close(&self, ino: Ino, access: Access) {
        self.hub.close(self.number, ino, Some(access));
    }

    fn test_lock(&self, ino: Ino, lock: &FileLock) -> Result<Option<FileLock>> {
        self.hub.locks.test(self.number, ino, lock)
    }

    fn set_lock(&self, ino: Ino, lock: &FileLock, wait: Option<u64>) -> Result<LockAnswer> {
        if !self.is_remote() && lock.kind.is_some() && self.hub.awaits_locks() {
            return Ok(LockAnswer::Waiting);
        }
        self.hub.locks.set(self.number, ino, lock, wait)
    }

    fn keep_lock(&self, ino: Ino, lock: &FileLock) -> Result<LockAnswer> {
        self.hub.locks.set(self.number, ino, lock, None)
    }

    fn locks_held(&self, ino: Ino, owner: u64, flock: bool) -> Vec<FileLock> {
        self.hub.locks.held(self.number, ino, owner, flock)
    }

    fn cancel_lock(&self, request: u64) -> Result<()> {
        self.hub.locks.cancel(self.number, request);
        Ok(())
    }

    fn locks_changed(&self, seen: u64, wait: Duration) -> Result<u64> {
        Ok(self.hub.locks.changed(seen, wait))
    }

    fn shared(&self) -> bool {
        self.hub.shared.load(Ordering::SeqCst)
    }
}
