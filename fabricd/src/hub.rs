//! Who uses one fabric: the mount of this process and those behind the socket. It holds what dies
//! with them: which files they have open, their locks and their leases.
//!
//! While the mount of this process is alone it needs no leases. Whoever joins waits until that has given back
//! what it has without them (docs/adr/0072).

mod chronicle;
mod fabric;
mod left;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_core::policy;
use kos_lease::{Holder, Keeper};
use kos_rpc::{Claim, LeaseOutbox, Numbered};
use kos_types::lease::{Cache, Epoch, ToLeader};
use kos_types::{Access, Error, Fabric, FileLock, Ino, JobOp, Kind, Op, Origin, Reply, Result, SessionId};

use kos_core::lease::Limits;

use self::chronicle::Chronicle;
use self::left::Left;
use crate::Node;
use crate::loans::Loans;
use crate::locks::Locks;

/// For all mounts to write out what they have buffered: more than any may take to answer a recall.
const PATIENCE: Duration = Duration::from_secs(30);
/// Mounts behind the socket at once.
const SESSIONS_MAX: usize = 16;
/// A logged session waits so long for a client whose connections have gone, or that has not come
/// since the daemon's start: longer than any `timeout=` lets a request wait.
pub const KEPT: Duration = Duration::from_secs(3660);
/// So long mounts of an earlier daemon are waited for before others are given locks: one that lives is back sooner.
const LOCKS_AWAITED: Duration = Duration::from_secs(5);
/// Logged sessions that wait for their clients; more, and the longest away end early.
const KEPT_MAX: usize = 256;

/// What stat shows of one that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its process.
    pub pid: u32,
    /// Where it is mounted.
    pub dir: String,
    /// From where.
    pub source: String,
}

/// What the mount in this process does when others come.
pub struct Local {
    /// Write out what is buffered, and return when nothing older is answered from memory.
    /// [`Fabric::shared`] holds already.
    pub settle: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    last: u64,
    /// The mount of this process is not among them.
    others: BTreeMap<u64, Who>,
    /// How often each session has an inode open.
    opens: HashMap<Ino, BTreeMap<u64, Opens>>,
    /// Without a name, and dropped when nobody has it open.
    orphans: HashSet<Ino>,
    loans: Loans,
    logged: BTreeMap<SessionId, Logged>,
}

/// How often one session has an inode open.
#[derive(Default)]
struct Opens {
    reads: u32,
    writes: u32,
}

impl Opens {
    const fn of(&mut self, access: Access) -> &mut u32 {
        match access {
            Access::Read => &mut self.reads,
            Access::Write => &mut self.writes,
        }
    }
}

/// A session in the log.
struct Logged {
    /// Those that joined with it and are there.
    users: u32,
    /// Without users it ends then.
    until: Instant,
    ended: bool,
    /// An earlier daemon may have lent it copies, and it has not come back yet to say which.
    awaited: bool,
    /// Files without a name that only its mount had open when it went.
    left: Left,
}

impl Table {
    /// Whether a mount of an earlier daemon has not come back yet, and may.
    fn awaits(&self) -> bool {
        self.logged.values().any(|logged| logged.awaited && !logged.ended)
    }
}

impl Logged {
    const fn new(until: Instant, ended: bool, awaited: bool) -> Self {
        Self { users: 0, until, ended, awaited, left: Left::new() }
    }
}

/// The sessions of one fabric.
pub struct Hub {
    node: Arc<Node>,
    table: Arc<Mutex<Table>>,
    others: AtomicUsize,
    keeper: Arc<Keeper>,
    /// Leases are needed: others are there, or may come back with theirs.
    shared: AtomicBool,
    /// One joins at a time: the first one changes what all do.
    joining: Mutex<()>,
    local: Mutex<Option<Arc<Local>>>,
    locks: Locks,
    since: Instant,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

/// The fabric as one mount has it; what the mount held goes when this is dropped.
pub struct Session {
    hub: Arc<Hub>,
    number: u64,
    /// As whom it proposes; the mount in this process as the node itself.
    origin: Origin,
    leaving: AtomicBool,
    /// Nothing was unsealed since an earlier daemon lent it copies.
    kept: bool,
    /// What was set aside for what another process has buffered.
    reserved: Mutex<HashMap<Ino, u64>>,
    /// What another process has made without a name and not opened yet.
    made: Mutex<HashSet<Ino>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("number", &self.number).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Nobody has joined yet; sessions of an earlier daemon wait for their clients.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(node: Arc<Node>) -> Result<Arc<Self>> {
        let until = Instant::now() + KEPT;
        let logged = node.sessions()?;
        let living = logged.iter().filter(|(.., ended)| !ended);
        let living: Vec<_> = living.map(|&(id, epoch, _)| (id, Epoch(epoch))).collect();
        let shared = AtomicBool::new(!living.is_empty());
        let logged = logged.into_iter();
        let logged = logged.map(|(id, _, ended)| (id, Logged::new(until, ended, !ended))).collect();
        let table = Arc::new(Mutex::new(Table { logged, ..Table::default() }));
        let log = Arc::new(Chronicle { node: Arc::clone(&node), table: Arc::clone(&table) });
        let keeper = Keeper::start(node.term(), Limits::DEFAULT, living, log)?;
        Ok(Arc::new(Self {
            node,
            table,
            others: AtomicUsize::new(0),
            keeper: Arc::new(keeper),
            shared,
            joining: Mutex::default(),
            local: Mutex::default(),
            locks: Locks::default(),
            since: Instant::now(),
        }))
    }

    /// The session of the mount in this process.
    #[must_use]
    pub fn embed(self: &Arc<Self>) -> Arc<Session> {
        Arc::new(Session {
            hub: Arc::clone(self),
            number: self.number(),
            origin: Origin::default(),
            leaving: AtomicBool::new(false),
            kept: false,
            reserved: Mutex::default(),
            made: Mutex::default(),
        })
    }

    /// Leases for that mount.
    ///
    /// # Errors
    /// `Io`.
    pub fn lease(&self, cache: Arc<dyn Cache>) -> Result<Arc<Holder>> {
        kos_lease::reside(&self.keeper, self.node.term(), cache)
    }

    /// Have all mounts commit what they have buffered.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn flush_all(&self) -> Result<()> {
        if self.shared.load(Ordering::SeqCst) { self.keeper.recall_all(false, PATIENCE) } else { Ok(()) }
    }

    /// Have the others give back all they hold; from now on they get nothing.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn retire(&self) -> Result<()> {
        self.keeper.recall_all(true, PATIENCE)
    }

    /// What that mount does when others come; without one there is nothing to do.
    pub fn set_local(&self, local: Option<Local>) {
        *lock(&self.local) = local.map(Arc::new);
    }

    /// Let another one in, with the session it has of an earlier time or, if that has ended, with a new
    /// one. It returns when the others know. `lent` are files of which it was lent copies, perhaps by an earlier
    /// daemon.
    ///
    /// # Errors
    /// `Busy` when there are too many; what the local mount could not write out.
    pub fn join(
        self: &Arc<Self>,
        who: Who,
        claim: Option<Claim>,
        (lent, locks): (&[Ino], &[(Ino, FileLock)]),
    ) -> Result<Arc<Session>> {
        let _one_at_a_time = lock(&self.joining);
        if self.others.load(Ordering::SeqCst) >= SESSIONS_MAX {
            return Err(Error::new(
                Kind::Busy,
                format!("all {SESSIONS_MAX} mounts of the socket are in use"),
            ));
        }
        // From here on requests ask for leases; what is held without goes first.
        let local = lock(&self.local).clone();
        if !self.shared.swap(true, Ordering::SeqCst)
            && let Some(local) = local
            && let Err(e) = (local.settle)()
        {
            // Nobody has joined: what has a lease by now is right without one too.
            self.shared.store(false, Ordering::SeqCst);
            return Err(e);
        }
        let known =
            claim.filter(|claim| lock(&self.table).logged.get(&claim.session).is_some_and(|l| !l.ended));
        let Claim { session, epoch } = known.map_or_else(|| self.new_session(), Ok)?;
        self.others.fetch_add(1, Ordering::SeqCst);
        let number = self.number();
        // Before others, who wait for it, are given any.
        for (ino, held) in locks {
            // One that is refused is told of again, and then logged.
            drop(self.locks.set(number, *ino, held, None));
        }
        let mut table = lock(&self.table);
        table.others.insert(number, who);
        lent.iter().for_each(|&ino| _ = table.loans.begin(number, ino));
        let new = || Logged::new(Instant::now(), false, false);
        let logged = table.logged.entry(session).or_insert_with(new);
        logged.users += 1;
        // It is back, and says itself what goes.
        logged.left.clear();
        let kept = std::mem::take(&mut logged.awaited) && !logged.ended;
        let origin = Origin { session, epoch, ..Origin::default() };
        Ok(Arc::new(Session {
            hub: Arc::clone(self),
            number,
            origin,
            leaving: AtomicBool::new(false),
            kept,
            reserved: Mutex::default(),
            made: Mutex::default(),
        }))
    }

    /// End and forget the sessions whose clients have left, or have been away for [`KEPT`] at `now`.
    ///
    /// # Errors
    /// `Io`; the next call goes on.
    pub fn expire(&self, now: Instant) -> Result<()> {
        // Nobody comes back with a session that just ends.
        let _no_joining = lock(&self.joining);
        self.drop_left(now)?;
        let mut away: Vec<(Instant, SessionId)> = {
            let table = lock(&self.table);
            let away = table.logged.iter().filter(|(_, logged)| logged.users == 0);
            away.map(|(&id, logged)| (if logged.ended { now } else { logged.until }, id)).collect()
        };
        away.sort_unstable();
        let excess = away.len().saturating_sub(KEPT_MAX);
        let due = away.iter().enumerate().take_while(|(nth, (until, _))| *nth < excess || *until <= now);
        for (_, &(_, session)) in due {
            self.drop_left_of(session, now)?;
            if lock(&self.table).logged.get(&session).is_some_and(|logged| !logged.ended) {
                self.node.propose(Op::EndSession { session })?;
                lock(&self.table).logged.entry(session).and_modify(|logged| logged.ended = true);
            }
            self.keeper.closed(session);
            self.node.propose(Op::ForgetSession { session })?;
            lock(&self.table).logged.remove(&session);
        }
        if self.others.load(Ordering::SeqCst) == 0 && !self.keeper.has_others() {
            self.shared.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn new_session(&self) -> Result<Claim> {
        match self.node.propose(Op::OpenSession)? {
            Reply::Session(session, epoch) => {
                self.keeper.opened(session, Epoch(epoch));
                Ok(Claim { session, epoch })
            }
            other => Err(Error::new(Kind::Io, format!("open session: {other:?}"))),
        }
    }

    /// Those that joined and are there.
    #[must_use]
    pub fn others(&self) -> Vec<Who> {
        lock(&self.table).others.values().cloned().collect()
    }

    fn number(&self) -> u64 {
        let mut table = lock(&self.table);
        table.last += 1;
        table.last
    }

    /// Drop an inode without a name as soon as nobody has it open.
    fn reap(&self, ino: Ino) -> Result<Reply> {
        // Held to the end: an open that comes meanwhile finds it gone.
        let mut table = lock(&self.table);
        if table.opens.contains_key(&ino) {
            table.orphans.insert(ino);
            return Ok(Reply::Done);
        }
        self.node.propose(Op::Reap { ino })
    }

    /// Seal a file, or take the seal off.
    fn seal(&self, ino: Ino, seals: bool, propose: impl FnOnce() -> Result<Reply>) -> Result<Reply> {
        // Held to the end: an open that comes meanwhile finds it sealed.
        let table = lock(&self.table);
        let mut opens = table.opens.get(&ino).into_iter().flat_map(BTreeMap::values);
        if seals && opens.any(|opens| opens.writes > 0) {
            return Err(Error::new(Kind::InUse, "seal: the file is open for writing"));
        }
        if seals {
            return propose();
        }
        if (table.loans.any(ino) || table.awaits()) && self.node.attr(ino)?.sealed {
            return Err(Error::new(Kind::InUse, "unseal: a mount reads it in place, or may do so"));
        }
        self.node.unseal(ino, propose)
    }

    /// Whether a mount may still come back with locks that an earlier daemon gave it.
    fn awaits_locks(&self) -> bool {
        self.since.elapsed() < LOCKS_AWAITED && lock(&self.table).awaits()
    }

    /// One open less of a session, or none left of it.
    fn close(&self, session: u64, ino: Ino, access: Option<Access>) {
        let table = &mut *lock(&self.table);
        let Some(opens) = table.opens.get_mut(&ino) else { return };
        if let Some(own) = opens.get_mut(&session) {
            match access {
                Some(access) => *own.of(access) = own.of(access).saturating_sub(1),
                None => *own = Opens::default(),
            }
            if own.reads + own.writes == 0 {
                opens.remove(&session);
                table.loans.closed(session, ino);
            }
        }
        if opens.is_empty() {
            table.opens.remove(&ino);
            if table.orphans.remove(&ino)
                && let Err(e) = self.node.propose(Op::Reap { ino })
            {
                kos_types::log!("fabricd: dropping inode {}: {e}; the next start does it", ino.0);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let held: Vec<Ino> = {
            let mut table = lock(&self.hub.table);
            table.others.remove(&self.number);
            table.loans.forget(self.number);
            if let Some(logged) = table.logged.get_mut(&self.origin.session) {
                logged.users -= 1;
                logged.until = Instant::now() + if self.is_leaving() { Duration::ZERO } else { KEPT };
            }
            let own = table.opens.iter().filter(|(_, sessions)| sessions.contains_key(&self.number));
            own.map(|(&ino, _)| ino).collect()
        };
        self.leave_unnamed(&held);
        self.hub.locks.end(self.number);
        for (ino, bytes) in lock(&self.reserved).drain() {
            self.hub.node.release(ino, bytes);
        }
        for ino in held {
            self.hub.close(self.number, ino, None);
        }
        if self.is_remote() {
            self.hub.others.fetch_sub(1, Ordering::SeqCst);
        }
        if self.is_leaving()
            && let Err(e) = self.hub.expire(Instant::now())
        {
            kos_types::log!("fabricd: ending session {}: {e}; tried again", self.origin.session.0);
        }
    }
}

/// What only the node itself proposes: it would take the ground from under the others.
const fn is_internal(op: &Op) -> bool {
    matches!(
        op,
        Op::OpenBatch
            | Op::Collected { .. }
            | Op::Compact { .. }
            | Op::OpenSession
            | Op::EndSession { .. }
            | Op::ForgetSession { .. }
            | Op::FenceSession { .. }
            | Op::Fence { .. }
            | Op::Prune { .. }
            | Op::Job(JobOp::Open { .. } | JobOp::Start { .. } | JobOp::End { .. })
    )
}

/// The file that a change may seal or unseal, and whether it seals.
fn seals(op: &Op) -> Option<(Ino, bool)> {
    match op {
        Op::SetXattr { ino, name, value, .. } if name == policy::SEAL => {
            Some((*ino, value == policy::SEALED))
        }
        Op::RemoveXattr { ino, name } if name == policy::SEAL => Some((*ino, false)),
        _ => None,
    }
}

impl Session {
    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn is_remote(&self) -> bool {
        self.origin.session != SessionId::default()
    }
}

impl Numbered for Session {
    fn claim(&self) -> Claim {
        Claim { session: self.origin.session, epoch: self.origin.epoch }
    }

    fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    fn term(&self) -> u64 {
        self.hub.node.term()
    }

    fn kept(&self) -> bool {
        self.kept
    }

    fn lease_begin(&self, outbox: LeaseOutbox) {
        self.hub.keeper.connected(self.origin.session, outbox);
    }

    fn lease_message(&self, epoch: Epoch, message: ToLeader) {
        self.hub.keeper.receive(self.origin.session, epoch, message);
    }

    fn propose_numbered(&self, seq: u64, answered: u64, op: Op) -> Result<Reply> {
        self.propose_as(Origin { seq, answered, ..self.origin }, op)
    }
}

impl Session {
    fn propose_as(&self, origin: Origin, op: Op) -> Result<Reply> {
        if let Op::Reap { ino } = op {
            self.forget_made(ino);
            return self.hub.reap(ino);
        }
        if self.is_remote() && is_internal(&op) {
            return Err(Error::new(Kind::NotPermitted, "propose: a change that only the node makes"));
        }
        if matches!(op, Op::TakeSnapshot { .. }) {
            // It holds what programs have written, also what they did not flush.
            self.hub.flush_all()?;
        }
        let seals = seals(&op);
        let makes = matches!(op, Op::CreateUnnamed { .. });
        let propose = || self.hub.node.propose_as(origin, op);
        match seals {
            Some((ino, seals)) => self.hub.seal(ino, seals, propose),
            None if makes => self.note_made(propose()),
            None => propose(),
        }
    }
}
