//! Compaction: extents that are small, of stripes of which little is still in use, or kept otherwise
//! than their file's policy says now, are written anew as few stripes. It takes no lease: a file that
//! changed meanwhile is left to the next pass.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kos_core::record::{ExtentRecord, Place, Stripe};
use kos_core::{Tables, keys, read};
use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Error, ExtentPut, Ino, Kind, Op, Origin, Pin, Policy, Result, Seq, StripeId};

use crate::node::Inner;
use crate::worker::{Stop, Worker};

/// Time between looks at whether a pass is due.
const PERIOD: Duration = Duration::from_millis(500);
/// Time from the end of a pass to the next one.
const PASS: Duration = Duration::from_mins(10);
/// Bytes read and written in a second.
const BYTES_PER_SEC: u64 = 64 << 20;
/// The same in a pass that somebody asked for.
const BYTES_PER_SEC_ASKED: u64 = 512 << 20;
/// Extents below this are worth joining with their neighbours.
const SMALL_BYTES: u64 = 256 << 10;
/// Stripes of which one pass adds up what is in use.
const STRIPES_MAX: usize = 256 << 10;
/// Extents looked at between two pauses.
const EXTENTS_MAX: usize = 1024;
/// The pause after them.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("compactor", move |stop| {
        let mut ended = Instant::now();
        while stop.sleep(PERIOD) {
            let asked = inner.compact.swap(false, Ordering::Relaxed);
            if !asked && ended.elapsed() < PASS {
                continue;
            }
            let rate = if asked { BYTES_PER_SEC_ASKED } else { BYTES_PER_SEC };
            match (Pass { inner: &inner, stop, rate }).run() {
                Ok(true) => {
                    inner.counters.compact_passes.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => return,
                Err(e) => kos_types::log!("fabricd: compaction: {e}; again in {PASS:?}"),
            }
            ended = Instant::now();
        }
    })
}

/// Neighbouring extents of one file that one stripe can take the place of.
#[derive(Default)]
struct Run {
    extents: Vec<ExtentPut>,
    bytes: u64,
    /// One of them is to be written anew even if it stays alone.
    due: bool,
}

impl Run {
    /// The next extent of the file; `due` or small, or else it only ends the run. Answers a run
    /// that ended and is worth writing.
    fn add(&mut self, put: ExtentPut, due: bool) -> Option<Vec<ExtentPut>> {
        let joins = self.extents.last().is_none_or(|last| last.off + last.len == put.off)
            && self.bytes + put.len <= STRIPE_BYTES_MAX as u64;
        let wanted = due || put.len < SMALL_BYTES;
        let ended = if joins && wanted { None } else { self.end() };
        if wanted {
            self.bytes += put.len;
            self.due |= due;
            self.extents.push(put);
        }
        ended
    }

    fn end(&mut self) -> Option<Vec<ExtentPut>> {
        let Self { extents, due, .. } = std::mem::take(self);
        (due || extents.len() > 1).then_some(extents)
    }
}

struct Pass<'a> {
    inner: &'a Inner,
    stop: &'a Stop,
    rate: u64,
}

impl Pass<'_> {
    /// Answers false when the worker is to end.
    fn run(&self) -> Result<bool> {
        let (total, free) = self.inner.stripes.space()?;
        if free < total / 20 {
            return Err(Error::new(Kind::NoSpace, "less than a twentieth of the space is free"));
        }
        let mut used = HashMap::new();
        let counted = self.each(|_, _, put, stripe| {
            // The one extent of a stripe that is all of it says enough.
            let whole = put.len == stripe.len && stripe.refs == 1;
            if !whole && (used.len() < STRIPES_MAX || used.contains_key(&put.stripe)) {
                *used.entry(put.stripe).or_insert(0) += put.len;
            }
            Ok(true)
        })?;
        let held = read::state(&*self.inner.db)?.snapshot;
        let is_held = |birth| held.is_some_and(|newest| birth <= newest);
        let mut file: Option<(Ino, Policy)> = None;
        let mut run = Run::default();
        let done = counted
            && self.each(|ino, birth, put, stripe| {
                let mut going = true;
                if file.is_none_or(|(before, _)| before != ino) {
                    going = self.rewrite_all(file, run.end())?;
                    file = self.inner.policies.of(&*self.inner.db, ino).map(|policy| Some((ino, policy)))?;
                }
                let Some((_, policy)) = file else { return Ok(going) };
                // What a snapshot holds would be there twice.
                let ended = if is_held(birth) {
                    run.end()
                } else {
                    let sparse = used.get(&put.stripe).is_some_and(|used| used * 2 < stripe.len);
                    let due = stripe.policy != policy || (sparse && !is_held(stripe.birth));
                    run.add(put, due)
                };
                Ok(going && self.rewrite_all(file, ended)?)
            })?;
        Ok(done && self.rewrite_all(file, run.end())?)
    }

    /// Every extent that has one with its stripe, in the order of files and offsets; answers false when `act`
    /// did or the worker is to end.
    fn each(&self, mut act: impl FnMut(Ino, Seq, ExtentPut, Stripe) -> Result<bool>) -> Result<bool> {
        let db = &*self.inner.db;
        let (mut from, end) = (keys::EXTENTS.to_vec(), keys::end_of(keys::EXTENTS));
        loop {
            let found = db.scan(&from, &end, EXTENTS_MAX)?;
            let Some((last, _)) = found.last() else { return Ok(true) };
            from = last.clone();
            from.push(0);
            for (key, value) in &found {
                let record = ExtentRecord::decode(value)?;
                let Place::Stripe(id, at) = record.place else { continue };
                // It may be gone since the scan.
                let Some(stripe) = read::stripe(db, id)? else { continue };
                let put = ExtentPut { off: keys::field(key, 9), len: record.len, stripe: id, at };
                if !act(Ino(keys::field(key, 1)), record.birth, put, stripe)? {
                    return Ok(false);
                }
            }
            if !self.stop.sleep(PAUSE) {
                return Ok(false);
            }
        }
    }

    fn rewrite_all(&self, file: Option<(Ino, Policy)>, run: Option<Vec<ExtentPut>>) -> Result<bool> {
        let (Some((ino, policy)), Some(extents)) = (file, run) else { return Ok(true) };
        let counters = &self.inner.counters;
        let (start, count) = (Instant::now(), extents.len() as u64);
        let mut bytes = 0;
        match self.rewrite(ino, policy, extents, &mut bytes) {
            Ok(()) => counters.compact_extents.fetch_add(count, Ordering::Relaxed),
            // The file changed meanwhile, or is gone.
            Err(e) if matches!(e.kind(), Kind::Busy | Kind::Stale | Kind::NotFound) => {
                counters.compact_lost.fetch_add(1, Ordering::Relaxed)
            }
            // Memory is full of what is pinned; others may still be helped.
            Err(e) if e.kind() == Kind::NoSpace && policy.pin == Pin::Ram => {
                counters.compact_failed.fetch_add(1, Ordering::Relaxed)
            }
            // Reads of it fail as well, and are told of.
            Err(e) if e.kind() == Kind::Io => counters.compact_failed.fetch_add(1, Ordering::Relaxed),
            Err(e) => return Err(e),
        };
        counters.compact_bytes.fetch_add(bytes, Ordering::Relaxed);
        let pause = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        Ok(self.stop.sleep(pause.saturating_sub(start.elapsed())))
    }

    fn rewrite(&self, ino: Ino, policy: Policy, extents: Vec<ExtentPut>, bytes: &mut u64) -> Result<()> {
        let len = extents.iter().map(|put| put.len).sum::<u64>();
        let off = extents.first().map_or(0, |first| first.off);
        let mut data = vec![0; len as usize];
        let mut ids: Vec<StripeId> = extents.iter().map(|put| put.stripe).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let whole = self.inner.stripes.read_verified(id)?;
            *bytes += whole.len();
            for put in extents.iter().filter(|put| put.stripe == id) {
                let part = &mut data[(put.off - off) as usize..][..put.len as usize];
                whole.read(put.at as usize, part)?;
            }
        }
        let id = self.inner.write_stripe(policy, &data)?;
        *bytes += len;
        self.inner
            .commit(Origin::default(), Op::Compact { ino, stripe: (id, policy, len), extents })
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(off: u64, len: u64) -> ExtentPut {
        ExtentPut { off, len, stripe: StripeId(1), at: 0 }
    }

    /// The offsets of the extents of each run.
    fn runs(extents: &[(u64, u64, bool)]) -> Vec<Vec<u64>> {
        let mut run = Run::default();
        let mut found: Vec<_> =
            extents.iter().filter_map(|&(off, len, due)| run.add(put(off, len), due)).collect();
        found.extend(run.end());
        found.iter().map(|run| run.iter().map(|put| put.off).collect()).collect()
    }

    #[test]
    fn small_neighbours_are_joined() {
        assert_eq!(runs(&[(0, 10, false), (10, 10, false), (20, 10, false)]), [[0, 10, 20]]);
        assert_eq!(runs(&[(0, 10, false), (11, 10, false), (21, 10, false)]), [[11, 21]], "a hole");
        assert_eq!(
            runs(&[(0, 10, false), (10, SMALL_BYTES, false), (10 + SMALL_BYTES, 10, false)]),
            [[0; 0]; 0]
        );
    }

    #[test]
    fn what_is_due_is_written_alone_too() {
        let stripe = STRIPE_BYTES_MAX as u64;
        assert_eq!(runs(&[(0, stripe, false), (stripe, stripe, true)]), [[stripe]]);
        assert_eq!(
            runs(&[(0, stripe, true), (stripe, stripe, true)]),
            [[0], [stripe]],
            "no more than a stripe"
        );
    }

    #[test]
    fn a_run_is_no_longer_than_a_stripe() {
        let each = SMALL_BYTES - 1;
        let extents: Vec<_> = (0..40).map(|i| (i * each, each, false)).collect();
        for run in runs(&extents) {
            assert!((2..=17).contains(&run.len()), "{run:?}");
        }
        // What was joined is not small any more: a second pass finds nothing to do.
        assert_eq!(runs(&[(0, 16 * each, false), (16 * each, 16 * each, false)]), [[0; 0]; 0]);
    }
}
