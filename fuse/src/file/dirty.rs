//! Bytes that are written and not flushed: an interval map.

use std::collections::BTreeMap;

use kos_types::limits::STRIPE_BYTES_MAX;

use super::spare;

/// Disjoint ranges of a file and their bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Dirty {
    ranges: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Dirty {
    /// All bytes held.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.ranges.iter().map(|(&off, bytes)| (off, bytes.as_slice()))
    }

    /// Put bytes, over what is there.
    pub(crate) fn insert(&mut self, off: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        // Over bytes that are here: nothing is cut to pieces.
        if let Some((&start, here)) = self.ranges.range_mut(..=off).next_back()
            && let Some(part) = here.get_mut((off - start) as usize..(off - start) as usize + data.len())
        {
            part.copy_from_slice(data);
            return;
        }
        self.remove(off, off + data.len() as u64);
        self.bytes += data.len();
        let (mut off, mut data, mut follows) = (off, data, false);
        // Appending is the common case: fill up the range that ends here.
        if let Some((&start, before)) = self.ranges.range_mut(..off).next_back()
            && start + before.len() as u64 == off
        {
            let room = STRIPE_BYTES_MAX.saturating_sub(before.len());
            let (head, rest) = data.split_at(data.len().min(room));
            extend(before, head);
            (off, data, follows) = (off + head.len() as u64, rest, true);
        }
        if !data.is_empty() {
            // What goes on behind a full stripe will most likely fill the next one.
            let mut range = if follows { spare::take() } else { Vec::new() };
            range.extend_from_slice(data);
            self.ranges.insert(off, range);
        }
    }

    /// Take `off..end` away.
    pub(crate) fn remove(&mut self, off: u64, end: u64) {
        if off >= end {
            return;
        }
        if let Some((&start, before)) = self.ranges.range_mut(..off).next_back() {
            let stop = start + before.len() as u64;
            if stop > off {
                // The ranges are held in memory, so their lengths fit usize.
                let tail = before.split_off((off - start) as usize);
                if before.capacity() / 2 > before.len() {
                    // It keeps the room of the whole range, and so would each piece of one that is cut up.
                    before.shrink_to_fit();
                }
                self.bytes -= tail.len().min((end - off) as usize);
                if stop > end {
                    self.ranges.insert(end, tail[(end - off) as usize..].to_vec());
                    return;
                }
            }
        }
        while let Some((&start, _)) = self.ranges.range(off..end).next() {
            let Some(mut range) = self.ranges.remove(&start) else { break };
            let stop = start + range.len() as u64;
            if stop > end {
                let keep = range.split_off((end - start) as usize);
                self.ranges.insert(end, keep);
            }
            self.bytes -= range.len();
            spare::give(range);
        }
    }

    /// Lay the bytes over `out`, which begins at `off` of the file.
    pub(crate) fn overlay(&self, off: u64, out: &mut [u8]) {
        let end = off + out.len() as u64;
        let from = self.ranges.range(..off).next_back().map_or(off, |(&start, _)| start);
        for (&start, bytes) in self.ranges.range(from..end) {
            let stop = (start + bytes.len() as u64).min(end);
            let begin = start.max(off);
            if begin < stop {
                out[(begin - off) as usize..(stop - off) as usize]
                    .copy_from_slice(&bytes[(begin - start) as usize..(stop - start) as usize]);
            }
        }
    }

    /// Put everything of `newer` over this.
    pub(crate) fn merge(&mut self, newer: &Self) {
        for (off, data) in newer.iter() {
            self.insert(off, data);
        }
    }
}

impl Drop for Dirty {
    fn drop(&mut self) {
        std::mem::take(&mut self.ranges).into_values().for_each(spare::give);
    }
}

/// A range that would be moved to a larger buffer anyway gets one of those that are used again.
fn extend(range: &mut Vec<u8>, data: &[u8]) {
    let len = range.len() + data.len();
    if len > range.capacity() && len > STRIPE_BYTES_MAX / 2 && len <= STRIPE_BYTES_MAX {
        let mut larger = spare::take();
        larger.extend_from_slice(range);
        *range = larger;
    }
    range.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::{Dirty, STRIPE_BYTES_MAX};

    /// Numbers from a seed, xorshift.
    fn below(state: &mut u64, n: u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % n
    }

    #[test]
    fn random_changes_equal_a_vector() {
        for seed in 1..300_u64 {
            let mut rng = seed;
            let mut dirty = Dirty::default();
            let mut model: Vec<Option<u8>> = vec![None; 200];
            for step in 0..100 {
                let off = below(&mut rng, 180) as usize;
                let len = below(&mut rng, 20) as usize;
                if below(&mut rng, 3) > 0 {
                    let data: Vec<u8> = (0..len).map(|_| below(&mut rng, 256) as u8).collect();
                    dirty.insert(off as u64, &data);
                    for (at, byte) in (off..).zip(data) {
                        model[at] = Some(byte);
                    }
                } else {
                    dirty.remove(off as u64, (off + len) as u64);
                    model[off..off + len].fill(None);
                }
                assert_eq!(dirty.bytes(), model.iter().flatten().count(), "seed {seed} step {step}");
                let (from, to) = (below(&mut rng, 100) as usize, 100 + below(&mut rng, 100) as usize);
                let mut out = vec![0; to - from];
                dirty.overlay(from as u64, &mut out);
                let expected: Vec<u8> = model[from..to].iter().map(|b| b.unwrap_or(0)).collect();
                assert_eq!(out, expected, "seed {seed} step {step}");
            }
            let held: usize = dirty.iter().map(|(_, bytes)| bytes.len()).sum();
            assert_eq!(held, dirty.bytes());
        }
    }

    /// Bytes that the ranges have room for.
    fn room(dirty: &Dirty) -> usize {
        dirty.ranges.values().map(Vec::capacity).sum()
    }

    #[test]
    fn a_range_that_is_cut_up_takes_no_more_memory() {
        let mut dirty = Dirty::default();
        dirty.insert(0, &vec![1; STRIPE_BYTES_MAX]);
        for off in (100..STRIPE_BYTES_MAX as u64).step_by(4096) {
            dirty.insert(off, &[2; 10]);
        }
        assert_eq!(dirty.ranges.len(), 1, "overwritten in place");
        for off in (100..STRIPE_BYTES_MAX as u64).step_by(65_536) {
            dirty.remove(off, off + 10);
        }
        assert!(dirty.ranges.len() > 60);
        assert!(room(&dirty) <= 2 * dirty.bytes(), "{} for {}", room(&dirty), dirty.bytes());
    }

    #[test]
    fn a_stream_of_any_step_fills_whole_stripes() {
        for step in
            [4096, 1_000_000, 1 << 20, 3 << 20, STRIPE_BYTES_MAX - 1, STRIPE_BYTES_MAX, 2 * STRIPE_BYTES_MAX]
        {
            let bytes: Vec<u8> = (0..step).map(|i| (i % 253) as u8).collect();
            let (mut dirty, mut end) = (Dirty::default(), 0);
            while end < 5 * STRIPE_BYTES_MAX {
                dirty.insert(end as u64, &bytes);
                end += step;
            }
            let ranges: Vec<_> = dirty.iter().collect();
            assert_eq!((dirty.bytes(), ranges[0].0), (end, 0), "{step}");
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].0 + pair[0].1.len() as u64, pair[1].0, "{step}");
                assert!(pair[0].1.len() >= STRIPE_BYTES_MAX, "{step}");
            }
            assert!(ranges.iter().all(|(off, range)| {
                range.iter().enumerate().all(|(i, &b)| b == ((*off as usize + i) % step % 253) as u8)
            }));
        }
    }

    #[test]
    fn the_newer_wins_a_merge() {
        let (mut old, mut new) = (Dirty::default(), Dirty::default());
        old.insert(0, &[1; 10]);
        new.insert(5, &[2; 10]);
        old.merge(&new);
        let mut out = [0; 15];
        old.overlay(0, &mut out);
        assert_eq!((out[4], out[5], old.bytes()), (1, 2, 15));
    }
}
