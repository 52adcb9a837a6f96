//! The leader's end: the table under a lock, who listens, and a thread for time and fences.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kos_core::lease::{Action, Commit, Event, Limits, Refusal, Table};
use kos_types::lease::{Epoch, ToClient, ToLeader};
use kos_types::{Error, Kind, Result, SessionId};

use crate::{lock, now, rest};

/// Between tries to write to a log that fails.
const PAUSE: Duration = Duration::from_millis(100);

/// Between looks whether recalls are over.
const LOOK: Duration = Duration::from_millis(1);

/// Where a session's messages go: called in order, and never waits.
pub type Outbox = Box<dyn FnMut(Epoch, ToClient) + Send>;

/// What survives a leader.
pub trait Log: Send + Sync + 'static {
    /// Raise a session's epoch, and answer the new one.
    ///
    /// # Errors
    /// When it is not known whether it is raised; it is tried again.
    fn fence(&self, session: SessionId) -> Result<Epoch>;

    /// A fenced session holds nothing any more.
    ///
    /// # Errors
    /// As [`Self::fence`].
    fn close(&self, session: SessionId) -> Result<()>;
}

struct State {
    table: Table,
    outboxes: BTreeMap<SessionId, Outbox>,
    /// What the log must be told.
    duties: VecDeque<Action>,
    /// When the thread looks at the time again.
    timer_at: u64,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    log: Arc<dyn Log>,
}

/// The leases of one leader; dropped, it grants nothing more.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// Lead in `term`, which no leader had before. `logged` are the sessions in the log, as for [`Table::new`].
    ///
    /// # Errors
    /// `Io` when there is no thread.
    pub fn start(
        term: u64,
        limits: Limits,
        logged: impl IntoIterator<Item = (SessionId, Epoch)>,
        log: Arc<dyn Log>,
    ) -> Result<Self> {
        let table = Table::new(now(), term, limits, logged);
        let state =
            State { table, outboxes: BTreeMap::new(), duties: VecDeque::new(), timer_at: 0, stopping: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), log });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("leases".into())
            .spawn(move || own.run())
            .map_err(|e| Error::io("leases: thread", &e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The log has opened a session.
    pub fn opened(&self, session: SessionId, epoch: Epoch) {
        self.shared.step(&mut lock(&self.shared.state), Event::Opened { session, epoch });
    }

    /// This process has a session of its own, which ends with it.
    pub fn resides(&self, session: SessionId, epoch: Epoch) {
        self.shared.step(&mut lock(&self.shared.state), Event::Resides { session, epoch });
    }

    /// Whether there are sessions but that of this process, also such that may come back.
    #[must_use]
    pub fn has_others(&self) -> bool {
        lock(&self.shared.state).table.has_others()
    }

    /// Have everybody commit what is buffered, also sessions that have not said yet what they hold; with `retire` have
    /// other processes give back everything, and grant them nothing more.
    ///
    /// # Errors
    /// `TimedOut` when somebody neither answers nor is fenced in time.
    pub fn recall_all(&self, retire: bool, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut since = None;
        loop {
            {
                let mut state = lock(&self.shared.state);
                // Whoever does not come back keeps what it has for the leader after a retired one.
                if since.is_none() && (retire || !state.table.is_learning()) {
                    self.shared.step(&mut state, Event::RecallAll { retire });
                    since = Some(state.table.recalled(None).1);
                }
                if since.is_some() && state.table.recalled(since).0 {
                    return Ok(());
                }
            }
            if Instant::now() > until {
                return Err(Error::new(Kind::TimedOut, "leases: somebody does not give them back"));
            }
            thread::sleep(LOOK);
        }
    }

    /// A session has a new connection. What was sent over the last one and not received is lost.
    pub fn connected(&self, session: SessionId, outbox: Outbox) {
        lock(&self.shared.state).outboxes.insert(session, outbox);
    }

    /// A session said something over its present connection.
    pub fn receive(&self, session: SessionId, epoch: Epoch, message: ToLeader) {
        self.shared.step(&mut lock(&self.shared.state), Event::Message { session, epoch, message });
    }

    /// The log has ended a session that gave everything back.
    pub fn closed(&self, session: SessionId) {
        let mut state = lock(&self.shared.state);
        state.outboxes.remove(&session);
        self.shared.step(&mut state, Event::Closed { session });
    }

    /// Propose a change that needs a lease, if it may be. Nothing is granted meanwhile, so `propose` is
    /// short: what must be durable first is that already.
    ///
    /// # Errors
    /// Why it was not proposed.
    pub fn commit<R>(&self, commit: &Commit, propose: impl FnOnce() -> R) -> std::result::Result<R, Refusal> {
        let state = lock(&self.shared.state);
        state.table.check(now(), commit)?;
        Ok(propose())
    }
}

impl Shared {
    fn step(&self, state: &mut State, event: Event) {
        for action in state.table.step(now(), event) {
            match action {
                Action::Send { session, epoch, message } => {
                    if let Some(outbox) = state.outboxes.get_mut(&session) {
                        outbox(epoch, message);
                    }
                }
                Action::Fence { .. } | Action::Close { .. } => state.duties.push_back(action),
            }
        }
        let early = state.table.next_deadline().is_some_and(|due| due < state.timer_at);
        if early || !state.duties.is_empty() {
            self.wake.notify_one();
        }
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.stopping {
            if let Some(duty) = state.duties.pop_front() {
                drop(state);
                let done = self.write(&duty);
                state = lock(&self.state);
                match done {
                    Ok(Some(event)) => self.step(&mut state, event),
                    Ok(None) => {}
                    Err(e) => {
                        kos_types::log!("kos-lease: {e}; tried again");
                        state.duties.push_front(duty);
                        state = self.wait(state, PAUSE);
                    }
                }
                continue;
            }
            self.step(&mut state, Event::Tick);
            if state.duties.is_empty() {
                let rest = rest(state.table.next_deadline());
                state.timer_at = now() + rest.as_micros() as u64;
                state = self.wait(state, rest);
            }
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn write(&self, duty: &Action) -> Result<Option<Event>> {
        match *duty {
            Action::Fence { session, .. } => {
                let epoch = self.log.fence(session)?;
                Ok(Some(Event::Fenced { session, epoch }))
            }
            Action::Close { session, .. } => self.log.close(session).map(|()| None),
            Action::Send { .. } => Ok(None),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        lock(&self.shared.state).stopping = true;
        self.shared.wake.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("kos-lease: the keeper panicked");
        }
    }
}
