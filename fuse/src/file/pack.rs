//! Cutting the dirty ranges of files into stripes.

use std::borrow::Cow;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{ExtentPut, StripeId};

use super::dirty::Dirty;

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
#[derive(Debug)]
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

/// Long runs fill stripes of their own, the rest is packed together in the order of files and
/// offsets.
pub(crate) fn pack<'a>(files: &[&'a Dirty]) -> Vec<Packed<'a>> {
    let empty = || Packed { data: Cow::Owned(Vec::new()), ranges: Vec::new() };
    let mut full = Vec::new();
    let mut rest = empty();
    let ranges = files.iter().enumerate().flat_map(|(i, dirty)| dirty.iter().map(move |(o, b)| (i, o, b)));
    for (file, mut off, mut bytes) in ranges {
        while !bytes.is_empty() {
            let room = STRIPE_BYTES_MAX - rest.data.len();
            let (head, tail) = bytes.split_at(bytes.len().min(room));
            let len = head.len() as u64;
            if head.len() == STRIPE_BYTES_MAX {
                full.push(Packed {
                    data: Cow::Borrowed(head),
                    ranges: vec![Range { file, off, len, at: 0 }],
                });
            } else {
                let at = rest.data.len() as u64;
                match rest.ranges.last_mut() {
                    // Neighbours in the file are neighbours in the stripe.
                    Some(last) if last.file == file && last.off + last.len == off => last.len += len,
                    _ => rest.ranges.push(Range { file, off, len, at }),
                }
                rest.data.to_mut().extend_from_slice(head);
                if rest.data.len() == STRIPE_BYTES_MAX {
                    full.push(std::mem::replace(&mut rest, empty()));
                }
            }
            (off, bytes) = (off + len, tail);
        }
    }
    if !rest.data.is_empty() {
        full.push(rest);
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_stripes_hold_every_range_of_every_file() {
        let bytes: Vec<u8> = (0..2 * STRIPE_BYTES_MAX + 999).map(|i| (i % 251) as u8).collect();
        let file = |ranges: &[(u64, usize)]| {
            let mut dirty = Dirty::default();
            for &(off, len) in ranges {
                dirty.insert(off, &bytes[..len]);
            }
            dirty
        };
        let files = [
            file(&[(0, 10), (100, 5000), (1 << 20, bytes.len()), (1 << 30, 77), (1 << 31, STRIPE_BYTES_MAX)]),
            file(&[(0, 1)]),
            file(&[]),
            file(&[(1, 16 << 10), (1 << 40, STRIPE_BYTES_MAX - 1)]),
        ];
        let packed = pack(&files.each_ref());
        assert!(packed.iter().all(|p| !p.data.is_empty() && p.data.len() <= STRIPE_BYTES_MAX));
        let stored: usize = packed.iter().map(|p| p.data.len()).sum();
        assert_eq!(stored, files.iter().map(Dirty::bytes).sum::<usize>());
        for (number, dirty) in files.iter().enumerate() {
            let mut found = Dirty::default();
            for stripe in &packed {
                for put in stripe.extents(number, StripeId(1)) {
                    found.insert(put.off, &stripe.data[put.at as usize..(put.at + put.len) as usize]);
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
}
