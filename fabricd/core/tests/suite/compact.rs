//! Compaction changes where bytes are, never which, and loses against every other change.

use kos_core::{AsOf, read};
use kos_types::{ExtentPut, FileKind, Ino, Kind, Op, Policy, ROOT, Reply, Result, Source, StripeId};

use crate::fs::Fs;
use crate::invariants;

/// A file of four extents of 10 bytes, each of a stripe of its own with 20 bytes.
fn fragments(fs: &mut Fs) -> (Ino, Vec<ExtentPut>) {
    let ino = fs.create(ROOT, "f", FileKind::File);
    let extents = (0..4).map(|i| ExtentPut { off: i * 10, len: 10, stripe: StripeId(i + 1), at: 5 });
    let extents: Vec<_> = extents.collect();
    for put in &extents {
        fs.commit(ino, put.stripe, 20, &[(put.off, put.len, put.at)]).expect("commit");
    }
    (ino, extents)
}

fn compact(fs: &mut Fs, ino: Ino, id: u64, len: u64, extents: &[ExtentPut]) -> Result<Reply> {
    let stripe = (StripeId(id), Policy::default(), len);
    fs.run(Op::Compact { ino, stripe, extents: extents.to_vec() })
}

#[test]
fn extents_become_one_and_their_stripes_die() {
    let mut fs = Fs::new();
    let (ino, extents) = fragments(&mut fs);
    let before = read::inode(&fs.tables, ino).expect("inode");
    assert_eq!(compact(&mut fs, ino, 9, 30, &extents[..3]), Ok(Reply::Done));
    assert_eq!(fs.freed, [1, 2, 3].map(StripeId));
    let map = read::extents(&fs.tables, ino, 0, 100).expect("extents");
    let sources: Vec<_> = map.extents.into_iter().map(|extent| (extent.len, extent.source)).collect();
    assert_eq!(sources, [(30, Source::Stripe(StripeId(9), 0)), (10, Source::Stripe(StripeId(4), 5))]);
    assert_eq!(read::inode(&fs.tables, ino), Ok(before), "no time and no size");
    invariants::check(&fs.tables);
}

#[test]
fn whoever_changed_an_extent_wins() {
    let changes: [fn(&mut Fs, Ino); 4] = [
        |fs, ino| drop(fs.commit(ino, StripeId(7), 1, &[(12, 1, 0)]).expect("commit")),
        |fs, ino| drop(fs.run(Op::Punch { ino, off: 25, len: 1 }).expect("punch")),
        |fs, ino| drop(fs.commit(ino, StripeId(7), 10, &[(20, 10, 0)]).expect("commit")),
        |fs, ino| {
            drop(fs.run(Op::Clone { from: ino, from_off: 0, to: ino, to_off: 15, len: 5 }).expect("clone"))
        },
    ];
    for change in changes {
        let mut fs = Fs::new();
        let (ino, extents) = fragments(&mut fs);
        change(&mut fs, ino);
        let before = fs.tables.clone();
        assert_eq!(compact(&mut fs, ino, 9, 40, &extents).map_err(|e| e.kind()), Err(Kind::Busy));
        assert!(fs.tables == before, "a refused command changed something");
    }
}

#[test]
fn what_a_snapshot_shows_stays() {
    let mut fs = Fs::new();
    let (ino, extents) = fragments(&mut fs);
    let Ok(Reply::Snapshot(snapshot)) = fs.run(Op::TakeSnapshot { name: b"s".into() }) else {
        panic!("no snapshot")
    };
    assert_eq!(compact(&mut fs, ino, 9, 40, &extents), Ok(Reply::Done));
    assert_eq!(fs.freed, [], "the snapshot has them");
    let seen = AsOf::seen_by(&fs.tables, ino.in_view(snapshot.view)).expect("view");
    let map = read::extents(&seen, ino, 0, 100).expect("extents");
    let stripes = map.extents.iter().map(|extent| extent.source.clone());
    assert!(stripes.eq((1..5).map(|id| Source::Stripe(StripeId(id), 5))));
    invariants::check(&fs.tables);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut fs = Fs::new();
    let (ino, extents) = fragments(&mut fs);
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let before = fs.tables.clone();
    let gap = [extents[0].clone(), extents[2].clone()];
    for (ino, id, len, extents, kind) in [
        (ino, 9, 39, &extents[..], Kind::Invalid),
        (ino, 9, 20, &gap, Kind::Invalid),
        (ino, 9, 1, &[], Kind::Invalid),
        (ino, 1, 40, &extents, Kind::Invalid),
        (ino, 9 << 20, 40, &extents, Kind::Stale),
        (dir, 9, 40, &extents, Kind::IsDir),
        (Ino(77), 9, 40, &extents, Kind::Stale),
    ] {
        let refused = compact(&mut fs, ino, id, len, extents).map_err(|e| e.kind());
        assert_eq!(refused, Err(kind), "{ino:?} {id} {len}");
    }
    assert!(fs.tables == before, "a refused command changed something");
}
