//! Stripes on this node: written before their commit, read around damage, repaired and freed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_code::compress::{self, Layout};
use kos_code::{shard, stripe};
use kos_core::{read, record};
use kos_store::fault;
use kos_types::limits::BLOCK_BYTES;
use kos_types::{Class, Compress, Error, Geometry, Kind, Pin, Policy, Result, StripeId};

use crate::cache::Cache;
use crate::db::Db;
use crate::events::Events;
use crate::recency::Recency;
use crate::shards::{self, Shards};
use crate::spare::Spare;
use crate::standing::{self, Standings};
use crate::status::Counters;
use crate::tiers::{Spot, Tier, Tiers};

/// Stripe records kept: at most twice this, of 32 bytes.
const CACHED: usize = 64 << 10;
/// A stripe nobody commits for so long is dropped.
const UNCOMMITTED_MAX: Duration = Duration::from_mins(10);
/// Bytes moved to disk between two syncs.
const MOVE_BYTES: u64 = 64 << 20;

/// A stripe that is written and not committed.
struct Pending {
    since: Instant,
    policy: Policy,
    len: u64,
    spots: Vec<Spot>,
}

pub(crate) struct Stripes {
    pub(crate) shards: Shards,
    pub(crate) db: Arc<Db>,
    cache: Cache<StripeId, record::Stripe>,
    /// For the shards of stripes that are being coded.
    spare: Spare,
    pending: Mutex<HashMap<StripeId, Pending>>,
    /// Stripes under repair, so that a second reader only decodes. Collecting holds it too: a
    /// shard must not be put back while its stripe goes.
    repairing: Mutex<HashSet<StripeId>>,
    pub(crate) standings: Standings,
    /// Which stripes are in memory, and when they were last used.
    pub(crate) recency: Recency,
    pub(crate) counters: Arc<Counters>,
    pub(crate) events: Arc<Events>,
}

/// Changes of the shards' index, to be written with the metadata they belong to.
pub(crate) type IndexChanges = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Stripes on their way into a commit.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) records: IndexChanges,
    /// Where each of the records says that its shard is.
    spots: Vec<Spot>,
    /// Shards a stripe can do without, and how many of the records are its own, in their order.
    stripes: Vec<(StripeId, usize, usize)>,
    /// Those that are in memory and may leave it.
    in_ram: Vec<StripeId>,
    /// Those that lack shards or could not be spread evenly.
    defective: Vec<StripeId>,
}

impl Stripes {
    pub(crate) fn new(tiers: Tiers, db: Arc<Db>, counters: Arc<Counters>, events: Arc<Events>) -> Self {
        Self {
            shards: Shards::new(tiers, Arc::clone(&db)),
            db,
            cache: Cache::new(CACHED),
            spare: Spare::default(),
            pending: Mutex::default(),
            repairing: Mutex::default(),
            standings: Standings::default(),
            recency: Recency::default(),
            counters,
            events,
        }
    }

    pub(crate) const fn tiers(&self) -> &Tiers {
        &self.shards.tiers
    }

    /// Bytes of user data at the default geometry: the size of the pool, and what is free.
    pub(crate) fn space(&self) -> Result<(u64, u64)> {
        let usage = self.tiers().usage()?;
        let geometry = Geometry::DEFAULT;
        let user = |bytes: u64| bytes / geometry.n() as u64 * geometry.k() as u64;
        Ok((user(usage.bytes_total), user(usage.bytes_free)))
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<StripeId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Code and write one stripe under `id`. A commit will make it durable and visible.
    pub(crate) fn write(&self, id: StripeId, policy: Policy, data: &[u8]) -> Result<()> {
        let packed = compressed(policy, data);
        let (coded, layout) = packed
            .as_ref()
            .map_or_else(|| (data, Layout::plain(data.len())), |(coded, layout)| (coded, layout.clone()));
        let spots = self.spare.with(|room| {
            let sealed = stripe::seal(id, policy.geometry, &layout, coded, room)?;
            self.append_all(id, policy, &sealed)
        })?;
        let len = data.len() as u64;
        self.pending().insert(id, Pending { since: Instant::now(), policy, len, spots });
        self.counters.stripes_written.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(len, Ordering::Relaxed);
        self.counters.bytes_saved.fetch_add(len - coded.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Write all shards of a new stripe, or none.
    fn append_all(&self, id: StripeId, policy: Policy, sealed: &[stripe::Sealed<'_>]) -> Result<Vec<Spot>> {
        let mut spots = Vec::with_capacity(sealed.len());
        for (index, shard) in (0..).zip(sealed) {
            let parts = [&shard.header, shard.payload, &shard.table];
            match self.tiers().append(policy.into(), first_place(id, index), &spots, &parts) {
                Ok(spot) => spots.push(spot),
                Err(e) => {
                    self.free(&spots);
                    return Err(e);
                }
            }
        }
        Ok(spots)
    }

    /// Write one shard of a stripe whose others are at `beside`.
    pub(crate) fn append(
        &self,
        (id, index): (StripeId, u8),
        policy: Policy,
        layout: &Layout,
        beside: &[Spot],
        payload: &[u8],
    ) -> Result<Spot> {
        let (header, table) = shard::seal(id, index, policy.geometry, layout, payload)?;
        self.tiers().append(policy.into(), first_place(id, index), beside, &[&header, payload, &table])
    }

    /// Take written stripes out for a commit, as durable as their class says; answers their
    /// index records, which go into the commit's own batch. When that fails: [`Self::drop_settled`].
    pub(crate) fn settle(&self, stripes: &[(StripeId, Policy, u64)]) -> Result<Settled> {
        let mut settled = Settled::default();
        let result =
            self.take(stripes, &mut settled).and_then(|places| self.stabilise(&places, &mut settled));
        if let Err(e) = result {
            self.drop_settled(&settled);
            return Err(e);
        }
        Ok(settled)
    }

    fn take(&self, stripes: &[(StripeId, Policy, u64)], settled: &mut Settled) -> Result<BTreeSet<usize>> {
        let mut places = BTreeSet::new();
        let live = self.tiers().live();
        let mut pending = self.pending();
        for &(id, policy, len) in stripes {
            let found = pending.remove(&id).filter(|p| p.policy == policy && p.len == len);
            let found =
                found.ok_or_else(|| Error::new(Kind::Stale, "commit: stripe not written or dropped"))?;
            let good: Vec<_> = found.spots.iter().copied().map(Some).collect();
            if standing::judge(policy.geometry, &good, 0, live).is_some() {
                settled.defective.push(id);
            }
            if policy.pin == Pin::None && found.spots.iter().any(|spot| spot.ram) {
                settled.in_ram.push(id);
            }
            settled.stripes.push((id, policy.geometry.m(), found.spots.len()));
            for (index, &spot) in (0..).zip(&found.spots) {
                settled.records.push((shards::key(id, index), Some(spot.encode())));
                settled.spots.push(spot);
                if policy.class == Class::Disk && !spot.ram {
                    places.insert(spot.place);
                }
            }
        }
        Ok(places)
    }

    /// Make these places stable. What went to a place that does not answer is left out, where a stripe can do
    /// without: the rebuilder writes it elsewhere.
    fn stabilise(&self, places: &BTreeSet<usize>, settled: &mut Settled) -> Result<()> {
        let mut silent = BTreeMap::new();
        for (place, synced) in self.tiers().sync(places) {
            match synced {
                Err(e) if e.kind() == Kind::TimedOut => drop(silent.insert(place, e)),
                other => other?,
            }
        }
        let Some(error) = silent.values().next() else { return Ok(()) };
        let is_out = |spot: &Spot| !spot.ram && silent.contains_key(&spot.place);
        let mut own = &settled.spots[..];
        for &(id, can_lack, count) in &settled.stripes {
            let (shards, rest) = own.split_at(count);
            own = rest;
            match shards.iter().filter(|spot| is_out(spot)).count() {
                0 => {}
                lacking if lacking <= can_lack => settled.defective.push(id),
                _ => return Err(error.clone()),
            }
        }
        let (records, spots) = (mem::take(&mut settled.records), mem::take(&mut settled.spots));
        let (out, stay): (Vec<_>, Vec<_>) =
            spots.into_iter().zip(records).partition(|(spot, _)| is_out(spot));
        (settled.spots, settled.records) = stay.into_iter().unzip();
        self.free(&out.into_iter().map(|(spot, _)| spot).collect::<Vec<_>>());
        Ok(())
    }

    pub(crate) fn sync_places(&self, places: &BTreeSet<usize>) -> Result<()> {
        self.tiers().sync(places).into_iter().try_for_each(|(_, synced)| synced)
    }

    /// No commit will name this stripe.
    pub(crate) fn give_up(&self, id: StripeId) {
        let dropped = self.pending().remove(&id);
        if let Some(dropped) = dropped {
            self.free(&dropped.spots);
        }
    }

    /// The commit of these stripes is in force.
    pub(crate) fn settled(&self, settled: &Settled) {
        for &id in &settled.in_ram {
            self.recency.insert(id);
        }
        for &id in &settled.defective {
            if let Err(e) = self.rejudge(id, |damaged| damaged) {
                kos_types::log!(
                    "fabricd: stripe {:#x} is not whole or not evenly spread, and not counted: {e}",
                    id.0
                );
            }
        }
    }

    /// The commit of these stripes was refused.
    pub(crate) fn drop_settled(&self, settled: &Settled) {
        self.free(&settled.spots);
    }

    /// Drop what was written too long ago without a commit.
    pub(crate) fn expire(&self) {
        let old: Vec<Pending> =
            self.pending().extract_if(|_, p| p.since.elapsed() > UNCOMMITTED_MAX).map(|(_, p)| p).collect();
        for dropped in old {
            self.free(&dropped.spots);
        }
    }

    pub(crate) fn free(&self, spots: &[Spot]) {
        for spot in spots {
            if let Err(e) = self.tiers().free(spot) {
                kos_types::log!("fabricd: {e}; the bytes come back at the next start");
            }
        }
    }

    fn record(&self, id: StripeId) -> Result<record::Stripe> {
        if let Some(record) = self.cache.get(id) {
            return Ok(record);
        }
        let record = self.alive(id)?;
        self.cache.insert(id, record);
        Ok(record)
    }

    pub(crate) fn alive(&self, id: StripeId) -> Result<record::Stripe> {
        read::stripe(&*self.db, id)?.ok_or_else(|| Error::new(Kind::NotFound, "stripe: gone"))
    }

    /// Fill `out` from byte `at` of the stripe on.
    pub(crate) fn read(&self, id: StripeId, at: u64, out: &mut [u8]) -> Result<()> {
        let record = self.record(id)?;
        if record.policy.class != Class::Disk && record.policy.pin == Pin::None {
            self.recency.used(id);
        }
        if at.checked_add(out.len() as u64).is_none_or(|end| end > record.len) {
            return Err(Error::new(Kind::Invalid, "read: outside the stripe"));
        }
        if let Err((index, e)) = self.read_shards(id, record, at as usize, out) {
            return self.read_around(id, at as usize, out, (index, e));
        }
        self.counters.bytes_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Fill `out` from the data shards alone; the error names the one that failed.
    fn read_shards(
        &self,
        id: StripeId,
        record: record::Stripe,
        at: usize,
        out: &mut [u8],
    ) -> std::result::Result<(), (u8, Error)> {
        let (geometry, user_len) = (record.policy.geometry, record.len as usize);
        // Every shard knows the layout. The first one that is needed, if nothing is compressed.
        let mut at_fault =
            stripe::locate(geometry, user_len, at, 1).next().map_or(0, |piece| piece.shard as u8);
        let layout = self.shards.layout(id, at_fault).map_err(|e| (at_fault, e))?;
        let fetch = |from, part: &mut [u8]| {
            let mut rest = part;
            for piece in stripe::locate(geometry, layout.coded_len(), from, rest.len()) {
                let (part, after) = rest.split_at_mut(piece.len);
                // Geometry holds at most 20 shards.
                at_fault = piece.shard as u8;
                self.shards.read(id, at_fault, piece.at, part)?;
                rest = after;
            }
            Ok(())
        };
        layout.read(at, out, fetch).map_err(|e| (at_fault, e))
    }

    pub(crate) fn repairing(&self) -> MutexGuard<'_, HashSet<StripeId>> {
        self.repairing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free dead stripes. `write` puts their deletion in force, index records included.
    pub(crate) fn collect(
        &self,
        dead: &[(u64, StripeId, record::Stripe)],
        write: impl FnOnce(IndexChanges) -> Result<()>,
    ) -> Result<()> {
        let mut spots = Vec::new();
        let mut records = Vec::new();
        {
            let _repairs_wait = self.repairing();
            for (_, id, record) in dead {
                for index in (0..).take(record.policy.geometry.n()) {
                    spots.extend(self.shards.spot(*id, index)?);
                    records.push((shards::key(*id, index), None));
                    self.shards.forget(*id, index);
                }
                self.cache.remove(*id);
            }
            write(records)?;
        }
        for (_, id, _) in dead {
            self.standings.forget(*id);
            self.recency.remove(*id);
        }
        fault::at(fault::COLLECTED).map_err(|e| Error::io("collect", &e))?;
        self.free(&spots);
        self.counters.stripes_freed.fetch_add(dead.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Stripes {
    /// Move every shard of the memory tier to disk and give the memory back: a clean end leaves
    /// nothing that a reboot could take.
    pub(crate) fn move_to_disk(&mut self) -> Result<()> {
        fault::at(fault::MOVE).map_err(|e| Error::io("move to disk", &e))?;
        let shards = shards::all(&self.db)?;
        let mut records: IndexChanges = Vec::new();
        let (mut places, mut bytes) = (BTreeSet::new(), 0);
        for stripe in shards.chunk_by(|a, b| a.0 == b.0) {
            let (moving, mut beside): (Vec<_>, Vec<_>) =
                stripe.iter().copied().partition(|shard| shard.2.ram);
            for (id, index, spot) in moving {
                let len = spot.location.len;
                // A shard is at most 4 MiB and its header and table.
                let mut data = vec![0; len as usize];
                self.tiers().read(&spot, 0, &mut data)?;
                let others: Vec<Spot> = beside.iter().map(|shard| shard.2).collect();
                let moved = self.tiers().append(Tier::Disk, first_place(id, index), &others, &[&data])?;
                beside.push((id, index, moved));
                places.insert(moved.place);
                records.push((shards::key(id, index), Some(moved.encode())));
                bytes += len;
            }
            if bytes >= MOVE_BYTES {
                self.sync_places(&mem::take(&mut places))?;
                self.db.write(mem::take(&mut records))?;
                bytes = 0;
            }
        }
        self.sync_places(&places)?;
        self.db.write(records)?;
        self.db.sync_alone()?;
        self.shards.tiers.close_ram()
    }
}

/// Where the search for a shard's place begins, so that stripes begin at different ones.
fn first_place(id: StripeId, index: u8) -> usize {
    (id.0 as usize).wrapping_add(usize::from(index))
}

/// The bytes to code instead of `data`, where that makes the shards smaller.
fn compressed(policy: Policy, data: &[u8]) -> Option<(Vec<u8>, Layout)> {
    let asked = match policy.compress {
        Compress::Auto => compress::probe(data),
        Compress::Lz4 => true,
        Compress::None => false,
    };
    let shard_len = |len| stripe::shard_len(policy.geometry, len);
    // A shard of one block gets no smaller.
    let packed = (asked && shard_len(data.len()) > BLOCK_BYTES).then(|| compress::compress(data)).flatten();
    packed.filter(|(coded, _)| shard_len(coded.len()) < shard_len(data.len()))
}

/// Hands out stripe ids of the open batch.
pub(crate) struct Ids {
    /// The batch and the counter in it.
    state: Mutex<(u64, u64)>,
}

impl Ids {
    pub(crate) fn new(batch: u64) -> Self {
        Self { state: Mutex::new((batch, 0)) }
    }

    /// The next id; `open` opens a batch when this one is used up.
    pub(crate) fn next(&self, open: impl Fn() -> Result<u64>) -> Result<StripeId> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if StripeId::in_batch(state.0, state.1).is_none() {
            *state = (open()?, 0);
        }
        let id = StripeId::in_batch(state.0, state.1)
            .ok_or_else(|| Error::new(Kind::Io, "stripe ids: all batches used up"))?;
        state.1 += 1;
        Ok(id)
    }
}
