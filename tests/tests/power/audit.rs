//! What a stopped node's state holds, table by table and block by block: nothing dangles, nothing is
//! counted wrongly, and the segments take exactly what the live shards need.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kos_core::record::Stripe;
use kos_core::{Changes, MemTables, keys};
use kos_store::Location;
use kos_types::StripeId;

use crate::invariants;

/// The table of shards: where each is.
const SHARDS: u8 = b's';

/// What was found.
#[derive(Debug)]
pub(crate) struct Audit {
    /// Records of each table.
    pub(crate) records: BTreeMap<char, usize>,
    /// Bytes that live shards take, which is what the segments have allocated.
    pub(crate) bytes: u64,
}

impl Audit {
    /// Look at everything; what does not hold panics.
    pub(crate) fn of(state: &Path) -> Self {
        let db = rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), state.join("meta"), false)
            .expect("metadata");
        let (mut tables, mut shards) = (MemTables::default(), BTreeMap::new());
        let mut records = BTreeMap::<char, usize>::new();
        for pair in db.iterator(rocksdb::IteratorMode::Start) {
            let (key, value) = pair.expect("metadata");
            if key[0].is_ascii_lowercase() && key[0] != SHARDS {
                // Notes of the node to itself.
                continue;
            }
            *records.entry(char::from(key[0])).or_default() += 1;
            if key[0] == SHARDS {
                let location = Location::from_bytes(&value[1..]).expect("a location");
                shards.insert((StripeId(keys::field(&key, 1)), key[9]), (value[0], location));
            } else {
                tables.write(Changes::from([(key.into(), Some(value.into()))]));
            }
        }
        invariants::check(&tables);
        invariants::check_pruned(&tables);
        of_stripes(&tables, &shards);
        let mut places = BTreeMap::<u8, BTreeMap<(u64, u64), u64>>::new();
        for (place, at) in shards.values() {
            let old = places.entry(*place).or_default().insert((at.segment, at.offset), at.len);
            assert_eq!(old, None, "two shards at {at:?} of place {place}");
        }
        let mut bytes = 0;
        for place in fs::read_dir(state.join("shards")).expect("places") {
            let dir = place.expect("place").path();
            let number = dir.file_name().and_then(|n| n.to_str()?.parse().ok()).expect("a number");
            bytes += of_place(&dir, &places.remove(&number).unwrap_or_default());
        }
        assert!(places.is_empty(), "shards in places that are not there: {places:?}");
        Self { records, bytes }
    }
}

/// Every stripe has all its shards, and every shard its stripe.
fn of_stripes(tables: &MemTables, shards: &BTreeMap<(StripeId, u8), (u8, Location)>) {
    let mut wanted = Vec::new();
    for (key, value) in tables.iter() {
        let id = match key[0] {
            b'S' => StripeId(keys::field(key, 1)),
            b'G' => StripeId(keys::field(key, 9)),
            _ => continue,
        };
        let geometry = Stripe::decode(value).expect("stripe").policy.geometry;
        wanted.extend((0..).take(geometry.n()).map(|index| (id, index)));
    }
    wanted.sort_unstable();
    assert!(shards.keys().eq(&wanted), "shards {:?}, stripes want {wanted:?}", shards.keys());
}

/// Shards do not overlap, and the files have no block but theirs.
fn of_place(dir: &Path, shards: &BTreeMap<(u64, u64), u64>) -> u64 {
    let mut free = (0, 0);
    for (&(segment, offset), len) in shards {
        assert!((segment, offset) >= free, "{}: shards overlap at {segment}, {offset}", dir.display());
        free = (segment, offset + len);
    }
    let segment = |file: std::io::Result<fs::DirEntry>| {
        let file = file.expect("file");
        let is_segment = file.path().extension().is_some_and(|e| e == "kos");
        is_segment.then(|| file.metadata().expect("segment").blocks() * 512)
    };
    let allocated: u64 = fs::read_dir(dir).expect("place").filter_map(segment).sum();
    let live: u64 = shards.values().sum();
    assert_eq!(allocated, live, "{}: allocated, and taken by live shards", dir.display());
    live
}
