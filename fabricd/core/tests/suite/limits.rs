//! Bounds that random commands do not reach.

use kos_core::{keys, read};
use kos_types::limits::{FILE_BYTES_MAX, LINKS_MAX, NAME_BYTES_MAX, XATTRS_MAX};
use kos_types::{Attr, Error, FileKind, Ino, Kind, Op, ROOT, Reply, SetAttr, SetSize, XattrMode};

use crate::fs::Fs;
use crate::invariants;

fn resize(fs: &mut Fs, ino: Ino, size: u64) -> Result<Reply, Error> {
    fs.run(Op::SetAttr { ino, set: SetAttr { size: Some(SetSize { size }), ..SetAttr::default() } })
}

#[test]
fn links_end_at_the_bound() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    let mut inode = read::inode(&fs.tables, ino).expect("inode");
    inode.attr.nlink = LINKS_MAX - 1;
    fs.tables.write([(keys::inode(ino), Some(inode.encode()))].into());
    let link = |name: &str| Op::Link { ino, parent: ROOT, name: name.into() };
    assert!(matches!(fs.run(link("last")), Ok(Reply::Attr(Attr { nlink: LINKS_MAX, .. }))));
    assert_eq!(fs.run(link("more")).expect_err("one more").kind(), Kind::TooManyLinks);
}

#[test]
fn attributes_end_at_the_bound_and_go_with_the_inode() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    for i in 0..XATTRS_MAX {
        fs.set_xattr(ino, format!("user.{i}").as_bytes(), b"v").expect("below the bound");
    }
    assert_eq!(fs.set_xattr(ino, b"user.more", b"v").expect_err("one more").kind(), Kind::NoSpace);
    assert_eq!(fs.set_xattr(ino, b"user.0", b"other"), Ok(Reply::Done), "one that is there");
    // Neither names nor values of other inodes are among them.
    let other = fs.create(ROOT, "other", FileKind::File);
    fs.set_xattr(other, b"user.more", b"v").expect("another inode");
    fs.unlink(ROOT, "f").expect("unlink");
    assert_eq!(fs.run(Op::Reap { ino }), Ok(Reply::Done));
    invariants::check(&fs.tables);
    assert_eq!(read::xattrs(&fs.tables, other), Ok(vec![b"user.more".to_vec()]));
}

#[test]
fn attributes_of_a_gone_inode_are_stale() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, "f", FileKind::File);
    fs.unlink(ROOT, "f").expect("unlink");
    fs.run(Op::Reap { ino }).expect("reap");
    for mode in [XattrMode::Any, XattrMode::Create, XattrMode::Replace] {
        let op = Op::SetXattr { ino, name: b"user.a".into(), value: Vec::new(), mode };
        assert_eq!(fs.run(op).expect_err("gone").kind(), Kind::Stale, "{mode:?}");
    }
}

#[test]
fn names_and_files_end_at_the_bound() {
    let mut fs = Fs::new();
    let ino = fs.create(ROOT, &"n".repeat(NAME_BYTES_MAX), FileKind::File);
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    assert_eq!(fs.unlink(ROOT, &long).expect_err("too long").kind(), Kind::NameTooLong);
    assert_eq!(
        read::lookup(&fs.tables, ROOT, long.as_bytes()).expect_err("too long").kind(),
        Kind::NameTooLong
    );
    resize(&mut fs, ino, FILE_BYTES_MAX).expect("the largest file");
    assert_eq!(resize(&mut fs, ino, FILE_BYTES_MAX + 1).expect_err("larger").kind(), Kind::TooLarge);
    let (off, len) = (FILE_BYTES_MAX - 3, 3);
    assert!(fs.run(Op::Punch { ino, off, len }).is_ok());
    let to_off = off + 1;
    let op = Op::Clone { from: ino, from_off: 0, to: ino, to_off, len };
    assert_eq!(fs.run(op).expect_err("larger").kind(), Kind::TooLarge);
}

/// A deep tree: every directory on the way up is one step of a rename's check.
#[test]
fn a_directory_does_not_move_below_itself_however_deep() {
    let mut fs = Fs::new();
    let top = fs.create(ROOT, "d", FileKind::Dir);
    let mut at = top;
    for _ in 0..5000 {
        at = fs.create(at, "d", FileKind::Dir);
    }
    let replace = kos_types::RenameMode::Replace;
    assert_eq!(fs.rename((ROOT, "d"), (at, "d"), replace).expect_err("a ring").kind(), Kind::Invalid);
    fs.create(at, "e", FileKind::Dir);
    fs.rename((at, "e"), (ROOT, "e"), replace).expect("up");
    assert_eq!(read::parent(&fs.tables, at).map(|up| up != ROOT), Ok(true));
}
