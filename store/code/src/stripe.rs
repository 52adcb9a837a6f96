//! The layout of a stripe: which shard holds which user byte, and parity both ways.

use std::sync::OnceLock;

use kos_types::limits::{BLOCK_BYTES, STRIPE_BYTES_MAX};
use kos_types::{Error, Geometry, Kind, Result, StripeId};
use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::compress::Layout;
use crate::shard::{HEADER_BYTES, Sums};

/// Bytes of every shard that are coded before moving on: the parity columns, which are read and
/// written once per data shard, stay in the cache.
const COLUMN_BYTES: usize = 64 << 10;

/// Bounds of [`Geometry`].
const K_MAX: usize = 16;
const M_MAX: usize = 4;

/// One codec for every geometry with parity, made at its first use: building its matrix costs
/// more than coding a small stripe.
static CODECS: [OnceLock<ReedSolomon>; K_MAX * M_MAX] = [const { OnceLock::new() }; K_MAX * M_MAX];

/// A part of a range of user bytes that lies in one data shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index of the shard.
    pub shard: usize,
    /// First byte in the shard.
    pub at: usize,
    /// Bytes, at least 1.
    pub len: usize,
}

/// Bytes of each shard of a stripe with `user_len` user bytes: whole checksum blocks.
#[must_use]
pub fn shard_len(geometry: Geometry, user_len: usize) -> usize {
    user_len.div_ceil(geometry.k()).next_multiple_of(BLOCK_BYTES)
}

/// Where the user bytes `at..at+len` lie, in order; what is beyond `user_len` is left out.
pub fn locate(geometry: Geometry, user_len: usize, at: usize, len: usize) -> impl Iterator<Item = Piece> {
    let shard_len = shard_len(geometry, user_len);
    let end = at.saturating_add(len).min(user_len);
    let mut next = at;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let (shard, at) = (next / shard_len, next % shard_len);
        let len = (shard_len - at).min(end - next);
        next += len;
        Some(Piece { shard, at, len })
    })
}

/// The n shards of a stripe: k that concatenated are `data` and zeros, then m of parity.
///
/// # Errors
/// `Invalid` unless `data` is 1 to [`STRIPE_BYTES_MAX`] bytes.
pub fn encode(geometry: Geometry, data: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut room = Vec::new();
    let shards = encode_by_columns(geometry, data, &mut room, |_, _| ())?;
    Ok(shards.into_iter().map(<[u8]>::to_vec).collect())
}

/// The n shards of a stripe, with what goes before and after each of them at rest.
///
/// `room` is for what is not in `coded`: at most m shards of parity and the padding's shards; whatever it
/// holds is overwritten.
///
/// # Errors
/// `Invalid` unless `coded` is 1 to [`STRIPE_BYTES_MAX`] bytes and as long as `layout` says.
pub fn seal<'a>(
    stripe: StripeId,
    geometry: Geometry,
    layout: &Layout,
    coded: &'a [u8],
    room: &'a mut Vec<u8>,
) -> Result<Vec<Sealed<'a>>> {
    let shard_len = shard_len(geometry, coded.len());
    let mut sums: Vec<Sums> = (0..geometry.n()).map(|_| Sums::new(shard_len)).collect();
    let shards = encode_by_columns(geometry, coded, room, |index, column| sums[index].update(column))?;
    let sealed = (0..).zip(shards.into_iter().zip(sums)).map(|(index, (payload, sums))| {
        let (header, table) = sums.seal(stripe, index, geometry, layout)?;
        Ok(Sealed { header, payload, table })
    });
    sealed.collect()
}

/// One shard as it is stored: its header, its payload, its checksum table.
#[derive(Debug)]
pub struct Sealed<'a> {
    /// The block before the payload.
    pub header: [u8; HEADER_BYTES],
    /// Of the stripe's bytes, or of the room.
    pub payload: &'a [u8],
    /// The blocks behind the payload.
    pub table: Vec<u8>,
}

/// The n shards, data where it is and the others in `room`. `each` is shown every column of every shard
/// with the shard's index, in order, as soon as it is there.
fn encode_by_columns<'a>(
    geometry: Geometry,
    data: &'a [u8],
    room: &'a mut Vec<u8>,
    mut each: impl FnMut(usize, &[u8]),
) -> Result<Vec<&'a [u8]>> {
    if data.is_empty() || data.len() > STRIPE_BYTES_MAX {
        return Err(invalid("encode: a stripe holds 1 byte to 4 MiB"));
    }
    let shard_len = shard_len(geometry, data.len());
    let (whole, rest) = data.split_at(data.len() / shard_len * shard_len);
    let padded = geometry.k() - whole.len() / shard_len;
    room.resize((padded + geometry.m()) * shard_len, 0);
    let (padding, parity) = room.split_at_mut(padded * shard_len);
    // Small data may end before the last data shards begin: those are zeros only.
    let (own, zeros) = padding.split_at_mut(rest.len());
    own.copy_from_slice(rest);
    zeros.fill(0);
    let padding = &*padding;
    let mut shards: Vec<&[u8]> = whole.chunks(shard_len).chain(padding.chunks(shard_len)).collect();

    let codec = codec(geometry)?;
    for start in (0..shard_len).step_by(COLUMN_BYTES) {
        let column = start..shard_len.min(start + COLUMN_BYTES);
        let from: Vec<&[u8]> = shards.iter().map(|s| &s[column.clone()]).collect();
        let mut to: Vec<&mut [u8]> = parity.chunks_mut(shard_len).map(|s| &mut s[column.clone()]).collect();
        if let Some(codec) = codec {
            codec.encode_sep(&from, &mut to).map_err(|e| invalid(format!("encode: {e}")))?;
        }
        let columns = from.into_iter().chain(to.into_iter().map(|column| &*column));
        columns.enumerate().for_each(|(index, column)| each(index, column));
    }
    shards.extend(parity.chunks(shard_len));
    Ok(shards)
}

/// Fill in every missing shard of `shards`, which are in index order. Present shards are taken
/// as correct: check them first.
///
/// # Errors
/// `Io` when fewer than k shards are present; `Invalid` unless there are n places and the shards
/// are of one length, not 0. On an error nothing has changed.
pub fn reconstruct(geometry: Geometry, shards: &mut [Option<Vec<u8>>]) -> Result<()> {
    if shards.len() != geometry.n() {
        return Err(invalid("reconstruct: not n shards"));
    }
    let present = shards.iter().flatten().count();
    if present < geometry.k() {
        return Err(Error::new(Kind::Io, format!("reconstruct: {present} of {} shards", geometry.k())));
    }
    let shard_len = shards.iter().flatten().next().map_or(0, Vec::len);
    if shard_len == 0 || shards.iter().flatten().any(|s| s.len() != shard_len) {
        return Err(invalid("reconstruct: shards of different or no length"));
    }
    if present == geometry.n() {
        return Ok(());
    }
    let Some(codec) = codec(geometry)? else {
        return Err(Error::new(Kind::Io, "reconstruct: no parity"));
    };

    // Rebuilt beside the stripe, so that an error cannot leave half a shard in it.
    let mut rebuilt = vec![vec![0; shard_len]; geometry.n() - present];
    for start in (0..shard_len).step_by(COLUMN_BYTES) {
        let column = start..shard_len.min(start + COLUMN_BYTES);
        let mut missing = rebuilt.iter_mut();
        let mut columns: Vec<(&mut [u8], bool)> = shards
            .iter_mut()
            .filter_map(|shard| match shard {
                Some(shard) => Some((&mut shard[column.clone()], true)),
                None => missing.next().map(|shard| (&mut shard[column.clone()], false)),
            })
            .collect();
        codec.reconstruct(&mut columns).map_err(|e| invalid(format!("reconstruct: {e}")))?;
    }
    for (place, shard) in shards.iter_mut().filter(|s| s.is_none()).zip(rebuilt) {
        *place = Some(shard);
    }
    Ok(())
}

/// The codec of a geometry; `None` without parity.
fn codec(geometry: Geometry) -> Result<Option<&'static ReedSolomon>> {
    let (k, m) = (geometry.k(), geometry.m());
    if m == 0 {
        return Ok(None);
    }
    let place =
        CODECS.get((k - 1) * M_MAX + m - 1).ok_or_else(|| invalid("codec: geometry out of bounds"))?;
    if let Some(codec) = place.get() {
        return Ok(Some(codec));
    }
    let made = ReedSolomon::new(k, m).map_err(|e| invalid(format!("codec: {e}")))?;
    Ok(Some(place.get_or_init(|| made)))
}

fn invalid(step: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    const GEOMETRIES: [(u8, u8); 7] = [(1, 0), (1, 1), (4, 2), (8, 4), (16, 4), (3, 1), (4, 0)];
    const LENS: [usize; 6] = [1, 4095, 4096, 4097, 65_537 * 4 + 3, STRIPE_BYTES_MAX];

    fn cases() -> impl Iterator<Item = (Geometry, Vec<u8>)> {
        let geometry = |(k, m)| Geometry::new(k, m).expect("in bounds");
        GEOMETRIES.into_iter().flat_map(move |g| LENS.map(|len| (geometry(g), noise(len as u64, len))))
    }

    /// `shards` without those whose bit is set.
    fn without(shards: &[Vec<u8>], lost: u32) -> Vec<Option<Vec<u8>>> {
        shards.iter().enumerate().map(|(i, s)| (lost >> i & 1 == 0).then(|| s.clone())).collect()
    }

    #[test]
    fn data_shards_are_the_data_and_zeros() {
        for (geometry, data) in cases() {
            let shards = encode(geometry, &data).expect("encodes");
            assert_eq!(shards.len(), geometry.n());
            let len = shard_len(geometry, data.len());
            assert!(len.is_multiple_of(BLOCK_BYTES) && shards.iter().all(|s| s.len() == len));
            let joined = shards[..geometry.k()].concat();
            assert_eq!(joined[..data.len()], data);
            assert!(joined[data.len()..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn m_lost_shards_come_back() {
        for (geometry, data) in cases() {
            let shards = encode(geometry, &data).expect("encodes");
            for first in [0, geometry.k() / 2, geometry.k()] {
                let lost = ((1 << geometry.m()) - 1) << first;
                let mut left = without(&shards, lost);
                reconstruct(geometry, &mut left).expect("m losses");
                assert!(left.iter().flatten().eq(&shards), "{geometry:?} {} {first}", data.len());
            }
        }
    }

    #[test]
    fn every_erasure_pattern_of_4_and_2() {
        // More than one column, and a last one that is not full.
        let shards = encode(Geometry::DEFAULT, &noise(5, 300_000)).expect("encodes");
        assert!(shards[0].len() > COLUMN_BYTES && !shards[0].len().is_multiple_of(COLUMN_BYTES));
        for lost in 0_u32..1 << 6 {
            let mut left = without(&shards, lost);
            let result = reconstruct(Geometry::DEFAULT, &mut left);
            if lost.count_ones() <= 2 {
                result.expect("up to m losses");
                assert!(left.iter().flatten().eq(&shards), "{lost:b}");
            } else {
                assert_eq!(result.map_err(|e| e.kind()), Err(Kind::Io), "{lost:b}");
                assert_eq!(left, without(&shards, lost), "untouched");
            }
        }
    }

    #[test]
    fn without_parity_any_loss_is_final() {
        let geometry = Geometry::new(1, 0).expect("in bounds");
        let mut left = [None];
        assert_eq!(reconstruct(geometry, &mut left).map_err(|e| e.kind()), Err(Kind::Io));
    }

    #[test]
    fn wrong_lengths_and_counts_are_refused() {
        let shards = encode(Geometry::DEFAULT, &noise(5, 9000)).expect("encodes");
        let kind = |mut s: Vec<Option<Vec<u8>>>| reconstruct(Geometry::DEFAULT, &mut s).map_err(|e| e.kind());
        for lost in [0, 0b10] {
            let mut bad = without(&shards, lost);
            bad[3].as_mut().expect("present").pop();
            assert_eq!(kind(bad), Err(Kind::Invalid));
        }
        assert_eq!(kind(without(&shards[..5], 0)), Err(Kind::Invalid));
        assert_eq!(kind(vec![Some(Vec::new()); 6]), Err(Kind::Invalid));
        for data in [Vec::new(), vec![0; STRIPE_BYTES_MAX + 1]] {
            let encoded = encode(Geometry::DEFAULT, &data);
            assert_eq!(encoded.map_err(|e| e.kind()), Err(Kind::Invalid));
        }
    }

    #[test]
    fn located_pieces_are_the_range() {
        for (geometry, data) in cases() {
            let shards = encode(geometry, &data).expect("encodes");
            let n = data.len();
            for (at, len) in [(0, n), (0, 1), (n - 1, 1), (n / 3, n / 2), (n / 2, usize::MAX), (n, 9)] {
                let read: Vec<u8> = locate(geometry, n, at, len)
                    .flat_map(|p| shards[p.shard][p.at..p.at + p.len].to_vec())
                    .collect();
                assert_eq!(read, data[at..at.saturating_add(len).min(n)], "{geometry:?} {n} {at} {len}");
            }
        }
        assert_eq!(locate(Geometry::DEFAULT, 0, 0, 5).count(), 0);
    }

    /// a·b in GF(2^8) modulo x^8+x^4+x^3+x^2+1, bit by bit.
    fn mul(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 != 0 {
                product ^= a;
            }
            a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1d };
            b >>= 1;
        }
        product
    }

    /// V·(top of V)⁻¹ for 4+2, V[r][c] = r^c: what is on disk must never depend on the library.
    fn matrix() -> [[u8; 4]; 6] {
        let vandermonde: [[u8; 4]; 6] =
            std::array::from_fn(|r| std::array::from_fn(|c| (0..c).fold(1, |power, _| mul(power, r as u8))));
        // Gauss-Jordan on [top | identity].
        let mut rows: [[u8; 8]; 4] = std::array::from_fn(|r| {
            std::array::from_fn(|c| if c < 4 { vandermonde[r][c] } else { u8::from(c - 4 == r) })
        });
        for c in 0..4 {
            let pivot = (c..4).find(|&r| rows[r][c] != 0).expect("invertible");
            rows.swap(c, pivot);
            let inverse = (1..=255).find(|&x| mul(x, rows[c][c]) == 1).expect("a field");
            rows[c] = rows[c].map(|x| mul(x, inverse));
            let pivot = rows[c];
            for (_, row) in rows.iter_mut().enumerate().filter(|(r, _)| *r != c) {
                let factor = row[c];
                row.iter_mut().zip(pivot).for_each(|(x, p)| *x ^= mul(factor, p));
            }
        }
        vandermonde
            .map(|row| std::array::from_fn(|c| (0..4).fold(0, |sum, i| sum ^ mul(row[i], rows[i][4 + c]))))
    }

    #[test]
    fn parity_of_4_and_2_is_the_known_answer() {
        let matrix = matrix();
        for (r, row) in matrix[..4].iter().enumerate() {
            assert!((0..4).all(|c| row[c] == u8::from(r == c)), "systematic");
        }
        let shards = encode(Geometry::DEFAULT, &noise(11, 300_001)).expect("encodes");
        for (row, parity) in matrix[4..].iter().zip(&shards[4..]) {
            for (at, &byte) in parity.iter().enumerate() {
                let want = (0..4).fold(0, |sum, c| sum ^ mul(row[c], shards[c][at]));
                assert_eq!(byte, want, "{at}");
            }
        }
    }
}
