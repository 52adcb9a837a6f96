//! Snapshots: what they show while the tree changes is the model's part; here is what they cost and
//! how they go.

use kos_core::{AsOf, read};
use kos_types::{FileKind, Ino, Kind, Op, ROOT, Reply, StripeId, VIEWS};

use crate::fs::Fs;
use crate::invariants;
use crate::rng::{self, Rng};

fn take(fs: &mut Fs, name: &str) -> u64 {
    match fs.run(Op::TakeSnapshot { name: name.into() }) {
        Ok(Reply::Snapshot(snapshot)) => snapshot.view,
        other => panic!("expected a snapshot: {other:?}"),
    }
}

/// One step; whether there are more.
fn prune(fs: &mut Fs, from: &mut Vec<u8>, max: u32) -> bool {
    match fs.run(Op::Prune { from: from.clone(), max }) {
        Ok(Reply::Pruned(Some(next))) => {
            *from = next;
            true
        }
        Ok(Reply::Pruned(None)) => false,
        other => panic!("expected a step: {other:?}"),
    }
}

fn history(fs: &Fs) -> usize {
    fs.tables.iter().filter(|(key, _)| key[0] == b'H').count()
}

/// Overwrites, renames and unlinks while snapshots come and go and the pruning of each is
/// interrupted by others: in the end nothing is left of any.
#[test]
fn nothing_is_left_of_dropped_snapshots() {
    rng::for_seeds(100, |seed| {
        let rng = &mut Rng::new(seed);
        let mut fs = Fs::new();
        let (mut id, mut taken) = (0, Vec::new());
        let mut from = Vec::new();
        for step in 0..200 {
            let name = format!("f{}", rng.within(0..5));
            let there = read::dentry(&fs.tables, ROOT, name.as_bytes()).expect("dentry");
            match (rng.within(0..10), there) {
                (0, _) => {
                    let name = format!("s{step}");
                    take(&mut fs, &name);
                    taken.push(name);
                }
                (1, _) if !taken.is_empty() => {
                    let name = taken.swap_remove(rng.within(0..taken.len() as u64) as usize);
                    fs.run(Op::DropSnapshot { name: name.into() }).expect("drop");
                    from.clear();
                }
                (2, _) => drop(prune(&mut fs, &mut from, 3)),
                (3, Some(found)) => {
                    fs.unlink(ROOT, &name).expect("unlink");
                    fs.run(Op::Reap { ino: found.ino }).expect("reap");
                }
                (_, Some(found)) => {
                    id += 1;
                    let off = rng.within(0..20);
                    fs.commit(found.ino, StripeId(id), 10, &[(off, 10, 0)]).expect("commit");
                }
                (_, None) => drop(fs.create(ROOT, &name, FileKind::File)),
            }
            invariants::check(&fs.tables);
        }
        for name in taken {
            fs.run(Op::DropSnapshot { name: name.into() }).expect("drop");
        }
        from.clear();
        while prune(&mut fs, &mut from, 7) {}
        assert_eq!(history(&fs), 0, "old records that nobody holds");
        invariants::check(&fs.tables);
    });
}

/// Without a snapshot nothing is kept, and one keeps each record at most once.
#[test]
fn only_what_a_snapshot_shows_is_kept() {
    let mut fs = Fs::new();
    let file = fs.create(ROOT, "f", FileKind::File);
    let punch = || Op::Punch { ino: file, off: 0, len: 1 };
    fs.run(punch()).expect("punch");
    assert_eq!(history(&fs), 0);
    take(&mut fs, "s");
    for _ in 0..10 {
        fs.run(punch()).expect("punch");
    }
    assert_eq!(history(&fs), 1, "the inode as the snapshot shows it");
    take(&mut fs, "t");
    fs.run(punch()).expect("punch");
    assert_eq!(history(&fs), 2);
}

#[test]
fn names_and_views_are_bounded() {
    let mut fs = Fs::new();
    for i in 1..VIEWS {
        assert_eq!(take(&mut fs, &format!("s{i}")), i);
    }
    let full = fs.run(Op::TakeSnapshot { name: b"one more".into() });
    assert_eq!(full.map_err(|e| e.kind()), Err(Kind::Busy));
    let twice = fs.run(Op::TakeSnapshot { name: b"s7".into() });
    assert_eq!(twice.map_err(|e| e.kind()), Err(Kind::Exists));
    fs.run(Op::DropSnapshot { name: b"s7".into() }).expect("drop");
    fs.run(Op::DropSnapshot { name: b"s9".into() }).expect("drop");
    let gone = AsOf::seen_by(&fs.tables, Ino(5).in_view(7)).map(drop);
    assert_eq!(gone.map_err(|e| e.kind()), Err(Kind::Stale));
    assert_eq!((take(&mut fs, "a"), take(&mut fs, "b")), (7, 9));
    let none = fs.run(Op::DropSnapshot { name: b"s7".into() });
    assert_eq!(none.map_err(|e| e.kind()), Err(Kind::NotFound));
}

/// Pages of listings and maps of extents are longer than one step of a read.
#[test]
fn large_directories_and_files_are_shown_as_they_were() {
    let mut fs = Fs::new();
    let file = fs.create(ROOT, "file", FileKind::File);
    let teeth: Vec<_> = (0..2000).map(|i| (i * 10, 5, i * 5)).collect();
    fs.commit(file, StripeId(1), 10_000, &teeth).expect("commit");
    for i in 0..1500 {
        fs.create(ROOT, &format!("n{i:04}"), FileKind::File);
    }
    let before = fs.tables.clone();
    let view = take(&mut fs, "s");
    for i in 0..1500 {
        fs.unlink(ROOT, &format!("n{i:04}")).expect("unlink");
        fs.create(ROOT, &format!("m{i:04}"), FileKind::File);
    }
    let id = StripeId(2);
    fs.commit(file, id, 10_000, &(0..2000).map(|i| (i * 10 + 2, 5, i * 5)).collect::<Vec<_>>())
        .expect("commit");
    let seen = AsOf::seen_by(&fs.tables, ROOT.in_view(view)).expect("a snapshot");
    let mut after = 0;
    loop {
        let page = read::list(&seen, ROOT, after, 700).expect("list");
        assert_eq!(page, read::list(&before, ROOT, after, 700).expect("list"));
        let Some(last) = page.last() else { break };
        after = last.cookie;
    }
    for off in [0, 7, 4999, 19_995] {
        let map = |map| format!("{map:?}");
        assert_eq!(
            map(read::extents(&seen, file, off, 30_000)),
            map(read::extents(&before, file, off, 30_000)),
        );
    }
}
