//! The pure half of the store: how user bytes become shards and how shards look at rest.
//! Bytes in, bytes out; no I/O and no clock.

pub mod compress;
mod crc;
pub mod shard;
pub mod stripe;

/// Deterministic bytes that do not compress, for tests.
#[cfg(test)]
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[4]
    };
    std::iter::repeat_with(step).take(len).collect()
}
