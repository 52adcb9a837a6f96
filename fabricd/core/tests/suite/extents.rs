//! Maps of files with more extents than one answer or one step of a command takes.

use kos_core::{keys, read, record};
use kos_types::limits::EXTENTS_MAX;
use kos_types::{
    Extent, ExtentPut, FileKind, Ino, Kind, Op, Policy, ROOT, Reply, SetAttr, SetSize, Source, StripeId,
};

use crate::fs::Fs;
use crate::invariants;
use crate::rng::{self, Rng};

const STRIPE: StripeId = StripeId(1);
/// Of a file in these tests: several times [`EXTENTS_MAX`] and the core's own steps.
const EXTENTS: u64 = 10_000;

/// A file with an extent of a byte at each multiple of `step`, all of one stripe.
fn comb(fs: &mut Fs, name: &str, step: u64) -> Ino {
    let ino = fs.create(ROOT, name, FileKind::File);
    let teeth: Vec<_> = (0..EXTENTS).map(|i| (i * step, 1, i)).collect();
    let id = StripeId(STRIPE.0 + ino.0);
    fs.commit(ino, id, EXTENTS, &teeth).expect("commit");
    invariants::check(&fs.tables);
    ino
}

/// The map of `off..off+len`, from as many answers as it takes: gap-free, each with progress.
fn map(fs: &Fs, ino: Ino, off: u64, len: u64) -> Vec<Extent> {
    let (mut extents, mut at) = (Vec::new(), off);
    loop {
        let part = read::extents(&fs.tables, ino, at, off + len - at).expect("extents");
        assert!(part.extents.len() <= EXTENTS_MAX);
        let end = part.size.min(off + len);
        assert!(at >= end || !part.extents.is_empty(), "no progress at {at}");
        for extent in part.extents {
            assert!(extent.off == at && extent.len > 0 && at + extent.len <= end, "{extent:?} at {at}");
            at += extent.len;
            extents.push(extent);
        }
        if at >= end {
            return extents;
        }
    }
}

/// The stripe's byte at each byte of the file.
fn bytes(extents: &[Extent]) -> Vec<Option<u64>> {
    let each = extents.iter().flat_map(|extent| {
        (0..extent.len).map(|i| match &extent.source {
            Source::Stripe(_, at) => Some(at + i),
            Source::Hole => None,
            Source::Inline(bytes) => Some(u64::from(bytes[i as usize])),
        })
    });
    each.collect()
}

fn size(fs: &mut Fs, ino: Ino, size: u64) {
    let set = SetAttr { size: Some(SetSize { size }), ..SetAttr::default() };
    fs.attr_of(Op::SetAttr { ino, set });
}

#[test]
fn a_map_of_many_extents_comes_in_parts() {
    let mut fs = Fs::new();
    for (name, step) in [("dense", 1), ("holes", 2), ("wide", 3)] {
        let ino = comb(&mut fs, name, step);
        size(&mut fs, ino, EXTENTS * step + 5);
        let whole = bytes(&map(&fs, ino, 0, u64::MAX / 2));
        assert_eq!(whole.len() as u64, EXTENTS * step + 5);
        for (byte, found) in (0..).zip(&whole) {
            let there = byte % step == 0 && byte < EXTENTS * step;
            assert_eq!(*found, there.then_some(byte / step), "{name}: byte {byte}");
        }
        rng::for_seeds(50, |seed| {
            let rng = &mut Rng::new(seed);
            let (off, len) = (rng.within(0..whole.len() as u64), rng.within(0..9000));
            let end = whole.len().min((off + len) as usize);
            assert_eq!(bytes(&map(&fs, ino, off, len)), whole[off as usize..end], "{name}: {off}, {len}");
        });
    }
}

#[test]
fn a_map_ends_where_the_file_does() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    let hole = |off, len| vec![Extent { off, len, source: Source::Hole }];
    assert_eq!(read::extents(&fs.tables, ino, 0, 100).expect("empty").extents, []);
    size(&mut fs, ino, 50);
    assert_eq!(read::extents(&fs.tables, ino, 0, u64::MAX).expect("hole").extents, hole(0, 50));
    assert_eq!(read::extents(&fs.tables, ino, 20, u64::MAX).expect("hole").extents, hole(20, 30));
    assert_eq!(read::extents(&fs.tables, ino, 20, 0).expect("nothing").extents, []);
    assert_eq!(read::extents(&fs.tables, ino, 50, 1).expect("end").extents, []);
    assert_eq!(read::extents(&fs.tables, ino, u64::MAX, 1).expect("beyond").extents, []);
    assert_eq!(read::extents(&fs.tables, Ino(999), 0, 1).expect_err("none").kind(), Kind::Stale);
}

#[test]
fn many_extents_are_cut_shared_and_dropped() {
    let mut fs = Fs::new();
    let (from, to) = (comb(&mut fs, "from", 2), comb(&mut fs, "to", 3));
    let source = bytes(&map(&fs, from, 0, u64::MAX / 2));
    let mut target = bytes(&map(&fs, to, 0, u64::MAX / 2));
    fs.run(Op::Punch { ino: to, off: 1000, len: 20_000 }).expect("punch");
    target[1000..21_000].fill(None);
    assert_eq!(bytes(&map(&fs, to, 0, u64::MAX / 2)), target);
    fs.run(Op::Clone { from, from_off: 3001, to, to_off: 500, len: 15_000 }).expect("clone");
    target[500..15_500].copy_from_slice(&source[3001..18_001]);
    assert_eq!(bytes(&map(&fs, to, 0, u64::MAX / 2)), target);
    invariants::check(&fs.tables);
    // Extents that touch: none is lost between two steps.
    let dense = comb(&mut fs, "dense", 1);
    fs.run(Op::Clone { from: dense, from_off: 7, to, to_off: 0, len: 5000 }).expect("clone");
    target[..5000].copy_from_slice(&bytes(&map(&fs, dense, 7, 5000)));
    assert_eq!(bytes(&map(&fs, to, 0, u64::MAX / 2)), target);
    // Within one file, over the end.
    fs.run(Op::Clone { from: to, from_off: 100, to, to_off: 29_000, len: 12_000 }).expect("clone");
    target.resize(41_000, None);
    target.copy_within(100..12_100, 29_000);
    assert_eq!(bytes(&map(&fs, to, 0, u64::MAX / 2)), target);
    invariants::check(&fs.tables);
    fs.unlink(ROOT, "to").expect("unlink");
    fs.run(Op::Reap { ino: to }).expect("reap");
    assert_eq!(fs.freed, [StripeId(STRIPE.0 + to.0)]);
    invariants::check(&fs.tables);
    size(&mut fs, from, 0);
    assert_eq!(fs.freed, [StripeId(STRIPE.0 + from.0)]);
    invariants::check(&fs.tables);
}

#[test]
fn a_commit_beyond_the_end_extends_the_file() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    let Ok(Reply::Attr(attr)) = fs.commit(ino, STRIPE, 10, &[(100, 10, 0)]) else { panic!("refused") };
    assert_eq!((attr.size, attr.bytes), (110, 10));
    size(&mut fs, ino, 100);
    size(&mut fs, ino, 200);
    let shown = read::extents(&fs.tables, ino, 0, u64::MAX).expect("extents").extents;
    assert_eq!(shown, [Extent { off: 0, len: 200, source: Source::Hole }], "old bytes came back");
}

#[test]
fn a_clone_of_nothing_changes_nothing() {
    let mut fs = Fs::new();
    let [from, to] = ["from", "to"].map(|name| fs.create(ROOT, name, FileKind::File));
    let before = read::inode(&fs.tables, to).expect("inode").attr;
    let op = Op::Clone { from, from_off: 0, to, to_off: 4096, len: 0 };
    assert_eq!(fs.run(op), Ok(Reply::Attr(before)));
}

#[test]
fn references_are_counted_to_the_last() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    fs.commit(ino, STRIPE, 10, &[(0, 10, 0)]).expect("commit");
    let stripe = read::stripe(&fs.tables, STRIPE).expect("read").expect("stripe");
    let full = record::Stripe { refs: u32::MAX, ..stripe };
    fs.tables.write([(keys::stripe(STRIPE), Some(full.encode()))].into());
    let before = fs.tables.clone();
    let extents = vec![ExtentPut { off: 20, len: 1, stripe: STRIPE, at: 0 }];
    let stripes: Vec<(StripeId, Policy, u64)> = Vec::new();
    let more = [
        Op::Commit { ino, stripes, holes: Vec::new(), extents, inline: Vec::new(), size_min: 0, mtime: None },
        Op::Punch { ino, off: 4, len: 1 },
        Op::Clone { from: ino, from_off: 0, to: ino, to_off: 20, len: 5 },
    ];
    for op in more {
        assert_eq!(fs.run(op).expect_err("counted too far").kind(), Kind::Busy);
    }
    assert!(fs.tables == before);
}
