//! The threads in which one disk is asked. Whoever asks waits for a bounded time and then goes on without an
//! answer; the question stays with its thread, which owns all it needs, until the disk answers it.
//!
//! A disk with questions that were given up is silent: it is asked nothing more until it has answered
//! them all (docs/adr/0082).

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::{Error, Kind, Result, patience};

use crate::limits::{QUESTIONS_MAX, READERS, SLOW, SYNCERS, WRITERS};
pub use crate::limits::{SYNC_LIMIT, WRITE_LIMIT};
use crate::lock;

type Job = Box<dyn FnOnce() + Send>;

/// The questions to one disk, by kinds that do not wait for each other.
#[derive(Debug)]
pub struct Lanes {
    /// Reads.
    pub reads: Lane,
    /// Appends, changes of names, and what gives blocks back.
    pub writes: Lane,
    /// Syncs.
    pub syncs: Lane,
    silence: Arc<Silence>,
    /// When a caller began what it does by itself; 0 for none.
    here: AtomicU64,
}

/// It is still going on, and was given up.
const GIVEN_UP: u64 = u64::MAX;

/// What a caller does by itself.
#[derive(Debug)]
pub struct Here<'a>(&'a Lanes);

impl Drop for Here<'_> {
    fn drop(&mut self) {
        if self.0.here.swap(0, Ordering::Relaxed) == GIVEN_UP {
            self.0.silence.answered();
        }
    }
}

/// What a disk owes.
#[derive(Debug, Default)]
struct Silence {
    /// Questions that were given up and are not answered yet.
    unanswered: AtomicU32,
    /// How often it has fallen silent.
    times: AtomicU64,
    /// Since when it is.
    since: Mutex<Option<Instant>>,
}

impl Silence {
    fn gave_up(&self) {
        self.add(&mut lock(&self.since));
    }

    fn add(&self, since: &mut Option<Instant>) {
        if self.unanswered.fetch_add(1, Ordering::Relaxed) == 0 {
            self.times.fetch_add(1, Ordering::Relaxed);
            *since = Some(Instant::now());
        }
    }

    fn answered(&self) {
        let mut since = lock(&self.since);
        if self.unanswered.fetch_sub(1, Ordering::Relaxed) == 1 {
            *since = None;
        }
    }
}

impl Lanes {
    /// Those of a disk that is known by `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let silence = Arc::<Silence>::default();
        let lane = |kind, threads_max| Lane {
            name: format!("{kind}-{name}"),
            threads_max,
            shared: Arc::default(),
            silence: Arc::clone(&silence),
        };
        Self {
            reads: lane("reader", READERS),
            writes: lane("writer", WRITERS),
            syncs: lane("syncer", SYNCERS),
            silence,
            here: AtomicU64::new(0),
        }
    }

    /// How often the disk has fallen silent.
    #[must_use]
    pub fn silences(&self) -> u64 {
        self.silence.times.load(Ordering::Relaxed)
    }

    /// Since when the disk is silent.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        *lock(&self.silence.since)
    }

    /// # Errors
    /// `TimedOut` while the disk is silent.
    pub fn check(&self) -> Result<()> {
        if self.silence.unanswered.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(silent()) }
    }

    /// The caller does by itself what the disk may hold up, until the answer is dropped. One at a time.
    #[must_use]
    pub fn here(&self) -> Here<'_> {
        self.here.store(since_start(), Ordering::Relaxed);
        Here(self)
    }

    /// Whether that takes longer than `limit`: then the disk is silent.
    pub fn look(&self, limit: Duration) {
        let began = self.here.load(Ordering::Relaxed);
        if began == 0
            || began == GIVEN_UP
            || since_start().saturating_sub(began) < patience(limit).as_millis() as u64
        {
            return;
        }
        // Under the lock: its end must not be told before.
        let mut since = lock(&self.silence.since);
        if self.here.compare_exchange(began, GIVEN_UP, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.silence.add(&mut since);
        }
    }

    /// Whether the disk has been at a question for so long that it should be asked nothing on the caller's own
    /// thread, also what seldom waits.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        [&self.reads, &self.writes, &self.syncs].into_iter().any(|lane| {
            let oldest = lane.shared.oldest.load(Ordering::Relaxed);
            oldest != 0 && since_start().saturating_sub(oldest) > SLOW.as_millis() as u64
        })
    }
}

fn silent() -> Error {
    Error::new(Kind::TimedOut, "the disk does not answer")
}

/// Milliseconds, never 0.
fn since_start() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// Threads for one kind of questions, begun when they are needed.
pub struct Lane {
    name: String,
    threads_max: usize,
    shared: Arc<Shared>,
    silence: Arc<Silence>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    /// When the question began that has run longest; 0 without any.
    oldest: AtomicU64,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// When those that run began.
    running: Vec<u64>,
    idle: usize,
    threads: usize,
    ended: bool,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A question that was asked.
pub struct Asked<T> {
    slot: Arc<Slot<T>>,
    silence: Arc<Silence>,
}

impl<T> fmt::Debug for Asked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

struct Slot<T> {
    answer: Mutex<Answer<T>>,
    came: Condvar,
}

enum Answer<T> {
    Awaited,
    Came(T),
    /// Nobody waits any more.
    GivenUp,
}

impl Lane {
    /// Ask; an answer that comes when nobody waits any more goes to `late`.
    ///
    /// # Errors
    /// `Busy` when too many wait already; `Io` without a thread.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> T + Send + 'static,
        late: fn(T),
    ) -> Result<Asked<T>> {
        let slot = Arc::new(Slot { answer: Mutex::new(Answer::Awaited), came: Condvar::new() });
        let asked = Asked { slot: Arc::clone(&slot), silence: Arc::clone(&self.silence) };
        let silence = Arc::clone(&self.silence);
        self.push(Box::new(move || {
            if !matches!(*lock(&slot.answer), Answer::GivenUp) {
                let answer = question();
                let mut awaited = lock(&slot.answer);
                if matches!(*awaited, Answer::Awaited) {
                    *awaited = Answer::Came(answer);
                    slot.came.notify_one();
                    return;
                }
                drop(awaited);
                late(answer);
            }
            silence.answered();
        }))?;
        Ok(asked)
    }

    fn push(&self, job: Job) -> Result<()> {
        let mut state = lock(&self.shared.state);
        if state.queue.len() >= QUESTIONS_MAX {
            return Err(Error::new(Kind::Busy, format!("{}: too many wait for it", self.name)));
        }
        if state.queue.len() >= state.idle && state.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let begun = thread::Builder::new().name(self.name.clone()).spawn(move || work(&shared));
            match begun {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => return Err(Error::io(&self.name, &e)),
                Err(_) => {}
            }
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.more.notify_one();
        Ok(())
    }
}

fn work(shared: &Shared) {
    let mut state = lock(&shared.state);
    loop {
        if let Some(job) = state.queue.pop_front() {
            let began = since_start();
            state.running.push(began);
            shared.note(&state);
            drop(state);
            job();
            state = lock(&shared.state);
            if let Some(at) = state.running.iter().position(|&other| other == began) {
                state.running.swap_remove(at);
            }
            shared.note(&state);
        } else if state.ended {
            return;
        } else {
            state.idle += 1;
            state = shared.more.wait(state).expect("nothing panics under this lock");
            state.idle -= 1;
        }
    }
}

impl Shared {
    fn note(&self, state: &State) {
        self.oldest.store(state.running.iter().copied().min().unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Not waited for: a disk that hangs would hold up the end.
        lock(&self.shared.state).ended = true;
        self.shared.more.notify_all();
    }
}

impl<T> Asked<T> {
    /// Wait until then.
    ///
    /// # Errors
    /// `TimedOut`: the disk is silent from now on, until it has answered.
    pub fn wait(self, until: Instant) -> Result<T> {
        let left = until.saturating_duration_since(Instant::now());
        let awaited = |answer: &mut Answer<T>| matches!(answer, Answer::Awaited);
        let (mut answer, _) = self
            .slot
            .came
            .wait_timeout_while(lock(&self.slot.answer), left, awaited)
            .expect("nothing panics under this lock");
        match mem::replace(&mut *answer, Answer::GivenUp) {
            Answer::Came(answer) => Ok(answer),
            Answer::Awaited | Answer::GivenUp => {
                // Under the lock: its thread must not tell of an answer before.
                self.silence.gave_up();
                Err(silent())
            }
        }
    }

    /// Wait for so long.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_for(self, limit: Duration) -> Result<T> {
        self.wait(Instant::now() + patience(limit))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    /// Far more than a thread takes on a busy machine.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers_come_to_whoever_asked() {
        let lanes = Lanes::new("0");
        let asked: Vec<_> = (0..50)
            .map(|n| lanes.writes.ask(move || n * n, |_| panic!("never late")).expect("asks"))
            .collect();
        for (n, asked) in (0..).zip(asked) {
            assert_eq!(asked.wait_for(LONG), Ok(n * n));
        }
        assert!(lock(&lanes.writes.shared.state).threads <= WRITERS);
        assert_eq!((lanes.check(), lanes.silences(), lanes.silent_since()), (Ok(()), 0, None));
    }

    #[test]
    fn a_disk_is_silent_until_all_is_answered() {
        static LATE: AtomicUsize = AtomicUsize::new(0);
        let lanes = Lanes::new("0");
        // One runs for each thread, the others wait behind them.
        let (ends, asked): (Vec<_>, Vec<_>) = (0..2 * READERS)
            .map(|_| {
                let (end, hangs) = mpsc::channel::<()>();
                let question = move || hangs.recv().is_ok();
                let late = |_| {
                    LATE.fetch_add(1, Ordering::SeqCst);
                };
                (end, lanes.reads.ask(question, late).expect("asks"))
            })
            .unzip();
        while !lanes.is_slow() {
            thread::sleep(SHORT);
        }
        assert_eq!(lanes.check(), Ok(()), "slow is not silent");
        for asked in asked {
            assert_eq!(asked.wait_for(SHORT).map_err(|e| e.kind()), Err(Kind::TimedOut));
            assert_eq!(lanes.check().map_err(|e| e.kind()), Err(Kind::TimedOut));
        }
        assert_eq!(lanes.writes.ask(|| 7, |_| ()).expect("asks").wait_for(LONG), Ok(7), "apart");
        assert!(lanes.check().is_err() && lanes.silent_since().is_some());
        assert_eq!(lanes.silences(), 1, "once, however many were given up");
        drop(ends);
        let begun = Instant::now();
        while lanes.check().is_err() {
            assert!(begun.elapsed() < LONG, "it has answered");
            thread::sleep(SHORT);
        }
        assert_eq!((lanes.silent_since(), lanes.is_slow()), (None, false));
        assert_eq!(LATE.load(Ordering::SeqCst), READERS, "those that had not begun are not asked at all");
    }

    #[test]
    fn what_a_caller_does_by_itself_is_given_up_once() {
        let lanes = Lanes::new("0");
        lanes.look(Duration::ZERO);
        assert_eq!(lanes.check(), Ok(()), "nothing is done");
        let here = lanes.here();
        lanes.look(LONG);
        assert_eq!(lanes.check(), Ok(()), "not for long");
        (0..2).for_each(|_| lanes.look(Duration::ZERO));
        assert_eq!(lanes.check().map_err(|e| e.kind()), Err(Kind::TimedOut));
        drop(here);
        assert_eq!((lanes.check(), lanes.silent_since(), lanes.silences()), (Ok(()), None, 1));
    }

    #[test]
    fn the_queue_is_bounded() {
        let lanes = Lanes::new("0");
        let (end, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let ask = || {
            let hangs = Arc::clone(&hangs);
            lanes.syncs.ask(move || lock(&hangs).recv().is_ok(), |_| ())
        };
        let asked: Vec<_> = (0..QUESTIONS_MAX + SYNCERS + 1).map(|_| ask()).collect();
        let refused = asked.iter().find_map(|asked| asked.as_ref().err().map(Error::kind));
        assert_eq!(refused, Some(Kind::Busy));
        drop(end);
        asked.into_iter().flatten().for_each(|asked| assert_eq!(asked.wait_for(LONG), Ok(false)));
    }
}
