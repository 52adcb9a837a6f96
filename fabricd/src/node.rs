//! The embedded node: one committer over the tables, reads in parallel, stripes on the store.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kos_core::{AsOf, Overlay, Tables, job, keys, policy, read};
use kos_store::fault;
use kos_types::limits::GROUP_MAX;
use kos_types::{
    Attr, Command, Cred, Dirent, Error, ExtentMap, Fabric, Ino, JOBS, Job, JobId, JobOp, Kind, Op, Origin,
    Pin, Policy, Reply, Result, SessionId, Sharing, Snapshot, SpaceUsage, StripeId, Time,
};

use crate::bell::Bell;
use crate::copies::Copies;
use crate::db::{self, By, Db};
use crate::events::Events;
use crate::group::Group;
use crate::policies::Policies;
use crate::room::Rooms;
use crate::standing::Redundancy;
use crate::status::Counters;
use crate::stripes::{Ids, IndexChanges, Settled, Stripes};
use crate::tiers::{PlaceUsage, RamDir, Tiers};
use crate::turn::Turn;
use crate::worker::Worker;
use crate::{collector, compact, copier, rebuild, room, scrub, shards, silence, spill};

/// Shard directories made under a single state directory: one for each shard of the default
/// geometry.
const PLACES: usize = 6;

/// Where a node keeps its state.
#[derive(Debug, Clone)]
pub struct Options {
    /// State directories; metadata is in the first. With several, each is one place of shards.
    pub state: Vec<PathBuf>,
    /// Bytes of the memory tier; without, classes `memory` and `scratch` are kept on disk.
    pub ram_bytes: u64,
    /// The mount of an earlier process goes on: it says itself which inodes without a name are in use no more.
    pub resumes: bool,
}

impl Options {
    fn places(&self) -> Vec<PathBuf> {
        match self.state.as_slice() {
            [single] => (0..PLACES).map(|i| single.join("shards").join(i.to_string())).collect(),
            several => several.iter().map(|dir| dir.join("shards").join("0")).collect(),
        }
    }
}

/// What the node and its background work share.
pub(crate) struct Inner {
    pub(crate) db: Arc<Db>,
    pub(crate) stripes: Stripes,
    pub(crate) counters: Arc<Counters>,
    /// Rung when jobs change.
    pub(crate) bell: Bell,
    pub(crate) events: Arc<Events>,
    /// Held by whoever collects garbage or drops old versions.
    pub(crate) collecting: Turn,
    rooms: Rooms,
    pub(crate) policies: Policies,
    /// Copies of sealed files.
    pub(crate) copies: Copies,
    /// Held by whoever applies a command.
    committer: Turn,
    sync: Group,
    ids: Ids,
    /// Of this start: no other has the same.
    term: u64,
    /// Old versions may be held by no snapshot.
    pub(crate) prune: AtomicBool,
    /// Somebody asked for a pass of compaction.
    pub(crate) compact: AtomicBool,
    /// Somebody asked for a pass of scrub.
    pub(crate) scrub: AtomicBool,
}

/// One node in this process.
pub struct Node {
    inner: Arc<Inner>,
    workers: Vec<Worker>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

/// Whose a new node is: its process's.
fn owner() -> Cred {
    Cred { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// The clock of commands.
pub(crate) fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() },
        // A clock before 1970 is wrong anyway.
        Err(_) => Time::default(),
    }
}

impl Node {
    /// Open the state, or make it, and recover from whatever end it had.
    ///
    /// # Errors
    /// `Busy` when another process has it; `Io`.
    pub fn open(options: &Options) -> Result<Self> {
        let Some(first) = options.state.first() else {
            return Err(Error::new(Kind::Invalid, "open: no state directory"));
        };
        std::fs::create_dir_all(first).map_err(|e| Error::io("open: state directory", &e))?;
        let events = Arc::new(Events::open(&first.join("log/events"))?);
        let db = Arc::new(Db::open(&first.join("meta"))?);
        if Tables::get(&*db, keys::STATE)?.is_none() {
            // Without the index every shard would count as garbage.
            if let Some(place) = options.places().iter().find(|place| place.join("lock").exists()) {
                let what = format!("{} holds shards, {} no metadata", place.display(), first.display());
                return Err(Error::new(
                    Kind::Io,
                    format!("open: {what}: is a directory missing or not mounted?"),
                ));
            }
            db.write(kos_core::initialise_for(now(), owner()))?;
            db.sync_alone()?;
        }
        let ram = RamDir::attach(&first.join("ram"), options.ram_bytes)?;
        let mut index = shards::all(&db)?;
        if ram.as_ref().is_none_or(|ram| ram.fresh) {
            // A reboot took what was in memory; its numbers will be given out again.
            let lost: Vec<_> = index
                .extract_if(.., |shard| shard.2.ram)
                .map(|(id, i, _)| (shards::key(id, i), None))
                .collect();
            if !lost.is_empty() {
                events.add("lost", &format!("{} shards in memory did not survive a reboot", lost.len()));
                db.write(lost)?;
                db.sync_alone()?;
            }
        }
        let live: Vec<_> = index.iter().map(|&(_, _, spot)| spot).collect();
        let counters = Arc::new(Counters::default());
        let tiers = Tiers::open(&options.places(), ram, &live, Arc::clone(&counters))?;
        for failed in tiers.failed() {
            events.add("failed", &failed.to_string());
        }
        // An unsealed file has none: it goes before the seal does.
        let keeps = |ino, size| {
            let attr = options.resumes.then(|| read::inode(&*db, ino).ok())??.attr;
            (attr.sealed && attr.size == size).then(|| copier::bytes_of(&attr).0)
        };
        let inner = Inner {
            copies: Copies::open(tiers.copies(), keeps)?,
            stripes: Stripes::new(tiers, Arc::clone(&db), Arc::clone(&counters), Arc::clone(&events)),
            db,
            counters,
            bell: Bell::default(),
            events,
            collecting: Turn::default(),
            rooms: Rooms::default(),
            policies: Policies::default(),
            committer: Turn::default(),
            sync: Group::default(),
            ids: Ids::new(0),
            term: 0,
            // The last end may have interrupted it.
            prune: AtomicBool::new(true),
            compact: AtomicBool::new(false),
            scrub: AtomicBool::new(false),
        };
        let batch = inner.open_batch()?;
        let inner = Arc::new(Inner { ids: Ids::new(batch), term: batch, ..inner });
        if !options.resumes {
            inner.forget_answers()?;
            for ino in read::orphans(&*inner.db)? {
                inner.propose(Op::Reap { ino })?;
            }
        }
        inner.propose(Op::Job(JobOp::Open { resumes: options.resumes }))?;
        inner.stripes.survey(&index)?;
        let late = Arc::downgrade(&inner);
        inner.db.when_late(move || drop(late.upgrade().inspect(|inner| inner.in_force_late())));
        let workers = [
            collector::start,
            compact::start,
            copier::start,
            rebuild::start,
            scrub::start,
            silence::start,
            spill::start,
        ]
        .map(|start| start(Arc::clone(&inner)));
        let workers = workers.into_iter().collect::<Result<_>>()?;
        Ok(Self { inner, workers })
    }

    pub(crate) fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.inner)
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// The list of what happened, also before the start.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.inner.events
    }

    /// Free all dead stripes now, also those that a clock set back holds up and those of dropped snapshots.
    ///
    /// # Errors
    /// `Io`; the next round in the background tries again.
    pub fn collect(&self) -> Result<()> {
        collector::prune(&self.inner)?;
        collector::collect(&self.inner, u64::MAX)
    }

    /// Begin a pass of scrub now; the metrics tell of its end.
    pub fn scrub(&self) {
        self.inner.scrub.store(true, Ordering::Relaxed);
    }

    /// Begin a pass of compaction now; the metrics tell of its end.
    pub fn compact(&self) {
        self.inner.compact.store(true, Ordering::Relaxed);
    }

    /// The places of the disk tier.
    #[must_use]
    pub fn places(&self) -> Vec<PlaceUsage> {
        self.inner.stripes.tiers().places()
    }

    /// Whether a sync of the metadata's log has failed: fsync fails until a restart.
    #[must_use]
    pub fn log_failed(&self) -> bool {
        self.inner.sync.has_failed()
    }

    /// Whether the metadata's disk does not answer.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.inner.db.status().silent_since.is_some()
    }

    /// Places that take no more writes: until a restart, or until their disks answer.
    #[must_use]
    pub fn places_failed(&self) -> usize {
        self.inner.stripes.tiers().failed().len()
    }

    /// Of these, places whose disks do not answer.
    #[must_use]
    pub fn places_silent(&self) -> usize {
        let statuses = self.inner.stripes.tiers().statuses();
        statuses.iter().filter(|status| status.silent_since.is_some()).count()
    }

    /// How many stripes are not as they should be.
    #[must_use]
    pub fn redundancy(&self) -> Redundancy {
        self.inner.stripes.standings.counts()
    }

    /// Bytes of the memory tier that copies of sealed files have.
    #[must_use]
    pub fn copies_bytes(&self) -> u64 {
        self.inner.copies.bytes()
    }

    /// Bytes used and bytes there are of the memory tier.
    ///
    /// # Errors
    /// `Io`.
    pub fn ram_usage(&self) -> Result<(u64, u64)> {
        self.inner.stripes.tiers().ram_usage()
    }

    /// End cleanly: what is in memory goes to disk, and the memory tier is given back.
    ///
    /// # Errors
    /// `Busy` when somebody else still uses the node; `Io` and `NoSpace`, and then the memory
    /// tier stays and the next start finds it.
    pub fn close(self) -> Result<()> {
        drop(self.workers);
        let mut inner =
            Arc::into_inner(self.inner).ok_or_else(|| Error::new(Kind::Busy, "close: the node is in use"))?;
        inner.forget_answers()?;
        inner.sync()?;
        inner.copies.end()?;
        inner.stripes.move_to_disk()
    }
}

impl Inner {
    /// Apply one command and put it in force.
    pub(crate) fn propose(&self, op: Op) -> Result<Reply> {
        self.propose_with(Origin::default(), op, Vec::new())
    }

    /// The same, with changes of the shards' index in the same batch.
    pub(crate) fn propose_with(&self, origin: Origin, op: Op, index: IndexChanges) -> Result<Reply> {
        self.apply(vec![(origin, op, index)]).pop().unwrap_or_else(no_answer)
    }

    /// Apply commands in order and put what they changed in force with one write: that costs as much as
    /// applying one of them.
    fn apply(&self, group: Vec<(Origin, Op, IndexChanges)>) -> Vec<Result<Reply>> {
        // Nothing is decided by tables that a change that was given up may still alter.
        let turn = self.committer.take(|| self.db.check());
        let _one_at_a_time = match turn.and_then(|turn| self.db.check().map(|()| turn)) {
            Ok(turn) => turn,
            Err(e) => return group.iter().map(|_| Err(e.clone())).collect(),
        };
        let by = if group.iter().all(|(_, op, _)| holds_little(op)) { By::Caller } else { By::Lane };
        let mut tables = Overlay::new(&*self.db);
        let mut index = Vec::new();
        let run = |(origin, op, own): (Origin, Op, IndexChanges)| {
            // Read under the lock: later commits never have earlier times but for a clock set back.
            let command = Command { now: now(), origin, op };
            let reply = kos_core::apply(&tables, &command).map(|applied| {
                // None when it is the answer to a command that was applied before.
                let changed = !applied.changes.is_empty();
                tables.absorb(applied.changes);
                index.extend(own);
                (applied.reply, changed)
            });
            (command.op, reply)
        };
        let ran: Vec<_> = group.into_iter().map(run).collect();
        let changes = tables.into_changes();
        let written =
            if changes.is_empty() { Ok(()) } else { self.db.write_by(by, db::join(changes, index)) };
        if written.is_err() {
            // What failed may be there or not.
            self.policies.forget();
        }
        let end = |(op, reply): (Op, Result<(Reply, bool)>)| {
            let (reply, changed) = reply?;
            written.clone()?;
            if changed {
                self.in_force(&op, &reply);
            }
            Ok(reply)
        };
        ran.into_iter().map(end).collect()
    }

    /// Nobody asks again for what the mount of this node asked.
    fn forget_answers(&self) -> Result<()> {
        self.propose(Op::ForgetSession { session: SessionId::default() }).map(drop)
    }

    /// What follows from a command, before the next one.
    fn in_force(&self, op: &Op, reply: &Reply) {
        self.policies.applied(op, reply);
        if matches!(op, Op::DropSnapshot { .. }) {
            self.prune.store(true, Ordering::Relaxed);
        }
        if let Op::Reap { ino } = op {
            self.copies.forget(*ino);
        }
        // A job's records also go with its directory.
        if matches!(op, Op::Job(_) | Op::Rmdir { parent: JOBS, .. }) {
            self.bell.ring();
        }
    }

    /// A command is in force that nobody waited for any more, whichever it was.
    fn in_force_late(&self) {
        self.policies.forget();
        self.prune.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.sync.run(|| self.db.begin_sync(), |syncing| self.db.sync(syncing)).map_err(db::unanswered)
    }

    fn open_batch(&self) -> Result<u64> {
        fault::at(fault::BATCH).map_err(|e| Error::io("open batch", &e))?;
        match self.propose(Op::OpenBatch)? {
            Reply::Batch(batch) => Ok(batch),
            other => Err(Error::new(Kind::Io, format!("open batch: {other:?}"))),
        }
    }

    pub(crate) fn write_stripe(&self, policy: Policy, data: &[u8]) -> Result<StripeId> {
        let id = self.ids.next(|| self.open_batch())?;
        match self.stripes.write(id, policy, data) {
            Err(e) if e.kind() == Kind::NoSpace && policy.pin == Pin::Ram => {
                spill::make_room(self, room::coded(policy, data.len() as u64))?;
                self.stripes.write(id, policy, data)?;
            }
            result => result?,
        }
        Ok(id)
    }

    pub(crate) fn commit(&self, origin: Origin, op: Op) -> Result<Reply> {
        self.commit_all(origin, vec![op]).pop().unwrap_or_else(no_answer)
    }

    /// Apply changes together, each with the stripes it brings.
    fn commit_all(&self, origin: Origin, ops: Vec<Op>) -> Vec<Result<Reply>> {
        let mut group = Vec::with_capacity(ops.len());
        let settle = |op: Op| {
            let mut settled = self.settle(origin, &op)?;
            group.push((origin, op, std::mem::take(&mut settled.records)));
            Ok(settled)
        };
        let settled: Vec<Result<Settled>> = ops.into_iter().map(settle).collect();
        let mut replies = self.apply(group).into_iter();
        let end = |settled: Result<Settled>| {
            let settled = settled?;
            let reply = replies.next().unwrap_or_else(no_answer);
            self.settled(&settled, &reply);
            reply
        };
        settled.into_iter().map(end).collect()
    }

    /// Take the stripes that a command brings, as durable as their class says.
    fn settle(&self, origin: Origin, op: &Op) -> Result<Settled> {
        // Applied before: its stripes are settled already.
        if origin.seq > 0 && Tables::get(&*self.db, &keys::answer(origin.session, origin.seq))?.is_some() {
            return Ok(Settled::default());
        }
        let settled = match op {
            Op::Commit { stripes, .. } => self.stripes.settle(stripes)?,
            Op::Compact { stripe, .. } => self.stripes.settle(&[*stripe])?,
            _ => return Ok(Settled::default()),
        };
        fault::at(fault::SETTLED).map_err(|e| Error::io("commit", &e))?;
        Ok(settled)
    }

    /// The command that brought them was answered.
    fn settled(&self, settled: &Settled, reply: &Result<Reply>) {
        match reply {
            Ok(_) => self.stripes.settled(settled),
            // The tables may hold it or not, and a restart may show it: then its bytes must be
            // there. What they do not hold, the next start gives back.
            Err(e) if matches!(e.kind(), Kind::Io | Kind::NoSpace) => {}
            Err(_) => self.stripes.drop_settled(settled),
        }
    }
}

/// Whether no lock but the committer's is held while this is proposed, or one that is waited for only so long: these may be
/// held up on the caller's thread.
fn holds_little(op: &Op) -> bool {
    let is_of_names = matches!(
        op,
        Op::Create { .. }
            | Op::CreateUnnamed { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
    );
    is_of_names || matches!(op, Op::SetAttr { .. } | Op::Commit { .. } | Op::Punch { .. })
}

/// Every command has an answer.
fn no_answer() -> Result<Reply> {
    Err(Error::new(Kind::Io, "propose: no answer"))
}

impl Node {
    /// Take the seal off a file by a command that says so.
    ///
    /// # Errors
    /// As [`Self::propose_as`]; `InUse` while a copy of it is read in place.
    pub(crate) fn unseal(&self, ino: Ino, propose: impl FnOnce() -> Result<Reply>) -> Result<Reply> {
        self.inner.copies.unseal(ino, propose)
    }

    /// Apply one change on behalf of a session.
    ///
    /// # Errors
    /// As the operation says; `Fenced` when the session's epoch or grant was taken back.
    pub fn propose_as(&self, origin: Origin, op: Op) -> Result<Reply> {
        self.inner.commit(origin, op)
    }

    /// The number of this start, higher than all before.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.inner.term
    }

    /// Logged sessions, the epoch of each, and whether it has ended.
    ///
    /// # Errors
    /// `Io`.
    pub fn sessions(&self) -> Result<Vec<(SessionId, u64, bool)>> {
        read::sessions(&*self.inner.db)
    }

    /// The tables as the view of `ino` shows them, and its number in them.
    fn seen(&self, ino: Ino) -> Result<(AsOf<'_, Db>, Ino)> {
        Ok((AsOf::seen_by(&*self.inner.db, ino)?, ino.in_view(0)))
    }
}

impl Fabric for Node {
    fn propose(&self, op: Op) -> Result<Reply> {
        self.inner.commit(Origin::default(), op)
    }

    fn propose_all(&self, mut ops: Vec<Op>) -> Vec<Result<Reply>> {
        let mut replies = Vec::with_capacity(ops.len());
        while !ops.is_empty() {
            let rest = ops.split_off(ops.len().min(GROUP_MAX));
            replies.extend(self.inner.commit_all(Origin::default(), ops));
            ops = rest;
        }
        replies
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let (tables, dir) = self.seen(parent)?;
        let attr = read::lookup(&tables, dir, name)?;
        Ok(Attr { ino: attr.ino.in_view(parent.view()), ..attr })
    }

    fn unnamed(&self) -> Result<Vec<Ino>> {
        read::orphans(&*self.inner.db)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        let (tables, number) = self.seen(ino)?;
        Ok(Attr { ino, ..read::inode(&tables, number)?.attr })
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        let (tables, number) = self.seen(dir)?;
        Ok(read::parent(&tables, number)?.in_view(dir.view()))
    }

    fn list(&self, dir: Ino, after: u64, max: usize) -> Result<Vec<Dirent>> {
        let (tables, number) = self.seen(dir)?;
        let mut entries = read::list(&tables, number, after, max)?;
        for entry in &mut entries {
            entry.attr.ino = entry.attr.ino.in_view(dir.view());
        }
        Ok(entries)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let (tables, ino) = self.seen(ino)?;
        read::readlink(&tables, ino)
    }

    fn want_copy(&self, ino: Ino) {
        self.inner.copies.want(ino);
    }

    fn lend_copy(&self, ino: Ino) -> Option<File> {
        self.inner.copies.lend(ino)
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let (tables, ino) = self.seen(ino)?;
        read::xattr(&tables, ino, name)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let (tables, ino) = self.seen(ino)?;
        read::xattrs(&tables, ino)
    }

    fn policy(&self, ino: Ino) -> Result<Policy> {
        if ino.view() == 0 {
            return self.inner.policies.of(&*self.inner.db, ino);
        }
        let (tables, ino) = self.seen(ino)?;
        policy::of(&tables, ino)
    }

    fn sharing(&self, ino: Ino) -> Result<Sharing> {
        if ino.view() == 0 {
            return self.inner.policies.sharing(&*self.inner.db, ino);
        }
        let (tables, ino) = self.seen(ino)?;
        policy::sharing(&tables, ino)
    }

    fn extents(&self, ino: Ino, off: u64, len: u64) -> Result<ExtentMap> {
        self.inner.db.maps().extents(ino, off, len, |off, len| {
            let (tables, ino) = self.seen(ino)?;
            read::extents(&tables, ino, off, len)
        })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        kos_core::snapshots(&*self.inner.db)
    }

    fn write_stripe(&self, policy: Policy, data: &[u8]) -> Result<StripeId> {
        // While the metadata takes no change, each try would leave its stripes.
        self.inner.db.take_changes_again()?;
        self.inner.write_stripe(policy, data)
    }

    fn drop_stripe(&self, stripe: StripeId) {
        self.inner.stripes.give_up(stripe);
    }

    fn reserve(&self, ino: Ino, bytes: u64, grows: u64) -> Result<()> {
        let inner = &self.inner;
        let reserve =
            || inner.rooms.reserve(&*inner.db, inner.stripes.tiers(), &inner.policies, ino, (bytes, grows));
        match reserve() {
            // What was deleted may have left its bytes.
            Err(e) if e.kind() == Kind::NoSpace => {
                self.collect()?;
                let policy = inner.policies.of(&*inner.db, ino)?;
                if policy.pin == Pin::Ram {
                    let needed = inner.stripes.tiers().kept().saturating_add(room::coded(policy, bytes));
                    spill::make_room(inner, needed)?;
                }
                reserve()
            }
            result => result,
        }
    }

    fn release(&self, ino: Ino, bytes: u64) {
        self.inner.rooms.release(self.inner.stripes.tiers(), ino, bytes);
    }

    fn read_stripe(&self, stripe: StripeId, at: u64, out: &mut [u8]) -> Result<()> {
        self.inner.stripes.read(stripe, at, out)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn report(&self, kind: &'static str, text: &str) {
        self.inner.events.add(kind, text);
    }

    fn usage(&self) -> Result<SpaceUsage> {
        let (total, free) = self.inner.stripes.space()?;
        let inodes_used = read::state(&*self.inner.db)?.inodes;
        Ok(SpaceUsage { bytes_total: total, bytes_free: free, inodes_used })
    }

    fn job(&self, id: JobId) -> Result<Job> {
        job::job(&*self.inner.db, id)
    }

    fn job_spec(&self, id: JobId) -> Result<Vec<u8>> {
        job::text(&*self.inner.db, id)
    }

    fn job_of(&self, dir: Ino) -> Result<Option<JobId>> {
        job::of_dir(&*self.inner.db, dir)
    }

    fn jobs_changed(&self, seen: u64, wait: Duration) -> Result<u64> {
        Ok(self.inner.bell.wait(seen, wait))
    }
}
