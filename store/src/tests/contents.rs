//! What is written, kept, freed and deleted.

use fs::File;

use kos_types::Kind;

use super::*;
use crate::SegmentUsage;
use crate::limits::READ_FDS_MAX;

#[test]
fn what_was_appended_is_read_also_after_reopening() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let mut live = Vec::new();
    for seed in 0..20 {
        let place = seed as usize % 2;
        live.push((place, put(&store, place, seed, 1 + seed as usize % 3)));
    }
    let check = |store: &Store| {
        (0..).zip(&live).for_each(|(seed, &(place, location))| holds(store, place, location, seed));
    };
    check(&store);
    assert_eq!((store.sync(0), store.sync(1)), (Ok(()), Ok(())));
    drop(store);
    for _ in 0..3 {
        let store = dirs.open(&live);
        check(&store);
        assert!(store.places().iter().all(|place| place.failed.is_none()));
    }
}

#[test]
fn parts_of_a_location_are_read() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    put(&store, 0, 1, 1);
    let location = put(&store, 0, 2, 2);
    let all = bytes(2, 2);
    for (at, len) in [(0, 1), (1, 8191), (4095, 2), (8192, 0), (8191, 1)] {
        let mut out = vec![0; len];
        store.read(0, location, at as u64, &mut out).expect("reads");
        assert_eq!(out, all[at..at + len]);
    }
    for (at, len) in [(8192, 1), (1, 8192), (u64::MAX, 2), (9000, 0)] {
        let read = store.read(0, location, at, &mut vec![0; len]);
        assert_eq!(read.map_err(|e| e.kind()), Err(Kind::Invalid), "{at} {len}");
    }
}

#[test]
fn appends_are_whole_blocks() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    for len in [0, 1, 4095, 4097, SMALL as usize + BLOCK] {
        assert_eq!(store.append(0, &[&vec![1; len]]).map_err(|e| e.kind()), Err(Kind::Invalid), "{len}");
    }
    assert!(store.append(0, &[&vec![1; SMALL as usize]]).is_ok());
    assert_eq!(store.append(1, &[&[1; BLOCK]]).map_err(|e| e.kind()), Err(Kind::Invalid));
}

#[test]
fn a_torn_tail_is_never_appended_to() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let (kept, torn) = (put(&store, 0, 1, 1), put(&store, 0, 2, 2));
    drop(store);
    let path = segment::path(dirs.dir(0), torn.segment);
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_len(torn.offset + 5000).expect("cuts");
    let store = dirs.open(&[(0, kept), (0, torn)]);
    holds(&store, 0, kept, 1);
    let mut out = vec![0; 8192];
    assert_eq!(store.read(0, torn, 0, &mut out).map_err(|e| e.kind()), Err(Kind::Io));
    store.read(0, torn, 0, &mut out[..4096]).expect("the blocks that are there");
    let new = put(&store, 0, 3, 1);
    assert!(new.segment > torn.segment && new.offset == 0);
    assert_eq!(file.metadata().expect("stat").len(), torn.offset + 5000);
    // A shard that is not whole is freed like any other.
    assert_eq!((store.free(0, torn), store.free(0, kept)), (Ok(()), Ok(())));
    assert!(!path.exists());
}

#[test]
fn a_torn_tail_that_nobody_claims_is_given_back_to_its_last_block() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let (kept, torn) = (put(&store, 0, 1, 1), put(&store, 0, 2, 2));
    drop(store);
    let path = segment::path(dirs.dir(0), torn.segment);
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_len(torn.offset + 5000).expect("cuts");
    let store = dirs.open(&[(0, kept)]);
    holds(&store, 0, kept, 1);
    assert_eq!(file.metadata().expect("stat").blocks(), 8, "one block of 4 KiB");
}

#[test]
fn segments_that_nobody_claims_are_deleted_and_their_numbers_not_reused() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let all: Vec<_> = (0..4).map(|seed| put(&store, 0, seed, 8)).collect();
    drop(store);
    fs::write(dirs.dir(0).join("notes.txt"), "not ours").expect("writes");
    assert_eq!(dirs.segments(0), [0, 1, 2, 3]);
    let store = dirs.open(&[(0, all[1])]);
    assert_eq!(dirs.segments(0), [1, 4]);
    holds(&store, 0, all[1], 1);
    drop(store);
    for newest in 5..8 {
        drop(dirs.open(&[]));
        assert_eq!(dirs.segments(0), [newest]);
    }
    assert!(dirs.dir(0).join("notes.txt").exists());
}

#[test]
fn a_number_that_only_a_live_location_knows_is_not_reused() {
    let dirs = Dirs::new(1);
    drop(dirs.open(&[]));
    let lost = Location { segment: 70, offset: 0, len: 4096 };
    let store = dirs.open(&[(0, lost)]);
    assert_eq!(store.read(0, lost, 0, &mut [0; 1]).map_err(|e| e.kind()), Err(Kind::NotFound));
    assert_eq!(put(&store, 0, 1, 1).segment, 71);
    assert_eq!(store.free(0, lost), Ok(()), "there is nothing to give back");
}

#[test]
fn free_gives_blocks_back() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let (a, b) = (put(&store, 0, 1, 4), put(&store, 0, 2, 4));
    store.sync(0).expect("syncs");
    let before = blocks_used(dirs.dir(0));
    store.free(0, a).expect("frees");
    assert_eq!(blocks_used(dirs.dir(0)), before - 32, "4 blocks of 4 KiB");
    holds(&store, 0, b, 2);
    let mut out = vec![1; 4 * BLOCK];
    store.read(0, a, 0, &mut out).expect("a hole");
    assert!(out.iter().all(|&b| b == 0));
}

#[test]
fn a_dead_segment_goes_and_an_active_one_stays() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let (a, b) = (put(&store, 0, 1, 4), put(&store, 0, 2, 4));
    let c = put(&store, 0, 3, 2);
    let usage = |segment, live: u64, total: u64, active| SegmentUsage {
        segment,
        bytes_live: live * BLOCK as u64,
        bytes_total: total * BLOCK as u64,
        active,
    };
    assert_eq!(store.segments(0), Ok(vec![usage(0, 8, 8, false), usage(1, 2, 2, true)]));
    assert_eq!((store.free(0, a), store.free(0, b)), (Ok(()), Ok(())));
    assert_eq!(dirs.segments(0), [1]);
    assert_eq!(store.free(0, c), Ok(()));
    assert_eq!(store.segments(0), Ok(vec![usage(1, 0, 2, true)]));
    assert_eq!(store.free(0, c).map_err(|e| e.kind()), Err(Kind::Invalid), "freed twice");
    // Dead while active, deleted when the next one begins.
    put(&store, 0, 4, 8);
    assert_eq!(dirs.segments(0), [2]);
    let odd = Location { offset: 1, ..c };
    assert_eq!(store.free(0, odd).map_err(|e| e.kind()), Err(Kind::Invalid));
}

#[test]
fn more_segments_than_open_files_are_all_read() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let all: Vec<_> = (0..300).map(|seed| put(&store, 0, seed, 8)).collect();
    assert_eq!(dirs.segments(0).len(), 300);
    for _ in 0..2 {
        (0..).zip(&all).for_each(|(seed, &location)| holds(&store, 0, location, seed));
    }
    assert_eq!(store.log(0).expect("works").read_fds(), READ_FDS_MAX);
}

#[test]
fn each_disk_counts_once() {
    let (one, three) = (Dirs::new(1), Dirs::new(3));
    let (one, three) = (one.open(&[]).usage().expect("usage"), three.open(&[]).usage().expect("usage"));
    assert_eq!(one.bytes_total, three.bytes_total);
    assert!(0 < three.bytes_free && three.bytes_free < three.bytes_total);
}
