//! A mount's end: requests that run when they may, and threads that give leases back.
//!
//! A thread that serves requests never waits here: what cannot run yet is parked as a closure. So those
//! threads are there when giving a lease back needs them, as throwing out a mapping's dirty pages does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_core::lease::{Client, Commit, Input, Limits, Output};
use kos_types::lease::{
    Cache, Epoch, GrantId, Held, Holds, Lane, Leases, Mode, RequestId, Run, Span, ToClient, ToLeader, Want,
};
use kos_types::{Error, Ino, Kind, Result, SessionId};

use crate::{IDLE, lock, now, rest};

/// Threads that run what was parked. It does not wait for leases, so few are enough.
const RUNNERS: usize = 4;
/// Threads that give leases back: one that is slow to flush does not hold up all others.
const RETURNERS: usize = 4;
/// Between tries to open a session.
const PAUSE: Duration = Duration::from_millis(100);

/// A session as it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Which.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The leader's term, at the other end of the connection that is there now.
    pub term: u64,
}

/// The way to the leader.
pub trait Link: Send + Sync + 'static {
    /// Send over the present connection; lost without one. Called in order, and never waits.
    fn send(&self, epoch: Epoch, message: ToLeader);

    /// End the session before, if there was one, and open another.
    ///
    /// # Errors
    /// When nobody answers; it is tried again.
    fn open(&self) -> Result<Opened>;
}

enum Job {
    Flush(GrantId, Ino, Lane, Span),
    Invalidate(GrantId, Ino, Lane, Span, Mode),
    Abandon,
    Open,
}

struct State {
    client: Client,
    requests: u64,
    parked: HashMap<RequestId, Run>,
    ready: VecDeque<(Run, std::result::Result<Granted, Kind>)>,
    jobs: VecDeque<Job>,
    /// When the timer looks at the time again.
    timer_at: u64,
    /// What the cache was told.
    valid_until: u64,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    timer: Condvar,
    ready: Condvar,
    jobs: Condvar,
    cache: Arc<dyn Cache>,
    link: Arc<dyn Link>,
}

/// A mount's leases.
pub struct Holder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").finish_non_exhaustive()
    }
}

/// What may run.
#[derive(Debug, Clone, Copy)]
struct Granted {
    request: RequestId,
    admitted: Option<Ino>,
}

/// The leases of a request that runs; given up with it.
struct Use {
    shared: Arc<Shared>,
    /// Nothing once it has ended.
    request: Option<RequestId>,
    admitted: Option<Ino>,
}

impl Held for Use {
    fn admitted(&self) -> Option<Ino> {
        self.admitted
    }

    fn end(mut self: Box<Self>) -> bool {
        self.finish()
    }
}

impl Use {
    fn finish(&mut self) -> bool {
        let Some(request) = self.request.take() else { return true };
        let mut state = lock(&self.shared.state);
        let outputs = state.client.step(now(), Input::End { request });
        let lost = outputs.contains(&Output::Lost { request });
        self.shared.obey(&mut state, outputs);
        !lost
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Leases for Holder {
    fn when(&self, wants: &[Want], holds: Holds, patience: Duration, run: Run) {
        let mut state = lock(&self.shared.state);
        state.requests += 1;
        let request = RequestId(state.requests);
        let at = now();
        let deadline = at.saturating_add(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX));
        let begin = Input::Begin { request, wants: wants.to_vec(), deadline, holds };
        let outputs = state.client.step(at, begin);
        if outputs.contains(&Output::Ready { request }) {
            self.shared.obey(&mut state, outputs);
            drop(state);
            return run(Ok(self.shared.held(Granted { request, admitted: None })));
        }
        state.parked.insert(request, run);
        self.shared.obey(&mut state, outputs);
    }

    fn admit(&self, recall: Option<GrantId>, ino: Ino, span: Span) -> usize {
        let mut state = lock(&self.shared.state);
        let outputs = state.client.step(now(), Input::Admit { recall, ino, span });
        let admitted = outputs.iter().filter(|output| matches!(output, Output::Admitted { .. })).count();
        self.shared.obey(&mut state, outputs);
        admitted
    }
}

impl Holder {
    /// Open a session and hold leases for `cache`.
    ///
    /// # Errors
    /// `Io` when there are no threads.
    pub fn start(limits: Limits, cache: Arc<dyn Cache>, link: Arc<dyn Link>) -> Result<Self> {
        let state = State {
            client: Client::new(limits),
            requests: 0,
            parked: HashMap::new(),
            ready: VecDeque::new(),
            jobs: VecDeque::new(),
            timer_at: 0,
            valid_until: 0,
            stopping: false,
        };
        let (timer, ready, jobs) = (Condvar::new(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), timer, ready, jobs, cache, link });
        let mut holder = Self { shared, threads: Vec::new() };
        holder.spawn(1, "lease-timer", Shared::keep_time)?;
        holder.spawn(RUNNERS, "lease-run", Shared::run_ready)?;
        holder.spawn(RETURNERS, "lease-return", Shared::run_jobs)?;
        Ok(holder)
    }

    fn spawn(&mut self, count: usize, name: &str, run: fn(&Arc<Shared>)) -> Result<()> {
        for _ in 0..count {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name(name.into()).spawn(move || run(&shared));
            self.threads.push(thread.map_err(|e| Error::io("leases: thread", &e))?);
        }
        Ok(())
    }

    /// The leader said something over the present connection.
    pub fn receive(&self, epoch: Epoch, mut message: ToClient) {
        if let ToClient::Recall { ino, lane: Lane::Data, span, .. } = &mut message
            && self.shared.cache.is_undivided(*ino)
        {
            // The leader counts on less. What it then asks for is here no more, and acknowledged at once.
            *span = Span::ALL;
        }
        self.shared.step(Input::Message { epoch, message });
    }

    /// There is a new connection, to the leader of `term`.
    pub fn connected(&self, term: u64) {
        self.shared.step(Input::Connected { term });
    }

    /// The connection is gone.
    pub fn disconnected(&self) {
        self.shared.step(Input::Disconnected);
    }

    /// The stamp of a commit; `None` when it must not be sent. It is made before the commit's bytes are
    /// taken out of the buffer: bytes of a lost session then never go out under the next one. So bytes whose
    /// commit is refused go back before they are stamped again.
    #[must_use]
    pub fn commit(&self, want: Want) -> Option<Commit> {
        lock(&self.shared.state).client.commit(now(), want)
    }

    /// Nobody leads now: no connection can be made, and a leader that comes grants nothing for the time of a
    /// lease.
    pub fn leaderless(&self) {
        let at = now();
        self.shared.step(Input::Leaderless { at });
    }
}

impl Shared {
    fn held(self: &Arc<Self>, granted: Granted) -> Box<dyn Held> {
        let Granted { request, admitted } = granted;
        Box::new(Use { shared: Arc::clone(self), request: Some(request), admitted })
    }

    fn step(&self, input: Input) {
        let mut state = lock(&self.state);
        let outputs = state.client.step(now(), input);
        self.obey(&mut state, outputs);
    }

    fn obey(&self, state: &mut State, outputs: Vec<Output>) {
        for output in outputs {
            let (request, outcome) = match output {
                Output::Send { epoch, message } => {
                    self.link.send(epoch, message);
                    continue;
                }
                Output::Ready { request } => (request, Ok(Granted { request, admitted: None })),
                Output::Admitted { request, ino } => (request, Ok(Granted { request, admitted: Some(ino) })),
                Output::TimedOut { request } if !state.client.is_connected() => (request, Err(Kind::Io)),
                Output::TimedOut { request } => (request, Err(Kind::TimedOut)),
                Output::Busy { request } => (request, Err(Kind::Busy)),
                // Whoever ends it is told.
                Output::Lost { .. } => continue,
                Output::Flush { recall, ino, lane, span } => {
                    self.add(state, Job::Flush(recall, ino, lane, span));
                    continue;
                }
                Output::Invalidate { recall, ino, lane, span, mode } => {
                    self.add(state, Job::Invalidate(recall, ino, lane, span, mode));
                    continue;
                }
                Output::Abandon => {
                    self.add(state, Job::Abandon);
                    continue;
                }
                Output::Open => {
                    self.add(state, Job::Open);
                    continue;
                }
            };
            // Otherwise it runs in the thread that began it.
            if let Some(run) = state.parked.remove(&request) {
                state.ready.push_back((run, outcome));
                self.ready.notify_one();
            }
        }
        let valid_until = state.client.valid_until().unwrap_or(0);
        if valid_until != state.valid_until {
            state.valid_until = valid_until;
            self.cache.valid_until(valid_until);
        }
        if state.client.next_deadline().is_some_and(|due| due < state.timer_at) {
            self.timer.notify_one();
        }
    }

    fn add(&self, state: &mut State, job: Job) {
        state.jobs.push_back(job);
        self.jobs.notify_one();
    }

    fn keep_time(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.stopping {
            let outputs = state.client.step(now(), Input::Tick);
            self.obey(&mut state, outputs);
            let rest = rest(state.client.next_deadline());
            state.timer_at = now() + rest.as_micros() as u64;
            state = wait_for(&self.timer, state, rest);
        }
    }

    fn run_ready(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.stopping {
            let Some((run, outcome)) = state.ready.pop_front() else {
                state = wait_for(&self.ready, state, IDLE);
                continue;
            };
            drop(state);
            run(outcome
                .map(|granted| self.held(granted))
                .map_err(|kind| Error::new(kind, "leases: not granted in time")));
            state = lock(&self.state);
        }
    }

    fn run_jobs(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.stopping {
            let Some(job) = state.jobs.pop_front() else {
                state = wait_for(&self.jobs, state, IDLE);
                continue;
            };
            drop(state);
            self.run_job(&job);
            state = lock(&self.state);
        }
    }

    fn run_job(&self, job: &Job) {
        match *job {
            Job::Flush(recall, ino, lane, span) => {
                self.cache.flush(ino, lane, span);
                self.step(Input::Flushed { recall });
            }
            Job::Invalidate(recall, ino, lane, span, mode) => {
                self.cache.invalidate(recall, ino, lane, span, mode);
                self.step(Input::Invalidated { recall });
            }
            Job::Abandon => {
                kos_types::log!(
                    "kos-lease: the session was lost: it could not be renewed in time, or was taken back"
                );
                let discarded = self.cache.abandon();
                self.step(Input::Abandoned { discarded });
            }
            Job::Open => {
                let sent = now();
                match self.link.open() {
                    Ok(Opened { session, epoch, term }) => {
                        self.step(Input::Opened { session, epoch, term, sent });
                    }
                    Err(e) => {
                        kos_types::log!("kos-lease: no session: {e}; tried again");
                        thread::sleep(PAUSE);
                        self.add(&mut lock(&self.state), Job::Open);
                    }
                }
            }
        }
    }
}

fn wait_for<'a>(wake: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
}

impl Drop for Holder {
    fn drop(&mut self) {
        lock(&self.shared.state).stopping = true;
        for wake in [&self.shared.timer, &self.shared.ready, &self.shared.jobs] {
            wake.notify_all();
        }
        let own = thread::current().id();
        // The last who had it may be one of them.
        for thread in self.threads.drain(..).filter(|other| other.thread().id() != own) {
            if thread.join().is_err() {
                kos_types::log!("kos-lease: a thread panicked");
            }
        }
        // Nobody grants them anything any more.
        let (parked, ready) = {
            let mut state = lock(&self.shared.state);
            (std::mem::take(&mut state.parked), std::mem::take(&mut state.ready))
        };
        for run in parked.into_values().chain(ready.into_iter().map(|ready| ready.0)) {
            run(Err(Error::new(Kind::Io, "leases: the mount ends")));
        }
    }
}
