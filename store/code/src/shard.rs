//! One shard at rest: a header block, the payload, and a table of the payload's block checksums.
//!
//! Every part is whole 4 KiB blocks, so that the payload can be read with direct I/O. All numbers
//! are little-endian; the offsets of the header's fields are in the module `field`.

use kos_types::limits::{BLOCK_BYTES, STRIPE_BYTES_MAX};
use kos_types::{Error, Geometry, Kind, Result, StripeId};

use crate::compress::{CHUNK_BYTES, CHUNKS_MAX, Layout};
use crate::crc;
use crate::stripe::shard_len;

/// Bytes of the header, and where the payload begins.
pub const HEADER_BYTES: usize = BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"KOSSHRD1";
const VERSION: u32 = 2;

/// Where the fields of the header are; what is between the last of `CHUNKS` and `HEADER_CRC` is
/// zero.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const INDEX: usize = 12;
    pub(super) const K: usize = 13;
    pub(super) const M: usize = 14;
    pub(super) const STRIPE: usize = 16;
    pub(super) const USER_LEN: usize = 24;
    pub(super) const PAYLOAD_LEN: usize = 32;
    pub(super) const PAYLOAD_HASH: usize = 40;
    pub(super) const TABLE_CRC: usize = 72;
    /// 1 when the user bytes are compressed, with a length for each chunk in `CHUNKS`.
    pub(super) const PACKED: usize = 76;
    pub(super) const CHUNKS: usize = 80;
    /// CRC of all bytes before it.
    pub(super) const HEADER_CRC: usize = super::HEADER_BYTES - 4;
}

const _: () = assert!(field::CHUNKS + CHUNKS_MAX * 4 <= field::HEADER_CRC);

/// What a shard says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHeader {
    /// The stripe it belongs to.
    pub stripe: StripeId,
    /// Which of the stripe's n shards it is.
    pub index: u8,
    /// How the stripe is coded.
    pub geometry: Geometry,
    /// How the user bytes of the whole stripe became the bytes that are coded.
    pub layout: Layout,
    /// Bytes of the payload: whole blocks.
    pub payload_len: u64,
    /// BLAKE3 of the payload.
    pub payload_hash: [u8; 32],
    /// CRC32C of the checksum table with its padding.
    pub table_crc: u32,
}

impl ShardHeader {
    /// Whether the fields fit each other, so that whoever holds a decoded header can size buffers
    /// by it.
    fn check(&self) -> Result<()> {
        if !self.layout.is_possible() {
            return Err(bad("user length or chunks"));
        }
        if usize::from(self.index) >= self.geometry.n() {
            return Err(bad("index"));
        }
        if self.payload_len != shard_len(self.geometry, self.layout.coded_len()) as u64 {
            return Err(bad("payload length"));
        }
        Ok(())
    }
}

/// Bytes of a shard at rest.
#[must_use]
pub const fn stored_len(payload_len: usize) -> usize {
    HEADER_BYTES + payload_len.next_multiple_of(BLOCK_BYTES) + table_len(payload_len)
}

/// Bytes of the checksum table of a payload, with its padding.
#[must_use]
pub const fn table_len(payload_len: usize) -> usize {
    (payload_len.div_ceil(BLOCK_BYTES) * size_of::<u32>()).next_multiple_of(BLOCK_BYTES)
}

/// The header and the checksum table that go before and after `payload`.
///
/// # Errors
/// `Invalid` unless `payload` is as long as `layout` asks for, and `index` is one of the
/// geometry's shards.
pub fn seal(
    stripe: StripeId,
    index: u8,
    geometry: Geometry,
    layout: &Layout,
    payload: &[u8],
) -> Result<([u8; HEADER_BYTES], Vec<u8>)> {
    let mut sums = Sums::new(payload.len());
    sums.update(payload);
    sums.seal(stripe, index, geometry, layout)
}

/// The sums of a payload, taken piece by piece while the pieces are in the processor's cache.
pub(crate) struct Sums {
    payload_len: usize,
    table: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Sums {
    /// Of nothing yet, and of `payload_len` bytes in the end.
    pub(crate) fn new(payload_len: usize) -> Self {
        let table = Vec::with_capacity(table_len(payload_len));
        Self { payload_len, table, hasher: blake3::Hasher::new() }
    }

    /// The next bytes: whole blocks, but for the last ones.
    pub(crate) fn update(&mut self, part: &[u8]) {
        crc::each_block(part, |_, sum| {
            self.table.extend_from_slice(&sum.to_le_bytes());
            true
        });
        self.hasher.update(part);
    }

    /// As [`seal`].
    pub(crate) fn seal(
        self,
        stripe: StripeId,
        index: u8,
        geometry: Geometry,
        layout: &Layout,
    ) -> Result<([u8; HEADER_BYTES], Vec<u8>)> {
        let mut table = self.table;
        table.resize(table_len(self.payload_len), 0);
        let header = ShardHeader {
            stripe,
            index,
            geometry,
            layout: layout.clone(),
            payload_len: self.payload_len as u64,
            payload_hash: *self.hasher.finalize().as_bytes(),
            table_crc: crc_fast::crc32_iscsi(&table),
        };
        header.check().map_err(|e| Error::new(Kind::Invalid, format!("seal: {e}")))?;
        Ok((encode_header(&header), table))
    }
}

/// The block that begins a shard at rest.
#[must_use]
pub fn encode_header(header: &ShardHeader) -> [u8; HEADER_BYTES] {
    let mut block = [0; HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::MAGIC, &MAGIC);
    put(field::VERSION, &VERSION.to_le_bytes());
    put(field::INDEX, &[header.index]);
    // A geometry is made of two bytes, so nothing is cut off.
    put(field::K, &[header.geometry.k() as u8]);
    put(field::M, &[header.geometry.m() as u8]);
    put(field::STRIPE, &header.stripe.0.to_le_bytes());
    put(field::USER_LEN, &(header.layout.user_len as u64).to_le_bytes());
    put(field::PAYLOAD_LEN, &header.payload_len.to_le_bytes());
    put(field::PAYLOAD_HASH, &header.payload_hash);
    put(field::TABLE_CRC, &header.table_crc.to_le_bytes());
    put(field::PACKED, &[u8::from(!header.layout.chunks.is_empty())]);
    for (at, len) in (field::CHUNKS..).step_by(4).zip(&header.layout.chunks).take(CHUNKS_MAX) {
        put(at, &len.to_le_bytes());
    }
    let crc = crc_fast::crc32_iscsi(&block[..field::HEADER_CRC]);
    block[field::HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
    block
}

/// The header that `bytes` begin with.
///
/// # Errors
/// `Io` when this is no intact header; `Unsupported` when it is one of another version.
pub fn decode_header(bytes: &[u8]) -> Result<ShardHeader> {
    let block: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| bad("too short"))?;
    if take(block, field::MAGIC) != MAGIC {
        return Err(bad("magic"));
    }
    if u32::from_le_bytes(take(block, field::HEADER_CRC))
        != crc_fast::crc32_iscsi(&block[..field::HEADER_CRC])
    {
        return Err(bad("checksum"));
    }
    let version = u32::from_le_bytes(take(block, field::VERSION));
    if version != VERSION {
        let what = format!("shard header: version {version}, this kosfs reads {VERSION}");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let user_len = usize::try_from(u64::from_le_bytes(take(block, field::USER_LEN))).unwrap_or(usize::MAX);
    let count = match block[field::PACKED] {
        0 => 0,
        1 if user_len <= STRIPE_BYTES_MAX => user_len.div_ceil(CHUNK_BYTES),
        _ => return Err(bad("compression")),
    };
    let chunk = |number| u32::from_le_bytes(take(block, field::CHUNKS + number * 4));
    let header = ShardHeader {
        stripe: StripeId(u64::from_le_bytes(take(block, field::STRIPE))),
        index: block[field::INDEX],
        geometry: Geometry::new(block[field::K], block[field::M]).map_err(|_| bad("geometry"))?,
        layout: Layout { user_len, chunks: (0..count).map(chunk).collect() },
        payload_len: u64::from_le_bytes(take(block, field::PAYLOAD_LEN)),
        payload_hash: take(block, field::PAYLOAD_HASH),
        table_crc: u32::from_le_bytes(take(block, field::TABLE_CRC)),
    };
    header.check()?;
    Ok(header)
}

/// CRC32C of each block of `payload`.
#[must_use]
pub fn crc_table(payload: &[u8]) -> Vec<u32> {
    let mut table = Vec::with_capacity(payload.len().div_ceil(BLOCK_BYTES));
    crc::each_block(payload, |_, sum| {
        table.push(sum);
        true
    });
    table
}

/// The checksum table as it is stored behind the payload of `header`.
///
/// # Errors
/// `Io` unless `bytes` are exactly the table that was sealed.
pub fn decode_table(header: &ShardHeader, bytes: &[u8]) -> Result<Vec<u32>> {
    header.check()?;
    let payload_len = header.payload_len as usize;
    if bytes.len() != table_len(payload_len) || crc_fast::crc32_iscsi(bytes) != header.table_crc {
        return Err(Error::new(Kind::Io, "shard table: checksum"));
    }
    let (entries, _) = bytes.as_chunks();
    Ok(entries[..payload_len / BLOCK_BYTES].iter().map(|&e| u32::from_le_bytes(e)).collect())
}

/// Whether `payload_part`, whole blocks from block `first_block` of the payload on, is what
/// `table` says. No blocks verify nothing: false.
#[must_use]
pub fn verify_blocks(payload_part: &[u8], first_block: usize, table: &[u32]) -> bool {
    let blocks = payload_part.len() / BLOCK_BYTES;
    if blocks == 0 || !payload_part.len().is_multiple_of(BLOCK_BYTES) {
        return false;
    }
    table
        .get(first_block..)
        .and_then(|table| table.get(..blocks))
        .is_some_and(|table| crc::each_block(payload_part, |number, sum| table[number] == sum))
}

/// Whether `payload` is the one that was sealed, by its cryptographic hash.
#[must_use]
pub fn verify_whole(header: &ShardHeader, payload: &[u8]) -> bool {
    payload.len() as u64 == header.payload_len && *blake3::hash(payload).as_bytes() == header.payload_hash
}

/// The `N` bytes of the header at a field's offset.
fn take<const N: usize>(block: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

fn bad(what: &str) -> Error {
    Error::new(Kind::Io, format!("shard header: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{noise, stripe};

    const ID: StripeId = StripeId(0x0123_4567_89ab_cdef);

    fn sealed() -> ([u8; HEADER_BYTES], Vec<u8>, Vec<u8>) {
        let payload = noise(1, 3 * BLOCK_BYTES);
        let (header, table) =
            seal(ID, 5, Geometry::DEFAULT, &Layout::plain(40_000), &payload).expect("seals");
        (header, payload, table)
    }

    /// A header with a right checksum whatever it says.
    fn forged(change: impl FnOnce(&mut [u8; HEADER_BYTES])) -> Result<ShardHeader> {
        let (mut block, ..) = sealed();
        change(&mut block);
        let crc = crc_fast::crc32_iscsi(&block[..field::HEADER_CRC]);
        block[field::HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        decode_header(&block)
    }

    #[test]
    fn sealed_shards_of_every_geometry_verify() {
        for (k, m) in [(1, 0), (1, 1), (4, 2), (8, 4), (16, 4), (3, 1)] {
            let geometry = Geometry::new(k, m).expect("in bounds");
            for len in [1, 4095, 4096, 4097, 65_537 * 4 + 3, STRIPE_BYTES_MAX] {
                let shards = stripe::encode(geometry, &noise(2, len)).expect("encodes");
                for (index, payload) in (0..).zip(&shards) {
                    let (block, bytes) =
                        seal(ID, index, geometry, &Layout::plain(len), payload).expect("seals");
                    assert_eq!(stored_len(payload.len()), block.len() + payload.len() + bytes.len());
                    let header = decode_header(&block).expect("own header");
                    assert_eq!((header.stripe, header.index, header.geometry), (ID, index, geometry));
                    assert_eq!((header.layout.user_len, header.payload_len), (len, payload.len() as u64));
                    assert_eq!(encode_header(&header), block);
                    let table = decode_table(&header, &bytes).expect("own table");
                    assert_eq!(table, crc_table(payload));
                    assert!(verify_blocks(payload, 0, &table) && verify_whole(&header, payload));
                }
            }
        }
    }

    #[test]
    fn compressed_stripes_keep_their_chunks() {
        let layout = Layout {
            user_len: STRIPE_BYTES_MAX,
            chunks: (0..CHUNKS_MAX as u32).map(|n| 1 + n % 50).collect(),
        };
        let payload = noise(3, BLOCK_BYTES);
        let (block, _) = seal(ID, 2, Geometry::DEFAULT, &layout, &payload).expect("seals");
        assert_eq!(decode_header(&block).expect("own header").layout, layout);
        let short = seal(ID, 2, Geometry::DEFAULT, &Layout { chunks: vec![1], ..layout }, &payload);
        assert_eq!(short.map_err(|e| e.kind()), Err(Kind::Invalid));
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc_fast::crc32_iscsi(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn any_changed_header_byte_is_refused() {
        let (block, ..) = sealed();
        let flips = noise(9, HEADER_BYTES);
        for at in 0..HEADER_BYTES {
            for flip in [0x01, 0x80, 0xff, flips[at] | 2] {
                let mut bad = block;
                bad[at] ^= flip;
                assert_eq!(decode_header(&bad).map_err(|e| e.kind()), Err(Kind::Io), "{at} {flip}");
            }
        }
    }

    #[test]
    fn no_input_panics() {
        let (block, ..) = sealed();
        for len in [0, 1, 8, 4095] {
            assert!(decode_header(&block[..len]).is_err());
        }
        for seed in 0..500 {
            // Random fields under a right magic and checksum.
            let random = noise(seed, field::HEADER_CRC);
            let _ = forged(|b| b[field::VERSION + 4..field::HEADER_CRC].copy_from_slice(&random[12..]));
            assert!(decode_header(&noise(seed, HEADER_BYTES)).is_err());
        }
    }

    #[test]
    fn fields_that_do_not_fit_are_refused() {
        let refused = |at: usize, value: &[u8]| {
            forged(|b| b[at..at + value.len()].copy_from_slice(value)).expect_err("refused").kind()
        };
        for version in [0, 1, 3] {
            assert_eq!(refused(field::VERSION, &u32::to_le_bytes(version)), Kind::Unsupported);
        }
        assert_eq!(refused(field::PACKED, &[2]), Kind::Io);
        assert_eq!(refused(field::PACKED, &[1]), Kind::Io, "a chunk of no bytes");
        assert_eq!(refused(field::INDEX, &[6]), Kind::Io);
        assert_eq!(refused(field::K, &[0]), Kind::Io);
        assert_eq!(refused(field::M, &[5]), Kind::Io);
        for user_len in [0, STRIPE_BYTES_MAX as u64 + 1, u64::MAX] {
            assert_eq!(refused(field::USER_LEN, &user_len.to_le_bytes()), Kind::Io);
        }
        for payload_len in [0, 4095, 4 * 4096, u64::MAX, u64::MAX - 4095] {
            assert_eq!(refused(field::PAYLOAD_LEN, &payload_len.to_le_bytes()), Kind::Io);
        }
        assert!(forged(|_| ()).is_ok());
    }

    #[test]
    fn seal_refuses_what_it_could_not_decode() {
        for (index, user_len, len) in
            [(6, 40_000, 4096), (0, 0, 4096), (0, 40_000, 100), (0, 1, 8192), (0, 9, 0)]
        {
            let layout = Layout::plain(user_len);
            let sealed = seal(ID, index, Geometry::DEFAULT, &layout, &vec![0; len]);
            assert_eq!(sealed.map_err(|e| e.kind()), Err(Kind::Invalid), "{index} {user_len} {len}");
        }
    }

    #[test]
    fn damage_to_payload_and_table_is_found() {
        let (block, mut payload, mut bytes) = sealed();
        let header = decode_header(&block).expect("own header");
        let table = decode_table(&header, &bytes).expect("own table");
        for at in [0, 4095, 4096, 9000, 3 * 4096 - 1] {
            payload[at] ^= 4;
            assert!(!verify_whole(&header, &payload));
            for (i, part) in payload.chunks(BLOCK_BYTES).enumerate() {
                assert_eq!(verify_blocks(part, i, &table), i != at / BLOCK_BYTES);
            }
            payload[at] ^= 4;
        }
        assert!(!verify_whole(&header, &payload[..2 * BLOCK_BYTES]));
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(decode_table(&header, &bytes).map_err(|e| e.kind()), Err(Kind::Io));
            bytes[at] ^= 1;
        }
        assert!(decode_table(&header, &bytes[..12]).is_err());
    }

    #[test]
    fn blocks_outside_the_table_do_not_verify() {
        let (_, payload, _) = sealed();
        let table = crc_table(&payload);
        assert!(verify_blocks(&payload[4096..], 1, &table));
        for (part, first) in [(4096..12_288, 0), (4096..12_288, 2), (0..4096, 3), (0..4096, usize::MAX)] {
            assert!(!verify_blocks(&payload[part], first, &table), "{first}");
        }
        assert!(!verify_blocks(&payload[..100], 0, &table));
        assert!(!verify_blocks(&[], 0, &table));
    }
}
