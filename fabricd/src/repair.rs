//! Putting stripes right: reads around damage, lost shards written anew, crowded ones moved.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kos_code::compress::Layout;
use kos_code::{shard, stripe};
use kos_core::{keys, read, record};
use kos_types::{Class, Error, Geometry, Kind, Pin, Policy, Result, StripeId};

use crate::shards::{self, Indexed};
use crate::standing::{self, excess, has_room};
use crate::stripes::Stripes;
use crate::tiers::Spot;

/// Bytes of shards that one [`Stripes::heal`] reads and writes before it syncs.
const HEAL_BYTES: u64 = 64 << 20;

/// A shard in a new spot that the index does not name yet.
pub(crate) struct Move {
    pub(crate) id: StripeId,
    pub(crate) index: u8,
    pub(crate) old: Option<Spot>,
    pub(crate) new: Spot,
    /// The old one was lost or damaged.
    pub(crate) repairs: bool,
}

/// All bytes of a stripe.
pub(crate) struct Whole {
    geometry: Geometry,
    decoded: Decoded,
}

impl Whole {
    /// Bytes of its data shards.
    pub(crate) fn len(&self) -> u64 {
        self.decoded
            .payloads
            .iter()
            .take(self.geometry.k())
            .flatten()
            .map(|payload| payload.len() as u64)
            .sum()
    }

    /// Fill `out` with the user bytes from `at` on.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        self.decoded.read(self.geometry, at, out)
    }
}

/// All shards of a stripe.
struct Decoded {
    payloads: Vec<Option<Vec<u8>>>,
    layout: Layout,
}

impl Decoded {
    /// Fill `out` with the user bytes from `at` on.
    fn read(&self, geometry: Geometry, at: usize, out: &mut [u8]) -> Result<()> {
        self.layout.read(at, out, |from, mut rest| {
            for piece in stripe::locate(geometry, self.layout.coded_len(), from, rest.len()) {
                let (part, after) = rest.split_at_mut(piece.len);
                let payload = self.payloads.get(piece.shard).and_then(Option::as_ref);
                let bytes = payload.and_then(|payload| payload.get(piece.at..piece.at + piece.len));
                part.copy_from_slice(bytes.ok_or_else(|| Error::new(Kind::Io, "decode: shards differ"))?);
                rest = after;
            }
            Ok(())
        })
    }
}

/// What a try to put stripes right came to.
#[derive(Default)]
pub(crate) struct Healed {
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// What could not be put right.
    pub(crate) failed: Vec<(StripeId, Error)>,
}

/// The shards of a list as bits.
fn bits(shards: &[(u8, Error)]) -> u32 {
    shards.iter().fold(0, |bits, (index, _)| bits | 1 << index)
}

/// Of these, the shards that are damaged or gone. One on a place that does not answer is neither, as far as is known.
fn damaged(shards: &[(u8, Error)]) -> u32 {
    let known = shards.iter().filter(|(_, e)| e.kind() != Kind::TimedOut);
    known.fold(0, |bits, (index, _)| bits | 1 << index)
}

impl Stripes {
    /// Judge every stripe by the index, which is in the order of their ids.
    pub(crate) fn survey(&self, index: &[Indexed]) -> Result<()> {
        let live = self.tiers().live();
        let mut rest = index;
        self.db.each(keys::STRIPES, |key, value| {
            let id = StripeId(keys::field(key, 1));
            let policy = record::Stripe::decode(value)?.policy;
            let geometry = policy.geometry;
            // Shards of stripes that are dead but not yet collected come between.
            rest = &rest[rest.partition_point(|shard| shard.0 < id)..];
            let mut good = vec![None; geometry.n()];
            for &(_, index, spot) in rest.iter().take_while(|shard| shard.0 == id) {
                if let Some(place) = good.get_mut(usize::from(index)) {
                    *place = Some(spot).filter(|spot| self.tiers().holds(spot));
                }
            }
            if policy.pin == Pin::Ram && policy.class != Class::Disk {
                if good.iter().flatten().any(|spot| !spot.ram) {
                    self.recency.want(id);
                }
            } else if good.iter().flatten().any(|spot| spot.ram) {
                self.recency.insert(id);
            }
            self.standings.update(id, |_| Ok(standing::judge(geometry, &good, 0, live)))
        })
    }

    /// Judge a stripe anew; `damage` changes what is known of damaged shards.
    pub(crate) fn rejudge(&self, id: StripeId, damage: impl FnOnce(u32) -> u32) -> Result<()> {
        let live = self.tiers().live();
        self.standings.update(id, |damaged| {
            let Some(record) = read::stripe(&*self.db, id)? else { return Ok(None) };
            let (geometry, damaged) = (record.policy.geometry, damage(damaged));
            Ok(standing::judge(geometry, &self.good(id, geometry, damaged)?, damaged, live))
        })
    }

    /// Where the shards are that are there and not known to be damaged.
    pub(crate) fn good(&self, id: StripeId, geometry: Geometry, damaged: u32) -> Result<Vec<Option<Spot>>> {
        let good = |spot: &Spot, index| damaged >> index & 1 == 0 && self.tiers().holds(spot);
        let spot = |index| Ok(self.shards.spot(id, index)?.filter(|spot| good(spot, index)));
        (0..).take(geometry.n()).map(spot).collect()
    }

    /// Check every shard of a stripe; those that are damaged are left to the rebuilder. Answers the
    /// bytes that were read.
    pub(crate) fn scrub(&self, id: StripeId, geometry: Geometry) -> Result<u64> {
        let (mut bytes, mut checked) = (0, 0);
        let mut bad = Vec::new();
        for index in (0..).take(geometry.n()) {
            match self.shards.check(id, index) {
                Ok(len) => (bytes, checked) = (bytes + len, checked + 1),
                // Read in the next pass.
                Err(e) if e.kind() == Kind::TimedOut => {}
                Err(e) => bad.push((index, e)),
            }
        }
        self.counters.scrub_shards.fetch_add(checked + bad.len() as u64, Ordering::Relaxed);
        self.counters.scrub_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Its shards go when it is collected.
        if bad.is_empty() || read::stripe(&*self.db, id)?.is_none() {
            return Ok(bytes);
        }
        let new = bits(&bad) & !self.standings.damaged(id);
        self.counters.scrub_bad.fetch_add(bad.len() as u64, Ordering::Relaxed);
        self.counters.shards_bad.fetch_add(u64::from(new.count_ones()), Ordering::Relaxed);
        self.rejudge(id, |damaged| damaged | bits(&bad))?;
        for (index, error) in bad {
            self.events.add("damaged", &format!("stripe {:#x} shard {index}: {error}; found by scrub", id.0));
        }
        Ok(bytes)
    }

    /// Every shard of the stripe, decoded without those of `bad`, which grows by what turns out
    /// to be damaged too.
    fn decode(&self, id: StripeId, geometry: Geometry, bad: &mut Vec<(u8, Error)>) -> Result<Decoded> {
        let mut layout = None;
        let mut payloads = vec![None; geometry.n()];
        let mut good = 0;
        for (index, payload) in (0..).zip(&mut payloads) {
            if good == geometry.k() || bits(bad) >> index & 1 != 0 {
                continue;
            }
            match self.shards.read_whole(id, index) {
                Ok((found, its)) => {
                    *payload = Some(found);
                    layout = Some(its);
                    good += 1;
                }
                Err(e) => bad.push((index, e)),
            }
        }
        // With all data shards and nothing to repair, the parity is of no use.
        if !bad.is_empty() || payloads.iter().take(geometry.k()).any(Option::is_none) {
            stripe::reconstruct(geometry, &mut payloads)?;
        }
        let layout = layout.ok_or_else(|| Error::new(Kind::Io, "decode: no shard"))?;
        Ok(Decoded { payloads, layout })
    }

    /// All of a stripe, every shard that it takes checked by its hash.
    pub(crate) fn read_verified(&self, id: StripeId) -> Result<Whole> {
        let geometry = self.alive(id)?.policy.geometry;
        let mut bad = Vec::new();
        let decoded = self.decode(id, geometry, &mut bad);
        if !bad.is_empty() {
            self.alive(id)?;
            self.rejudge(id, |known| known | damaged(&bad))?;
        }
        Ok(Whole { geometry, decoded: decoded? })
    }

    /// Decode the stripe without the shard that failed, and put that one right again.
    pub(crate) fn read_around(
        &self,
        id: StripeId,
        at: usize,
        out: &mut [u8],
        failed: (u8, Error),
    ) -> Result<()> {
        let record = self.alive(id)?;
        let geometry = record.policy.geometry;
        let mut bad = vec![failed];
        let decoded = match self.decode(id, geometry, &mut bad) {
            Ok(decoded) => decoded,
            Err(e) => {
                self.alive(id)?;
                if damaged(&bad) != bits(&bad) {
                    // Not lost: it is read again once its places answer.
                    return Err(Error::new(Kind::TimedOut, format!("read: too few places answer: {e}")));
                }
                self.counters.stripes_lost.fetch_add(1, Ordering::Relaxed);
                let what = format!("stripe {:#x} is lost, reads of it fail: {e}; shards {bad:?}", id.0);
                self.events.add("lost", &what);
                self.rejudge(id, |known| known | damaged(&bad))?;
                return Err(Error::new(Kind::Io, "read: more shards lost than parity covers"));
            }
        };
        decoded.read(geometry, at, out)?;
        bad.retain(|(_, e)| e.kind() != Kind::TimedOut);
        if bad.is_empty() {
            return Ok(());
        }
        let fresh = self.repairing().insert(id);
        if fresh {
            self.counters.shards_bad.fetch_add(bad.len() as u64, Ordering::Relaxed);
            let repaired = self.repair(id, record, &bad, &decoded);
            self.repairing().remove(&id);
            for (index, error) in bad {
                let what = format!("stripe {:#x} shard {index}: {error}", id.0);
                match &repaired {
                    Ok(()) => self.events.add("repaired", &format!("{what}; repaired")),
                    Err(e) => self.events.add("unrepaired", &format!("{what}; repair failed: {e}")),
                }
            }
        }
        Ok(())
    }

    /// Write decoded shards anew, at once.
    fn repair(
        &self,
        id: StripeId,
        record: record::Stripe,
        bad: &[(u8, Error)],
        decoded: &Decoded,
    ) -> Result<()> {
        self.rejudge(id, |known| known | damaged(bad))?;
        let mut moves = Vec::new();
        let written = self.rewrite(id, record, bad, decoded, &mut moves);
        // What they replace is damaged: nothing is lost when a power cut brings it back.
        self.put(moves, || Ok(()))?;
        written
    }

    /// Write the shards of `bad` to new spots.
    fn rewrite(
        &self,
        id: StripeId,
        record: record::Stripe,
        bad: &[(u8, Error)],
        decoded: &Decoded,
        moves: &mut Vec<Move>,
    ) -> Result<()> {
        let good = self.good(id, record.policy.geometry, bits(bad))?;
        let mut beside: Vec<Spot> = good.into_iter().flatten().collect();
        for &(index, _) in bad {
            let Some(payload) = decoded.payloads.get(usize::from(index)).and_then(Option::as_ref) else {
                continue;
            };
            let old = self.shards.spot(id, index)?;
            // Without room in memory a pinned one is better on disk than lost.
            let policy = Policy { pin: Pin::None, ..record.policy };
            let new = self.append((id, index), policy, &decoded.layout, &beside, payload)?;
            beside.push(new);
            moves.push(Move { id, index, old, new, repairs: true });
        }
        Ok(())
    }

    /// Put moved shards in force: they are stable before the index names them, and `sync` makes
    /// the index stable before the old bytes go. What has died meanwhile is dropped.
    pub(crate) fn put(&self, moves: Vec<Move>, sync: impl Fn() -> Result<()>) -> Result<()> {
        let new: Vec<Spot> = moves.iter().map(|m| m.new).collect();
        let places: BTreeSet<usize> = new.iter().filter(|spot| !spot.ram).map(|spot| spot.place).collect();
        if let Err(e) = self.sync_places(&places) {
            self.free(&new);
            return Err(e);
        }
        // When this fails the index may name the new bytes or the old ones, and a restart shows
        // which: both stay until then.
        let dead = self.put_in_index(&moves)?;
        // Without it the old bytes stay, until the next start finds nobody claiming them.
        sync()?;
        for Move { id, index, old, new, repairs } in moves {
            if dead.contains(&id) {
                self.free(&[new]);
                continue;
            }
            self.free(old.as_slice());
            let count = if repairs { &self.counters.shards_repaired } else { &self.counters.shards_moved };
            count.fetch_add(1, Ordering::Relaxed);
            self.rejudge(id, |damaged| damaged & !(1 << index))?;
        }
        Ok(())
    }

    /// Answers which of the stripes are dead.
    fn put_in_index(&self, moves: &[Move]) -> Result<BTreeSet<StripeId>> {
        let _collecting_waits = self.repairing();
        let mut dead = BTreeSet::new();
        let mut records = Vec::with_capacity(moves.len());
        for Move { id, index, new, .. } in moves {
            if read::stripe(&*self.db, *id)?.is_some() {
                records.push((shards::key(*id, *index), Some(new.encode())));
            } else {
                dead.insert(*id);
            }
        }
        self.db.write(records)?;
        for Move { id, index, new, .. } in moves {
            self.shards.forget(*id, *index);
            if new.ram && !dead.contains(id) {
                self.recency.insert(*id);
            }
        }
        Ok(dead)
    }

    /// Write what these stripes lack, or move a shard of each to a place that has room. One that
    /// cannot be helped is parked.
    pub(crate) fn heal(&self, ids: &[StripeId], sync: impl Fn() -> Result<()>) -> Healed {
        let mut healed = Healed::default();
        let mut moves = Vec::new();
        let mut mine = Vec::new();
        for &id in ids {
            if healed.bytes >= HEAL_BYTES {
                break;
            }
            if !self.repairing().insert(id) {
                // A reader is at it.
                self.standings.park(id);
                continue;
            }
            mine.push(id);
            let before = moves.len();
            if let Err(e) = self.prepare(id, &mut moves, &mut healed.bytes) {
                healed.failed.push((id, e));
            }
            if moves.len() == before {
                self.standings.park(id);
            }
        }
        if let Err(e) = self.put(moves, sync) {
            for &id in &mine {
                self.standings.park(id);
                healed.failed.push((id, e.clone()));
            }
        }
        let mut repairing = self.repairing();
        for id in mine {
            repairing.remove(&id);
        }
        healed
    }

    fn prepare(&self, id: StripeId, moves: &mut Vec<Move>, bytes: &mut u64) -> Result<()> {
        let Some(record) = read::stripe(&*self.db, id)? else {
            self.standings.forget(id);
            return Ok(());
        };
        let geometry = record.policy.geometry;
        let mut bad = self.bad(id, geometry)?;
        if bad.is_empty() {
            return self.spread(id, geometry, moves, bytes);
        }
        if geometry.n() - bad.len() < geometry.k() {
            return Err(Error::new(Kind::Io, format!("lost: {} of {geometry} shards", bad.len())));
        }
        let decoded = self.decode(id, geometry, &mut bad)?;
        // Readers have counted what they found.
        let new = damaged(&bad) & !self.standings.damaged(id);
        self.counters.shards_bad.fetch_add(u64::from(new.count_ones()), Ordering::Relaxed);
        let one = shard::stored_len(stripe::shard_len(geometry, decoded.layout.coded_len()));
        *bytes += (one * (geometry.k() + bad.len())) as u64;
        self.rewrite(id, record, &bad, &decoded, moves)
    }

    /// Shards that are missing or damaged. One that a read found damaged is read again: the disk
    /// may only have failed for a moment.
    fn bad(&self, id: StripeId, geometry: Geometry) -> Result<Vec<(u8, Error)>> {
        let damaged = self.standings.damaged(id);
        let mut bad = Vec::new();
        let mut intact = 0;
        for (index, spot) in (0..).zip(self.good(id, geometry, 0)?) {
            if spot.is_none() {
                bad.push((index, Error::new(Kind::Io, "shard: missing")));
            } else if damaged >> index & 1 != 0 {
                match self.shards.read_whole(id, index) {
                    Ok(_) => intact |= 1 << index,
                    Err(e) => bad.push((index, e)),
                }
            }
        }
        self.rejudge(id, |damaged| damaged & !intact)?;
        Ok(bad)
    }

    /// Write one shard of a crowded place to one that has room.
    fn spread(&self, id: StripeId, geometry: Geometry, moves: &mut Vec<Move>, bytes: &mut u64) -> Result<()> {
        let live = self.tiers().live();
        let good = self.good(id, geometry, 0)?;
        let Some(index) = excess(geometry, &good, live) else { return Ok(()) };
        let Some(old) = good.get(usize::from(index)).copied().flatten() else { return Ok(()) };
        let record = self.alive(id)?;
        let (payload, layout) = match self.shards.read_whole(id, index) {
            Ok(whole) => whole,
            Err(e) => {
                // Next time it is one that lacks a shard.
                let found = [(index, e)];
                self.rejudge(id, |known| known | damaged(&found))?;
                let [(_, e)] = found;
                return Err(e);
            }
        };
        let (header, table) = shard::seal(id, index, geometry, &layout, &payload)?;
        let beside: Vec<Spot> = good.iter().flatten().copied().collect();
        let allowed = |at| has_room(geometry, &good, live, at);
        let parts: [&[u8]; 3] = [&header, &payload, &table];
        let first = (id.0 as usize).wrapping_add(usize::from(index));
        let new = self.tiers().append_where(record.policy.into(), first, &beside, &parts, allowed)?;
        *bytes += 2 * new.location.len;
        moves.push(Move { id, index, old: Some(old), new, repairs: false });
        Ok(())
    }
}
