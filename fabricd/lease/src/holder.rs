//! A mount's end: requests that run when they may, and threads that give leases back.
//!
//! A thread that serves requests never waits here: what cannot run yet is parked as a closure. So those
//! threads are there when giving a lease back needs them, as throwing out a mapping's dirty pages does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_core::lease::{
    Client, Commit, Epoch, FileId, GrantId, Input, Lane, Limits, Output, RequestId, Span, ToClient, ToLeader,
    Want,
};
use kos_types::{Error, Ino, Kind, Result, SessionId};

use crate::{IDLE, lock, now, rest};

/// Threads that run what was parked. It does not wait for leases, so few are enough.
const RUNNERS: usize = 4;
/// Threads that give leases back: one that is slow to flush does not hold up all others.
const RETURNERS: usize = 4;
/// Between tries to open a session.
const PAUSE: Duration = Duration::from_millis(100);

/// What a mount keeps in memory. [`kos_core::lease::TREE`] stands for every inode.
pub trait Cache: Send + Sync + 'static {
    /// Commit what is buffered here; what cannot be is discarded, and its files told.
    fn flush(&self, ino: Ino, lane: Lane, span: Span);

    /// Take this out of every cache, the kernel's too. What was buffered after the flush is under another
    /// lease and stays.
    fn invalidate(&self, ino: Ino, lane: Lane, span: Span);

    /// Discard everything buffered, refusing write-backs, and empty every cache. Answers the inodes that
    /// lost changes.
    fn abandon(&self) -> Vec<Ino>;
}

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

/// A request's work: with its leases, or why it has none.
pub type Run = Box<dyn FnOnce(Result<Held>) + Send>;

enum Job {
    Flush(GrantId, Ino, Lane, Span),
    Invalidate(GrantId, Ino, Lane, Span),
    Abandon,
    Open,
}

struct State {
    client: Client,
    requests: u64,
    parked: HashMap<RequestId, Run>,
    ready: VecDeque<(Run, std::result::Result<RequestId, Kind>)>,
    jobs: VecDeque<Job>,
    /// When the timer looks at the time again.
    timer_at: u64,
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

/// The leases of a request that runs; given up with it.
pub struct Held {
    shared: Arc<Shared>,
    request: Option<RequestId>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Held {
    /// The request is done and the kernel has its reply. Answers whether the leases were held to the
    /// end; if not, what it did is discarded.
    #[must_use]
    pub fn end(mut self) -> bool {
        self.finish()
    }

    fn finish(&mut self) -> bool {
        let Some(request) = self.request.take() else { return true };
        let mut state = lock(&self.shared.state);
        let outputs = state.client.step(now(), Input::End { request });
        let lost = outputs.contains(&Output::Lost { request });
        self.shared.obey(&mut state, outputs);
        !lost
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.finish();
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

    /// Run something under leases: at once and in this thread if they are here, else later in another. It
    /// must not wait for other leases.
    pub fn when(&self, wants: &[Want], patience: Duration, run: impl FnOnce(Result<Held>) + Send + 'static) {
        let mut state = lock(&self.shared.state);
        state.requests += 1;
        let request = RequestId(state.requests);
        let at = now();
        let deadline = at.saturating_add(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX));
        let outputs = state.client.step(at, Input::Begin { request, wants: wants.to_vec(), deadline });
        if outputs.contains(&Output::Ready { request }) {
            self.shared.obey(&mut state, outputs);
            drop(state);
            return run(Ok(self.shared.held(request)));
        }
        state.parked.insert(request, Box::new(run));
        self.shared.obey(&mut state, outputs);
    }

    /// The leader said something over the present connection.
    pub fn receive(&self, epoch: Epoch, message: ToClient) {
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

    /// Nothing of an inode is cached, buffered or open any more.
    pub fn forgotten(&self, ino: Ino) {
        self.shared.step(Input::Forgotten { ino });
    }

    /// The stamp of a commit; `None` when it must not be sent. It is made before the commit's bytes are
    /// taken out of the buffer: bytes of a lost session then never go out under the next one. So bytes whose
    /// commit is refused go back before they are stamped again.
    #[must_use]
    pub fn commit(&self, want: Want) -> Option<Commit> {
        lock(&self.shared.state).client.commit(now(), want)
    }

    /// How long the kernel may answer by itself.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        let until = lock(&self.shared.state).client.valid_until().unwrap_or(0);
        Duration::from_micros(until.saturating_sub(now()))
    }

    /// A file was opened.
    pub fn file_opened(&self, file: FileId, ino: Ino) {
        lock(&self.shared.state).client.file_opened(file, ino);
    }

    /// A lock was taken or given back through a file.
    pub fn file_locked(&self, file: FileId, locked: bool) {
        lock(&self.shared.state).client.file_locked(file, locked);
    }

    /// A file was closed. Answers whether it never heard of an error.
    pub fn file_closed(&self, file: FileId) -> bool {
        lock(&self.shared.state).client.file_closed(file)
    }

    /// Whether a write, fsync or close of the file must fail now.
    #[must_use]
    pub fn file_fails(&self, file: FileId) -> bool {
        lock(&self.shared.state).client.file_fails(file)
    }
}

impl Shared {
    fn held(self: &Arc<Self>, request: RequestId) -> Held {
        Held { shared: Arc::clone(self), request: Some(request) }
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
                Output::Ready { request } => (request, Ok(request)),
                Output::TimedOut { request } => (request, Err(Kind::TimedOut)),
                Output::Busy { request } => (request, Err(Kind::Busy)),
                // Whoever ends it is told.
                Output::Lost { .. } => continue,
                Output::Flush { recall, ino, lane, span } => {
                    self.add(state, Job::Flush(recall, ino, lane, span));
                    continue;
                }
                Output::Invalidate { recall, ino, lane, span } => {
                    self.add(state, Job::Invalidate(recall, ino, lane, span));
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
                .map(|request| self.held(request))
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
            Job::Invalidate(recall, ino, lane, span) => {
                self.cache.invalidate(ino, lane, span);
                self.step(Input::Invalidated { recall });
            }
            Job::Abandon => {
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
                        eprintln!("kos-lease: no session: {e}; tried again");
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
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("kos-lease: a thread panicked");
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
