//! CRC32C of checksum blocks.
//!
//! Each block has a sum of its own, so several are computed side by side: the instruction takes three
//! cycles and a processor begins one in each, and nothing has to be put together at the end.

use kos_types::limits::BLOCK_BYTES;

/// Blocks side by side: one more than the instruction's latency.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 4;

type Block = [u8; BLOCK_BYTES];

/// Call `each` with the number and the CRC of every block until it answers false; the last block may
/// be shorter. Answers what the last call did.
pub(crate) fn each_block(bytes: &[u8], mut each: impl FnMut(usize, u32) -> bool) -> bool {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let done = side_by_side(blocks, &mut each);
    let all = done.is_some_and(|done| {
        (done..).zip(&blocks[done..]).all(|(number, block)| each(number, crc_fast::crc32_iscsi(block)))
    });
    all && (rest.is_empty() || each(blocks.len(), crc_fast::crc32_iscsi(rest)))
}

/// As many of the blocks as this processor does at once; none when `each` said false.
#[cfg(target_arch = "x86_64")]
fn side_by_side(blocks: &[Block], each: &mut impl FnMut(usize, u32) -> bool) -> Option<usize> {
    if !std::arch::is_x86_feature_detected!("sse4.2") {
        return Some(0);
    }
    let (groups, _) = blocks.as_chunks::<LANES>();
    for (first, group) in (0..).step_by(LANES).zip(groups) {
        #[expect(unsafe_code, reason = "the instruction is there only when the processor says so")]
        // SAFETY: it has just said that it has SSE 4.2.
        let sums = unsafe { lanes(group) };
        if !(first..).zip(sums).all(|(number, sum)| each(number, sum)) {
            return None;
        }
    }
    Some(groups.len() * LANES)
}

#[cfg(not(target_arch = "x86_64"))]
fn side_by_side(_blocks: &[Block], _each: &mut impl FnMut(usize, u32) -> bool) -> Option<usize> {
    Some(0)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn lanes(blocks: &[Block; LANES]) -> [u32; LANES] {
    use std::arch::x86_64::_mm_crc32_u64;
    const WORD: usize = size_of::<u64>();
    let words: [&[[u8; WORD]]; LANES] = std::array::from_fn(|lane| blocks[lane].as_chunks().0);
    let mut sums = [u64::from(u32::MAX); LANES];
    for at in 0..BLOCK_BYTES / WORD {
        for (sum, words) in sums.iter_mut().zip(words) {
            *sum = _mm_crc32_u64(*sum, u64::from_le_bytes(words[at]));
        }
    }
    // The instruction leaves the upper half zero.
    sums.map(|sum| !(sum as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn every_block_has_the_sum_it_has_alone() {
        for len in [0, 1, 4095, 4096, 4 * 4096, 4 * 4096 + 1, 7 * 4096, 9 * 4096 + 100] {
            let bytes = noise(len as u64, len);
            let mut sums = Vec::new();
            assert!(each_block(&bytes, |number, sum| {
                sums.push((number, sum));
                true
            }));
            let expected: Vec<_> = bytes.chunks(BLOCK_BYTES).map(crc_fast::crc32_iscsi).enumerate().collect();
            assert_eq!(sums, expected, "{len}");
        }
    }

    #[test]
    fn a_refusal_ends_it() {
        let bytes = noise(1, 9 * BLOCK_BYTES + 5);
        for stop in 0..=9 {
            let mut last = None;
            let done = each_block(&bytes, |number, _| {
                last = Some(number);
                number != stop
            });
            assert!(!done);
            assert_eq!(last, Some(stop));
        }
    }
}
