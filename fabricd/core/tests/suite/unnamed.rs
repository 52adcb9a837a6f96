//! Files that are made without a name: who may give them one, what they are until then, and how they go.

use kos_core::policy::{self, DURABILITY};
use kos_core::quota::{self, Account, QUOTA};
use kos_core::{MemTables, keys, read};
use kos_types::{Attr, Class, Cred, FileKind, Ino, Kind, Op, ROOT, Reply, SetAttr, StripeId};

use crate::fs::Fs;
use crate::invariants;

fn unnamed(parent: Ino) -> Op {
    Op::CreateUnnamed { parent, mode: 0o666, umask: 0o022, cred: Cred { uid: 7, gid: 8 } }
}

fn link(fs: &mut Fs, ino: Ino, parent: Ino, name: &str) -> Result<Reply, Kind> {
    fs.run(Op::Link { ino, parent, name: name.into() }).map_err(|e| e.kind())
}

fn attr(fs: &Fs, ino: Ino) -> Attr {
    read::inode(&fs.tables, ino).expect("inode").attr
}

/// Everything but the counters, and ids of dead stripes that are not given out again.
fn records(tables: &MemTables) -> Vec<(Vec<u8>, Vec<u8>)> {
    let records = tables.iter().filter(|(key, _)| *key != keys::STATE && key[0] != b'T');
    records.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

#[test]
fn what_gets_no_name_leaves_nothing() {
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let before = (attr(&fs, dir), records(&fs.tables));
    let made = fs.attr_of(unnamed(dir));
    assert_eq!((made.nlink, made.mode, made.kind), (0, 0o644, FileKind::File));
    assert_eq!(attr(&fs, dir), before.0, "the directory is as it was");
    assert!(read::is_empty_dir(&fs.tables, dir).expect("names"));
    fs.set_xattr(made.ino, b"user.a", b"b").expect("xattr");
    fs.commit(made.ino, StripeId(1), 10, &[(0, 10, 0)]).expect("commit");
    assert_eq!(read::orphans(&fs.tables).expect("orphans"), [made.ino]);
    invariants::check(&fs.tables);
    fs.run(Op::Reap { ino: made.ino }).expect("reap");
    assert_eq!(fs.freed, [StripeId(1)]);
    fs.run(Op::Collected {
        stripes: read::garbage(&fs.tables, u64::MAX, 9)
            .expect("garbage")
            .iter()
            .map(|g| (g.0, g.1))
            .collect(),
    })
    .expect("collected");
    assert_eq!(records(&fs.tables), before.1);
    assert_eq!(link(&mut fs, made.ino, dir, "late"), Err(Kind::Stale));
}

#[test]
fn a_first_name_is_one_like_any_other() {
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let file = fs.attr_of(unnamed(dir)).ino;
    fs.inline(file, &[(0, b"bytes")]).expect("commit");
    fs.create(dir, "taken", FileKind::File);
    assert_eq!(link(&mut fs, file, dir, "taken"), Err(Kind::Exists));
    assert_eq!(link(&mut fs, file, dir, ""), Err(Kind::Invalid));
    assert_eq!(attr(&fs, file).nlink, 0);
    // Anywhere, not only where it was made.
    link(&mut fs, file, ROOT, "first").expect("link");
    assert_eq!((attr(&fs, file).nlink, read::orphans(&fs.tables).expect("orphans")), (1, vec![]));
    link(&mut fs, file, dir, "second").expect("link");
    assert_eq!(attr(&fs, file).nlink, 2);
    fs.run(Op::Reap { ino: file }).expect("a late one is harmless");
    assert_eq!(attr(&fs, file).size, 5);
    // What is removed is removed, however it came to its name.
    fs.unlink(ROOT, "first").expect("unlink");
    fs.unlink(dir, "second").expect("unlink");
    assert_eq!(link(&mut fs, file, dir, "again"), Err(Kind::NotFound));
    let named = fs.create(dir, "named", FileKind::File);
    fs.unlink(dir, "named").expect("unlink");
    assert_eq!(link(&mut fs, named, dir, "again"), Err(Kind::NotFound));
    invariants::check(&fs.tables);
}

#[test]
fn it_is_made_as_a_named_one_is() {
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let set = SetAttr { mode: Some(0o2775), gid: Some(50), ..SetAttr::default() };
    fs.run(Op::SetAttr { ino: dir, set }).expect("setgid");
    // user::rwx, user:9:rwx, group::r-x, mask::rwx, other::---
    let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 7, 9), (4, 5, !0), (0x10, 7, !0), (0x20, 0, !0)];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        list.extend([&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    fs.set_xattr(dir, b"system.posix_acl_default", &list).expect("default list");
    let cred = Cred { uid: 7, gid: 8 };
    let (name, kind, target) = (b"named".to_vec(), FileKind::File, Vec::new());
    let (mode, umask, rdev) = (0o666, 0o022, 0);
    let named = fs.attr_of(Op::Create { parent: dir, name, kind, mode, umask, cred, rdev, target });
    let made = fs.attr_of(unnamed(dir));
    assert_eq!((made.mode, made.uid, made.gid), (named.mode, named.uid, named.gid));
    assert_eq!((made.gid, made.mode & 0o777), (50, 0o660), "not the umask: the list");
    let access = |ino| read::xattr(&fs.tables, ino, b"system.posix_acl_access").expect("a list");
    assert_eq!(access(made.ino), access(named.ino));
    let file = fs.create(ROOT, "f", FileKind::File);
    let made_in = |fs: &mut Fs, dir| fs.run(unnamed(dir)).map_err(|e| e.kind());
    assert_eq!(made_in(&mut fs, file), Err(Kind::NotDir));
    let gone = fs.create(ROOT, "gone", FileKind::Dir);
    fs.run(Op::Rmdir { parent: ROOT, name: b"gone".to_vec() }).expect("rmdir");
    assert_eq!(made_in(&mut fs, gone), Err(Kind::NotFound));
    fs.run(Op::Reap { ino: gone }).expect("reap");
    assert_eq!(made_in(&mut fs, gone), Err(Kind::Stale));
}

#[test]
fn its_policies_are_those_of_where_it_was_made_and_then_of_its_name() {
    let mut fs = Fs::new();
    let (memory, disk) = (fs.create(ROOT, "m", FileKind::Dir), fs.create(ROOT, "d", FileKind::Dir));
    fs.set_xattr(memory, DURABILITY, b"memory").expect("policy");
    let file = fs.attr_of(unnamed(memory)).ino;
    let class = |fs: &Fs, ino| policy::of(&fs.tables, ino).expect("policy").class;
    assert_eq!(class(&fs, file), Class::Memory);
    fs.set_xattr(memory, DURABILITY, b"scratch").expect("policy");
    assert_eq!(class(&fs, file), Class::Scratch);
    link(&mut fs, file, disk, "f").expect("link");
    assert_eq!(class(&fs, file), Class::Disk);
    // What was removed inherits nothing, and so does what was made in a directory that is gone.
    fs.unlink(disk, "f").expect("unlink");
    assert_eq!(class(&fs, file), Class::Disk);
    let other = fs.attr_of(unnamed(memory)).ino;
    fs.run(Op::Rmdir { parent: ROOT, name: b"m".to_vec() }).expect("rmdir");
    assert_eq!(class(&fs, other), Class::Scratch);
    fs.run(Op::Reap { ino: memory }).expect("reap");
    assert_eq!(class(&fs, other), Class::Disk);
    link(&mut fs, other, ROOT, "late").expect("link");
    invariants::check(&fs.tables);
}

#[test]
fn it_counts_and_its_first_name_is_under_the_same_quota() {
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    fs.set_xattr(dir, QUOTA, b"bytes=10 inodes=2").expect("quota");
    let usage = |fs: &Fs| {
        let usage = quota::usage(&fs.tables, Account::Tree(dir)).expect("usage").expect("a tree");
        (usage.bytes, usage.inodes)
    };
    let file = fs.attr_of(unnamed(dir)).ino;
    assert_eq!(usage(&fs), (0, 2));
    assert_eq!(fs.run(unnamed(dir)).map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    fs.commit(file, StripeId(1), 10, &[(0, 10, 0)]).expect("all of it");
    let more = fs.commit(file, StripeId(2), 1, &[(10, 1, 0)]);
    assert_eq!(more.map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    assert_eq!(link(&mut fs, file, ROOT, "f"), Err(Kind::CrossDevice));
    link(&mut fs, file, dir, "f").expect("no more than there was");
    assert_eq!(usage(&fs), (10, 2));
    fs.unlink(dir, "f").expect("unlink");
    fs.run(Op::Reap { ino: file }).expect("reap");
    assert_eq!(usage(&fs), (0, 1));
    fs.attr_of(unnamed(dir));
    invariants::check(&fs.tables);
}

#[test]
fn a_snapshot_shows_it_where_it_had_its_name() {
    let mut fs = Fs::new();
    let file = fs.attr_of(unnamed(ROOT)).ino;
    fs.inline(file, &[(0, b"then")]).expect("commit");
    let take = |fs: &mut Fs, name: &str| match fs.run(Op::TakeSnapshot { name: name.into() }) {
        Ok(Reply::Snapshot(taken)) => taken.view,
        other => panic!("{other:?}"),
    };
    let before = take(&mut fs, "before");
    link(&mut fs, file, ROOT, "f").expect("link");
    let after = take(&mut fs, "after");
    fs.unlink(ROOT, "f").expect("unlink");
    fs.run(Op::Reap { ino: file }).expect("reap");
    let found = |fs: &Fs, view: u64| {
        let tables = kos_core::AsOf::seen_by(&fs.tables, ROOT.in_view(view)).expect("a snapshot");
        read::lookup(&tables, ROOT, b"f").map(|attr| attr.nlink).map_err(|e| e.kind())
    };
    assert_eq!((found(&fs, before), found(&fs, after)), (Err(Kind::NotFound), Ok(1)));
    let inside = fs.run(unnamed(ROOT.in_view(after)));
    assert_eq!(inside.map_err(|e| e.kind()), Err(Kind::ReadOnly));
    for name in ["before", "after"] {
        fs.run(Op::DropSnapshot { name: name.into() }).expect("drop");
    }
    fs.run(Op::Prune { from: Vec::new(), max: u32::MAX }).expect("prune");
    invariants::check_pruned(&fs.tables);
    invariants::check(&fs.tables);
    assert_eq!(read::state(&fs.tables).expect("state").inodes, 1);
}
