//! Throwing pages out while programs want them. The kernel waits for a page that is being read, and that
//! read may be parked until the very lease is back that the page goes for. So what waits too long lets the parked
//! requests run, and what they brought into the page cache goes in another round.

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_types::Ino;
use kos_types::lease::GrantId;

use crate::session::Caches;

/// Throwing out takes some microseconds a page, unless it waits for a request.
pub(super) const STUCK: Duration = Duration::from_millis(5);
/// More ranges than this are the whole file: as many as requests can wait, so that each round is smaller than the one before.
const RANGES_MAX: usize = 1024;
/// Looks at nothing at all.
const IDLE: Duration = Duration::from_secs(1);

/// Bytes from an offset on; all from there for no bytes.
pub(crate) type Range = (u64, u64);
const WHOLE: Range = (0, 0);

/// Something that waits for what the kernel is told.
pub(super) type Then = Box<dyn FnOnce() + Send>;

/// Too many ranges are the whole file.
fn add(ranges: &mut Vec<Range>, range: Option<Range>) {
    if ranges.len() == RANGES_MAX {
        *ranges = vec![WHOLE];
    }
    ranges.extend(range);
}

#[derive(Debug)]
struct Round {
    /// For which recall; none at the session's end.
    recall: Option<GrantId>,
    /// When the kernel was asked, while it works.
    since: Option<Instant>,
    /// Requests are being let in: how many is not known yet.
    admitting: bool,
    /// Those let in and not ended; below zero when they end before they are counted.
    running: i64,
    /// What they touched.
    ranges: Vec<Range>,
}

/// What the kernel is told before somebody is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tell {
    /// To throw all pages out that are there now.
    Drop,
    /// That there are at least so many bytes.
    Enlarge(u64),
}

#[derive(Default)]
struct State {
    rounds: HashMap<Ino, Round>,
    /// Ranges that hold what belongs elsewhere.
    wrong: HashMap<Ino, Vec<Range>>,
    /// Requests that are answered when the kernel was told of a file; each is one that it waits for.
    waiting: Vec<(Ino, Tell, Then)>,
    stopping: bool,
}

/// The inodes whose pages are being thrown out.
#[derive(Default)]
pub(crate) struct Pages {
    state: Mutex<State>,
    changed: Condvar,
}

impl Pages {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Throw out all pages of a range of a file, also those that come while that goes on.
    pub(super) fn drop_all(
        &self,
        kernel: &dyn Caches,
        recall: Option<GrantId>,
        (ino, range): (Ino, Range),
    ) -> io::Result<()> {
        self.claim(recall, ino);
        let mut ranges = vec![range];
        let result = loop {
            let dropped = ranges.iter().try_for_each(|&(off, len)| {
                self.begin(ino);
                kernel.drop_range(ino, off, len)
            });
            ranges = self.end(ino);
            if dropped.is_err() || ranges.is_empty() {
                break dropped;
            }
        };
        self.state().rounds.remove(&ino);
        self.changed.notify_all();
        result
    }

    /// One at a time for each inode.
    fn claim(&self, recall: Option<GrantId>, ino: Ino) {
        let mut state = self.state();
        while state.rounds.contains_key(&ino) {
            state = self.wait(state, IDLE);
        }
        let round = Round { recall, since: None, admitting: false, running: 0, ranges: Vec::new() };
        state.rounds.insert(ino, round);
    }

    fn begin(&self, ino: Ino) {
        if let Some(round) = self.state().rounds.get_mut(&ino) {
            round.since = Some(Instant::now());
        }
        self.changed.notify_all();
    }

    /// Wait for those let in, and answer what they touched.
    fn end(&self, ino: Ino) -> Vec<Range> {
        let mut state = self.state();
        loop {
            let Some(round) = state.rounds.get_mut(&ino) else { return Vec::new() };
            round.since = None;
            if !round.admitting && round.running == 0 {
                return std::mem::take(&mut round.ranges);
            }
            // They wait for the fabric, and that has deadlines.
            state = self.wait(state, IDLE);
        }
    }

    /// A request that was let in has its answer.
    pub(super) fn ended(&self, ino: Ino, range: Option<Range>) {
        if let Some(round) = self.state().rounds.get_mut(&ino) {
            round.running -= 1;
            add(&mut round.ranges, range);
        }
        self.changed.notify_all();
    }

    /// Have a range thrown out soon: the kernel put an append where the file ended as far as it knew.
    pub(super) fn wrong(&self, ino: Ino, range: Range) {
        add(self.state().wrong.entry(ino).or_default(), Some(range));
        self.changed.notify_all();
    }

    /// Tell the kernel of a file, which may wait for a page of it, and then run something.
    pub(super) fn tell_then(&self, ino: Ino, tell: Tell, then: Then) {
        self.state().waiting.push((ino, tell, then));
        self.changed.notify_all();
    }

    /// Tell the kernel what others ask for, until [`Self::stop`]; `each` is called each second.
    pub(super) fn tell_for_others(&self, kernel: &dyn Caches, mut each: impl FnMut()) {
        let drop_ranges = |ino: Ino, ranges: &[Range]| {
            let dropped = ranges.iter().try_for_each(|&(off, len)| kernel.drop_range(ino, off, len));
            if let Err(e) = dropped {
                kos_types::log!("kos-fuse: inode {} may be read as it was: {e}", ino.0);
            }
        };
        let mut last = Instant::now();
        let mut state = self.state();
        while !state.stopping {
            let (wrong, waiting) = (std::mem::take(&mut state.wrong), std::mem::take(&mut state.waiting));
            if wrong.is_empty() && waiting.is_empty() && last.elapsed() < IDLE {
                state = self.wait(state, IDLE);
                continue;
            }
            drop(state);
            wrong.into_iter().for_each(|(ino, ranges)| drop_ranges(ino, &ranges));
            for (ino, tell, then) in waiting {
                match tell {
                    Tell::Drop => drop_ranges(ino, &[WHOLE]),
                    Tell::Enlarge(size) => {
                        if let Err(e) = kernel.enlarge(ino, size) {
                            kos_types::log!("kos-fuse: inode {} may end early in mappings: {e}", ino.0);
                        }
                    }
                }
                then();
            }
            if last.elapsed() >= IDLE {
                each();
                last = Instant::now();
            }
            state = self.state();
        }
        // They are answered all the same: nothing reads any more what is old.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(|(.., then)| then());
    }

    /// Let requests in where the kernel waits, until [`Self::stop`]. `admit` answers how many.
    pub(super) fn watch(&self, admit: impl Fn(Option<GrantId>, Ino) -> usize) {
        let mut state = self.state();
        while !state.stopping {
            let stuck = |round: &Round| round.since.is_some_and(|since| since.elapsed() >= STUCK);
            let found = state.rounds.iter_mut().find(|(_, round)| stuck(round));
            let Some((&ino, round)) = found else {
                let busy = state.rounds.values().any(|round| round.since.is_some());
                state = self.wait(state, if busy { STUCK } else { IDLE });
                continue;
            };
            round.admitting = true;
            round.since = Some(Instant::now());
            let recall = round.recall;
            drop(state);
            let admitted = admit(recall, ino);
            state = self.state();
            if let Some(round) = state.rounds.get_mut(&ino) {
                round.admitting = false;
                round.running += i64::try_from(admitted).unwrap_or(i64::MAX);
            }
            self.changed.notify_all();
        }
    }

    pub(super) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }
}
