//! The shards of this node: where each is, and reading them only when they are intact.

use std::sync::Arc;

use kos_code::shard::{self, HEADER_BYTES, ShardHeader};
use kos_core::Tables;
use kos_store::{Location, Store};
use kos_types::limits::BLOCK_BYTES;
use kos_types::{Error, Kind, Result, StripeId};

use crate::cache::Cache;
use crate::db::Db;

/// Shards whose header and checksums are kept: at most twice this, of 1 KiB for the largest.
const CACHED: usize = 16 << 10;
/// Key of a shard's record: the table, the stripe, the index. The state machine's tables have
/// capital letters.
const TABLE: u8 = b's';

/// Where a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) place: usize,
    pub(crate) location: Location,
}

/// A shard whose header and checksum table are intact.
pub(crate) struct Shard {
    spot: Spot,
    header: ShardHeader,
    table: Vec<u32>,
}

/// All shards of this node.
pub(crate) struct Shards {
    pub(crate) store: Store,
    pub(crate) places: usize,
    db: Arc<Db>,
    cache: Cache<(StripeId, u8), Arc<Shard>>,
}

pub(crate) fn key(id: StripeId, index: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(10);
    key.push(TABLE);
    key.extend_from_slice(&id.0.to_be_bytes());
    key.push(index);
    key
}

pub(crate) fn encode(spot: Spot) -> Vec<u8> {
    // A store has at most 32 places.
    let mut value = vec![spot.place as u8];
    value.extend_from_slice(&spot.location.to_bytes());
    value
}

fn decode(value: &[u8]) -> Result<Spot> {
    let (place, location) =
        value.split_first().ok_or_else(|| Error::new(Kind::Io, "shard record: too short"))?;
    Ok(Spot { place: usize::from(*place), location: Location::from_bytes(location)? })
}

/// Where every shard of the index is.
pub(crate) fn all(db: &Db) -> Result<Vec<(usize, Location)>> {
    let mut live = Vec::new();
    db.each(&[TABLE], |_, value| {
        let spot = decode(value)?;
        live.push((spot.place, spot.location));
        Ok(())
    })?;
    Ok(live)
}

impl Shards {
    pub(crate) fn new(store: Store, db: Arc<Db>) -> Self {
        Self { places: store.places().len(), store, db, cache: Cache::new(CACHED) }
    }

    /// Where a shard is, or none when there is no record of it.
    pub(crate) fn spot(&self, id: StripeId, index: u8) -> Result<Option<Spot>> {
        self.db.get(&key(id, index))?.map(|value| decode(&value)).transpose()
    }

    /// Write one shard to `place`, or the next one that takes it. Not on stable storage yet.
    pub(crate) fn append(&self, header: &[u8], payload: &[u8], table: &[u8], place: usize) -> Result<Spot> {
        let mut last = Error::new(Kind::Io, "append: no place left");
        for step in 0..self.places {
            let place = (place + step) % self.places;
            match self.store.append(place, &[header, payload, table]) {
                Ok(location) => return Ok(Spot { place, location }),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// The shard's header and checksums, checked.
    pub(crate) fn open(&self, id: StripeId, index: u8) -> Result<Arc<Shard>> {
        if let Some(shard) = self.cache.get((id, index)) {
            return Ok(shard);
        }
        let spot = self.spot(id, index)?.ok_or_else(|| Error::new(Kind::Io, "shard: no record"))?;
        let mut block = [0; HEADER_BYTES];
        self.store.read(spot.place, spot.location, 0, &mut block)?;
        let header = shard::decode_header(&block)?;
        if (header.stripe, header.index) != (id, index) {
            return Err(Error::new(Kind::Io, "shard header: of another shard"));
        }
        let payload_len = header.payload_len as usize;
        let mut bytes = vec![0; shard::table_len(payload_len)];
        self.store.read(spot.place, spot.location, (HEADER_BYTES + payload_len) as u64, &mut bytes)?;
        let table = shard::decode_table(&header, &bytes)?;
        let shard = Arc::new(Shard { spot, header, table });
        self.cache.insert((id, index), Arc::clone(&shard));
        Ok(shard)
    }

    /// Fill `out` from byte `at` of the payload, every block of it checked.
    pub(crate) fn read(&self, shard: &Shard, at: usize, out: &mut [u8]) -> Result<()> {
        let head = (at.next_multiple_of(BLOCK_BYTES) - at).min(out.len());
        let body = (out.len() - head) / BLOCK_BYTES * BLOCK_BYTES;
        let (head, rest) = out.split_at_mut(head);
        let (body, tail) = rest.split_at_mut(body);
        self.read_part(shard, at, head)?;
        if !body.is_empty() {
            self.read_blocks(shard, at + head.len(), body)?;
        }
        self.read_part(shard, at + head.len() + body.len(), tail)
    }

    /// A range within one block.
    fn read_part(&self, shard: &Shard, at: usize, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let mut block = [0; BLOCK_BYTES];
        let start = at / BLOCK_BYTES * BLOCK_BYTES;
        self.read_blocks(shard, start, &mut block)?;
        out.copy_from_slice(&block[at - start..at - start + out.len()]);
        Ok(())
    }

    fn read_blocks(&self, shard: &Shard, at: usize, out: &mut [u8]) -> Result<()> {
        self.store.read(shard.spot.place, shard.spot.location, (HEADER_BYTES + at) as u64, out)?;
        if shard::verify_blocks(out, at / BLOCK_BYTES, &shard.table) {
            Ok(())
        } else {
            Err(Error::new(Kind::Io, "shard: checksum"))
        }
    }

    /// The whole payload, checked by its hash.
    pub(crate) fn read_whole(&self, shard: &Shard) -> Result<Vec<u8>> {
        let mut payload = vec![0; shard.header.payload_len as usize];
        self.store.read(shard.spot.place, shard.spot.location, HEADER_BYTES as u64, &mut payload)?;
        if shard::verify_whole(&shard.header, &payload) {
            Ok(payload)
        } else {
            Err(Error::new(Kind::Io, "shard: hash"))
        }
    }

    /// The shard moved or went.
    pub(crate) fn forget(&self, id: StripeId, index: u8) {
        self.cache.remove((id, index));
    }
}
