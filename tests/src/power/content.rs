//! The bytes of one file: sparse blocks, and changes of them that can be done in part.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What is allocated at once.
pub(crate) const BLOCK: u64 = 4096;

/// Bytes with holes. A hole reads as zeros. Clones share what is equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    size: u64,
    blocks: BTreeMap<u64, Arc<[u8]>>,
}

/// One change of a file that is not stable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// These bytes at this offset; the file grows to hold them.
    Write(u64, Vec<u8>),
    /// This size.
    Size(u64),
    /// No bytes in this range; the size stays.
    Punch(Range<u64>),
}

impl Change {
    /// Memory that it takes until it is stable.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Write(_, data) => data.len(),
            Self::Size(_) | Self::Punch(_) => 0,
        }
    }

    /// The blocks it touches, at most.
    fn blocks(&self) -> Range<u64> {
        match self {
            Self::Write(at, data) => at / BLOCK..(at + data.len() as u64).div_ceil(BLOCK),
            Self::Size(size) => size / BLOCK..u64::MAX,
            Self::Punch(range) => range.start / BLOCK..range.end.div_ceil(BLOCK),
        }
    }
}

impl Content {
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(at, data) => self.write(*at, data),
            Change::Size(size) => self.resize(*size),
            Change::Punch(range) => self.punch(range.clone()),
        }
    }

    /// Become `now`, which differs by this change and later ones that are adopted too.
    pub(crate) fn adopt(&mut self, now: &Self, change: &Change) {
        let old: Vec<u64> = self.blocks.range(change.blocks()).map(|(&block, _)| block).collect();
        old.into_iter().for_each(|block| drop(self.blocks.remove(&block)));
        let new = now.blocks.range(change.blocks());
        self.blocks.extend(new.map(|(&block, bytes)| (block, Arc::clone(bytes))));
        self.size = now.size;
    }

    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        let (mut at, mut rest) = (at, data);
        while !rest.is_empty() {
            let (block, from) = (at / BLOCK, (at % BLOCK) as usize);
            let (now, later) = rest.split_at(rest.len().min(BLOCK as usize - from));
            let bytes = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize].into());
            Arc::make_mut(bytes)[from..from + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        self.size = self.size.max(at);
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(at.saturating_add(len as u64)).max(at);
        let mut out = vec![0; (end - at) as usize];
        for (&block, bytes) in self.blocks.range(at / BLOCK..end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, to) = (start.max(at), (start + BLOCK).min(end));
            if from < to {
                out[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        out
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.punch(size..self.size.next_multiple_of(BLOCK));
        }
        self.size = size;
    }

    pub(crate) fn punch(&mut self, range: Range<u64>) {
        let blocks: Vec<u64> =
            self.blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).map(|(&n, _)| n).collect();
        for block in blocks {
            let start = block * BLOCK;
            let (from, to) = (start.max(range.start), (start + BLOCK).min(range.end));
            if to - from == BLOCK {
                self.blocks.remove(&block);
            } else if let Some(bytes) = self.blocks.get_mut(&block) {
                Arc::make_mut(bytes)[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn it_is_what_a_vector_is() {
        let mut rng = Rng::new(1);
        let (mut content, mut model) = (Content::default(), Vec::<u8>::new());
        let (mut stable, mut changes) = (Content::default(), Vec::new());
        for _ in 0..3000 {
            let (at, len) = (rng.below(40_000) as usize, rng.below(10_000) as usize);
            let change = match rng.below(4) {
                0 => Change::Size(at as u64),
                1 => Change::Punch(at as u64..(at + len) as u64),
                _ => Change::Write(at as u64, rng.bytes(len)),
            };
            content.apply(&change);
            changes.push(change.clone());
            if rng.below(10) == 0 {
                let before = stable.clone();
                changes.iter().for_each(|change| stable.adopt(&content, change));
                let mut replayed = before;
                changes.drain(..).for_each(|change| replayed.apply(&change));
                assert!(stable == content && replayed == content, "both ways to catch up");
            }
            match &change {
                Change::Size(size) => model.resize(*size as usize, 0),
                Change::Punch(_) => {
                    let (from, to) = (at.min(model.len()), (at + len).min(model.len()));
                    model[from..to].fill(0);
                }
                Change::Write(_, data) if data.is_empty() => {}
                Change::Write(_, data) => {
                    model.resize(model.len().max(at + data.len()), 0);
                    model[at..at + data.len()].copy_from_slice(data);
                }
            }
            assert_eq!(content.size(), model.len() as u64);
            let (from, to) = (at.min(model.len()), (at + len).min(model.len()));
            assert!(content.read(at as u64, len) == model[from..to], "{change:?}");
        }
        assert!(content.bytes() <= content.size().next_multiple_of(BLOCK));
        content.resize(0);
        assert_eq!(content.bytes(), 0);
    }
}
