//! Room in memory: what was used least lately moves to disk before the budget is used up, and what
//! is pinned or read comes back when there is room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kos_code::shard;
use kos_core::read;
use kos_types::{Class, Kind, Pin, Result, StripeId};

use crate::node::Inner;
use crate::repair::Move;
use crate::stripes::Stripes;
use crate::tiers::{Spot, Tier};
use crate::worker::{Stop, Worker};

/// Time between looks at how much memory is used.
const PERIOD: Duration = Duration::from_millis(200);
/// What could not be moved is tried again after so long: a disk may have room again.
const RETRY: Duration = Duration::from_secs(10);
/// Hundredths of the budget: above the high mark stripes leave memory until the low one.
const HIGH: u64 = 90;
pub(crate) const LOW: u64 = 80;
/// Bytes moved in a second.
const BYTES_PER_SEC: u64 = 512 << 20;
/// Bytes moved between two syncs, and stripes.
const BYTES_MAX: u64 = 32 << 20;
const STRIPES_MAX: usize = 256;
/// Between two events that say the same.
const SAY: Duration = Duration::from_mins(1);
/// How long a write waits for room.
const WAIT_MAX: Duration = Duration::from_secs(10);

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("spiller", move |stop| {
        let mut said = None;
        let mut pause = PERIOD;
        while stop.sleep(pause) {
            pause = match round(&inner, stop, &mut said) {
                Ok(()) => PERIOD,
                Err(e) => {
                    inner.events.add("unspilled", &format!("memory tier: {e}; tried again in {RETRY:?}"));
                    RETRY
                }
            };
        }
    })
}

fn round(inner: &Inner, stop: &Stop, said: &mut Option<Instant>) -> Result<()> {
    let (mut used, total) = inner.stripes.tiers().ram_usage()?;
    let low = total / 100 * LOW;
    if used <= total / 100 * HIGH {
        return recall(inner, stop, low);
    }
    if inner.copies.shrink(used - low) > 0 {
        used = inner.stripes.tiers().ram_usage()?.0;
    }
    while used > low {
        let start = Instant::now();
        let Some(bytes) = spill(inner, used - low)? else { break };
        if bytes > 0 && said.is_none_or(|when| when.elapsed() >= SAY) {
            let what = "what was used least lately moves to disk";
            inner.events.add("spilling", &format!("{used} of {total} bytes of memory are used: {what}"));
            *said = Some(start);
        }
        if !rest(stop, start, bytes) {
            break;
        }
        used = inner.stripes.tiers().ram_usage()?.0;
    }
    Ok(())
}

/// Move what is pinned, or was read on disk, to memory, as far as the low mark.
fn recall(inner: &Inner, stop: &Stop, low: u64) -> Result<()> {
    loop {
        let used = inner.stripes.tiers().ram_usage()?.0;
        let Some(id) = (used < low).then(|| inner.stripes.recency.take_wanted(1)) else { break };
        if id.is_empty() {
            break;
        }
        let start = Instant::now();
        let bytes = match inner.stripes.relocate(&id, true, BYTES_MAX, || inner.sync()) {
            Ok((bytes, _)) => bytes,
            // What has no room stays where it is.
            Err(e) if e.kind() == Kind::NoSpace => 0,
            Err(e) => return Err(e),
        };
        inner.counters.recalled_bytes.fetch_add(bytes, Ordering::Relaxed);
        if !rest(stop, start, bytes) {
            break;
        }
    }
    Ok(())
}

/// Keep to the rate; false when the worker is to end.
fn rest(stop: &Stop, start: Instant, bytes: u64) -> bool {
    let pause = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SEC as f64);
    stop.sleep(pause.saturating_sub(start.elapsed()))
}

/// Move about `bytes` of what was used least lately to disk; answers how much that was, or none when
/// nothing is left to move.
fn spill(inner: &Inner, bytes: u64) -> Result<Option<u64>> {
    let ids = inner.stripes.recency.oldest(STRIPES_MAX);
    let (moved, tried) = inner.stripes.relocate(&ids, false, bytes.min(BYTES_MAX), || inner.sync())?;
    inner.counters.spilled_bytes.fetch_add(moved, Ordering::Relaxed);
    Ok((tried > 0).then_some(moved))
}

/// Move to disk what is not pinned until so many bytes of memory are free, if they can be.
pub(crate) fn make_room(inner: &Inner, bytes: u64) -> Result<()> {
    let start = Instant::now();
    let (used, total) = inner.stripes.tiers().ram_usage()?;
    let mut free = total - used;
    if free < bytes && inner.copies.shrink(bytes - free) > 0 {
        free = inner.stripes.tiers().ram_free()?;
    }
    while free < bytes && bytes <= total && start.elapsed() < WAIT_MAX {
        if spill(inner, bytes - free)?.is_none() {
            break;
        }
        free = inner.stripes.tiers().ram_free()?;
    }
    Ok(())
}

impl Stripes {
    /// Move stripes to memory or to disk until `bytes_max` are moved; answers how many bytes and
    /// stripes that were. Stripes that somebody else is moving or repairing are passed over.
    fn relocate(
        &self,
        ids: &[StripeId],
        ram: bool,
        bytes_max: u64,
        sync: impl Fn() -> Result<()>,
    ) -> Result<(u64, usize)> {
        let (mut moves, mut mine, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut gathered = Ok(());
        for &id in ids {
            if bytes >= bytes_max || gathered.is_err() {
                break;
            }
            if self.repairing().insert(id) {
                mine.push(id);
                gathered = self.gather(id, ram, &mut moves, &mut bytes);
            }
        }
        let put = self.put(moves, sync);
        let mut repairing = self.repairing();
        for id in &mine {
            repairing.remove(id);
        }
        drop(repairing);
        put?;
        // What failed is the last one, which stays listed.
        let done = if gathered.is_ok() { &mine[..] } else { &mine[..mine.len() - 1] };
        if !ram {
            for &id in done {
                self.recency.remove(id);
            }
        }
        gathered.map(|()| (bytes, mine.len()))
    }

    /// Write the shards of a stripe that are in the other tier to this one.
    fn gather(&self, id: StripeId, ram: bool, moves: &mut Vec<Move>, bytes: &mut u64) -> Result<()> {
        let Some(record) = read::stripe(&*self.db, id)? else { return Ok(()) };
        let (geometry, pin) = (record.policy.geometry, record.policy.pin);
        if record.policy.class == Class::Disk || (!ram && pin == Pin::Ram) {
            return Ok(());
        }
        let good = self.good(id, geometry, self.standings.damaged(id))?;
        let mut beside: Vec<Spot> = good.iter().flatten().copied().collect();
        for (index, old) in (0..).zip(good) {
            let Some(old) = old.filter(|old| old.ram != ram) else { continue };
            let (payload, layout) = match self.shards.read_whole(id, index) {
                Ok(whole) => whole,
                // It stays where it is until its place answers.
                Err(e) if e.kind() == Kind::TimedOut => return Err(e),
                // The rebuilder writes it anew, and says what is wrong with it.
                Err(_) => {
                    self.rejudge(id, |damaged| damaged | 1 << index)?;
                    continue;
                }
            };
            let (header, table) = shard::seal(id, index, geometry, &layout, &payload)?;
            let first = (id.0 as usize).wrapping_add(usize::from(index));
            let tier = if ram { Tier::Pinned } else { Tier::Disk };
            let new = self.tiers().append(tier, first, &beside, &[&header, &payload, &table])?;
            *bytes += old.location.len;
            beside.push(new);
            moves.push(Move { id, index, old: Some(old), new, repairs: false });
        }
        Ok(())
    }
}
