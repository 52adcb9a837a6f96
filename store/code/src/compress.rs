//! Compression of a stripe's user bytes: whether it pays, and LZ4 both ways.

use kos_types::limits::{BLOCK_BYTES, STRIPE_BYTES_MAX};
use kos_types::{Error, Kind, Result};
use lz4_flex::block;

/// Samples that the probe compresses.
const SAMPLES: usize = 3;

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

/// `data` compressed, or `None` when that saves less than 1/16 or [`decompress`] would refuse
/// the size.
#[must_use]
pub fn compress(data: &[u8]) -> Option<Vec<u8>> {
    if data.len() > STRIPE_BYTES_MAX || !probe(data) {
        return None;
    }
    let packed = block::compress(data);
    pays(packed.len(), data.len()).then_some(packed)
}

/// The `user_len` bytes that [`compress`] was given.
///
/// # Errors
/// `Invalid` when `user_len` is more than a stripe holds; `Io` when `data` is not exactly that
/// many compressed bytes.
pub fn decompress(data: &[u8], user_len: usize) -> Result<Vec<u8>> {
    // Checked before the allocation: the length may come from a damaged header.
    if user_len > STRIPE_BYTES_MAX {
        return Err(Error::new(Kind::Invalid, "decompress: more than a stripe"));
    }
    let mut plain = vec![0; user_len];
    match block::decompress_into(data, &mut plain) {
        Ok(len) if len == user_len => Ok(plain),
        Ok(len) => Err(Error::new(Kind::Io, format!("decompress: {len} bytes, not {user_len}"))),
        Err(source) => Err(Error::new(Kind::Io, format!("decompress: {source}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    fn text(len: usize) -> Vec<u8> {
        b"the quick brown fox; ".iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn compressible_bytes_round_trip() {
        for len in [200, 4095, 4096, 4097, 3 * 4096, 3 * 4096 + 1, 65_537 * 4 + 3, STRIPE_BYTES_MAX] {
            let data = text(len);
            let packed = compress(&data).expect("compressible");
            assert!(packed.len() <= len - len / 16, "{len}");
            assert_eq!(decompress(&packed, len).expect("own output"), data, "{len}");
        }
    }

    #[test]
    fn what_does_not_pay_is_left_alone() {
        assert!(!probe(&[]));
        for len in [0, 1, 4096, 1 << 20] {
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
    fn wrong_lengths_are_refused() {
        let packed = compress(&text(10_000)).expect("compressible");
        for len in [0, 9_999, 10_001] {
            assert_eq!(decompress(&packed, len).map_err(|e| e.kind()), Err(Kind::Io), "{len}");
        }
        let huge = decompress(&packed, STRIPE_BYTES_MAX + 1);
        assert_eq!(huge.map_err(|e| e.kind()), Err(Kind::Invalid));
        assert!(decompress(&[], 1).is_err());
    }

    #[test]
    fn damaged_and_random_input_never_panics() {
        let data: Vec<u8> = [text(3000), noise(1, 500), text(3000)].concat();
        let packed = compress(&data).expect("compressible");
        for at in 0..packed.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = packed.clone();
                bad[at] ^= flip;
                let _ = decompress(&bad, data.len());
            }
            let _ = decompress(&packed[..at], data.len());
        }
        for seed in 0..2000 {
            let _ = decompress(&noise(seed, seed as usize % 300), 5000);
        }
    }
}
