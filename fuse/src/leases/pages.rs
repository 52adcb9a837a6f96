//! Throwing pages out while programs want them. The kernel waits for a page that is being read, and that
//! read may be parked until the very lease is back that the page goes for. So what waits too long lets the parked
//! requests run, and what they brought into the page cache goes in another round.

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_types::Ino;
use kos_types::lease::{GrantId, Span};

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

/// What the kernel is told at once to throw out of what was let in. Programs ask for the first page again while the kernel writes
/// the last one back, and may be let in again, but not for the last one: so each round is about less.
const PIECE: u64 = 64 << 10;

/// The bytes of a range.
pub(super) const fn bytes((off, len): Range) -> Span {
    Span { start: off, end: if len == 0 { u64::MAX } else { off.saturating_add(len) } }
}

const fn range(span: Span) -> Range {
    (span.start, if span.end == u64::MAX { 0 } else { span.end - span.start })
}

/// What of these ranges lies within `all`, in pieces, each byte once.
fn pieces(mut ranges: Vec<Range>, all: Span) -> impl Iterator<Item = Span> {
    ranges.sort_unstable();
    let mut next = all.start;
    ranges.into_iter().flat_map(move |touched| {
        let span = bytes(touched).and(all);
        let start = span.start.max(next);
        next = next.max(span.end);
        // What has no end is thrown out at once.
        let step = if span.end == u64::MAX { u64::MAX } else { PIECE };
        let mut left = Span { start, end: span.end };
        std::iter::from_fn(move || {
            let piece = Span { start: left.start, end: left.start.saturating_add(step).min(left.end) };
            left.start = piece.end;
            (piece.start < piece.end).then_some(piece)
        })
    })
}

/// Something that waits for what the kernel is told.
pub(super) type Then = Box<dyn FnOnce() + Send>;

/// Too many ranges are the whole file.
fn add(ranges: &mut Vec<Range>, range: Option<Range>) {
    if ranges.len() == RANGES_MAX {
        *ranges = vec![WHOLE];
    }
    ranges.extend(range);
}

fn wait_for<'a>(wake: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
}

#[derive(Debug)]
struct Round {
    /// For which recall; none at the session's end.
    recall: Option<GrantId>,
    /// When the kernel was asked to throw out what, while it works.
    since: Option<(Instant, Span)>,
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
    /// The kernel throws something out, and did not before.
    begun: Condvar,
}

impl Pages {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        wait_for(&self.changed, state, time)
    }

    /// Throw out all pages of a range of a file, also those that come while that goes on.
    pub(super) fn drop_all(
        &self,
        kernel: &dyn Caches,
        recall: Option<GrantId>,
        (ino, all): (Ino, Span),
    ) -> io::Result<()> {
        self.claim(recall, ino);
        let throw_out = |span| {
            self.begin(ino, span);
            let (off, len) = range(span);
            kernel.drop_range(ino, off, len)
        };
        let mut result = throw_out(all);
        // Pages outside of the range are there under leases that nobody waits for here.
        loop {
            let touched = self.end(ino);
            if result.is_err() || touched.is_empty() {
                break;
            }
            result = pieces(touched, all).try_for_each(&throw_out);
        }
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

    fn begin(&self, ino: Ino, span: Span) {
        let mut state = self.state();
        let is_first = state.rounds.values().all(|round| round.since.is_none());
        if let Some(round) = state.rounds.get_mut(&ino) {
            round.since = Some((Instant::now(), span));
        }
        // Otherwise it looks at them anyway.
        if is_first {
            self.begun.notify_all();
        }
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
    pub(super) fn watch(&self, admit: impl Fn(Option<GrantId>, Ino, Span) -> usize) {
        let mut state = self.state();
        while !state.stopping {
            let stuck = |round: &Round| round.since.filter(|(since, _)| since.elapsed() >= STUCK);
            let found = state.rounds.iter_mut().find_map(|(&ino, round)| Some((ino, stuck(round)?.1, round)));
            let Some((ino, span, round)) = found else {
                let busy = state.rounds.values().any(|round| round.since.is_some());
                state = wait_for(&self.begun, state, if busy { STUCK } else { IDLE });
                continue;
            };
            round.admitting = true;
            round.since = Some((Instant::now(), span));
            let recall = round.recall;
            drop(state);
            let admitted = admit(recall, ino, span);
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
        self.begun.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    const PAGE: u64 = 4096;
    const SPAN: Span = Span { start: 16 * PAGE, end: 40 * PAGE };

    #[test]
    fn what_was_let_in_goes_in_pieces_and_once() {
        let touched =
            vec![(20 * PAGE, 2 * PAGE), (0, 17 * PAGE), (20 * PAGE, 17 * PAGE), (39 * PAGE, 9 * PAGE)];
        let found = pieces(touched, SPAN).map(range).map(|(off, len)| (off / PAGE, len / PAGE));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(16, 1), (20, 2), (22, 15), (39, 1)]);
        assert_eq!(pieces(vec![WHOLE], bytes(WHOLE)).map(range).collect::<Vec<_>>(), [WHOLE]);
        assert_eq!(pieces(vec![WHOLE], SPAN).map(|piece| range(piece).1).sum::<u64>(), 24 * PAGE);
    }

    /// A kernel that is slow to write pages back, and a program that wants the first of them again, but cannot have the last one,
    /// which is being written.
    struct Slow<'a> {
        pages: &'a Pages,
        rounds: AtomicU32,
    }

    impl Caches for Slow<'_> {
        fn drop_range(&self, _file: Ino, _off: u64, _len: u64) -> io::Result<()> {
            self.rounds.fetch_add(1, Ordering::SeqCst);
            thread::sleep(4 * STUCK);
            Ok(())
        }

        fn drop_attributes(&self, _file: Ino) -> io::Result<()> {
            unreachable!("nobody asks for it")
        }

        fn enlarge(&self, _file: Ino, _size: u64) -> io::Result<()> {
            unreachable!("nobody asks for it")
        }
    }

    #[test]
    fn a_recall_ends_though_programs_want_its_pages_again() {
        let pages = Pages::default();
        let kernel = Slow { pages: &pages, rounds: AtomicU32::new(0) };
        thread::scope(|scope| {
            scope.spawn(|| {
                pages.watch(|recall, ino, span| {
                    assert_eq!((recall, ino), (None, Ino(7)));
                    let rest = span.end - span.start - PAGE;
                    if rest > 0 {
                        kernel.pages.ended(ino, Some((span.start, rest)));
                    }
                    usize::from(rest > 0)
                });
            });
            pages.drop_all(&kernel, None, (Ino(7), bytes((0, 8 * PAGE)))).expect("no error");
            pages.stop();
        });
        assert!((2..=8).contains(&kernel.rounds.into_inner()), "each is about less");
    }
}
