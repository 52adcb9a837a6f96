//! Cutting dirty ranges into stripes.

use std::borrow::Cow;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{ExtentPut, StripeId};

use super::dirty::Dirty;

/// The bytes of one new stripe and the file ranges in it, as (offset, length, from this byte on).
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    pub(crate) data: Cow<'a, [u8]>,
    ranges: Vec<(u64, u64, u64)>,
}

impl Packed<'_> {
    /// What a commit says of it once it has an id.
    pub(crate) fn extents(&self, stripe: StripeId) -> impl Iterator<Item = ExtentPut> {
        self.ranges.iter().map(move |&(off, len, at)| ExtentPut { off, len, stripe, at })
    }
}

/// Long runs fill stripes of their own, the rest is packed together in file order.
pub(crate) fn pack(dirty: &Dirty) -> Vec<Packed<'_>> {
    let mut full = Vec::new();
    let mut rest = Packed { data: Cow::Owned(Vec::new()), ranges: Vec::new() };
    for (off, mut bytes) in dirty.iter() {
        let mut off = off;
        while !bytes.is_empty() {
            if rest.data.is_empty() && bytes.len() >= STRIPE_BYTES_MAX {
                let (head, tail) = bytes.split_at(STRIPE_BYTES_MAX);
                full.push(Packed { data: Cow::Borrowed(head), ranges: vec![(off, head.len() as u64, 0)] });
                (off, bytes) = (off + head.len() as u64, tail);
                continue;
            }
            let (head, tail) = bytes.split_at(bytes.len().min(STRIPE_BYTES_MAX - rest.data.len()));
            let (len, at) = (head.len() as u64, rest.data.len() as u64);
            match rest.ranges.last_mut() {
                // Neighbours in the file are neighbours in the stripe.
                Some(last) if last.0 + last.1 == off => last.1 += len,
                _ => rest.ranges.push((off, len, at)),
            }
            rest.data.to_mut().extend_from_slice(head);
            (off, bytes) = (off + len, tail);
            if rest.data.len() == STRIPE_BYTES_MAX {
                let new = Packed { data: Cow::Owned(Vec::new()), ranges: Vec::new() };
                full.push(std::mem::replace(&mut rest, new));
            }
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
    fn packed_stripes_hold_every_range() {
        let mut dirty = Dirty::default();
        let bytes: Vec<u8> = (0..2 * STRIPE_BYTES_MAX + 999).map(|i| (i % 251) as u8).collect();
        for (off, len) in
            [(0, 10), (100, 5000), (1 << 20, bytes.len()), (1 << 30, 77), (1 << 31, STRIPE_BYTES_MAX)]
        {
            dirty.insert(off, &bytes[..len]);
        }
        let packed = pack(&dirty);
        let mut found = Dirty::default();
        for stripe in &packed {
            assert!(!stripe.data.is_empty() && stripe.data.len() <= STRIPE_BYTES_MAX);
            for put in stripe.extents(StripeId(1)) {
                found.insert(put.off, &stripe.data[put.at as usize..(put.at + put.len) as usize]);
            }
        }
        assert_eq!(found.bytes(), dirty.bytes());
        assert_eq!(packed.iter().map(|p| p.data.len()).sum::<usize>(), dirty.bytes());
        for (off, expected) in dirty.iter() {
            let mut out = vec![0; expected.len()];
            found.overlay(off, &mut out);
            assert!(out == expected, "{off}");
        }
    }
}
