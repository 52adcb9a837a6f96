//! INIT, notifications and the ring.

use super::super::init::{MINOR, MINOR_LEAST};
use super::super::notify::{
    EXPIRE_ONLY, delete, inc_epoch, inval_entry, inval_inode, prune, resend, retrieve, store,
};
use super::super::ring::{self, COMMAND_BYTES, ENTRY_AT, ENTRY_BYTES, HEADERS_BYTES, IN_OUT_AT, OP_IN_AT};
use super::super::{Agreed, Fault, InitIn, Refused, Wanted, agree, flag};
use super::{Bytes, u32_at};

const EVERY: u64 = ((1 << 43) - 1) & !flag::INIT_RESERVED;

const WANTED: Wanted = Wanted {
    flags: flag::MAX_PAGES | flag::PASSTHROUGH | flag::SETXATTR_EXT | flag::REQUEST_TIMEOUT,
    max_write: (1 << 20) + 4096,
    max_readahead: 1 << 20,
    max_pages: 257,
    max_background: 64,
    congestion_threshold: 48,
    time_gran: 1,
    max_stack_depth: 1,
    request_timeout: 300,
};

fn kernel(minor: u32, flags: u64) -> InitIn {
    InitIn { major: 7, minor, max_readahead: 128 << 10, flags }
}

fn agreed(minor: u32, flags: u64, wanted: &Wanted) -> (Agreed, Vec<u8>) {
    agree(&kernel(minor, flags), wanted).expect("a kernel that is new enough")
}

#[test]
fn init_is_decoded() {
    let old = Bytes::default().u32(7).u32(31).u32(4096).u32(9);
    assert_eq!(InitIn::decode(&old.0), Ok(InitIn { major: 7, minor: 31, max_readahead: 4096, flags: 9 }));
    let word = (flag::INIT_EXT | 1) as u32;
    let new = Bytes::default().u32(7).u32(45).u32(4096).u32(word).u32(0x200).raw(&[0; 44]);
    assert_eq!(new.0.len(), 64);
    let flags = flag::INIT_EXT | flag::OVER_IO_URING | flag::ASYNC_READ;
    assert_eq!(InitIn::decode(&new.0).map(|init| init.flags), Ok(flags));
    for len in 0..20 {
        assert_eq!(InitIn::decode(&new.0[..len]).map_err(|e| e.fault), Err(Fault::Short), "{len}");
    }
    // The second word is none where nothing says so.
    let unsaid = Bytes::default().u32(7).u32(35).u32(4096).u32(1).u32(0x200);
    assert_eq!(InitIn::decode(&unsaid.0).map(|init| init.flags), Ok(flag::ASYNC_READ));
    let other = InitIn { major: 8, minor: 3, ..InitIn::default() };
    assert_eq!(InitIn::decode(&Bytes::default().u32(8).u32(3).0), Ok(other));
}

#[test]
fn the_newest_gives_all_that_is_wanted() {
    let (terms, answer) = agreed(45, EVERY, &WANTED);
    assert_eq!(terms.minor, 45);
    assert_eq!(terms.flags, WANTED.flags | flag::INIT_EXT);
    assert_eq!(terms.lacks(&WANTED), 0);
    assert_eq!((terms.max_write, terms.max_readahead, terms.max_pages), ((1 << 20) + 4096, 128 << 10, 257));
    let words = Bytes::default().u32(7).u32(45).u32(128 << 10).u32((terms.flags & 0xffff_ffff) as u32);
    let words = words.u16(64).u16(48).u32((1 << 20) + 4096).u32(1).u16(257).u16(0);
    let words = words.u32((terms.flags >> 32) as u32).u32(1).u16(300).raw(&[0; 22]);
    assert_eq!(answer, words.0);
    assert_eq!(answer.len(), 64);
}

#[test]
fn a_newer_minor_is_spoken_to_as_the_newest_known() {
    let (terms, answer) = agreed(46, u64::MAX, &WANTED);
    assert_eq!((terms.minor, u32_at(&answer, 4)), (MINOR, MINOR));
    assert_eq!(terms.flags & (flag::INIT_RESERVED | !EVERY), 0);
}

#[test]
fn the_oldest_gives_what_it_has() {
    // Flags of the second word cannot be there.
    let (terms, answer) = agreed(MINOR_LEAST, EVERY & !flag::INIT_EXT, &WANTED);
    assert_eq!(terms.minor, 31);
    assert_eq!(terms.flags, flag::MAX_PAGES | flag::SETXATTR_EXT);
    assert_eq!(terms.lacks(&WANTED), flag::PASSTHROUGH | flag::REQUEST_TIMEOUT);
    assert_eq!(answer[32..], [0; 32]);

    let (bare, answer) = agreed(MINOR_LEAST, 0, &WANTED);
    assert_eq!((bare.flags, bare.lacks(&WANTED)), (0, WANTED.flags));
    assert_eq!((bare.max_pages, u32_at(&answer, 12)), (32, 0));
}

#[test]
fn what_the_kernel_would_ignore_is_not_agreed_upon() {
    let flat = Wanted { max_stack_depth: 0, ..WANTED };
    assert_eq!(agreed(45, EVERY, &flat).0.lacks(&flat), flag::PASSTHROUGH);
    let cached = Wanted { flags: WANTED.flags | flag::WRITEBACK_CACHE, ..WANTED };
    assert_eq!(agreed(45, EVERY, &cached).0.lacks(&cached), flag::PASSTHROUGH);
    let reserved = Wanted { flags: flag::INIT_RESERVED, ..WANTED };
    assert_eq!(agreed(45, u64::MAX, &reserved).0.flags, flag::INIT_EXT);
    // Less than a page is a page.
    let small = Wanted { max_write: 0, ..WANTED };
    assert_eq!(agreed(45, EVERY, &small).0.max_write, 4096);
}

#[test]
fn other_versions_are_refused() {
    let older = agree(&kernel(30, EVERY), &WANTED).expect_err("too old");
    assert_eq!(older, Refused::Older(7, 30));
    assert!(older.to_string().contains("7.30"), "{older}");
    let major = InitIn { major: 6, minor: 99, ..InitIn::default() };
    assert_eq!(agree(&major, &WANTED), Err(Refused::Older(6, 99)));
    let major = InitIn { major: 8, minor: 0, ..InitIn::default() };
    let Err(Refused::Newer(answer)) = agree(&major, &WANTED) else { panic!("it is newer") };
    assert_eq!((answer.len(), u32_at(&answer, 0), u32_at(&answer, 4)), (64, 7, 45));
}

#[test]
fn buffers_hold_the_largest_request() {
    let (terms, _) = agreed(45, EVERY, &WANTED);
    assert_eq!(terms.buffer_bytes(), 80 + (1 << 20) + 4096);
    assert_eq!(terms.ring_payload_bytes(4096), 257 * 4096);
    let (small, _) = agreed(45, 0, &Wanted::default());
    assert_eq!(small.buffer_bytes(), 8192);
    assert_eq!(Agreed { max_pages: 1, ..small }.ring_payload_bytes(4096), 8192);
}

#[test]
fn notifications() {
    let header = |body: u32, code: u32| Bytes::default().u32(16 + body).u32(code).u64(0);
    assert_eq!(inval_inode(5, -1, 0), header(24, 2).u64(5).u64(u64::MAX).u64(0).0);
    assert_eq!(inval_entry(1, b"abc", EXPIRE_ONLY), header(20, 3).u64(1).u32(3).u32(1).raw(b"abc\0").0);
    assert_eq!(delete(1, 5, b"abc"), header(28, 6).u64(1).u64(5).u32(3).u32(0).raw(b"abc\0").0);
    assert_eq!(resend(), header(0, 7).0);
    assert_eq!(store(5, 4095, 1), header(25, 4).u64(5).u64(4095).u32(1).u32(0).0);
    assert_eq!(retrieve(9, 5, 3, 2), header(32, 5).u64(9).u64(5).u64(3).u32(2).u32(0).0);
    assert_eq!(inc_epoch(), header(0, 8).0);
    assert_eq!(prune(&[5, 6]), header(32, 9).u32(2).u32(0).u64(0).u64(5).u64(6).0);
}

#[test]
fn rings() {
    assert_eq!([IN_OUT_AT, OP_IN_AT, ENTRY_AT, HEADERS_BYTES], [0, 128, 256, ENTRY_AT + ENTRY_BYTES]);
    let entry = ring::Entry { flags: 1, commit_id: 2, payload_bytes: 3 };
    assert_eq!(entry.encode().to_vec(), Bytes::default().u64(1).u64(2).u32(3).u32(0).u64(0).0);
    assert_eq!(ring::Entry::decode(&entry.encode()), Ok(entry));
    for len in 0..ENTRY_BYTES {
        assert!(ring::Entry::decode(&entry.encode()[..len]).is_err());
    }
    assert_eq!(ring::command(2, 3).to_vec(), Bytes::default().u64(0).u64(2).u16(3).raw(&[0; 6]).0);
    assert_eq!(ring::command(2, 3).len(), COMMAND_BYTES);
}
