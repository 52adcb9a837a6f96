//! Listings in pages while the directory changes: what stays is seen once.

use std::collections::{BTreeMap, BTreeSet};

use kos_core::read;
use kos_types::limits::LIST_ENTRIES_MAX;
use kos_types::{Dirent, FileKind, Kind, ROOT, RenameMode};

use crate::fs::Fs;
use crate::invariants;
use crate::rng::{self, Rng};

/// Pages of `dir` in full, with `between` after each.
fn pages(fs: &mut Fs, rng: &mut Rng, mut between: impl FnMut(&mut Fs, &mut Rng)) -> Vec<Dirent> {
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let max = rng.within(1..9) as usize;
        let page = read::list(&fs.tables, ROOT, after, max).expect("list");
        assert!(page.len() <= max);
        let Some(last) = page.last() else { return seen };
        assert!(page[0].cookie > after && page.is_sorted_by(|a, b| a.cookie < b.cookie));
        after = last.cookie;
        seen.extend(page);
        between(fs, rng);
    }
}

fn name(rng: &mut Rng) -> String {
    format!("f{}", rng.within(0..60))
}

/// One random change of the root's names; answers the name that it took away, if it did. The
/// directory `/aside` has names too.
fn change(fs: &mut Fs, rng: &mut Rng) -> Option<String> {
    let aside = read::lookup(&fs.tables, ROOT, b"aside").expect("aside").ino;
    let (a, b) = (name(rng), name(rng));
    let there = |name: &str| read::dentry(&fs.tables, ROOT, name.as_bytes()).expect("dentry").is_some();
    match (rng.within(0..6), there(&a), there(&b)) {
        // At most so many that a listing comes to an end.
        (0, false, _) if !rng.one_in(3) => drop(fs.create(ROOT, &a, FileKind::File)),
        (1, true, _) => {
            fs.unlink(ROOT, &a).expect("unlink");
            return Some(a);
        }
        (2, true, _) if a != b => {
            fs.rename((ROOT, &a), (ROOT, &b), RenameMode::Replace).expect("rename");
            return Some(a);
        }
        (3, true, true) => drop(fs.rename((ROOT, &a), (ROOT, &b), RenameMode::Exchange).expect("exchange")),
        (4, _, _) => {
            // Over an entry of the root, from elsewhere.
            let moved = fs.rename((aside, &b), (ROOT, &a), RenameMode::Replace);
            assert!(moved.is_ok() || moved.expect_err("either").kind() == Kind::NotFound);
        }
        (5, true, _) => {
            fs.rename((ROOT, &a), (aside, &b), RenameMode::Replace).expect("move away");
            return Some(a);
        }
        _ => (),
    }
    None
}

#[test]
fn what_stays_is_seen_once() {
    rng::for_seeds(500, |seed| {
        let rng = &mut Rng::new(seed);
        let fs = &mut Fs::new();
        fs.create(ROOT, "aside", FileKind::Dir);
        for _ in 0..100 {
            change(fs, rng);
        }
        let all = read::list(&fs.tables, ROOT, 0, usize::MAX).expect("list");
        let mut stay: BTreeMap<Vec<u8>, u64> = all.into_iter().map(|e| (e.name, e.cookie)).collect();
        let mut created = 0;
        let seen = pages(fs, rng, |fs, rng| {
            for _ in 0..rng.within(0..4) {
                created += 1;
                let gone = if created < 200 { change(fs, rng) } else { None };
                gone.map(|gone| stay.remove(gone.as_bytes()));
            }
            invariants::check(&fs.tables);
        });
        for (name, cookie) in &stay {
            let times: Vec<u64> = seen.iter().filter(|e| e.name == *name).map(|e| e.cookie).collect();
            assert_eq!(times, [*cookie], "{name:?}");
        }
        let positions: BTreeSet<u64> = seen.iter().map(|e| e.cookie).collect();
        assert_eq!(positions.len(), seen.len(), "a position seen twice");
    });
}

#[test]
fn a_replaced_name_keeps_its_position() {
    let mut fs = Fs::new();
    let [a, _b, c] = ["a", "b", "c"].map(|name| fs.create(ROOT, name, FileKind::File));
    let before = read::list(&fs.tables, ROOT, 0, 10).expect("list");
    fs.rename((ROOT, "c"), (ROOT, "b"), RenameMode::Replace).expect("rename");
    let after = read::list(&fs.tables, ROOT, 0, 10).expect("list");
    let shown: Vec<_> = after.iter().map(|e| (e.name.as_slice(), e.attr.ino, e.cookie)).collect();
    assert_eq!(shown, [(&b"a"[..], a, before[0].cookie), (b"b", c, before[1].cookie)]);
    fs.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Exchange).expect("exchange");
    let after = read::list(&fs.tables, ROOT, 0, 10).expect("list");
    let shown: Vec<_> = after.iter().map(|e| (e.name.as_slice(), e.attr.ino, e.cookie)).collect();
    assert_eq!(shown, [(&b"a"[..], c, before[0].cookie), (b"b", a, before[1].cookie)]);
}

#[test]
fn a_new_name_comes_behind_all_others() {
    let mut fs = Fs::new();
    for name in ["z", "y", "x"] {
        fs.create(ROOT, name, FileKind::File);
    }
    fs.unlink(ROOT, "z").expect("unlink");
    fs.create(ROOT, "z", FileKind::File);
    fs.rename((ROOT, "y"), (ROOT, "w"), RenameMode::NoReplace).expect("rename");
    let names = read::list(&fs.tables, ROOT, 0, 10).expect("list").into_iter().map(|e| e.name);
    assert_eq!(names.collect::<Vec<_>>(), [b"x", b"z", b"w"]);
}

#[test]
fn a_listing_has_bounds() {
    let mut fs = Fs::new();
    for i in 0..=LIST_ENTRIES_MAX {
        fs.create(ROOT, &i.to_string(), FileKind::File);
    }
    let page = read::list(&fs.tables, ROOT, 0, usize::MAX).expect("list");
    assert_eq!(page.len(), LIST_ENTRIES_MAX);
    let rest = read::list(&fs.tables, ROOT, page[LIST_ENTRIES_MAX - 1].cookie, usize::MAX).expect("list");
    assert_eq!(rest.len(), 1);
    assert_eq!(read::list(&fs.tables, ROOT, 0, 0), Ok(Vec::new()));
    assert_eq!(read::list(&fs.tables, ROOT, u64::MAX, 5), Ok(Vec::new()));
    assert_eq!(read::list(&fs.tables, page[0].attr.ino, 0, 5).expect_err("a file").kind(), Kind::NotDir);
}
