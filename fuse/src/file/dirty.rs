//! Bytes that are written and not flushed: an interval map.

use std::collections::BTreeMap;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Result, Time};

use crate::arena::{Buf, Owner};

/// Disjoint ranges of a file and their bytes, at most a stripe each.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    ranges: BTreeMap<u64, Buf>,
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
        self.ranges.iter().map(|(&off, bytes)| (off, &**bytes))
    }

    /// Where the last range ends.
    pub(crate) fn end(&self) -> Option<u64> {
        self.ranges.last_key_value().map(|(off, bytes)| off + bytes.len() as u64)
    }

    /// Put bytes, over what is there.
    ///
    /// # Errors
    /// `NoSpace` when all buffers are taken: nothing has changed.
    pub(crate) fn insert(&mut self, owner: &Owner, off: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = off + data.len() as u64;
        // Over bytes that are here: nothing is cut to pieces.
        if let Some((at, here)) = self.around(off, end) {
            here.overwrite(at, data);
            return Ok(());
        }
        // Nor is a range that begins in here and goes on behind, or the one that it goes on from. That is the common
        // case: appending fills it up.
        let lapped = self.lapped(off, end);
        let before = self.ranges.range(..off).next_back().map(|(&start, before)| (start, before.len()));
        let before = before.filter(|&(start, len)| start + len as u64 >= off);
        let (begin, room) =
            before.map_or((off, 0), |(start, len)| (start + len as u64, STRIPE_BYTES_MAX - len));
        let end = lapped.unwrap_or(end);
        let (over, own) = data.split_at((begin - off) as usize);
        let (own, tail) = own.split_at((end - begin) as usize);
        let (head, rest) = own.split_at(own.len().min(room));
        // Memory first, so that a write that fails has changed nothing. One that is killed in the middle leaves of each
        // byte the one before or the new one.
        let (mut at, mut fresh) = (begin + head.len() as u64, Vec::new());
        for part in rest.chunks(STRIPE_BYTES_MAX) {
            // What goes on behind a full stripe will most likely fill the next one.
            let follows = before.is_some() || !fresh.is_empty();
            let room = if follows { STRIPE_BYTES_MAX } else { part.len() };
            fresh.push((at, Buf::new(owner, at, part, room)?));
            at += part.len() as u64;
        }
        if let Some((start, len)) = before
            && let Some(before) = self.ranges.get_mut(&start)
        {
            before.extend(head)?;
            before.overwrite(len - over.len(), over);
        }
        if let Some(range) = lapped.and_then(|start| self.ranges.get_mut(&start)) {
            range.overwrite(0, tail);
        }
        self.clear(begin, end);
        self.bytes += own.len();
        self.ranges.extend(fresh);
        Ok(())
    }

    /// The range that holds all of `off..end`, and where in it that begins.
    fn around(&mut self, off: u64, end: u64) -> Option<(usize, &mut Buf)> {
        let (start, range) = self.ranges.range_mut(..=off).next_back()?;
        (start + range.len() as u64 >= end).then_some(((off - start) as usize, range))
    }

    /// Where a range begins that is in `off..end` at first and goes on behind.
    fn lapped(&self, off: u64, end: u64) -> Option<u64> {
        let (&start, range) = self.ranges.range(off..end).next_back()?;
        (start + range.len() as u64 > end).then_some(start)
    }

    /// The range that begins before `off` ends there.
    fn end_at(&mut self, off: u64) {
        if let Some((&start, range)) = self.ranges.range_mut(..off).next_back() {
            // The ranges are held in memory, so their lengths fit usize.
            let keep = (off - start) as usize;
            if keep < range.len() {
                self.bytes -= range.len() - keep;
                range.truncate(keep);
            }
        }
    }

    /// Take away what begins in `off..end`.
    fn clear(&mut self, off: u64, end: u64) {
        while let Some((&start, _)) = self.ranges.range(off..end).next() {
            let Some(range) = self.ranges.remove(&start) else { break };
            assert!(start + range.len() as u64 <= end, "a range that is to be cut first");
            self.bytes -= range.len();
        }
    }

    /// Make two of a range that goes on at `at`.
    ///
    /// # Errors
    /// `NoSpace` when all buffers are taken: nothing has changed.
    pub(crate) fn cut(&mut self, at: u64) -> Result<()> {
        if let Some((&start, range)) = self.ranges.range_mut(..at).next_back() {
            let keep = (at - start) as usize;
            if keep < range.len() {
                let tail = range.tail(keep)?;
                range.truncate(keep);
                self.ranges.insert(at, tail);
            }
        }
        Ok(())
    }

    /// Take `off..end` away, which is cut at its end.
    pub(crate) fn remove(&mut self, off: u64, end: u64) {
        if off < end {
            self.end_at(off);
            self.clear(off, end);
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
    pub(crate) fn merge(&mut self, newer: Self) {
        for (off, range) in newer.ranges {
            self.lay(off, range);
        }
    }

    /// Put a newer range over this. It takes no memory, and whatever is killed in between, the newer bytes are there.
    pub(crate) fn lay(&mut self, off: u64, mut newer: Buf) {
        if newer.is_empty() {
            return;
        }
        let end = off + newer.len() as u64;
        if let Some((at, here)) = self.around(off, end) {
            here.overwrite(at, &newer);
            here.set_written(here.written().max(newer.written()));
            return;
        }
        if let Some(start) = self.lapped(off, end)
            && let Some(range) = self.ranges.get_mut(&start)
        {
            range.overwrite(0, &newer[(start - off) as usize..]);
            range.set_written(range.written().max(newer.written()));
            newer.truncate((start - off) as usize);
        }
        self.end_at(off);
        self.clear(off, off + newer.len() as u64);
        self.bytes += newer.len();
        if let Some((start, before)) = self.ranges.range_mut(..off).next_back()
            && start + before.len() as u64 == off
            && newer.len() <= before.spare()
            && before.extend(&newer).is_ok()
        {
            before.set_written(before.written().max(newer.written()));
            return;
        }
        self.ranges.insert(off, newer);
    }

    /// The range that holds the byte at `off` was written at this time.
    pub(crate) fn touch(&mut self, off: u64, time: Time) {
        if let Some((_, range)) = self.ranges.range(..=off).next_back() {
            range.set_written(Some(time));
        }
    }

    /// The last time that any was written.
    pub(crate) fn written(&self) -> Option<Time> {
        self.ranges.values().filter_map(Buf::written).max()
    }

    /// The file's time is another one now.
    pub(crate) fn forget_written(&mut self) {
        let written = self.ranges.values().filter(|range| range.written().is_some());
        written.for_each(|range| range.set_written(None));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kos_types::Ino;

    use super::{Buf, Dirty, Owner, STRIPE_BYTES_MAX};
    use crate::arena::{Arena, Buffers};

    /// Of a file in an arena of its own.
    pub(in crate::file) fn owner() -> Owner {
        Owner { buffers: Buffers::new(Arena::new().expect("arena")), ino: Ino(7) }
    }

    /// Numbers from a seed, xorshift.
    fn below(state: &mut u64, n: u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % n
    }

    #[test]
    fn random_changes_equal_a_vector() {
        let owner = owner();
        for seed in 1..300_u64 {
            let mut rng = seed;
            let mut dirty = Dirty::default();
            let mut model: Vec<Option<u8>> = vec![None; 200];
            for step in 0..100 {
                let off = below(&mut rng, 180) as usize;
                let len = below(&mut rng, 20) as usize;
                if below(&mut rng, 3) > 0 {
                    let data: Vec<u8> = (0..len).map(|_| below(&mut rng, 256) as u8).collect();
                    dirty.insert(&owner, off as u64, &data).expect("room");
                    for (at, byte) in (off..).zip(data) {
                        model[at] = Some(byte);
                    }
                } else {
                    dirty.cut((off + len) as u64).expect("room");
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
        dirty.ranges.values().map(|range| range.len() + range.spare()).sum()
    }

    #[test]
    fn a_range_that_is_cut_up_takes_no_more_memory() {
        let (owner, mut dirty) = (owner(), Dirty::default());
        dirty.insert(&owner, 0, &vec![1; STRIPE_BYTES_MAX]).expect("room");
        for off in (100..STRIPE_BYTES_MAX as u64).step_by(4096) {
            dirty.insert(&owner, off, &[2; 10]).expect("room");
        }
        assert_eq!(dirty.ranges.len(), 1, "overwritten in place");
        for off in (100..STRIPE_BYTES_MAX as u64).step_by(65_536) {
            dirty.cut(off + 10).expect("room");
            dirty.remove(off, off + 10);
        }
        assert!(dirty.ranges.len() > 60);
        assert!(room(&dirty) <= 2 * dirty.bytes(), "{} for {}", room(&dirty), dirty.bytes());
        let ranges = dirty.ranges.len();
        dirty.insert(&owner, STRIPE_BYTES_MAX as u64 - 5, &[3; 10]).expect("room");
        assert_eq!(dirty.ranges.len(), ranges, "on behind the last one");
    }

    #[test]
    fn a_stream_of_any_step_fills_whole_stripes() {
        let owner = owner();
        for step in
            [4096, 1_000_000, 1 << 20, 3 << 20, STRIPE_BYTES_MAX - 1, STRIPE_BYTES_MAX, 2 * STRIPE_BYTES_MAX]
        {
            let bytes: Vec<u8> = (0..step).map(|i| (i % 253) as u8).collect();
            let (mut dirty, mut end) = (Dirty::default(), 0);
            while end < 5 * STRIPE_BYTES_MAX {
                dirty.insert(&owner, end as u64, &bytes).expect("room");
                end += step;
            }
            let ranges: Vec<_> = dirty.iter().collect();
            assert_eq!((dirty.bytes(), ranges[0].0), (end, 0), "{step}");
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].0 + pair[0].1.len() as u64, pair[1].0, "{step}");
                assert!(pair[0].1.len() == STRIPE_BYTES_MAX, "{step}");
            }
            assert!(ranges.iter().all(|(off, range)| {
                range.iter().enumerate().all(|(i, &b)| b == ((*off as usize + i) % step % 253) as u8)
            }));
        }
    }

    #[test]
    fn the_newer_wins_a_merge() {
        let owner = owner();
        for seed in 1..300_u64 {
            let mut rng = seed;
            let (mut both, mut model) = (Dirty::default(), [0; 120]);
            for round in 1..4 {
                let mut newer = Dirty::default();
                for _ in 0..below(&mut rng, 8) {
                    let (off, len) = (below(&mut rng, 100) as usize, below(&mut rng, 20) as usize);
                    newer.insert(&owner, off as u64, &vec![round; len]).expect("room");
                    model[off..off + len].fill(round);
                }
                both.merge(newer);
                let mut out = [0; 120];
                both.overlay(0, &mut out);
                assert_eq!(out, model, "seed {seed}");
                assert_eq!(both.bytes(), model.iter().filter(|&&byte| byte > 0).count(), "seed {seed}");
            }
        }
        assert_eq!(owner.buffers.taken(), 0);
    }

    #[test]
    fn a_write_that_finds_no_buffer_changes_nothing() {
        let (owner, mut dirty) = (owner(), Dirty::default());
        dirty.insert(&owner, 0, &[1; 200]).expect("room");
        // Large ones with few bytes: a page each.
        let others = (0..).map_while(|at| Buf::new(&owner, at, &[2], STRIPE_BYTES_MAX).ok());
        let mut others: Vec<_> = others.collect();
        while let Ok(other) = Buf::new(&owner, 0, &[2], 1) {
            others.push(other);
        }
        dirty.insert(&owner, 100, &[3; 300]).expect_err("full");
        dirty.cut(50).expect_err("full");
        let mut out = [0; 400];
        dirty.overlay(0, &mut out);
        assert_eq!((dirty.bytes(), &out[..200], out[200]), (200, &[1; 200][..], 0));
        drop(others);
        dirty.insert(&owner, 100, &[3; 300]).expect("room again");
    }
}
