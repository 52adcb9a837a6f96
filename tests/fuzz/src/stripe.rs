//! Stripes: whatever m shards are lost, the bytes come back; and shards that do not fit are refused.

use kos_code::stripe;
use kos_types::Geometry;

use crate::input::Input;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let Ok(geometry) = Geometry::new(input.u8() % 18, input.u8() % 6) else { return };
    let (lost, odd) = (input.u64(), input.u64());
    misfits(geometry, lost, odd);
    let (at, len) = (input.u64() as usize % 4096, input.u64() as usize % 4096);
    // Short inputs stand for longer stripes.
    let data = input.0.repeat(1 + odd as usize % 64);
    let Ok(whole) = stripe::encode(geometry, &data) else {
        assert!(data.is_empty());
        return;
    };
    let mut shards: Vec<_> = whole.iter().cloned().map(Some).collect();
    for (index, shard) in shards.iter_mut().enumerate() {
        if lost >> index & 1 == 1 {
            *shard = None;
        }
    }
    let left = shards.iter().flatten().count();
    let rebuilt = stripe::reconstruct(geometry, &mut shards);
    assert_eq!(rebuilt.is_ok(), left >= geometry.k(), "{left} of {geometry}");
    if rebuilt.is_err() {
        return;
    }
    assert!(shards.iter().flatten().eq(&whole));
    let found: Vec<u8> = stripe::locate(geometry, data.len(), at, len)
        .flat_map(|piece| whole[piece.shard][piece.at..piece.at + piece.len].to_vec())
        .collect();
    assert!(found == data[at.min(data.len())..(at + len).min(data.len())]);
}

/// Shards of different lengths or too few or too many.
fn misfits(geometry: Geometry, lens: u64, count: u64) {
    let mut shards: Vec<Option<Vec<u8>>> = (0..count % 24)
        .map(|index| match lens >> (2 * index) & 3 {
            0 => None,
            blocks => Some(vec![index as u8; blocks as usize * 16]),
        })
        .collect();
    let before = shards.clone();
    if stripe::reconstruct(geometry, &mut shards).is_err() {
        assert!(shards == before, "an error changes nothing");
    }
}
