//! What a fabric is asked, as requests.

use std::fs::File;
use std::time::Duration;

use kos_types::{
    Access, Attr, Dirent, Error, ExtentMap, Fabric, FileLock, Ino, Job, JobId, Kind, LockAnswer, Op, Policy,
    Reply, Result, Sharing, Snapshot, SpaceUsage, StripeId,
};

use super::{Client, Gets, lock, unexpected};
use crate::message::{Answer, Request};

impl Fabric for Client {
    fn propose(&self, op: Op) -> Result<Reply> {
        let (seq, answered) = {
            let mut proposals = lock(&self.proposals);
            proposals.last += 1;
            let seq = proposals.last;
            proposals.waiting.insert(seq);
            (seq, proposals.waiting.first().map_or(0, |first| first - 1))
        };
        let answer = self.ask(&Request::Propose { seq, answered, op });
        // Answered or given up: it is not asked for again.
        lock(&self.proposals).waiting.remove(&seq);
        match answer? {
            Answer::Reply(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.attributes(&Request::Lookup(parent, name.to_vec()))
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.attributes(&Request::Attr(ino))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        match self.ask(&Request::Parent(dir))? {
            Answer::Ino(ino) => Ok(ino),
            other => Err(unexpected(&other)),
        }
    }

    fn list(&self, dir: Ino, after: u64, max: usize) -> Result<Vec<Dirent>> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        match self.ask(&Request::List { dir, after, max })? {
            Answer::Entries(entries) => Ok(entries),
            other => Err(unexpected(&other)),
        }
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.bytes(&Request::Readlink(ino))
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.bytes(&Request::Xattr(ino, name.to_vec()))
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        match self.ask(&Request::Xattrs(ino))? {
            Answer::Names(names) => Ok(names),
            other => Err(unexpected(&other)),
        }
    }

    fn policy(&self, ino: Ino) -> Result<Policy> {
        match self.ask(&Request::Policy(ino))? {
            Answer::Policy(policy) => Ok(policy),
            other => Err(unexpected(&other)),
        }
    }

    fn sharing(&self, ino: Ino) -> Result<Sharing> {
        match self.ask(&Request::Sharing(ino))? {
            Answer::Sharing(sharing) => Ok(sharing),
            other => Err(unexpected(&other)),
        }
    }

    fn extents(&self, ino: Ino, off: u64, len: u64) -> Result<ExtentMap> {
        match self.ask(&Request::Extents { ino, off, len })? {
            Answer::Extents(map) => Ok(map),
            other => Err(unexpected(&other)),
        }
    }

    fn write_stripe(&self, policy: Policy, data: &[u8]) -> Result<StripeId> {
        let request = Request::WriteStripe(policy);
        match self.exchange(&request, data, &mut Gets::default(), self.options.patience)? {
            Answer::Stripe(id) => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    fn read_stripe(&self, stripe: StripeId, at: u64, out: &mut [u8]) -> Result<()> {
        let len = u32::try_from(out.len()).map_err(|_| Error::new(Kind::Invalid, "read: too long"))?;
        let (request, mut out) =
            (Request::ReadStripe { stripe, at, len }, Gets { bytes: out, ..Gets::default() });
        match self.exchange(&request, b"", &mut out, self.options.patience)? {
            Answer::Data => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        match self.ask(&Request::Snapshots)? {
            Answer::Snapshots(snapshots) => Ok(snapshots),
            other => Err(unexpected(&other)),
        }
    }

    fn reserve(&self, ino: Ino, bytes: u64, grows: u64) -> Result<()> {
        self.ask(&Request::Reserve { ino, bytes, grows }).map(drop)
    }

    fn release(&self, ino: Ino, bytes: u64) {
        if bytes > 0 {
            // A daemon that is away has forgotten it anyway.
            drop(self.ask_once(&Request::Release { ino, bytes }));
        }
    }

    fn sync(&self) -> Result<()> {
        self.ask(&Request::Sync).map(drop)
    }

    fn usage(&self) -> Result<SpaceUsage> {
        match self.ask(&Request::Usage)? {
            Answer::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    fn job(&self, id: JobId) -> Result<Job> {
        match self.ask(&Request::Job(id))? {
            Answer::Job(job) => Ok(job),
            other => Err(unexpected(&other)),
        }
    }

    fn job_spec(&self, id: JobId) -> Result<Vec<u8>> {
        self.bytes(&Request::JobSpec(id))
    }

    fn job_of(&self, dir: Ino) -> Result<Option<JobId>> {
        match self.ask(&Request::JobOf(dir))? {
            Answer::JobOf(job) => Ok(job),
            other => Err(unexpected(&other)),
        }
    }

    fn jobs_changed(&self, seen: u64, wait: Duration) -> Result<u64> {
        match self.ask(&Request::JobsChanged { seen, wait })? {
            Answer::Count(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    fn open(&self, ino: Ino, access: Access) -> Result<Attr> {
        let attr = self.attributes(&Request::Open(ino, access, 1))?;
        // Looked at after the answer: whoever gave it has said what it knows.
        if lock(&self.loans).is_stale(ino) {
            drop(self.ask_once(&Request::Close(ino, access)));
            let what = "open: it is open in place from before the session was lost; close that first";
            return Err(Error::new(Kind::Stale, what));
        }
        *lock(&self.held).entry((ino, access)).or_default() += 1;
        Ok(attr)
    }

    fn close(&self, ino: Ino, access: Access) {
        let mut held = lock(&self.held);
        if let Some(times) = held.get_mut(&(ino, access)) {
            *times -= 1;
            if *times == 0 {
                held.remove(&(ino, access));
            }
        }
        drop(held);
        // A server that is away has forgotten it anyway, and is told only what is still open.
        drop(self.ask_once(&Request::Close(ino, access)));
    }

    fn want_copy(&self, ino: Ino) {
        // Without, it is wanted at the second open.
        drop(self.ask_once(&Request::WantCopy(ino)));
    }

    fn lend_copy(&self, ino: Ino) -> Option<File> {
        let term = lock(&self.claim).map(|(_, term)| term)?;
        // Known before it is asked for: a server that comes meanwhile is told.
        if !lock(&self.loans).begin(ino, term) {
            return None;
        }
        let mut out = Gets::default();
        let lent = self.exchange(&Request::LendCopy(ino), b"", &mut out, Duration::ZERO);
        let file = out.file.filter(|_| lent == Ok(Answer::Copy(true)));
        if file.is_none() {
            lock(&self.loans).end(ino);
        }
        file.map(File::from)
    }

    fn return_copy(&self, ino: Ino) {
        lock(&self.loans).end(ino);
        // As at close.
        drop(self.ask_once(&Request::ReturnCopy(ino)));
    }

    fn test_lock(&self, ino: Ino, lock: &FileLock) -> Result<Option<FileLock>> {
        match self.ask(&Request::TestLock(ino, *lock))? {
            Answer::Lock(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    fn set_lock(&self, ino: Ino, wanted: &FileLock, wait: Option<u64>) -> Result<LockAnswer> {
        match self.ask(&Request::SetLock(ino, *wanted, wait))? {
            Answer::LockSet(answer) => {
                if answer == LockAnswer::Granted {
                    lock(&self.locks).note(ino, *wanted);
                }
                Ok(answer)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn cancel_lock(&self, request: u64) -> Result<()> {
        self.ask(&Request::CancelLock(request)).map(drop)
    }

    fn locks_changed(&self, seen: u64, wait: Duration) -> Result<u64> {
        match self.ask(&Request::LocksChanged { seen, wait })? {
            Answer::Count(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    fn shared(&self) -> bool {
        true
    }
}
