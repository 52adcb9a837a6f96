//! Compression of a stripe's user bytes: whether it pays, and LZ4 both ways.
//!
//! A stripe is cut into chunks that are compressed each for itself, so that a read decompresses
//! only the chunks that it touches.

use kos_types::limits::{BLOCK_BYTES, STRIPE_BYTES_MAX};
use kos_types::{Error, Kind, Result};
use lz4_flex::block;

/// User bytes of one chunk: a read of 4 KiB fetches and decompresses at most two of them. Smaller
/// ones find less to repeat, larger ones cost small reads more (docs/adr/0041).
pub const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of one stripe.
pub const CHUNKS_MAX: usize = STRIPE_BYTES_MAX / CHUNK_BYTES;
/// Samples that the probe compresses.
const SAMPLES: usize = 3;

/// How the user bytes of a stripe became the bytes that are coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// User bytes.
    pub user_len: usize,
    /// Bytes of each chunk in the coded bytes; a chunk that is as long as its user bytes is not
    /// compressed. Empty when nothing is.
    pub chunks: Vec<u32>,
}

impl Layout {
    /// User bytes as they are.
    #[must_use]
    pub const fn plain(user_len: usize) -> Self {
        Self { user_len, chunks: Vec::new() }
    }

    /// Bytes that are coded.
    #[must_use]
    pub fn coded_len(&self) -> usize {
        if self.chunks.is_empty() { self.user_len } else { self.chunks.iter().map(|&len| len as usize).sum() }
    }

    /// Whether the chunks can be those of so many user bytes.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let chunk = |number: usize| self.user_len.saturating_sub(number * CHUNK_BYTES).min(CHUNK_BYTES);
        let fits = |(number, &len): (usize, &u32)| len > 0 && len as usize <= chunk(number);
        self.user_len > 0
            && self.user_len <= STRIPE_BYTES_MAX
            && (self.chunks.is_empty() || self.chunks.len() == self.user_len.div_ceil(CHUNK_BYTES))
            && self.chunks.iter().enumerate().all(fits)
    }

    /// Fill `out` with the user bytes from `at` on; `fetch` fills a buffer with the coded bytes from
    /// where it is told on.
    ///
    /// # Errors
    /// Those of `fetch`; `Invalid` outside the user bytes; `Io` when a chunk does not decompress.
    pub fn read(
        &self,
        at: usize,
        out: &mut [u8],
        mut fetch: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let end = at.checked_add(out.len()).filter(|&end| end <= self.user_len);
        let end = end.ok_or_else(|| Error::new(Kind::Invalid, "read: outside the stripe"))?;
        if self.chunks.is_empty() || out.is_empty() {
            return fetch(at, out);
        }
        let (first, last) = (at / CHUNK_BYTES, end.div_ceil(CHUNK_BYTES));
        let len = |chunks: &[u32]| chunks.iter().map(|&len| len as usize).sum();
        let mut coded = vec![0; len(&self.chunks[first..last])];
        fetch(len(&self.chunks[..first]), &mut coded)?;
        let (mut coded, mut out) = (&*coded, out);
        for number in first..last {
            let (packed, rest) = coded.split_at(self.chunks[number] as usize);
            let start = number * CHUNK_BYTES;
            let plain_len = CHUNK_BYTES.min(self.user_len - start);
            let (from, to) = (at.max(start) - start, end.min(start + plain_len) - start);
            let (part, after) = out.split_at_mut(to - from);
            unpack(packed, plain_len, from, part)?;
            (coded, out) = (rest, after);
        }
        Ok(())
    }
}

/// The user bytes from `from` on of a chunk of `plain_len`.
fn unpack(packed: &[u8], plain_len: usize, from: usize, out: &mut [u8]) -> Result<()> {
    let mut whole = Vec::new();
    if packed.len() == plain_len {
        out.copy_from_slice(&packed[from..from + out.len()]);
        return Ok(());
    }
    let plain = if out.len() == plain_len {
        &mut *out
    } else {
        whole.resize(plain_len, 0);
        &mut whole
    };
    match block::decompress_into(packed, plain) {
        Ok(len) if len == plain_len => {}
        Ok(len) => return Err(Error::new(Kind::Io, format!("decompress: {len} bytes, not {plain_len}"))),
        Err(source) => return Err(Error::new(Kind::Io, format!("decompress: {source}"))),
    }
    if !whole.is_empty() {
        out.copy_from_slice(&whole[from..from + out.len()]);
    }
    Ok(())
}

/// Whether `packed` bytes instead of `plain` are worth decompressing on every read: at least
/// 1/16 must be saved.
const fn pays(packed: usize, plain: usize) -> bool {
    plain > 0 && packed <= plain - plain.div_ceil(16)
}

/// Whether `data` looks compressible, judged by a block each of its start, middle and end.
#[must_use]
pub fn probe(data: &[u8]) -> bool {
    if data.len() <= SAMPLES * BLOCK_BYTES {
        return pays(block::compress(data).len(), data.len());
    }
    let last = data.len() - BLOCK_BYTES;
    let packed: usize =
        [0, last / 2, last].iter().map(|&at| block::compress(&data[at..at + BLOCK_BYTES]).len()).sum();
    pays(packed, SAMPLES * BLOCK_BYTES)
}

/// `data` compressed, or `None` when that saves less than 1/16 or `data` is more than a stripe.
#[must_use]
pub fn compress(data: &[u8]) -> Option<(Vec<u8>, Layout)> {
    if data.len() > STRIPE_BYTES_MAX {
        return None;
    }
    let mut layout = Layout::plain(data.len());
    let mut coded = Vec::new();
    let mut room = vec![0; block::get_maximum_output_size(CHUNK_BYTES)];
    for chunk in data.chunks(CHUNK_BYTES) {
        // It cannot fail: the room is as large as the worst case asks for.
        let packed = block::compress_into(chunk, &mut room).ok().filter(|&len| pays(len, chunk.len()));
        let packed = packed.map_or(chunk, |len| &room[..len]);
        layout.chunks.push(u32::try_from(packed.len()).ok()?);
        coded.extend_from_slice(packed);
    }
    pays(coded.len(), data.len()).then_some((coded, layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    fn text(len: usize) -> Vec<u8> {
        b"the quick brown fox; ".iter().copied().cycle().take(len).collect()
    }

    /// A part of the user bytes, and how many coded bytes were fetched for it.
    fn read(coded: &[u8], layout: &Layout, at: usize, len: usize) -> Result<(Vec<u8>, usize)> {
        let (mut out, mut fetched) = (vec![0; len], 0);
        layout.read(at, &mut out, |from, part| {
            fetched += part.len();
            part.copy_from_slice(&coded[from..from + part.len()]);
            Ok(())
        })?;
        Ok((out, fetched))
    }

    #[test]
    fn compressible_bytes_round_trip() {
        for len in [200, 4095, 4096, 65_535, 65_536, 65_537, 65_537 * 4 + 3, STRIPE_BYTES_MAX] {
            let data = text(len);
            let (coded, layout) = compress(&data).expect("compressible");
            assert!(coded.len() <= len - len / 16 && layout.coded_len() == coded.len(), "{len}");
            assert!(layout.is_possible() && layout.chunks.len() <= CHUNKS_MAX);
            assert_eq!(read(&coded, &layout, 0, len).expect("own output").0, data, "{len}");
        }
    }

    #[test]
    fn a_part_takes_only_its_chunks() {
        // Chunks that compress and chunks that do not, in turn.
        let data: Vec<u8> = (0..20)
            .flat_map(|n| if n % 2 == 0 { text(CHUNK_BYTES) } else { noise(n, CHUNK_BYTES) })
            .take(19 * CHUNK_BYTES + 777)
            .collect();
        let (coded, layout) = compress(&data).expect("half of it is compressible");
        assert!(layout.chunks.contains(&(CHUNK_BYTES as u32)), "noise is kept as it is");
        let edge = CHUNK_BYTES - 5;
        for (at, len) in [(0, 1), (edge, 10), (edge, CHUNK_BYTES + 10), (data.len() - 3, 3), (0, 0)] {
            let (out, fetched) = read(&coded, &layout, at, len).expect("reads");
            assert_eq!(out, data[at..at + len], "{at} {len}");
            assert!(
                fetched <= len.div_ceil(CHUNK_BYTES) * CHUNK_BYTES + CHUNK_BYTES,
                "{at} {len}: {fetched}"
            );
        }
        for (at, len) in [(data.len(), 1), (0, data.len() + 1), (usize::MAX, 2)] {
            assert_eq!(read(&coded, &layout, at, len).map_err(|e| e.kind()), Err(Kind::Invalid));
        }
    }

    #[test]
    fn what_does_not_pay_is_left_alone() {
        assert!(!probe(&[]));
        for len in [0, 1, 4096, 1 << 20] {
            assert!(!probe(&noise(7, len)));
            assert_eq!(compress(&noise(7, len)), None, "{len}");
        }
        assert_eq!(compress(&vec![0; STRIPE_BYTES_MAX + 1]), None);
    }

    #[test]
    fn a_lucky_probe_does_not_decide_alone() {
        let mut data = noise(3, 1 << 20);
        let last = data.len() - BLOCK_BYTES;
        for at in [0, last / 2, last] {
            data[at..at + BLOCK_BYTES].fill(0);
        }
        assert!(probe(&data));
        assert_eq!(compress(&data), None);
    }

    #[test]
    fn the_boundary_is_one_sixteenth() {
        assert!(pays(15, 16) && !pays(16, 16) && !pays(0, 0));
        assert!(!pays(16, 17) && pays(15, 17));
    }

    #[test]
    fn layouts_that_cannot_be_are_told() {
        let chunk = CHUNK_BYTES as u32;
        for (user_len, chunks, possible) in [
            (10, vec![], true),
            (10, vec![10], true),
            (10, vec![11], false),
            (10, vec![0], false),
            (10, vec![5, 5], false),
            (0, vec![], false),
            (CHUNK_BYTES + 10, vec![chunk, 10], true),
            (CHUNK_BYTES + 10, vec![chunk, 11], false),
            (CHUNK_BYTES + 10, vec![chunk], false),
            (STRIPE_BYTES_MAX + 1, vec![], false),
        ] {
            assert_eq!(
                Layout { user_len, chunks: chunks.clone() }.is_possible(),
                possible,
                "{user_len} {chunks:?}"
            );
        }
    }

    #[test]
    fn damaged_and_random_input_never_panics() {
        let data: Vec<u8> = [text(3000), noise(1, 500), text(3000)].concat();
        let (coded, layout) = compress(&data).expect("compressible");
        for at in 0..coded.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = coded.clone();
                bad[at] ^= flip;
                let _ = read(&bad, &layout, 0, data.len());
            }
        }
        for seed in 0..2000 {
            let noise = noise(seed, 1 + seed as usize % 300);
            let layout = Layout { user_len: 5000, chunks: vec![noise.len() as u32] };
            assert!(layout.is_possible());
            let _ = read(&noise, &layout, 0, 5000);
        }
    }
}
