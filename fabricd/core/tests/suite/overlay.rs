//! An overlay reads as the tables do once its changes are written.

use kos_core::{Changes, MemTables, Overlay, Tables};

use crate::rng::{self, Rng};

/// Few bytes, those around a carry among them, so that keys meet.
const ALPHABET: [u8; 5] = [0, 1, 2, 0xfe, 0xff];

fn key(rng: &mut Rng, len: u64) -> Vec<u8> {
    (0..len).map(|_| *rng.pick(&ALPHABET).expect("not empty")).collect()
}

/// Random tables, and random changes on top of them.
fn some(rng: &mut Rng, mut key: impl FnMut(&mut Rng) -> Vec<u8>) -> (MemTables, Changes) {
    let mut tables = MemTables::default();
    let full = rng.within(0..40);
    tables.write((0..full).map(|_| (key(rng), Some(vec![0]))).collect());
    let changed = rng.within(0..30);
    let changes = (0..changed).map(|i| (key(rng), (!rng.one_in(2)).then(|| vec![1, i as u8])));
    (tables, changes.collect())
}

fn overlay<'a>(base: &'a MemTables, changes: &Changes) -> Overlay<'a, MemTables> {
    let mut overlay = Overlay::new(base);
    for (key, value) in changes.clone() {
        match value {
            Some(value) => overlay.put(key, value),
            None => overlay.delete(key),
        }
    }
    overlay
}

#[test]
fn scan_and_get_read_as_after_the_write() {
    rng::for_seeds(5000, |seed| {
        let rng = &mut Rng::new(seed);
        // As of names and attributes: one may be the beginning of another.
        let any = |rng: &mut Rng| {
            let len = rng.within(1..4);
            key(rng, len)
        };
        let (base, changes) = some(rng, any);
        let mut written = base.clone();
        written.write(changes.clone());
        let overlay = overlay(&base, &changes);
        for _ in 0..20 {
            let mut range = [any(rng), any(rng)];
            range.sort();
            let max = if rng.one_in(4) { usize::MAX } else { rng.within(0..20) as usize };
            let [from, to] = &range;
            assert_eq!(overlay.scan(from, to, max), written.scan(from, to, max), "{range:?}, {max}");
            assert_eq!(overlay.get(from), written.get(from));
        }
        assert_eq!(overlay.into_changes(), changes);
    });
}

/// Of keys of one length, as extents have: `last` is for no others.
#[test]
fn last_reads_as_after_the_write() {
    rng::for_seeds(5000, |seed| {
        let rng = &mut Rng::new(seed);
        let len = rng.within(1..4);
        let (base, changes) = some(rng, |rng| key(rng, len));
        let mut written = base.clone();
        written.write(changes.clone());
        let overlay = overlay(&base, &changes);
        for _ in 0..20 {
            let mut range = [key(rng, len), key(rng, len)];
            range.sort();
            let [from, last] = &range;
            assert_eq!(overlay.last(from, last), written.last(from, last), "{range:?}");
        }
    });
}

/// A command reads through the changes of the one before it, and so on.
#[test]
fn overlays_stack() {
    rng::for_seeds(500, |seed| {
        let rng = &mut Rng::new(seed);
        let (base, first) = some(rng, |rng| key(rng, 2));
        let (_, second) = some(rng, |rng| key(rng, 2));
        let mut written = base.clone();
        written.write(first.clone());
        written.write(second.clone());
        let lower = overlay(&base, &first);
        let mut upper = Overlay::new(&lower);
        for (key, value) in second {
            match value {
                Some(value) => upper.put(key, value),
                None => upper.delete(key),
            }
        }
        let (from, to) = (key(rng, 1), vec![0xff, 0xff]);
        for max in [0, 1, 5, usize::MAX] {
            assert_eq!(upper.scan(&from, &to, max), written.scan(&from, &to, max));
        }
        assert_eq!(upper.last(&[0, 0], &to), written.last(&[0, 0], &to));
    });
}
