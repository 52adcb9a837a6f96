//! Programs that use a mount in a loop, and check all that they see. Each panics at the first error.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kos_tests::Rng;
use memmap2::MmapMut;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};

/// What runs in a directory of its own until it is told to stop, and answers how often it went round.
pub(crate) type Program = fn(&Path, Rng, &AtomicBool) -> u64;

pub(crate) const ALL: [(&str, Program); 8] = [
    ("overwrites", overwrites),
    ("appends", appends),
    ("maps", maps),
    ("names", names),
    ("locks", locks),
    ("streams", streams),
    ("unlinked", unlinked),
    ("lists", lists),
];

const FILE_BYTES: usize = 3 << 20;

pub(crate) fn rounds(stop: &AtomicBool, mut round: impl FnMut(u64)) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        round(count);
        count += 1;
    }
    count
}

pub(crate) fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

/// Writes anywhere in a file and reads it back; now and then all of it, and it is made shorter and longer.
fn overwrites(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let file = open(&dir.join("file"));
    let mut model = vec![0_u8; FILE_BYTES];
    file.write_all_at(&model, 0).expect("write");
    rounds(stop, |round| {
        let len = 1 + rng.below(if round % 5 == 0 { 300_000 } else { 9000 }) as usize;
        let off = rng.below((model.len() - len.min(model.len() - 1)) as u64) as usize;
        let bytes = rng.bytes(len.min(model.len() - off));
        file.write_all_at(&bytes, off as u64).expect("write");
        model[off..off + bytes.len()].copy_from_slice(&bytes);
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, off as u64).expect("read");
        assert!(read == bytes, "round {round}: what was just written at {off}");
        if round % 40 == 0 {
            let size = FILE_BYTES / 2 + rng.below(FILE_BYTES as u64 / 2) as usize;
            file.set_len(size as u64).expect("set_len");
            model.resize(size, 0);
            file.set_len(FILE_BYTES as u64).expect("set_len");
            model.resize(FILE_BYTES, 0);
        }
        if round % 20 == 0 {
            let mut all = vec![0; FILE_BYTES];
            file.read_exact_at(&mut all, 0).expect("read");
            if let Some(at) = all.iter().zip(&model).position(|(a, b)| a != b) {
                panic!("round {round}: byte {at} is {} and not {}", all[at], model[at]);
            }
        }
        if round % 30 == 0 {
            file.sync_all().expect("fsync");
        }
    })
}

/// Appends lines, each of which is there once.
fn appends(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("log");
    let mut file = File::options().append(true).create(true).open(&path).expect("open");
    let mut expected = String::new();
    let count = rounds(stop, |round| {
        let line = format!("{round} {}\n", "x".repeat(rng.below(500) as usize));
        file.write_all(line.as_bytes()).expect("append");
        expected.push_str(&line);
        if round % 50 == 0 {
            assert!(
                fs::read_to_string(&path).expect("read") == expected,
                "round {round}: lines twice, or lost"
            );
        }
    });
    assert!(fs::read_to_string(&path).expect("read") == expected, "lines twice, or lost");
    count
}

/// Stores into a mapping, and reads through another descriptor after an msync.
fn maps(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("mapped");
    let file = open(&path);
    file.set_len(FILE_BYTES as u64).expect("set_len");
    #[expect(unsafe_code, reason = "a mapping")]
    // SAFETY: nobody else changes the file.
    let mut map = unsafe { MmapMut::map_mut(&file) }.expect("map");
    let mut model = vec![0_u8; FILE_BYTES];
    rounds(stop, |round| {
        for _ in 0..20 {
            let at = rng.below((FILE_BYTES - 100) as u64) as usize;
            let len = 1 + rng.below(99) as usize;
            let bytes = rng.bytes(len);
            map[at..at + bytes.len()].copy_from_slice(&bytes);
            model[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        assert!(map[..] == model[..], "round {round}: the mapping");
        if round % 4 == 0 {
            map.flush().expect("msync");
            assert!(fs::read(&path).expect("read") == model, "round {round}: the file");
        }
    })
}

/// Makes, links, moves and removes names, each of which works once.
fn names(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let at = |name: &str| dir.join(name);
    let none = rustix::fs::CWD;
    rounds(stop, |round| {
        let new = File::options().write(true).create_new(true).open(at("new"));
        let mut new = new.unwrap_or_else(|e| panic!("round {round}: create: {e}"));
        let text = format!("{round}");
        new.write_all(text.as_bytes()).expect("write");
        drop(new);
        fs::hard_link(at("new"), at("link")).unwrap_or_else(|e| panic!("round {round}: link: {e}"));
        renameat_with(none, at("new"), none, at("moved"), RenameFlags::NOREPLACE)
            .unwrap_or_else(|e| panic!("round {round}: rename: {e}"));
        fs::create_dir(at("dir")).unwrap_or_else(|e| panic!("round {round}: mkdir: {e}"));
        std::os::unix::fs::symlink(&text, at("symlink"))
            .unwrap_or_else(|e| panic!("round {round}: symlink: {e}"));
        assert_eq!(fs::read_link(at("symlink")).expect("readlink"), Path::new(&text));
        if rng.below(2) == 0 {
            fs::rename(at("link"), at("dir/link")).unwrap_or_else(|e| panic!("round {round}: rename: {e}"));
            fs::rename(at("dir/link"), at("link")).unwrap_or_else(|e| panic!("round {round}: rename: {e}"));
        }
        renameat_with(none, at("moved"), none, at("symlink"), RenameFlags::EXCHANGE)
            .unwrap_or_else(|e| panic!("round {round}: exchange: {e}"));
        assert_eq!(fs::read_to_string(at("symlink")).expect("read"), text);
        assert_eq!(fs::read_to_string(at("link")).expect("read"), text);
        for name in ["moved", "symlink", "link"] {
            fs::remove_file(at(name)).unwrap_or_else(|e| panic!("round {round}: remove {name}: {e}"));
        }
        fs::remove_dir(at("dir")).unwrap_or_else(|e| panic!("round {round}: rmdir: {e}"));
    })
}

#[expect(unsafe_code, reason = "fcntl")]
fn lock_range(file: &File, kind: i32, (start, len): (i64, i64)) -> Result<(), i32> {
    // SAFETY: zeros are a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (kind as i16, libc::SEEK_SET as i16);
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the structure lives during the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// Holds locks that another descriptor never gets, and changes some.
fn locks(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("locked");
    let (holder, other) = (open(&path), open(&path));
    flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("flock");
    lock_range(&holder, libc::F_WRLCK, (0, 100)).expect("lock");
    rounds(stop, |round| {
        let refused = flock(&other, FlockOperation::NonBlockingLockShared).expect_err("flock of two");
        assert_eq!(refused, rustix::io::Errno::WOULDBLOCK, "round {round}");
        let at = rng.below(90).cast_signed();
        assert_eq!(lock_range(&other, libc::F_RDLCK, (at, 10)), Err(libc::EAGAIN), "round {round}: at {at}");
        let span = (200 + rng.below(100).cast_signed(), 10);
        lock_range(&holder, libc::F_WRLCK, span).expect("lock");
        assert_eq!(lock_range(&other, libc::F_WRLCK, span), Err(libc::EAGAIN), "round {round}");
        lock_range(&holder, libc::F_UNLCK, span).expect("unlock");
        lock_range(&other, libc::F_WRLCK, span).expect("free");
        lock_range(&other, libc::F_UNLCK, span).expect("unlock");
    })
}

/// Writes new files from begin to end, past the page cache, and reads them.
fn streams(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    rounds(stop, |round| {
        let path = dir.join(format!("stream{}", round % 3));
        let len = 200_000 + rng.below(3_000_000) as usize;
        let bytes = rng.bytes(len);
        let mut file = File::options().write(true).create(true).truncate(true).open(&path).expect("create");
        for part in bytes.chunks(1 + rng.below(1 << 20) as usize) {
            file.write_all(part).expect("write");
        }
        drop(file);
        let mut direct = File::options();
        direct.read(true).custom_flags(if round % 2 == 0 { libc::O_DIRECT } else { 0 });
        let mut read = Vec::new();
        direct.open(&path).expect("open").read_to_end(&mut read).expect("read");
        assert!(read == bytes, "round {round}: {} bytes of {}", read.len(), bytes.len());
    })
}

/// Uses a file without a name all the time.
fn unlinked(dir: &Path, mut rng: Rng, stop: &AtomicBool) -> u64 {
    let path = dir.join("gone");
    let mut file = open(&path);
    fs::remove_file(&path).expect("unlink");
    let mut temporary = File::options();
    let unnamed =
        temporary.read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir).expect("O_TMPFILE");
    let mut model = Vec::new();
    rounds(stop, |round| {
        let len = 1 + rng.below(5000) as usize;
        let bytes = rng.bytes(len);
        file.seek(SeekFrom::End(0)).expect("seek");
        file.write_all(&bytes).expect("write");
        unnamed.write_all_at(&bytes, 0).expect("write");
        model.extend_from_slice(&bytes);
        if model.len() > 200_000 {
            file.set_len(0).expect("set_len");
            model.clear();
        }
        let mut read = Vec::new();
        file.rewind().expect("seek");
        file.read_to_end(&mut read).expect("read");
        assert!(read == model, "round {round}: {} bytes of {}", read.len(), model.len());
        let mut read = vec![0; bytes.len()];
        unnamed.read_exact_at(&mut read, 0).expect("read");
        assert!(read == bytes, "round {round}: without a name");
    })
}

/// Lists directories, and looks at all that is in them.
fn lists(dir: &Path, _rng: Rng, stop: &AtomicBool) -> u64 {
    for name in 0..200 {
        fs::write(dir.join(format!("{name}")), name.to_string()).expect("write");
    }
    rounds(stop, |round| {
        let mut count = 0;
        for entry in fs::read_dir(dir).expect("list") {
            let entry = entry.expect("entry");
            let name = entry.file_name().into_string().expect("a name");
            let len = entry.metadata().expect("stat").len();
            assert_eq!(len, name.len() as u64, "round {round}: {name}");
            count += 1;
        }
        assert_eq!(count, 200, "round {round}");
        let config = fs::read_to_string(dir.join("../../sys/config")).expect("a control file");
        assert!(!config.is_empty());
    })
}
