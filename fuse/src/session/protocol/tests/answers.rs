//! Answers have the layout of linux/fuse.h.

use std::time::Duration;

use super::super::reply::{
    Attr, Entry, OutHeader, Statfs, attr, bmap, copied, create, entry, ioctl, lock, lseek, no_entry, open,
    poll, statfs, statx, write, xattr_size,
};
use super::super::{Listing, Name, Small};
use super::{Bytes, u32_at, u64_at};

const ATTR: Attr = Attr {
    ino: 11,
    size: 4097,
    blocks: 16,
    atime: (-1, 101),
    mtime: (2, 102),
    ctime: (3, 103),
    mode: 0o100_644,
    nlink: 12,
    uid: 13,
    gid: 14,
    rdev: 0x1234_5678,
    blksize: 4096,
};

const ENTRY: Entry =
    Entry { attr: ATTR, generation: 21, entry_ttl: Duration::new(22, 23), attr_ttl: Duration::new(24, 25) };

fn attr_bytes(out: Bytes) -> Bytes {
    let out = out.u64(11).u64(4097).u64(16).u64(u64::MAX).u64(2).u64(3).u32(101).u32(102).u32(103);
    out.u32(0o100_644).u32(12).u32(13).u32(14).u32(0x1234_5678).u32(4096).u32(0)
}

fn entry_bytes(out: Bytes) -> Bytes {
    attr_bytes(out.u64(11).u64(21).u64(22).u64(24).u32(23).u32(25))
}

#[track_caller]
fn same(answer: &Small, bytes: &Bytes, len: usize) {
    assert_eq!(answer.as_bytes().len(), len);
    assert_eq!(answer.as_bytes(), bytes.0);
}

#[test]
fn inodes() {
    let new = Bytes::default;
    same(&attr(&ATTR, Duration::new(5, 6)), &attr_bytes(new().u64(5).u32(6).u32(0)), 104);
    same(&entry(&ENTRY), &entry_bytes(new()), 128);
    same(&create(&ENTRY, 31, 0x82, 33), &entry_bytes(new()).u64(31).u32(0x82).u32(33), 144);
    same(&open(31, 2, -1), &new().u64(31).u32(2).u32(u32::MAX), 16);
    let none = no_entry(Duration::new(7, 8));
    same(&none, &new().u64(0).u64(0).u64(7).u64(0).u32(8).u32(0).raw(&[0; 88]), 128);
}

#[test]
fn numbers() {
    let new = Bytes::default;
    same(&write(1 << 20), &new().u32(1 << 20).u32(0), 8);
    same(&xattr_size(9), &new().u32(9).u32(0), 8);
    same(&poll(5), &new().u32(5).u32(0), 8);
    same(&copied(1 << 40), &new().u64(1 << 40), 8);
    same(&lseek(1 << 40), &new().u64(1 << 40), 8);
    same(&bmap(3), &new().u64(3), 8);
    same(&ioctl(-1), &new().u32(u32::MAX).u32(0).u64(0), 16);
    same(&lock(10, 19, 2, 77), &new().u64(10).u64(19).u32(2).u32(77), 24);
    let fs = Statfs { blocks: 1, bfree: 2, bavail: 3, files: 4, ffree: 5, bsize: 6, namelen: 7, frsize: 8 };
    same(&statfs(&fs), &new().u64(1).u64(2).u64(3).u64(4).u64(5).u32(6).u32(7).u32(8).raw(&[0; 28]), 80);
}

/// statx(2)'s structure is at 32; where its fields are is from linux/stat.h.
#[test]
fn statx_is_that_of_statx() {
    let answer = statx(&ATTR, Some((4, 104)), Duration::new(5, 6));
    let bytes = answer.as_bytes();
    assert_eq!(bytes.len(), 288);
    assert_eq!((u64_at(bytes, 0), u32_at(bytes, 8)), (5, 6));
    let stat = &bytes[32..];
    assert_eq!((u32_at(stat, 0x00), u32_at(stat, 0x04)), (0xfff, 4096));
    assert_eq!((u32_at(stat, 0x10), u32_at(stat, 0x14), u32_at(stat, 0x18)), (12, 13, 14));
    assert_eq!(stat[0x1c..0x1e], 0o100_644_u16.to_ne_bytes());
    assert_eq!((u64_at(stat, 0x20), u64_at(stat, 0x28), u64_at(stat, 0x30)), (11, 4097, 16));
    let times = [0x40, 0x50, 0x60, 0x70].map(|at| (u64_at(stat, at), u32_at(stat, at + 8)));
    assert_eq!(times, [(u64::MAX, 101), (4, 104), (3, 103), (2, 102)]);
    // makedev(0x456, 0x12378), as the kernel puts it into 32 bits.
    assert_eq!((u32_at(stat, 0x80), u32_at(stat, 0x84)), (0x456, 0x12378));
    assert!(stat[0x88..].iter().all(|byte| *byte == 0));

    let without = statx(&ATTR, None, Duration::ZERO);
    assert_eq!(u32_at(without.as_bytes(), 32), 0x7ff);
    assert_eq!(u64_at(without.as_bytes(), 32 + 0x50), 0);
}

#[test]
fn headers() {
    let answer = OutHeader::answer(6, 128);
    assert_eq!(answer.encode().to_vec(), Bytes::default().u32(144).u32(0).u64(6).0);
    let error = OutHeader::error(6, 2);
    assert_eq!(error.encode().to_vec(), Bytes::default().u32(16).u32(-2_i32 as u32).u64(6).0);
}

#[test]
fn listings_are_aligned_and_end() {
    let name = |name: &'static [u8], next| Name { ino: next + 40, next, mode: 0o40_755, name };
    let one = |dirent: Bytes, name: &[u8], padding: usize| dirent.raw(name).raw(&vec![0; padding]);
    let mut buffer = [0xa5; 88];
    let mut list = Listing::new(&mut buffer);
    assert!(list.is_empty());
    assert!(!list.add(&name(b"eight...", 1)));
    assert!(!list.add(&name(b"n", 2)));
    // 24 bytes are left: not enough for any name.
    assert!(list.add(&name(b"m", 3)));
    assert_eq!(list.len(), 64);
    let first = one(Bytes::default().u64(41).u64(1).u32(8).u32(4), b"eight...", 0);
    let second = one(Bytes::default().u64(42).u64(2).u32(1).u32(4), b"n", 7);
    assert_eq!(list.as_bytes(), [first.0, second.0].concat());
}

#[test]
fn listings_with_attributes() {
    let file = Name { ino: 11, next: 9, mode: ATTR.mode, name: b"abc" };
    let mut buffer = [0xa5; 2 * 160 + 159];
    let mut list = Listing::new(&mut buffer);
    assert!(!list.add_plus(&file, Some(&ENTRY)));
    assert!(!list.add_plus(&file, None));
    assert!(list.add_plus(&file, None));
    let dirent = |out: Bytes| out.u64(11).u64(9).u32(3).u32(8).raw(b"abc\0\0\0\0\0").0;
    let untold = Bytes::default().raw(&[0; 128]);
    assert_eq!(list.as_bytes(), [dirent(entry_bytes(Bytes::default())), dirent(untold)].concat());
}

#[test]
fn listings_in_too_little_are_full() {
    let file = Name { ino: 11, next: 9, mode: ATTR.mode, name: b"abc" };
    for len in 0..32 {
        assert!(Listing::new(&mut vec![0; len]).add(&file), "{len}");
    }
    assert!(!Listing::new(&mut [0; 32]).add(&file));
}
