//! More programs: sizes, attributes, files without a name, positions in directories.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use kos_tests::Rng;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, RawDir, Timespec, Timestamps, XattrFlags, copy_file_range, fallocate,
    fsetxattr, futimens, getxattr, linkat, removexattr, setxattr,
};
use rustix::io::Errno;

use crate::programs::{Program, open, rounds};

pub(crate) const ALL: [(&str, Program); 8] = [
    ("sizes", sizes),
    ("attributes", attributes),
    ("unnamed", unnamed),
    ("direct", direct),
    ("positions", positions),
    ("times", times),
    ("replaced", replaced),
    ("truncated", truncated),
];

const FILE_BYTES: usize = 1 << 20;

/// Makes files shorter and longer, punches holes, and copies ranges between and inside of them.
fn sizes(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let files = [open(&dir.join("a")), open(&dir.join("b"))];
    let mut models = [vec![0_u8; 0], vec![0_u8; 0]];
    rounds(stop, |round| {
        let at = rng.below(2) as usize;
        let (file, model) = (&files[at], &mut models[at]);
        let (off, len) = (rng.below(FILE_BYTES as u64) as usize, 1 + rng.below(100_000) as usize);
        match rng.below(6) {
            0 | 1 => {
                let bytes = rng.bytes(len);
                file.write_all_at(&bytes, off as u64).unwrap_or_else(|e| panic!("round {round}: write: {e}"));
                model.resize(model.len().max(off + len), 0);
                model[off..off + len].copy_from_slice(&bytes);
            }
            2 => {
                file.set_len(off as u64).unwrap_or_else(|e| panic!("round {round}: truncate: {e}"));
                model.resize(off, 0);
            }
            3 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, off as u64, len as u64)
                    .unwrap_or_else(|e| panic!("round {round}: punch: {e}"));
                let end = (off + len).min(model.len());
                model[off.min(end)..end].fill(0);
            }
            4 => {
                fallocate(file, FallocateFlags::empty(), off as u64, len as u64)
                    .unwrap_or_else(|e| panic!("round {round}: fallocate: {e}"));
                model.resize(model.len().max(off + len), 0);
            }
            _ => {
                let (mut from, mut to) = (rng.below(FILE_BYTES as u64), off as u64);
                let begin = from as usize;
                let copied = copy_file_range(file, Some(&mut from), &files[1 - at], Some(&mut to), len)
                    .unwrap_or_else(|e| panic!("round {round}: copy_file_range: {e}"));
                assert_eq!(copied, len.min(model.len().saturating_sub(begin)), "round {round}: copied");
                if copied > 0 {
                    let bytes = model[begin..begin + copied].to_vec();
                    let other = &mut models[1 - at];
                    other.resize(other.len().max(off + copied), 0);
                    other[off..off + copied].copy_from_slice(&bytes);
                }
            }
        }
        if round % 10 == 0 {
            for (file, model) in files.iter().zip(&models) {
                assert_eq!(file.metadata().expect("stat").len(), model.len() as u64, "round {round}: size");
                let mut read = vec![0; model.len()];
                file.read_exact_at(&mut read, 0).expect("read");
                if let Some(at) = read.iter().zip(model).position(|(a, b)| a != b) {
                    panic!("round {round}: byte {at} is {} and not {}", read[at], model[at]);
                }
            }
        }
    })
}

/// Attributes that are made once, replaced and removed once.
fn attributes(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("file");
    let file = open(&path);
    let name = "user.own";
    rounds(stop, |round| {
        let failed = |what: &'static str| move |e: Errno| -> () { panic!("round {round}: {what}: {e}") };
        let (one, two) = (rng.next().to_le_bytes(), rng.next().to_le_bytes());
        setxattr(&path, name, &one, XattrFlags::CREATE).unwrap_or_else(failed("create"));
        assert_eq!(setxattr(&path, name, &two, XattrFlags::CREATE), Err(Errno::EXIST), "round {round}");
        fsetxattr(&file, name, &two, XattrFlags::REPLACE).unwrap_or_else(failed("replace"));
        let mut found = [0_u8; 8];
        assert_eq!(getxattr(&path, name, &mut found[..]), Ok(8), "round {round}");
        assert_eq!(found, two, "round {round}");
        removexattr(&path, name).unwrap_or_else(failed("remove"));
        assert_eq!(removexattr(&path, name), Err(Errno::NODATA), "round {round}");
    })
}

/// Files that have no name until they are whole.
fn unnamed(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    rounds(stop, |round| {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE);
        let file = options.open(dir).unwrap_or_else(|e| panic!("round {round}: O_TMPFILE: {e}"));
        let len = 1 + rng.below(50_000) as usize;
        let bytes = rng.bytes(len);
        file.write_all_at(&bytes, 0).unwrap_or_else(|e| panic!("round {round}: write: {e}"));
        if rng.below(3) == 0 {
            return;
        }
        let link = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a path");
        let name = dir.join("named");
        linkat(CWD, &*link, CWD, &name, AtFlags::SYMLINK_FOLLOW)
            .unwrap_or_else(|e| panic!("round {round}: linkat: {e}"));
        let again = linkat(CWD, &*link, CWD, &name, AtFlags::SYMLINK_FOLLOW);
        assert_eq!(again, Err(Errno::EXIST), "round {round}");
        if rng.below(2) == 0 {
            drop(file);
        }
        assert!(fs::read(&name).expect("read") == bytes, "round {round}: what was linked");
        fs::remove_file(&name).unwrap_or_else(|e| panic!("round {round}: remove: {e}"));
    })
}

/// Appends past the page cache.
fn direct(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    #[repr(align(4096))]
    struct Aligned([u8; 16384]);
    let path = dir.join("log");
    let mut options = File::options();
    let mut file = options.append(true).create(true).custom_flags(libc::O_DIRECT).open(&path).expect("open");
    let mut model = Vec::new();
    let mut room = Box::new(Aligned([0; 16384]));
    rounds(stop, |round| {
        let len = 4096 * (1 + rng.below(4)) as usize;
        room.0[..len].copy_from_slice(&rng.bytes(len));
        file.write_all(&room.0[..len]).unwrap_or_else(|e| panic!("round {round}: append: {e}"));
        model.extend_from_slice(&room.0[..len]);
        if round % 20 == 0 {
            assert!(fs::read(&path).expect("read") == model, "round {round}: blocks twice, or lost");
        }
        if model.len() > 4 << 20 {
            file.set_len(0).expect("set_len");
            model.clear();
        }
    })
}

/// Lists a directory piece by piece, and waits in between.
fn positions(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let wanted: BTreeSet<_> =
        (0..600).map(|nth| format!("a-name-of-some-length-{nth}").into_bytes()).collect();
    for name in &wanted {
        File::create(dir.join(std::ffi::OsStr::from_bytes(name))).expect("create");
    }
    rounds(stop, |round| {
        let stream = File::open(dir).expect("opendir");
        let mut room = [MaybeUninit::uninit(); 600];
        let mut entries = RawDir::new(&stream, &mut room);
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap_or_else(|e| panic!("round {round}: readdir: {e}"));
            found.push(entry.file_name().to_bytes().to_vec());
            if rng.below(50) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(rng.below(20)));
            }
        }
        found.retain(|name| name != b"." && name != b"..");
        assert_eq!(found.len(), wanted.len(), "round {round}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), wanted, "round {round}");
    })
}

/// Sets times behind writes, which keep them.
fn times(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("file");
    let file = open(&path);
    rounds(stop, |round| {
        let len = 1 + rng.below(10_000) as usize;
        file.write_all_at(&rng.bytes(len), rng.below(100_000)).expect("write");
        let time = Timespec {
            tv_sec: rng.below(1 << 31).cast_signed(),
            tv_nsec: rng.below(1_000_000_000).cast_signed(),
        };
        futimens(&file, &Timestamps { last_access: time, last_modification: time })
            .unwrap_or_else(|e| panic!("round {round}: utimens: {e}"));
        for _ in 0..4 {
            let found = rustix::fs::stat(&path).expect("stat");
            assert_eq!(
                (found.st_mtime, found.st_mtime_nsec as i64),
                (time.tv_sec, time.tv_nsec),
                "round {round}"
            );
            std::thread::sleep(std::time::Duration::from_millis(rng.below(30)));
        }
    })
}

/// Replaces a file by a new one, which is never seen empty or in part.
fn replaced(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let (path, new) = (dir.join("file"), dir.join("new"));
    rounds(stop, |round| {
        let len = 1 + rng.below(200_000) as usize;
        let bytes = rng.bytes(len);
        fs::write(&new, &bytes).unwrap_or_else(|e| panic!("round {round}: write: {e}"));
        fs::rename(&new, &path).unwrap_or_else(|e| panic!("round {round}: rename: {e}"));
        assert!(fs::read(&path).expect("read") == bytes, "round {round}");
        assert!(!new.exists(), "round {round}");
    })
}

/// Opens with O_TRUNC what has bytes, and writes less.
fn truncated(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("file");
    rounds(stop, |round| {
        let len = rng.below(60_000) as usize;
        let bytes = rng.bytes(len);
        let mut file = File::create(&path).unwrap_or_else(|e| panic!("round {round}: create: {e}"));
        file.write_all(&bytes).unwrap_or_else(|e| panic!("round {round}: write: {e}"));
        assert_eq!(file.metadata().expect("stat").len(), len as u64, "round {round}");
        drop(file);
        assert!(fs::read(&path).expect("read") == bytes, "round {round}");
    })
}
