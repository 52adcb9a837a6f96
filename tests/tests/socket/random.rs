//! One file, changed and read in every way through two mounts by turns, against a byte array.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use kos_tests::{Daemon, Rng, seed};
use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};

use crate::second::*;

/// Several stripes, each of which can be a lease of its own.
const BYTES_MAX: usize = 10 << 20;
const STRIPE: usize = 4 << 20;
const PAGE: usize = 4096;

/// A place and what is written there.
type Range = (usize, usize);

/// The file as one mount shows it: descriptors that stay open for a while.
struct Side {
    path: PathBuf,
    plain: Option<File>,
    direct: Option<File>,
    append: Option<File>,
    read_only: Option<File>,
    write_only: Option<File>,
    map: Option<MmapMut>,
}

impl Side {
    fn new(path: PathBuf) -> Self {
        Self { path, plain: None, direct: None, append: None, read_only: None, write_only: None, map: None }
    }

    fn open(&self, flags: i32) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
        options.open(&self.path).expect("open")
    }

    fn plain(&mut self) -> &File {
        let new = self.plain.is_none().then(|| self.open(0));
        self.plain.get_or_insert_with(|| new.expect("just opened"))
    }

    fn direct(&mut self) -> &File {
        let new = self.direct.is_none().then(|| self.open(libc::O_DIRECT));
        self.direct.get_or_insert_with(|| new.expect("just opened"))
    }

    fn read_only(&mut self) -> &File {
        let path = &self.path;
        self.read_only.get_or_insert_with(|| File::open(path).expect("open to read"))
    }

    fn write_only(&mut self) -> &File {
        let path = &self.path;
        self.write_only
            .get_or_insert_with(|| OpenOptions::new().write(true).open(path).expect("open to write"))
    }

    fn append(&mut self, data: &[u8]) {
        let new = self.append.is_none().then(|| self.open(libc::O_APPEND));
        self.append.get_or_insert_with(|| new.expect("just opened")).write_all(data).expect("append");
    }

    /// A mapping of so many bytes at least, all of which the file has.
    fn map(&mut self, len: usize) -> &mut MmapMut {
        assert!(len <= BYTES_MAX);
        // A mapping ends for the kernel where the file did when it last heard of that.
        fs::metadata(&self.path).expect("stat");
        if self.map.is_none() {
            let file = self.open(0);
            #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; the test owns the file")]
            // SAFETY: one thread uses file and mapping, and only bytes that the file has are touched.
            let map = unsafe { MmapOptions::new().len(BYTES_MAX).map_mut(&file) };
            self.map = Some(map.expect("mmap"));
        }
        self.map.as_mut().expect("just mapped")
    }

    /// The bytes there, by a way of reading.
    fn read(&mut self, way: u64, (off, len): Range, mapped: usize) -> Vec<u8> {
        if way == 0 {
            let end = mapped.min(off + len);
            return if off < end { self.map(end)[off..end].to_vec() } else { Vec::new() };
        }
        let (mut out, mut at) = (vec![0; len], 0);
        let file = match way {
            1 => self.direct(),
            2 => self.plain(),
            _ => self.read_only(),
        };
        while at < len {
            match file.read_at(&mut out[at..], (off + at) as u64).expect("read") {
                0 => break,
                n => at += n,
            }
        }
        out.truncate(at);
        out
    }

    /// Store through a mapping; msync hands it to everybody.
    fn store(&mut self, off: usize, data: &[u8]) {
        let map = self.map(off + data.len());
        map[off..off + data.len()].copy_from_slice(data);
        map.flush_range(off, data.len()).expect("msync");
    }

    /// Close some of what is open.
    fn close(&mut self, rng: &mut Rng) {
        match rng.below(6) {
            0 => self.plain = None,
            1 => self.direct = None,
            2 => self.append = None,
            3 => self.read_only = None,
            4 => self.write_only = None,
            _ => self.map = None,
        }
    }
}

fn put(bytes: &mut Vec<u8>, off: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(off + data.len()), 0);
    bytes[off..off + data.len()].copy_from_slice(data);
}

/// Mostly short, and often over the end of a stripe; whole pages when `align` is a page.
fn range(rng: &mut Rng, align: usize) -> Range {
    let len = match rng.below(8) {
        0 => rng.below(1 << 20),
        1..3 => rng.below(200_000),
        _ => rng.below(10_000),
    } as usize;
    let len = len.next_multiple_of(align).max(align);
    let off = match rng.below(3) {
        0 => (STRIPE << rng.below(2)).saturating_sub(rng.below(len as u64 + 1) as usize),
        _ => rng.below((BYTES_MAX - len) as u64) as usize,
    };
    let off = off.min(BYTES_MAX - len);
    (off / align * align, len)
}

fn allocate(file: &File, flags: FallocateFlags, (off, len): Range) {
    fallocate(file, flags, off as u64, len as u64).expect("fallocate");
}

/// One change by one mount, and the same to the model.
fn change(side: &mut Side, rng: &mut Rng, align: usize, bytes: &mut Vec<u8>) {
    let (off, len) = range(rng, align);
    let size = bytes.len();
    let end = size.min(off + len);
    let keep = FallocateFlags::KEEP_SIZE;
    match rng.below(13) {
        0..3 => {
            let data = rng.bytes(len);
            side.plain().write_all_at(&data, off as u64).expect("write");
            put(bytes, off, &data);
        }
        4 if size + len <= BYTES_MAX => {
            let data = rng.bytes(len);
            side.append(&data);
            bytes.extend(data);
        }
        5 => {
            let size = off + rng.below(len as u64 + 1) as usize / align * align;
            side.plain().set_len(size as u64).expect("truncate");
            bytes.resize(size, 0);
        }
        6 => {
            allocate(side.plain(), FallocateFlags::PUNCH_HOLE | keep, (off, len));
            bytes[off.min(end)..end].fill(0);
        }
        7 => {
            allocate(side.plain(), FallocateFlags::ZERO_RANGE, (off, len));
            put(bytes, off, &vec![0; len]);
        }
        8 if off + 2 * len <= BYTES_MAX && off + len <= size => {
            let file = side.plain();
            let (mut from, mut to) = (off as u64, (off + len) as u64);
            // The kernel cuts it where the file ended when it last heard of that.
            file.metadata().expect("stat");
            let copied = copy_file_range(file, Some(&mut from), file, Some(&mut to), len).expect("copy");
            assert_eq!(copied, len);
            let part = bytes[off..off + len].to_vec();
            put(bytes, off + len, &part);
        }
        9 | 10 if off + len <= size => {
            let data = rng.bytes(len);
            side.store(off, &data);
            put(bytes, off, &data);
        }
        11 => side.plain().sync_all().expect("fsync"),
        3 | 12 => {
            let data = rng.bytes(len);
            side.write_only().write_all_at(&data, off as u64).expect("write");
            put(bytes, off, &data);
        }
        // What has no room or no bytes there.
        _ => {
            let data = rng.bytes(len);
            side.direct().write_all_at(&data, off as u64).expect("direct write");
            put(bytes, off, &data);
        }
    }
}

/// The same bytes and size through both, whoever changed them.
fn compare(sides: &mut [Side], rng: &mut Rng, align: usize, bytes: &[u8], step: &str) {
    for (nth, side) in sides.iter_mut().enumerate() {
        // That takes all of the file; most of the time only a part of it is wanted.
        if rng.below(4) == 0 {
            let size = fs::metadata(&side.path).expect("stat").len();
            assert_eq!(size, bytes.len() as u64, "{step}: size at {nth}");
        }
        let (off, len) = range(rng, align);
        let way = rng.below(4);
        let found = side.read(way, (off, len), bytes.len());
        let end = bytes.len().min(off + len);
        let wanted = &bytes[off.min(end)..end];
        assert_eq!(found.len(), wanted.len(), "{step}: {len} bytes at {off} at {nth} by way {way}");
        let wrong = found.iter().zip(wanted).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{step}: {len} bytes at {off} at {nth} by way {way}");
    }
}

fn alternate(align: usize, steps: usize) {
    let mut daemon = Daemon::with_ram(512 << 20);
    in_memory(&daemon);
    let second = Second::place();
    let mut sides = [daemon.mem(), second.mem()].map(|dir| Side::new(dir.join("file")));
    drop(sides[0].open(0));
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::new();
    // What is open then was opened by a mount that was alone.
    for step in 0..rng.below(50) {
        change(&mut sides[0], &mut rng, align, &mut bytes);
        compare(&mut sides[..1], &mut rng, align, &bytes, &format!("KOS_SEED={seed} step {step} alone"));
    }
    assert_eq!(second.run(&source(&daemon, ""), "rw"), (Some(0), String::new()));
    for step in 0..steps {
        let by = rng.below(2) as usize;
        if rng.below(8) == 0 {
            sides[by].close(&mut rng);
        }
        change(&mut sides[by], &mut rng, align, &mut bytes);
        compare(&mut sides, &mut rng, align, &bytes, &format!("KOS_SEED={seed} step {step} by {by}"));
    }
    for side in &sides {
        assert!(fs::read(&side.path).expect("read") == bytes, "KOS_SEED={seed}: at the end");
    }
    drop(sides);
    second.umount(false);
    daemon.stop();
}

/// Steps of one run; the soak asks for more.
fn steps() -> usize {
    std::env::var("KOS_STEPS").map_or(500, |n| n.parse().expect("KOS_STEPS: a number"))
}

#[test]
fn two_mounts_equal_a_byte_array() {
    alternate(1, steps());
}

#[test]
fn two_mounts_equal_a_byte_array_in_whole_pages() {
    alternate(PAGE, steps());
}
