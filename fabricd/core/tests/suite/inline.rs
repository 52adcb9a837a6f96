//! Bytes that are kept with the metadata: their bounds, and what no model of single bytes sees.

use kos_core::record::{ExtentRecord, Place};
use kos_core::{AsOf, keys, read};
use kos_types::limits::{EXTENTS_MAX, INLINE_ANSWER_MAX, INLINE_BYTES_MAX};
use kos_types::{FileKind, Ino, Kind, Op, ROOT, Reply, Source, StripeId};

use crate::fs::Fs;
use crate::invariants;

fn file(fs: &mut Fs, name: &str) -> Ino {
    fs.create(ROOT, name, FileKind::File)
}

/// All bytes of a file without stripes, asked for until its end.
fn bytes<T: kos_core::Tables>(tables: &T, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let map = read::extents(tables, ino, out.len() as u64, u64::MAX).expect("extents");
        let inline: usize = map.extents.iter().map(|extent| inline_bytes(&extent.source)).sum();
        assert!(inline <= INLINE_ANSWER_MAX && map.extents.len() <= EXTENTS_MAX);
        if out.len() as u64 == map.size {
            return out;
        }
        assert!(!map.extents.is_empty(), "no progress at {}", out.len());
        for extent in map.extents {
            match extent.source {
                Source::Inline(bytes) => out.extend(bytes),
                Source::Hole => out.resize(out.len() + extent.len as usize, 0),
                Source::Stripe(id, _) => panic!("{id:?}"),
            }
        }
    }
}

fn inline_bytes(source: &Source) -> usize {
    match source {
        Source::Inline(bytes) => bytes.len(),
        _ => 0,
    }
}

#[test]
fn only_the_head_of_a_file_is_inline() {
    let mut fs = Fs::new();
    let ino = file(&mut fs, "f");
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let full = vec![7; INLINE_BYTES_MAX];
    let before = fs.tables.clone();
    for (ino, inline, kind) in [
        (ino, vec![(0, &b""[..])], Kind::Invalid),
        (ino, vec![(1, &full[..])], Kind::Invalid),
        (ino, vec![(INLINE_BYTES_MAX as u64, b"x")], Kind::Invalid),
        (ino, vec![(0, &full), (0, b"x")], Kind::Invalid),
        (ino, vec![(u64::MAX, b"x")], Kind::TooLarge),
        (dir, vec![(0, b"x")], Kind::IsDir),
    ] {
        assert_eq!(fs.inline(ino, &inline).map_err(|e| e.kind()), Err(kind));
    }
    assert!(fs.tables == before, "a refused command changed something");
    fs.inline(ino, &[(0, &full)]).expect("all that may be");
    assert_eq!(bytes(&fs.tables, ino), full);
}

#[test]
fn what_is_written_line_by_line_is_one_record() {
    let mut fs = Fs::new();
    let ino = file(&mut fs, "log");
    let mut expected = Vec::new();
    for line in 0..100 {
        let text = format!("line {line}\n");
        fs.inline(ino, &[(expected.len() as u64, text.as_bytes())]).expect("append");
        expected.extend_from_slice(text.as_bytes());
    }
    // In the middle of it: what is after the new bytes stays.
    fs.inline(ino, &[(50, b"over")]).expect("write");
    expected[50..54].copy_from_slice(b"over");
    assert_eq!(bytes(&fs.tables, ino), expected);
    let records = read::starting(&fs.tables, ino, 0, u64::MAX, 100).expect("extents").len();
    assert_eq!(records, 2);
    invariants::check(&fs.tables);
}

#[test]
fn a_snapshot_keeps_inline_bytes_and_a_prune_drops_them() {
    let mut fs = Fs::new();
    let ino = file(&mut fs, "f");
    fs.inline(ino, &[(0, b"old bytes")]).expect("commit");
    let Ok(Reply::Snapshot(snapshot)) = fs.run(Op::TakeSnapshot { name: b"s".into() }) else {
        panic!("no snapshot")
    };
    fs.inline(ino, &[(4, b"data!")]).expect("commit");
    fs.commit(ino, StripeId(1), 3, &[(0, 3, 0)]).expect("commit");
    let view = AsOf::seen_by(&fs.tables, ino.in_view(snapshot.view)).expect("view");
    assert_eq!(bytes(&view, ino), b"old bytes");
    fs.run(Op::DropSnapshot { name: b"s".into() }).expect("drop");
    fs.run(Op::Prune { from: Vec::new(), max: 1000 }).expect("prune");
    invariants::check(&fs.tables);
    invariants::check_pruned(&fs.tables);
}

#[test]
fn copies_hold_their_own_bytes_and_long_maps_come_in_parts() {
    let mut fs = Fs::new();
    let (from, to) = (file(&mut fs, "from"), file(&mut fs, "to"));
    let data: Vec<u8> = (0..INLINE_BYTES_MAX).map(|i| (i % 251) as u8).collect();
    fs.inline(from, &[(0, &data)]).expect("commit");
    let len = data.len() as u64;
    let copies = 3 * (INLINE_ANSWER_MAX / INLINE_BYTES_MAX) as u64;
    for copy in 0..copies {
        let (from_off, to_off) = (copy % 100, copy * len);
        fs.run(Op::Clone { from, from_off, to, to_off, len: len - from_off }).expect("clone");
    }
    fs.unlink(ROOT, "from").expect("unlink");
    fs.run(Op::Reap { ino: from }).expect("reap");
    let found = bytes(&fs.tables, to);
    for copy in 0..copies as usize {
        let part = &data[copy % 100..];
        assert!(found[copy * data.len()..].starts_with(part), "copy {copy}");
    }
    invariants::check(&fs.tables);
}

#[test]
fn a_compaction_that_expects_a_stripe_meets_inline_bytes() {
    let mut fs = Fs::new();
    let ino = file(&mut fs, "f");
    fs.commit(ino, StripeId(1), 4, &[(0, 4, 0)]).expect("commit");
    let extent = kos_types::ExtentPut { off: 0, len: 4, stripe: StripeId(1), at: 0 };
    fs.inline(ino, &[(0, b"four")]).expect("commit");
    assert_eq!(fs.freed, [StripeId(1)], "nothing is in it");
    let stripe = (StripeId(2), kos_types::Policy::default(), 4);
    let lost = fs.run(Op::Compact { ino, stripe, extents: vec![extent] }).map_err(|e| e.kind());
    assert_eq!(lost, Err(Kind::Busy));
    assert_eq!(bytes(&fs.tables, ino), b"four");
}

#[test]
fn records_too_long_or_of_no_form_are_refused() {
    let mut fs = Fs::new();
    let ino = file(&mut fs, "f");
    fs.inline(ino, &[(0, b"abc")]).expect("commit");
    let record = read::starting(&fs.tables, ino, 0, 1, 1).expect("extents")[0].1.clone();
    assert_eq!(record.place, Place::Inline(b"abc".to_vec()));
    let good = record.encode();
    assert_eq!(ExtentRecord::decode(&good), Ok(record));
    let long = [&good[..9], &[0; INLINE_BYTES_MAX + 1]].concat();
    let form = [&good[..8], &[2], &good[9..]].concat();
    for bad in [&good[..8], &good[..9], &long, &form] {
        assert_eq!(ExtentRecord::decode(bad).map_err(|e| e.kind()), Err(Kind::Io));
        fs.tables.write([(keys::extent(ino, 0), Some(bad.to_vec()))].into());
        assert_eq!(read::extents(&fs.tables, ino, 0, 1).map_err(|e| e.kind()), Err(Kind::Io));
    }
}
