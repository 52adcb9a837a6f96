//! Descriptors of different kinds on one file: page cache, O_DIRECT, O_APPEND and mapped.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{OFlags, fcntl_setfl};

use super::{Live, Rng, put};

const BLOCK: usize = 4096;

fn both() -> OpenOptions {
    OpenOptions::new().read(true).write(true).clone()
}

fn map(file: &File) -> MmapMut {
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; the test owns the file")]
    // SAFETY: the tests reach mappings only through this slice and do not shorten the file.
    unsafe { MmapMut::map_mut(file) }.expect("mmap")
}

fn map_to_read(file: &File) -> io::Result<Mmap> {
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; the test owns the file")]
    // SAFETY: nobody shortens the file.
    unsafe {
        Mmap::map(file)
    }
}

/// The kernel writes a mapping's pages back through any descriptor that maps the file for writing.
#[test]
fn a_mapping_is_written_where_it_is_although_its_descriptor_appends() {
    let live = Live::new();
    let path = live.path("file");
    put(&path, &[1; 100_000]);
    let append = OpenOptions::new().read(true).append(true).open(&path).expect("append");
    let mut pages = map(&append);
    pages[5000..5003].copy_from_slice(b"new");
    pages.flush().expect("msync");
    (&append).write_all(b"end").expect("append");
    drop((append, pages));
    let found = fs::read(&path).expect("read");
    assert_eq!((found.len(), &found[5000..5003], &found[100_000..]), (100_003, &b"new"[..], &b"end"[..]));
}

/// fcntl(2) gives O_APPEND and takes it away while a file is open.
#[test]
fn append_is_what_the_descriptor_says_now() {
    let live = Live::new();
    let path = live.path("file");
    put(&path, b"0123456789");
    let file = OpenOptions::new().append(true).open(&path).expect("append");
    fcntl_setfl(&file, OFlags::empty()).expect("F_SETFL");
    file.write_all_at(b"ab", 2).expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"01ab456789");
    fcntl_setfl(&file, OFlags::APPEND).expect("F_SETFL");
    (&file).write_all(b"cd").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"01ab456789cd");
    drop(file);
    let file = both().open(&path).expect("open");
    fcntl_setfl(&file, OFlags::APPEND).expect("F_SETFL");
    (&file).write_all(b"ef").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"01ab456789cdef");
}

/// A log that one writes with O_APPEND and others follow. A size may show before its bytes are
/// there to be read; other bytes than those that were written never do.
#[test]
fn a_follower_reads_what_was_appended() {
    let live = Live::new();
    let path = live.path("log");
    let mut log = OpenOptions::new().append(true).create(true).open(&path).expect("create");
    let mut rng = Rng::seeded(1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let file = File::open(&path).expect("open");
                while !stop.load(Ordering::Relaxed) {
                    let len = file.metadata().expect("stat").len();
                    let mut tail = [0; 2 * BLOCK];
                    let found = file.read_at(&mut tail, len.saturating_sub(BLOCK as u64)).expect("read");
                    assert!(tail[..found].iter().all(|&b| b == b'x'), "a byte that nobody wrote, of {len}");
                }
            });
        }
        let mut written = 0;
        for _ in 0..4000 {
            let len = 1 + rng.below(300);
            log.write_all(&vec![b'x'; len]).expect("append");
            written += len;
            assert_eq!(log.metadata().expect("stat").len(), written as u64);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// The same with a descriptor that only writes, and so goes past the page cache while nobody holds pages:
/// followers come and go, and one has the file mapped.
#[test]
fn a_follower_reads_what_was_streamed() {
    let live = Live::new();
    let path = live.path("stream");
    let mut rng = Rng::seeded(2);
    for _ in 0..4 {
        let mut stream = File::create(&path).expect("create");
        let (stop, is_x) = (AtomicBool::new(false), |bytes: &[u8]| bytes.iter().all(|&b| b == b'x'));
        thread::scope(|scope| {
            for anew in [true, false, false, false] {
                let (path, stop) = (&path, &stop);
                scope.spawn(move || {
                    let mut file = File::open(path).expect("open");
                    while !stop.load(Ordering::Relaxed) {
                        let len = file.metadata().expect("stat").len();
                        let mut tail = [0; 2 * BLOCK];
                        let found = file.read_at(&mut tail, len.saturating_sub(BLOCK as u64)).expect("read");
                        assert!(is_x(&tail[..found]), "a byte that nobody wrote, of {len}");
                        if anew {
                            file = File::open(path).expect("open");
                        }
                    }
                });
            }
            let mut written = 0;
            for _ in 0..3000 {
                let len = 1 + rng.below(300);
                stream.write_all(&vec![b'x'; len]).expect("write");
                written += len;
                assert_eq!(stream.metadata().expect("stat").len(), written as u64);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(is_x(&map(&both().open(&path).expect("open"))), "mapped beside the stream");
        drop(stream);
        assert!(is_x(&fs::read(&path).expect("read")));
    }
}

/// A write of 1 MiB is taken at once also from memory that does not begin with a page: whoever reads a block
/// meanwhile gets the old or the new one.
#[test]
fn a_streamed_block_is_old_or_new() {
    const LEN: usize = 1 << 20;
    let live = Live::new();
    let path = live.path("blocks");
    let stream = File::create(&path).expect("create");
    let write = |version: u8| {
        let bytes = vec![version; LEN + BLOCK];
        let from = bytes.as_ptr().addr().wrapping_neg() % BLOCK + 16;
        stream.write_all_at(&bytes[from % BLOCK..][..LEN], 0).expect("write");
    };
    write(1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let file = File::open(&path).expect("open");
                let mut block = [0; BLOCK];
                while !stop.load(Ordering::Relaxed) {
                    file.read_exact_at(&mut block, (LEN - BLOCK) as u64).expect("read");
                    assert!(block.iter().all(|&b| b == block[0]), "torn");
                }
            });
        }
        (0..200).for_each(|version| write(2 + version));
        stop.store(true, Ordering::Relaxed);
    });
}

/// Once an O_DIRECT write has returned, nobody reads what was there before, although readers bring
/// pages into the cache all the time.
#[test]
fn a_direct_write_is_seen_by_cached_readers() {
    let live = Live::new();
    let path = live.path("file");
    put(&path, &[1; 4 * BLOCK]);
    let direct = both().custom_flags(libc::O_DIRECT).open(&path).expect("direct");
    let cached = both().open(&path).expect("cached");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let file = File::open(&path).expect("open");
                let mut out = [0; 4 * BLOCK];
                while !stop.load(Ordering::Relaxed) {
                    file.read_exact_at(&mut out, 0).expect("read");
                }
            });
        }
        for round in 0..3000 {
            let byte = (round % 255) as u8 + 1;
            let at = round % 4 * BLOCK;
            direct.write_all_at(&[byte; BLOCK], at as u64).expect("direct write");
            let mut out = [0; BLOCK];
            cached.read_exact_at(&mut out, at as u64).expect("read");
            assert_eq!(out, [byte; BLOCK], "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_private_mapping_keeps_its_stores_to_itself() {
    let live = Live::new();
    let path = live.path("file");
    put(&path, &[1; 4 * BLOCK]);
    for flags in [0, libc::O_DIRECT, libc::O_APPEND] {
        let file = both().custom_flags(flags).open(&path).expect("open");
        #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; the test owns the file")]
        // SAFETY: the mapping is reached only through this slice, and the file is not shortened.
        let mut own = unsafe { MmapOptions::new().map_copy(&file) }.expect("mmap");
        own[..BLOCK].fill(9);
        let mut shared = map(&file);
        shared[..2 * BLOCK].fill(3);
        assert!(own[..BLOCK] == [9; BLOCK], "what it stored");
        assert!(
            own[BLOCK..2 * BLOCK] == [3; BLOCK] && own[2 * BLOCK..] == [1; 2 * BLOCK],
            "what is in the file"
        );
        shared[..2 * BLOCK].fill(1);
        drop((own, shared));
        assert!(fs::read(&path).expect("read") == [1; 4 * BLOCK], "nothing of it reached the file");
    }
}

#[test]
fn direct_reads_and_writes_agree_with_a_mapping() {
    let live = Live::new();
    let path = live.path("file");
    put(&path, &[1; 16 * BLOCK]);
    let file = both().open(&path).expect("open");
    let direct = both().custom_flags(libc::O_DIRECT).open(&path).expect("direct");
    let mut pages = map(&file);
    for round in 0..100 {
        pages[BLOCK..2 * BLOCK].fill(round);
        let mut out = [0; 3 * BLOCK];
        direct.read_exact_at(&mut out, 0).expect("read");
        assert!(out[BLOCK..2 * BLOCK] == [round; BLOCK], "round {round}: what the mapping holds");
        // A page that is dirty in the mapping, and its half.
        pages[2 * BLOCK..3 * BLOCK].fill(round);
        direct.write_all_at(&[!round; BLOCK / 2], 2 * BLOCK as u64).expect("write");
        assert!(pages[2 * BLOCK..2 * BLOCK + BLOCK / 2] == [!round; BLOCK / 2], "round {round}: written");
        assert!(pages[2 * BLOCK + BLOCK / 2..3 * BLOCK] == [round; BLOCK / 2], "round {round}: kept");
    }
}

/// What write(2) has written is in every mapping when it returns, and in the page cache of who opens the file
/// later, although mappings bring pages in all the time.
#[test]
fn a_mapping_sees_what_was_streamed() {
    let live = Live::new();
    let path = live.path("mapped");
    put(&path, &[0; 2 * BLOCK]);
    for round in 0..50_u8 {
        // The kernel tells of a close some time after it: only then the next descriptor streams.
        thread::sleep(Duration::from_millis(10));
        let stream = OpenOptions::new().write(true).open(&path).expect("open");
        let pages = [(); 2].map(|()| File::open(&path).and_then(|file| map_to_read(&file)).expect("mmap"));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for pages in &pages {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        black_box((pages[0], pages[BLOCK]));
                    }
                });
            }
            for nth in 0..40 {
                let value = round.wrapping_sub(39).wrapping_add(nth);
                for page in 0..2 {
                    stream.write_all_at(&[value; BLOCK], page * BLOCK as u64).expect("write");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        for pages in &pages {
            assert_eq!((pages[0], pages[BLOCK]), (round, round));
        }
        drop((stream, pages));
        assert_eq!(fs::read(&path).expect("read"), [round; 2 * BLOCK]);
    }
}
