//! Random operations on two files against two byte arrays: on the filesystem without a mount, and
//! through a mount by descriptors of every kind.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kos_types::{Ino, ROOT, SetAttr, SetSize};
use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};

use super::{Live, Model, Rng, arena, create, put, read, unmounted};
use crate::fs::{Allocate, Fs};

/// Files stay below this: more than a stripe, and small enough to be read whole.
const BYTES_MAX: usize = 5 << 20;
/// Small files do: about half of them fit the metadata.
const SMALL_MAX: usize = 9000;
const NAMES: [&str; 2] = ["a", "b"];

/// What is tested: two files, called 0 and 1.
trait Target {
    fn write(&mut self, file: usize, off: usize, data: &[u8]);
    fn append(&mut self, file: usize, data: &[u8]);
    fn truncate(&mut self, file: usize, size: usize);
    fn allocate(&mut self, file: usize, off: usize, len: usize, mode: Allocate);
    fn copy(&mut self, from: (usize, usize), to: (usize, usize), len: usize) -> usize;
    fn read(&mut self, file: usize, off: usize, len: usize) -> Vec<u8>;
    fn seek(&mut self, file: usize, off: usize, data: bool) -> Option<usize>;
    fn size(&mut self, file: usize) -> usize;
    fn flush(&mut self, file: usize);
    /// Drop what only memory holds, after flushing it.
    fn restart(&mut self);
}

/// What the files must hold.
type Bytes = [Vec<u8>; 2];

fn write(bytes: &mut Vec<u8>, off: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(off + data.len()), 0);
    bytes[off..off + data.len()].copy_from_slice(data);
}

/// A range that is at most so long: mostly short, at times of whole pages or several stripes.
fn range(rng: &mut Rng, end: usize) -> (usize, usize) {
    let len = match rng.below(8) {
        0 => rng.below(end),
        1..3 => rng.below(200_000),
        3 => (1 + rng.below(40)) * 4096,
        _ => rng.below(5000),
    };
    let len = len.clamp(1, end);
    let off = rng.below(end - len + 1);
    (if rng.below(3) == 0 { off & !4095 } else { off }, len)
}

fn data(rng: &mut Rng, len: usize) -> Vec<u8> {
    // Zeros become holes.
    if rng.below(4) == 0 { vec![0; len] } else { rng.bytes(len) }
}

/// Files stay below `max`.
fn compare(target: &mut impl Target, rng: &mut Rng, steps: usize, max: usize) -> Bytes {
    let mut bytes = Bytes::default();
    for step in 0..steps {
        let file = rng.below(2);
        let (off, len) = range(rng, max);
        let size = bytes[file].len();
        match rng.below(20) {
            0..6 => {
                let data = data(rng, len);
                target.write(file, off, &data);
                write(&mut bytes[file], off, &data);
            }
            6..8 if size + len <= max => {
                let data = data(rng, len);
                target.append(file, &data);
                write(&mut bytes[file], size, &data);
            }
            8 => {
                target.truncate(file, off);
                bytes[file].resize(off, 0);
            }
            9 => {
                target.allocate(file, off, len, Allocate::Punch);
                let end = size.min(off + len);
                bytes[file][off.min(end)..end].fill(0);
            }
            10 => {
                let keep = rng.below(2) == 0;
                target.allocate(file, off, len, Allocate::Zero(keep));
                let end = if keep { size.min(off + len) } else { off + len };
                if off < end {
                    write(&mut bytes[file], off, &vec![0; end - off]);
                }
            }
            11 => {
                let keep = rng.below(2) == 0;
                target.allocate(file, off, len, if keep { Allocate::Reserve } else { Allocate::Extend });
                if !keep {
                    bytes[file].resize(size.max(off + len), 0);
                }
            }
            12 => copy(target, rng, &mut bytes, (file, off, len), (step, max)),
            13 => target.flush(file),
            14 if rng.below(5) == 0 => target.restart(),
            15 => check_seek(target, rng, file, &bytes[file], (step, max)),
            _ => {
                let out = target.read(file, off, len);
                let end = size.min(off + len);
                assert!(out == bytes[file][off.min(end)..end], "step {step}: {len} bytes at {off}");
            }
        }
        assert_eq!(target.size(file), bytes[file].len(), "step {step}: size");
    }
    for (file, bytes) in bytes.iter().enumerate() {
        assert!(target.read(file, 0, BYTES_MAX) == *bytes, "at the end: file {file}");
    }
    bytes
}

/// Copy from the range to anywhere in either file, without an overlap.
fn copy(
    target: &mut impl Target,
    rng: &mut Rng,
    bytes: &mut Bytes,
    (file, off, len): (usize, usize, usize),
    (step, max): (usize, usize),
) {
    let (to, to_off) = (rng.below(2), rng.below(max - len + 1));
    if file == to && off < to_off + len && to_off < off + len {
        return;
    }
    let end = bytes[file].len().min(off + len);
    let copied = target.copy((file, off), (to, to_off), len);
    assert_eq!(copied, end.saturating_sub(off), "step {step}: copied");
    if copied > 0 {
        let part = bytes[file][off..end].to_vec();
        write(&mut bytes[to], to_off, &part);
    }
}

/// Holes hold nothing, data and holes end where the file does.
fn check_seek(
    target: &mut impl Target,
    rng: &mut Rng,
    file: usize,
    bytes: &[u8],
    (step, max): (usize, usize),
) {
    let off = rng.below(max);
    let data = target.seek(file, off, true);
    let hole = target.seek(file, off, false);
    if off >= bytes.len() {
        assert_eq!((data, hole), (None, None), "step {step}: beyond the end");
        return;
    }
    assert!(bytes[off..data.unwrap_or(bytes.len())].iter().all(|&b| b == 0), "step {step}: data in a hole");
    assert!(hole.is_some_and(|at| (off..=bytes.len()).contains(&at)), "step {step}: hole at {hole:?}");
    assert!(data == Some(off) || hole == Some(off), "step {step}: neither data nor hole");
}

/// The filesystem without a mount.
struct Direct {
    fs: Fs<Model>,
    files: [Ino; 2],
}

impl Target for &Direct {
    fn write(&mut self, file: usize, off: usize, data: &[u8]) {
        self.fs.write(self.files[file], Some(off as u64), data, false).expect("write");
    }

    fn append(&mut self, file: usize, data: &[u8]) {
        self.fs.write(self.files[file], None, data, false).expect("append");
    }

    fn truncate(&mut self, file: usize, size: usize) {
        let set = SetAttr { size: Some(SetSize { size: size as u64 }), ..SetAttr::default() };
        assert_eq!(self.fs.set_attr(self.files[file], set).expect("truncate").size, size as u64);
    }

    fn allocate(&mut self, file: usize, off: usize, len: usize, mode: Allocate) {
        self.fs.allocate(self.files[file], off as u64, len as u64, mode, 0).expect("allocate");
    }

    fn copy(&mut self, from: (usize, usize), to: (usize, usize), len: usize) -> usize {
        let (from, to) = ((self.files[from.0], from.1 as u64), (self.files[to.0], to.1 as u64));
        self.fs.copy(from, to, len as u64, 0).expect("copy") as usize
    }

    fn read(&mut self, file: usize, off: usize, len: usize) -> Vec<u8> {
        read(&self.fs, self.files[file], off as u64, len).expect("read")
    }

    fn seek(&mut self, file: usize, off: usize, data: bool) -> Option<usize> {
        self.fs.seek(self.files[file], off as u64, data).expect("seek").map(|at| at as usize)
    }

    fn size(&mut self, file: usize) -> usize {
        self.fs.attr(self.files[file]).expect("attributes").size as usize
    }

    fn flush(&mut self, file: usize) {
        self.fs.files.flush(self.files[file]).expect("flush");
    }

    fn restart(&mut self) {
        self.fs.flush_all().expect("flush");
    }
}

#[test]
fn the_filesystem_equals_a_byte_array() {
    let mut rng = Rng::seeded(1);
    for round in 0..18 {
        let max = if round % 3 == 0 { BYTES_MAX } else { SMALL_MAX };
        let (model, fs) = unmounted();
        let files = NAMES.map(|name| create(&fs, name));
        let mut target = &Direct { fs, files };
        let bytes = compare(&mut target, &mut rng, 500, max);
        // What is flushed is all of it.
        target.restart();
        assert_eq!(model.reserved.load(Ordering::Relaxed), 0, "no more is set aside than is buffered");
        let again = &Direct { fs: Fs::new(model.clone(), Vec::new(), arena()), files };
        for (file, bytes) in bytes.iter().enumerate() {
            assert!({ again }.read(file, 0, BYTES_MAX) == *bytes, "flushed: file {file}");
        }
        for name in NAMES {
            target.fs.unlink((ROOT, name.as_bytes())).expect("unlink");
        }
        for ino in files {
            target.fs.forget(ino, 1);
        }
        target.fs.files.reap();
        assert_eq!((model.stripes(), model.orphans()), (0, Vec::new()), "nothing is left");
    }
}

#[test]
fn the_filesystem_equals_a_byte_array_while_it_is_flushed() {
    let mut rng = Rng::seeded(2);
    for round in 0..8 {
        let max = if round % 2 == 0 { BYTES_MAX } else { SMALL_MAX };
        let (model, fs) = unmounted();
        let files = NAMES.map(|name| create(&fs, name));
        let target = &Direct { fs, files };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    target.fs.flush_all().expect("flush");
                    thread::sleep(Duration::from_micros(200));
                }
            });
            let stops = StopWhenDropped(&stop);
            compare(&mut { target }, &mut rng, 500, max);
            drop(stops);
        });
        target.fs.flush_all().expect("flush");
        assert_eq!(model.reserved.load(Ordering::Relaxed), 0, "no more is set aside than is buffered");
    }
}

/// Also when the test fails, or its threads would run on.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A mount, with descriptors of all kinds that are opened again and again in any order.
struct Mount {
    /// Closed before the mount goes.
    open: [[Option<File>; 4]; 2],
    live: Live,
    rng: Rng,
}

/// What a descriptor is opened with besides writing, and reading but for the last.
const KINDS: [i32; 4] = [0, libc::O_DIRECT, libc::O_APPEND, 0];
const CACHED: usize = 0;
const APPEND: usize = 2;
const STREAM: usize = 3;

impl Mount {
    fn new(rng: Rng, threads: usize) -> Self {
        let live = Live::with_threads(threads);
        for name in NAMES {
            put(&live.path(name), b"");
        }
        Self { live, rng, open: Default::default() }
    }

    fn file(&mut self, file: usize, kind: usize) -> &File {
        if self.rng.below(10) == 0 {
            // Closed here, or kept open while another mode is opened anew.
            let kind = self.rng.below(4);
            self.open[file][kind] = None;
        }
        self.open[file][kind].get_or_insert_with(|| {
            let mut options = OpenOptions::new();
            options.read(kind != STREAM).write(true).custom_flags(KINDS[kind]);
            options.open(self.live.path(NAMES[file])).expect("open")
        })
    }

    fn any(&mut self, file: usize) -> &File {
        let kind = self.rng.below(2);
        self.file(file, kind)
    }

    /// A shared mapping of the whole file, through a descriptor of any kind.
    fn map(&mut self, file: usize) -> Option<MmapMut> {
        let kind = self.rng.below(3);
        let file = self.file(file, kind);
        let len = file.metadata().expect("stat").len();
        (len > 0).then(|| {
            #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; the test owns the file")]
            // SAFETY: only this thread touches the file, and not while a slice of the mapping lives.
            unsafe { MmapMut::map_mut(file) }.expect("mmap")
        })
    }
}

impl Target for Mount {
    fn write(&mut self, file: usize, off: usize, data: &[u8]) {
        if self.rng.below(4) == 0
            && let Some(mut map) = self.map(file)
            && off + data.len() <= map.len()
        {
            map[off..off + data.len()].copy_from_slice(data);
            if self.rng.below(2) == 0 {
                map.flush().expect("msync");
            }
            return;
        }
        let stream = self.rng.below(3) == 0;
        let file = if stream { self.file(file, STREAM) } else { self.any(file) };
        file.write_all_at(data, off as u64).expect("write");
    }

    fn append(&mut self, file: usize, data: &[u8]) {
        use std::io::Write;
        self.file(file, APPEND).write_all(data).expect("append");
    }

    fn truncate(&mut self, file: usize, size: usize) {
        self.any(file).set_len(size as u64).expect("truncate");
    }

    fn allocate(&mut self, file: usize, off: usize, len: usize, mode: Allocate) {
        let flags = match mode {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::Reserve => FallocateFlags::KEEP_SIZE,
            Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::Zero(false) => FallocateFlags::ZERO_RANGE,
            Allocate::Zero(true) => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        fallocate(self.any(file), flags, off as u64, len as u64).expect("fallocate");
    }

    fn copy(&mut self, from: (usize, usize), to: (usize, usize), len: usize) -> usize {
        let (mut from_off, mut to_off) = (from.1 as u64, to.1 as u64);
        let source = self.any(from.0).as_fd().try_clone_to_owned().expect("dup");
        let target = self.any(to.0).as_fd().try_clone_to_owned().expect("dup");
        copy_file_range(source, Some(&mut from_off), target, Some(&mut to_off), len).expect("copy")
    }

    fn read(&mut self, file: usize, off: usize, len: usize) -> Vec<u8> {
        if self.rng.below(3) == 0
            && let Some(map) = self.map(file)
        {
            let end = map.len().min(off + len);
            return map[off.min(end)..end].to_vec();
        }
        let (mut out, mut at) = (vec![0; len], 0);
        while at < len {
            match self.any(file).read_at(&mut out[at..], (off + at) as u64).expect("read") {
                0 => break,
                n => at += n,
            }
        }
        out.truncate(at);
        out
    }

    fn seek(&mut self, file: usize, off: usize, data: bool) -> Option<usize> {
        let from = if data { SeekFrom::Data(off as u64) } else { SeekFrom::Hole(off as u64) };
        match seek(self.any(file), from) {
            Ok(at) => Some(at as usize),
            Err(e) => {
                assert_eq!(e, rustix::io::Errno::NXIO);
                None
            }
        }
    }

    fn size(&mut self, file: usize) -> usize {
        fs::metadata(self.live.path(NAMES[file])).expect("stat").len() as usize
    }

    fn flush(&mut self, file: usize) {
        self.file(file, CACHED).sync_all().expect("fsync");
    }

    fn restart(&mut self) {
        self.open = Default::default();
        self.live.remount();
    }
}

#[test]
fn a_mount_equals_a_byte_array_by_descriptors_of_every_kind() {
    let mut rng = Rng::seeded(3);
    let mut target = Mount::new(rng.split(), 4);
    compare(&mut target, &mut rng, 2000, BYTES_MAX);
}

/// No request waits for another one: of pages that are dirty in a mapping, for instance.
#[test]
fn one_thread_serves_descriptors_of_every_kind() {
    let mut rng = Rng::seeded(4);
    let mut target = Mount::new(rng.split(), 1);
    compare(&mut target, &mut rng, 1000, BYTES_MAX);
}
