//! Cutting the dirty ranges of files into stripes.

use std::borrow::Cow;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{ExtentPut, StripeId};

use super::dirty::Dirty;
use super::zeros::is_zero;

/// Zeros that fill whole aligned blocks of this are holes: small enough for sparse images, large
/// enough that a file of holes and data has few extents.
const HOLE_BYTES: usize = 64 << 10;

/// A range of a file and where its bytes are in the stripe.
#[derive(Debug)]
struct Range {
    /// Which of the packed files.
    file: usize,
    off: u64,
    len: u64,
    at: u64,
}

/// The bytes of one new stripe and the file ranges in it.
#[derive(Debug, Default)]
pub(crate) struct Packed<'a> {
    pub(crate) data: Cow<'a, [u8]>,
    ranges: Vec<Range>,
}

impl Packed<'_> {
    /// What a commit of file number `file` says of the stripe once it has an id.
    pub(crate) fn extents(&self, file: usize, stripe: StripeId) -> impl Iterator<Item = ExtentPut> {
        let own = self.ranges.iter().filter(move |range| range.file == file);
        own.map(move |r| ExtentPut { off: r.off, len: r.len, stripe, at: r.at })
    }
}

/// What a flush of files writes.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    pub(crate) stripes: Vec<Packed<'a>>,
    /// Ranges of zeros, which are kept as holes: the file, offset and bytes.
    holes: Vec<(usize, u64, u64)>,
}

impl Plan<'_> {
    /// What a commit of file number `file` says of holes.
    pub(crate) fn holes(&self, file: usize) -> Vec<(u64, u64)> {
        self.holes.iter().filter(|hole| hole.0 == file).map(|&(_, off, len)| (off, len)).collect()
    }
}

/// The first part of `bytes`, which are at `off` of a file: either no block of it is zeros or all
/// are; and whether they are.
fn run(off: u64, bytes: &[u8]) -> (&[u8], bool) {
    let block = |at: usize| {
        let to_boundary = HOLE_BYTES - (off as usize + at) % HOLE_BYTES;
        &bytes[at..bytes.len().min(at + to_boundary)]
    };
    let is_hole = |part: &[u8]| part.len() == HOLE_BYTES && is_zero(part);
    let (mut end, zeros) = (block(0).len(), is_hole(block(0)));
    while end < bytes.len() && is_hole(block(end)) == zeros {
        end += block(end).len();
    }
    (&bytes[..end], zeros)
}

/// Long runs fill stripes of their own, the rest is packed together in the order of files and
/// offsets.
pub(crate) fn pack<'a>(files: &[&'a Dirty]) -> Plan<'a> {
    let mut plan = Plan::default();
    let mut rest = Packed::default();
    let ranges = files.iter().enumerate().flat_map(|(i, dirty)| dirty.iter().map(move |(o, b)| (i, o, b)));
    for (file, mut off, mut bytes) in ranges {
        while !bytes.is_empty() {
            let (run, zeros) = run(off, bytes);
            if zeros {
                plan.holes.push((file, off, run.len() as u64));
                (off, bytes) = (off + run.len() as u64, &bytes[run.len()..]);
                continue;
            }
            // What fills a stripe is not copied, whatever else is packed.
            let whole = run.len() >= STRIPE_BYTES_MAX;
            let room = if whole { STRIPE_BYTES_MAX } else { STRIPE_BYTES_MAX - rest.data.len() };
            let (head, _) = run.split_at(run.len().min(room));
            let (len, at) = (head.len() as u64, rest.data.len() as u64);
            if whole {
                let ranges = vec![Range { file, off, len, at: 0 }];
                plan.stripes.push(Packed { data: Cow::Borrowed(head), ranges });
            } else {
                match rest.ranges.last_mut() {
                    // Neighbours in the file are neighbours in the stripe.
                    Some(last) if last.file == file && last.off + last.len == off => last.len += len,
                    _ => rest.ranges.push(Range { file, off, len, at }),
                }
                rest.data.to_mut().extend_from_slice(head);
                if rest.data.len() == STRIPE_BYTES_MAX {
                    plan.stripes.push(std::mem::take(&mut rest));
                }
            }
            (off, bytes) = (off + len, &bytes[head.len()..]);
        }
    }
    if !rest.data.is_empty() {
        plan.stripes.push(rest);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::dirty::tests::owner;

    #[test]
    fn packed_stripes_hold_every_range_of_every_file() {
        let owner = owner();
        let bytes: Vec<u8> = (0..2 * STRIPE_BYTES_MAX + 999).map(|i| (i % 251) as u8).collect();
        let file = |ranges: &[(u64, usize)]| {
            let mut dirty = Dirty::default();
            for &(off, len) in ranges {
                dirty.insert(&owner, off, &bytes[..len]).expect("room");
            }
            dirty
        };
        let files = [
            file(&[(0, 10), (100, 5000), (1 << 20, bytes.len()), (1 << 30, 77), (1 << 31, STRIPE_BYTES_MAX)]),
            file(&[(0, 1)]),
            file(&[]),
            file(&[(1, 16 << 10), (1 << 40, STRIPE_BYTES_MAX - 1)]),
        ];
        let packed = pack(&files.each_ref()).stripes;
        assert!(packed.iter().all(|p| !p.data.is_empty() && p.data.len() <= STRIPE_BYTES_MAX));
        let stored: usize = packed.iter().map(|p| p.data.len()).sum();
        assert_eq!(stored, files.iter().map(Dirty::bytes).sum::<usize>());
        for (number, dirty) in files.iter().enumerate() {
            let mut found = Dirty::default();
            for stripe in &packed {
                for put in stripe.extents(number, StripeId(1)) {
                    let data = &stripe.data[put.at as usize..(put.at + put.len) as usize];
                    found.insert(&owner, put.off, data).expect("room");
                }
            }
            assert_eq!(found.bytes(), dirty.bytes());
            for (off, expected) in dirty.iter() {
                let mut out = vec![0; expected.len()];
                found.overlay(off, &mut out);
                assert!(out == expected, "{number} {off}");
            }
        }
    }

    #[test]
    fn whole_blocks_of_zeros_are_holes() {
        let block = HOLE_BYTES as u64;
        let (owner, mut dirty) = (owner(), Dirty::default());
        let mut insert = |off, data: &[u8]| dirty.insert(&owner, off, data).expect("room");
        // From the middle of a block: half of it, two whole ones, and a part of the next.
        insert(block / 2, &vec![0; 3 * HOLE_BYTES]);
        insert(10 * block, &vec![7; HOLE_BYTES]);
        insert(11 * block, &vec![0; HOLE_BYTES]);
        let files = [&dirty];
        let plan = pack(&files);
        assert_eq!(plan.holes(0), [(block, 2 * block), (11 * block, block)]);
        assert!(plan.holes(1).is_empty());
        let stored: usize = plan.stripes.iter().map(|p| p.data.len()).sum();
        assert_eq!(stored, HOLE_BYTES / 2 + HOLE_BYTES / 2 + HOLE_BYTES);
    }
}
