//! Quotas: what is counted is what is there, and growth beyond a limit is refused. That the counts are
//! exact after every command is an invariant, so the model checks it too.

use std::collections::BTreeMap;

use kos_core::quota::{self, Account};
use kos_core::{MemTables, apply, read};
use kos_types::{Command, FileKind, Ino, Kind, Op, Origin, ROOT, RenameMode, SetAttr, StripeId, XattrMode};

use crate::fs::Fs;
use crate::invariants;
use crate::ops::Ops;
use crate::rng::{self, Rng};
use crate::spec::Spec;

const QUOTA: &[u8] = quota::QUOTA;

fn user(uid: u32) -> Vec<u8> {
    [quota::USER_QUOTA, uid.to_string().as_bytes()].concat()
}

fn limits(tables: &MemTables) -> BTreeMap<Account, quota::Usage> {
    let users = quota::users(tables, usize::MAX).expect("users").into_iter();
    let trees = quota::all_trees(tables, usize::MAX).expect("trees").into_iter();
    users
        .map(|(uid, u)| (Account::User(uid), u))
        .chain(trees.map(|(dir, u)| (Account::Tree(dir), u)))
        .collect()
}

/// Random commands and quotas: the counts are exact, and nothing grows over its limit.
#[test]
fn nothing_grows_beyond_its_limit() {
    rng::for_seeds(150, |seed| {
        let mut fs = Fs::new();
        let mut spec = Spec::new(read::inode(&fs.tables, ROOT).expect("root").attr);
        let (mut ops, rng) = (Ops::new(seed), &mut Rng::new(seed));
        let mut refused = 0;
        for _ in 0..300 {
            let op = if rng.one_in(12) { set_quota(rng, &fs.tables) } else { ops.next(&spec) };
            let command = Command { now: ops.time(), origin: Origin::default(), op };
            let before = limits(&fs.tables);
            let applied = match apply(&fs.tables, &command) {
                Ok(applied) => applied,
                Err(e) => {
                    refused += u64::from(e.kind() == Kind::QuotaExceeded);
                    continue;
                }
            };
            let fresh = match &applied.reply {
                kos_types::Reply::Attr(attr) => attr.ino,
                _ => Ino(0),
            };
            // The model has no quotas; it follows so that the commands mean something.
            let followed = spec.apply(&command, fresh);
            ops.created(fresh);
            fs.tables.write(applied.changes);
            invariants::check(&fs.tables);
            if followed.is_err() || matches!(command.op, Op::SetXattr { .. } | Op::RemoveXattr { .. }) {
                continue;
            }
            for (account, now) in limits(&fs.tables) {
                let Some(was) = before.get(&account).filter(|_| account != Account::User(0)) else {
                    continue;
                };
                assert!(now.bytes <= now.bytes_max.max(was.bytes), "{account:?}: {now:?} after {command:?}");
                assert!(
                    now.inodes <= now.inodes_max.max(was.inodes),
                    "{account:?}: {now:?} after {command:?}"
                );
            }
        }
        assert!(refused > 0, "no quota was ever reached");
    });
}

fn set_quota(rng: &mut Rng, tables: &MemTables) -> Op {
    let dirs: Vec<Ino> = tables
        .iter()
        .filter(|(key, _)| key[0] == b'I')
        .map(|(key, _)| Ino(kos_core::keys::field(key, 1)))
        .filter(|&ino| read::inode(tables, ino).expect("inode").attr.kind == FileKind::Dir)
        .collect();
    let ino = *rng.pick(&dirs).expect("the root at least");
    let (ino, name) =
        if rng.one_in(4) { (ROOT, user(rng.within(0..4) as u32)) } else { (ino, QUOTA.to_vec()) };
    if rng.one_in(6) {
        return Op::RemoveXattr { ino, name };
    }
    let value = format!("bytes={} inodes={}", rng.within(0..200), rng.within(0..20)).into_bytes();
    Op::SetXattr { ino, name, value, mode: XattrMode::Any }
}

#[test]
fn limits_are_exact() {
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    fs.set_xattr(dir, QUOTA, b"bytes=1K inodes=3").expect("quota");
    let file = fs.create(dir, "f", FileKind::File);
    fs.commit(file, StripeId(1), 1024, &[(0, 1024, 0)]).expect("all of it");
    // Over what is there: no growth.
    fs.commit(file, StripeId(2), 1024, &[(0, 1024, 0)]).expect("overwrite");
    let more = fs.commit(file, StripeId(3), 1, &[(1024, 1, 0)]);
    assert_eq!(more.map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    let sub = fs.create(dir, "sub", FileKind::Dir);
    let create = |parent| Op::Create {
        parent,
        name: b"x".into(),
        kind: FileKind::Symlink,
        mode: 0o777,
        umask: 0,
        cred: kos_types::Cred { uid: 0, gid: 0 },
        rdev: 0,
        target: b"t".into(),
    };
    assert_eq!(fs.run(create(sub)).map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    let aside = fs.create(ROOT, "aside", FileKind::File);
    let into = fs.rename((ROOT, "aside"), (sub, "aside"), RenameMode::Replace);
    assert_eq!(into.map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    // An open file without a name counts until it is let go.
    fs.unlink(dir, "f").expect("unlink");
    assert_eq!(fs.run(create(sub)).map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    fs.run(Op::Reap { ino: file }).expect("reap");
    fs.rename((ROOT, "aside"), (sub, "aside"), RenameMode::Replace).expect("there is room");
    let usage = quota::usage(&fs.tables, Account::Tree(dir)).expect("usage").expect("a tree");
    assert_eq!((usage.bytes, usage.inodes), (0, 3));
    assert_eq!(read::inode(&fs.tables, aside).expect("inode").tree, dir);
    fs.run(Op::RemoveXattr { ino: dir, name: QUOTA.into() }).expect("no limit");
    fs.run(create(sub)).expect("create");
    invariants::check(&fs.tables);
}

#[test]
fn a_users_files_count_wherever_they_are() {
    let mut fs = Fs::new();
    fs.set_xattr(ROOT, &user(7), b"inodes=2").expect("quota");
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    let file = fs.create(dir, "a", FileKind::File);
    let name = b"b".to_vec();
    let cred = kos_types::Cred { uid: 8, gid: 8 };
    let kind = FileKind::File;
    let other = Op::Create { parent: dir, name, kind, mode: 0, umask: 0, cred, rdev: 0, target: vec![] };
    let theirs = fs.attr_of(other).ino;
    let give = |uid| SetAttr { uid: Some(uid), ..SetAttr::default() };
    let taken = fs.run(Op::SetAttr { ino: theirs, set: give(7) });
    assert_eq!(taken.map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    fs.run(Op::SetAttr { ino: file, set: give(8) }).expect("given away");
    fs.run(Op::SetAttr { ino: theirs, set: give(7) }).expect("there is room");
    // Linking is no new inode.
    fs.run(Op::Link { ino: theirs, parent: ROOT, name: b"l".into() }).expect("link");
}

#[test]
fn links_and_renames_between_quotas() {
    let mut fs = Fs::new();
    let (a, b) = (fs.create(ROOT, "a", FileKind::Dir), fs.create(ROOT, "b", FileKind::Dir));
    let deep = fs.create(a, "deep", FileKind::Dir);
    let file = fs.create(deep, "f", FileKind::File);
    fs.commit(file, StripeId(1), 10, &[(0, 10, 0)]).expect("commit");
    fs.set_xattr(b, QUOTA, b"bytes=9").expect("quota of b");
    let link = fs.run(Op::Link { ino: file, parent: b, name: b"l".into() });
    assert_eq!(link.map_err(|e| e.kind()), Err(Kind::CrossDevice));
    let over = fs.rename((a, "deep"), (b, "deep"), RenameMode::Replace);
    assert_eq!(over.map_err(|e| e.kind()), Err(Kind::QuotaExceeded));
    fs.set_xattr(b, QUOTA, b"bytes=10").expect("quota of b");
    // A tree in a tree moves as a whole, and what it has counts in both.
    fs.set_xattr(deep, QUOTA, b"inodes=2").expect("quota of deep");
    fs.rename((a, "deep"), (b, "deep"), RenameMode::Replace).expect("rename");
    let usage = |fs: &Fs, dir| quota::usage(&fs.tables, Account::Tree(dir)).expect("usage").expect("a tree");
    assert_eq!((usage(&fs, b).bytes, usage(&fs, b).inodes), (10, 3));
    assert_eq!((usage(&fs, deep).parent, usage(&fs, deep).inodes), (b, 2));
    fs.run(Op::Link { ino: file, parent: deep, name: b"l".into() }).expect("link inside");
    let out = fs.rename((deep, "f"), (ROOT, "f"), RenameMode::Replace);
    assert_eq!(out.map_err(|e| e.kind()), Err(Kind::CrossDevice), "its other link stays behind");
    fs.unlink(deep, "l").expect("unlink");
    fs.rename((deep, "f"), (ROOT, "f"), RenameMode::Replace).expect("rename");
    assert_eq!(usage(&fs, b).bytes, 0);
    invariants::check(&fs.tables);
}

#[test]
fn what_is_no_quota_is_refused() {
    let mut fs = Fs::new();
    let file = fs.create(ROOT, "f", FileKind::File);
    let dir = fs.create(ROOT, "d", FileKind::Dir);
    for bad in
        ["", "bytes", "bytes=", "bytes=-1", "bytes=+1", "bytes=1 bytes=2", "blocks=1", "bytes=99999999T"]
    {
        let set = fs.set_xattr(dir, QUOTA, bad.as_bytes());
        assert_eq!(set.map_err(|e| e.kind()), Err(Kind::Invalid), "{bad:?}");
    }
    let kinds = [
        fs.set_xattr(file, QUOTA, b"bytes=1"),
        fs.set_xattr(dir, &user(7), b"bytes=1"),
        fs.set_xattr(ROOT, b"trusted.kos.quota.uid.x", b"bytes=1"),
        fs.set_xattr(ROOT, &user(0), b"bytes=1"),
        fs.set_xattr(dir, b"trusted.kos.other", b"bytes=1"),
    ];
    let kinds = kinds.map(|result| result.map_err(|e| e.kind()));
    assert_eq!(kinds[0], Err(Kind::NotDir));
    assert!(kinds[1..].iter().all(|kind| *kind == Err(Kind::Invalid)), "{kinds:?}");
}
