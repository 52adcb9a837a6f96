//! The shards of this node: where each is, and reading them only when they are intact.

use std::sync::Arc;

use kos_code::compress::Layout;
use kos_code::shard::{self, HEADER_BYTES, ShardHeader};
use kos_core::{Tables, keys};
use kos_types::limits::BLOCK_BYTES;
use kos_types::{Error, Kind, Result, StripeId};

use crate::cache::Cache;
use crate::db::Db;
use crate::tiers::{Spot, Tiers};

/// Shards whose header and checksums are kept: at most twice this, of 1 KiB for the largest.
const CACHED: usize = 16 << 10;
/// Key of a shard's record: the table, the stripe, the index. The state machine's tables have
/// capital letters.
const TABLE: u8 = b's';

/// How often a read follows a shard that moves away under it.
const MOVES_MAX: u32 = 3;

/// A shard whose header and checksum table are intact.
struct Shard {
    spot: Spot,
    header: ShardHeader,
    table: Vec<u32>,
}

/// All shards of this node.
pub(crate) struct Shards {
    pub(crate) tiers: Tiers,
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

/// A shard of the index: its stripe, its number there, and where it is.
pub(crate) type Indexed = (StripeId, u8, Spot);

/// Where every shard of the index is, in the order of their stripes.
pub(crate) fn all(db: &Db) -> Result<Vec<Indexed>> {
    let mut live = Vec::new();
    db.each(&[TABLE], |key, value| {
        let index = *key.get(9).ok_or_else(|| Error::new(Kind::Io, "shard record: key too short"))?;
        live.push((StripeId(keys::field(key, 1)), index, Spot::decode(value)?));
        Ok(())
    })?;
    Ok(live)
}

impl Shards {
    pub(crate) fn new(tiers: Tiers, db: Arc<Db>) -> Self {
        Self { tiers, db, cache: Cache::new(CACHED) }
    }

    /// Where a shard is, or none when there is no record of it.
    pub(crate) fn spot(&self, id: StripeId, index: u8) -> Result<Option<Spot>> {
        self.db.get(&key(id, index))?.map(|value| Spot::decode(&value)).transpose()
    }

    /// Do something with a shard, and again when it was moved meanwhile: its old bytes are zeros.
    fn with<T>(&self, id: StripeId, index: u8, mut act: impl FnMut(&Shard) -> Result<T>) -> Result<T> {
        let mut moves = 0;
        loop {
            let cached = self.cache.get((id, index));
            let spot = match &cached {
                Some(shard) => shard.spot,
                None => self.spot(id, index)?.ok_or_else(|| Error::new(Kind::Io, "shard: no record"))?,
            };
            let shard = cached.map_or_else(|| self.open(id, index, spot), Ok);
            let error = match shard.and_then(|shard| act(&shard)) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            self.forget(id, index);
            moves += 1;
            if moves > MOVES_MAX || self.spot(id, index)? == Some(spot) {
                return Err(error);
            }
        }
    }

    /// The header and checksums of the shard in a spot, checked.
    fn open(&self, id: StripeId, index: u8, spot: Spot) -> Result<Arc<Shard>> {
        let mut block = [0; HEADER_BYTES];
        self.tiers.read(&spot, 0, &mut block)?;
        let header = shard::decode_header(&block)?;
        if (header.stripe, header.index) != (id, index) {
            return Err(Error::new(Kind::Io, "shard header: of another shard"));
        }
        let payload_len = header.payload_len as usize;
        let mut bytes = vec![0; shard::table_len(payload_len)];
        self.tiers.read(&spot, (HEADER_BYTES + payload_len) as u64, &mut bytes)?;
        let table = shard::decode_table(&header, &bytes)?;
        let shard = Arc::new(Shard { spot, header, table });
        self.cache.insert((id, index), Arc::clone(&shard));
        Ok(shard)
    }

    /// Fill `out` from byte `at` of the payload, every block of it checked.
    pub(crate) fn read(&self, id: StripeId, index: u8, at: usize, out: &mut [u8]) -> Result<()> {
        self.with(id, index, |shard| self.read_range(shard, at, out))
    }

    /// What the shard says of how the stripe's bytes were coded.
    pub(crate) fn layout(&self, id: StripeId, index: u8) -> Result<Layout> {
        self.with(id, index, |shard| Ok(shard.header.layout.clone()))
    }

    fn read_range(&self, shard: &Shard, at: usize, out: &mut [u8]) -> Result<()> {
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
        self.tiers.read(&shard.spot, (HEADER_BYTES + at) as u64, out)?;
        if shard::verify_blocks(out, at / BLOCK_BYTES, &shard.table) {
            Ok(())
        } else {
            Err(Error::new(Kind::Io, "shard: checksum"))
        }
    }

    /// The whole payload, checked by its hash.
    pub(crate) fn read_whole(&self, id: StripeId, index: u8) -> Result<(Vec<u8>, Layout)> {
        self.with(id, index, |shard| {
            let mut payload = vec![0; shard.header.payload_len as usize];
            self.tiers.read(&shard.spot, HEADER_BYTES as u64, &mut payload)?;
            if shard::verify_whole(&shard.header, &payload) {
                Ok((payload, shard.header.layout.clone()))
            } else {
                Err(Error::new(Kind::Io, "shard: hash"))
            }
        })
    }

    /// Read all of a shard from its place, and check each part; answers its bytes.
    pub(crate) fn check(&self, id: StripeId, index: u8) -> Result<u64> {
        // The header and the table as they are now.
        self.forget(id, index);
        self.with(id, index, |shard| {
            let mut payload = vec![0; shard.header.payload_len as usize];
            self.read_blocks(shard, 0, &mut payload)?;
            if shard::verify_whole(&shard.header, &payload) {
                Ok(shard.spot.location.len)
            } else {
                Err(Error::new(Kind::Io, "shard: hash"))
            }
        })
    }

    /// The shard moved or went.
    pub(crate) fn forget(&self, id: StripeId, index: u8) {
        self.cache.remove((id, index));
    }
}
