//! What new stripes are written with: an inode's own attributes, else its nearest ancestor's.

use kos_core::policy::{self, COMPRESS, CONSISTENCY, DURABILITY, EC, PIN, SEAL};
use kos_core::read;
use kos_types::{
    Class, Compress, Consistency, FileKind, Geometry, Ino, Kind, Op, Pin, Policy, ROOT, RenameMode, Reply,
    SetAttr, SetSize,
};

use crate::fs::Fs;

fn is(class: Class, k: u8, m: u8) -> Policy {
    Policy { class, geometry: Geometry::new(k, m).expect("in range"), ..Policy::default() }
}

fn of(fs: &Fs, ino: Ino) -> Policy {
    policy::of(&fs.tables, ino).expect("policy")
}

/// `/a/b/f`: the inodes of a, b and f.
fn path(fs: &mut Fs) -> [Ino; 3] {
    let a = fs.create(ROOT, "a", FileKind::Dir);
    let b = fs.create(a, "b", FileKind::Dir);
    [a, b, fs.create(b, "f", FileKind::File)]
}

#[test]
fn nothing_said_is_the_default() {
    let mut fs = Fs::new();
    let [_, _, file] = path(&mut fs);
    assert_eq!(of(&fs, file), is(Class::Disk, 4, 2));
}

#[test]
fn the_nearest_says_and_each_attribute_for_itself() {
    let mut fs = Fs::new();
    let [a, b, file] = path(&mut fs);
    assert_eq!(fs.set_xattr(ROOT, EC, b"8+3"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Disk, 8, 3));
    assert_eq!(fs.set_xattr(a, DURABILITY, b"memory"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Memory, 8, 3));
    assert_eq!(fs.set_xattr(b, EC, b"2+1"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Memory, 2, 1));
    assert_eq!(of(&fs, a), is(Class::Memory, 8, 3));
    assert_eq!(fs.set_xattr(file, DURABILITY, b"disk"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Disk, 2, 1));
    assert_eq!(fs.run(Op::RemoveXattr { ino: file, name: DURABILITY.into() }), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Memory, 2, 1));
}

#[test]
fn compression_is_inherited_as_the_others() {
    let mut fs = Fs::new();
    let [a, _, file] = path(&mut fs);
    assert_eq!(of(&fs, file).compress, Compress::Auto);
    assert_eq!(fs.set_xattr(a, COMPRESS, b"none"), Ok(Reply::Done));
    assert_eq!(of(&fs, file).compress, Compress::None);
    assert_eq!(fs.set_xattr(file, COMPRESS, b"lz4"), Ok(Reply::Done));
    assert_eq!((of(&fs, file).compress, of(&fs, a).compress), (Compress::Lz4, Compress::None));
}

#[test]
fn pinning_is_inherited_and_not_for_disk() {
    let mut fs = Fs::new();
    let [a, b, file] = path(&mut fs);
    assert_eq!(fs.set_xattr(a, PIN, b"ram"), Ok(Reply::Done));
    assert_eq!(of(&fs, file).pin, Pin::None, "nothing of class disk is in memory");
    assert_eq!(fs.set_xattr(a, DURABILITY, b"memory"), Ok(Reply::Done));
    assert_eq!(of(&fs, file).pin, Pin::Ram);
    assert_eq!(fs.set_xattr(b, DURABILITY, b"scratch"), Ok(Reply::Done));
    assert_eq!(of(&fs, file).pin, Pin::Ram);
    assert_eq!(fs.set_xattr(file, PIN, b"none"), Ok(Reply::Done));
    assert_eq!((of(&fs, file).pin, of(&fs, b).pin), (Pin::None, Pin::Ram));
}

#[test]
fn scratch_has_no_parity() {
    let mut fs = Fs::new();
    let [a, _, file] = path(&mut fs);
    assert_eq!(fs.set_xattr(a, DURABILITY, b"scratch"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Scratch, 4, 0));
    assert_eq!(fs.set_xattr(file, EC, b"16+4"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Scratch, 16, 0));
    assert_eq!(fs.set_xattr(file, DURABILITY, b"memory"), Ok(Reply::Done));
    assert_eq!(of(&fs, file), is(Class::Memory, 16, 4));
}

#[test]
fn a_file_that_moves_follows_its_new_directory() {
    let mut fs = Fs::new();
    let [a, b, file] = path(&mut fs);
    let other = fs.create(ROOT, "other", FileKind::Dir);
    assert_eq!(fs.set_xattr(other, DURABILITY, b"memory"), Ok(Reply::Done));
    fs.rename((a, "b"), (other, "b"), RenameMode::Replace).expect("rename");
    assert_eq!(of(&fs, file), is(Class::Memory, 4, 2));
    // Open and without a name, it has its own word left.
    assert_eq!(fs.set_xattr(file, EC, b"1+1"), Ok(Reply::Done));
    fs.unlink(b, "f").expect("unlink");
    assert_eq!(of(&fs, file), is(Class::Disk, 1, 1));
}

#[test]
fn what_it_cannot_mean_is_refused() {
    let mut fs = Fs::new();
    let [a, ..] = path(&mut fs);
    let before = fs.tables.clone();
    let geometries = [
        "", "+", "4", "4+", "+2", "0+2", "17+2", "4+5", "-4+2", "4+2+1", "4 + 2", "4+2 ", "256+0", "4++2",
        "+4+2",
    ];
    for value in geometries.map(str::as_bytes).into_iter().chain([&b"\xff+2"[..]]) {
        let error = fs.set_xattr(a, EC, value).expect_err("accepted");
        assert_eq!(error.kind(), Kind::Invalid, "{value:?}");
    }
    for (name, value) in [
        (COMPRESS, "zstd"),
        (COMPRESS, ""),
        (PIN, ""),
        (PIN, "disk"),
        (DURABILITY, ""),
        (DURABILITY, "Disk"),
        (DURABILITY, "disk "),
        (b"user.kos.x", "disk"),
    ] {
        let error = fs.set_xattr(a, name, value.as_bytes()).expect_err("accepted");
        assert_eq!(error.kind(), Kind::Invalid, "{name:?} {value}");
    }
    assert!(fs.tables == before, "a refused command changed something");
    assert_eq!(read::xattrs(&fs.tables, a), Ok(Vec::new()));
    for value in ["1+0", "16+4", "4+2"] {
        assert_eq!(fs.set_xattr(a, EC, value.as_bytes()), Ok(Reply::Done), "{value}");
    }
    assert_eq!(fs.set_xattr(a, b"user.kosher", b"anything"), Ok(Reply::Done));
}

#[test]
fn a_seal_is_the_inodes_own_and_on_close_is_inherited() {
    let mut fs = Fs::new();
    let [a, b, file] = path(&mut fs);
    let on_close = |fs: &Fs, ino| policy::sharing(&fs.tables, ino).expect("sharing").seal_on_close;
    assert!(!on_close(&fs, file));
    assert_eq!(fs.set_xattr(a, SEAL, b"on-close"), Ok(Reply::Done));
    assert!(on_close(&fs, b) && on_close(&fs, file));
    assert_eq!(fs.set_xattr(file, SEAL, b"0"), Ok(Reply::Done));
    assert!(!on_close(&fs, file), "its own word comes first");
    let sealed = |fs: &Fs| read::inode(&fs.tables, file).expect("alive").attr.sealed;
    assert!(!sealed(&fs));
    assert_eq!(fs.set_xattr(file, SEAL, b"1"), Ok(Reply::Done));
    assert!(sealed(&fs));
    let size = Some(SetSize { size: 0 });
    for op in [
        Op::SetAttr { ino: file, set: SetAttr { size, ..SetAttr::default() } },
        Op::Punch { ino: file, off: 0, len: 1 },
        Op::Clone { from: file, from_off: 0, to: file, to_off: 0, len: 0 },
    ] {
        assert_eq!(fs.run(op.clone()).expect_err("sealed").kind(), Kind::NotPermitted, "{op:?}");
    }
    assert_eq!(fs.run(Op::RemoveXattr { ino: file, name: SEAL.into() }), Ok(Reply::Done));
    assert!(!sealed(&fs));
    for (ino, value) in [(a, &b"1"[..]), (a, b"2"), (file, b"on-close"), (file, b""), (file, b"01")] {
        assert_eq!(fs.set_xattr(ino, SEAL, value).expect_err("accepted").kind(), Kind::Invalid, "{value:?}");
    }
}

#[test]
fn the_nearest_says_how_consistent() {
    let mut fs = Fs::new();
    let [a, b, file] = path(&mut fs);
    let of = |fs: &Fs, ino| policy::sharing(&fs.tables, ino).expect("sharing").consistency;
    assert_eq!(of(&fs, file), Consistency::Strong);
    assert_eq!(fs.set_xattr(a, CONSISTENCY, b"eventual"), Ok(Reply::Done));
    assert_eq!(fs.set_xattr(b, CONSISTENCY, b"release"), Ok(Reply::Done));
    assert_eq!((of(&fs, a), of(&fs, file)), (Consistency::Eventual, Consistency::Release));
}
