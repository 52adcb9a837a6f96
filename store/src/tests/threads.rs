//! Many threads on one store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;

#[test]
fn appends_of_many_threads_do_not_mix() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let live: Vec<(usize, Location, u64)> = thread::scope(|scope| {
        let work = |thread: u64| {
            let one = |i| {
                let (seed, place) = (thread * 1000 + i, (thread + i) as usize % 2);
                let location = put(&store, place, seed, 1 + seed as usize % 4);
                store.sync(place).expect("syncs");
                holds(&store, place, location, seed);
                (place, location, seed)
            };
            (0..40).map(one).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..16).map(|t| scope.spawn(move || work(t))).collect();
        all.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    assert_eq!(live.len(), 640);
    let mut ranges: Vec<_> = live.iter().map(|&(place, location, _)| (place, location)).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((p, a), (q, b)) = (pair[0], pair[1]);
        assert!((p, a.segment) != (q, b.segment) || a.offset + a.len <= b.offset, "{a:?} {b:?}");
    }
    drop(store);
    let store = dirs.open(&ranges);
    live.iter().for_each(|&(place, location, seed)| holds(&store, place, location, seed));
}

#[test]
fn churn_leaves_nothing_behind() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let freed = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (store, freed) = (&store, &freed);
            scope.spawn(move || {
                for i in 0..100 {
                    let seed = thread * 1000 + i;
                    let location = put(store, 0, seed, 1 + seed as usize % 3);
                    holds(store, 0, location, seed);
                    store.free(0, location).expect("frees");
                    freed.fetch_add(location.len, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(freed.into_inner() > 50 * SMALL);
    let left = store.segments(0).expect("lists");
    assert_eq!(left.iter().map(|s| (s.bytes_live, s.active)).collect::<Vec<_>>(), [(0, true)]);
    assert_eq!(dirs.segments(0), [left[0].segment]);
}
