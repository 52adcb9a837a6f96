//! Two mounts in one file: parts of it are leases of their own.
#![expect(unsafe_code, reason = "mmap")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kos_tests::{Daemon, Rng};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::process::{Signal, kill_process};

use crate::second::*;

/// What a lease can be about at least.
const STRIPE: u64 = 4 << 20;
const PAGE: u64 = 4096;

fn write(file: &File, off: u64, data: &[u8]) {
    file.write_all_at(data, off).expect("write");
}

fn read(file: &File, off: u64, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    file.read_exact_at(&mut found, off).expect("read");
    found
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

#[test]
fn who_uses_another_part_is_not_waited_for() {
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let dirs = [daemon.mem(), second.mem()];
    let mut model = Rng::new(5).bytes(3 * STRIPE as usize);
    fs::write(dirs[0].join("file"), &model).expect("write");
    let [first, other] = dirs.clone().map(|dir| open(&dir.join("file")));
    // Each its own part, the first one the end of the file too. The second one has changed its own and not committed that.
    write(&first, 10, b"one");
    write(&first, 3 * STRIPE, b"long");
    write(&other, STRIPE + 10, b"two");
    write(&first, 20, b"three");
    kill_process(process, Signal::STOP).expect("stop");
    // To ask it for anything would end its session.
    write(&first, 30, b"four");
    assert_eq!(read(&first, 10, 3), b"one");
    write(&first, 3 * STRIPE, b"longer");
    assert_eq!(read(&first, 3 * STRIPE, 6), b"longer");
    kill_process(process, Signal::CONT).expect("continue");
    other.sync_all().expect("its session lives");
    for (off, text) in
        [(10, &b"one"[..]), (STRIPE + 10, b"two"), (20, b"three"), (30, b"four"), (3 * STRIPE, b"longer")]
    {
        model.resize(model.len().max(off as usize + text.len()), 0);
        model[off as usize..off as usize + text.len()].copy_from_slice(text);
    }
    for dir in &dirs {
        assert!(fs::read(dir.join("file")).expect("read") == model);
    }
    drop((first, other));
    second.umount(false);
    daemon.stop();
}

#[test]
fn what_one_makes_longer_the_other_sees_also_in_the_hole_before() {
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    let path = daemon.mem().join("file");
    fs::write(&path, b"short").expect("write");
    let [first, other] = [path, second.mem().join("file")].map(|path| open(&path));
    assert_eq!(read(&other, 0, 5), b"short");
    write(&first, 5 * STRIPE, b"far");
    // Not the stripe that was written, and not the one that the file had.
    assert_eq!(read(&other, 2 * STRIPE, 3), [0; 3]);
    assert_eq!(read(&other, 5, 3), [0; 3]);
    other.set_len(STRIPE).expect("truncate");
    write(&other, 2 * STRIPE, b"near");
    let mut found = [0; 8];
    assert_eq!(first.read_at(&mut found, 5 * STRIPE).expect("read"), 0, "cut away");
    assert_eq!(first.read_at(&mut found, 2 * STRIPE).expect("read"), 4);
    // What it knew of the size is of before.
    write(&first, STRIPE + 1, b"x");
    assert_eq!(first.metadata().expect("stat").len(), 2 * STRIPE + 4);
    drop((first, other));
    second.umount(false);
    daemon.stop();
}

#[test]
fn the_last_write_is_the_files_time_whoever_commits_it_first() {
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    let path = daemon.mem().join("file");
    fs::write(&path, vec![1; 2 * STRIPE as usize]).expect("write");
    let [first, other] = [path.clone(), second.mem().join("file")].map(|path| open(&path));
    let time = |file: &File| {
        let found = file.metadata().expect("stat");
        (found.mtime(), found.mtime_nsec())
    };
    for (early, late) in [(&first, &other), (&other, &first)] {
        write(early, 0, b"early");
        thread::sleep(std::time::Duration::from_millis(20));
        let before = std::time::SystemTime::now();
        write(late, STRIPE, b"late");
        let before = before.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let before = (before.as_secs().cast_signed(), i64::from(before.subsec_nanos()));
        // Either may be the first to commit.
        assert!(time(early) >= before && time(late) >= before);
        assert_eq!(time(early), time(late));
    }
    drop((first, other));
    second.umount(false);
    daemon.stop();
}

fn map(path: &Path) -> MmapMut {
    // SAFETY: words are stored and loaded whole, by volatile accesses, and the file is never cut.
    unsafe { MmapOptions::new().map_mut(&open(path)).expect("mmap") }
}

fn view(path: &Path) -> Mmap {
    // SAFETY: as above.
    unsafe { MmapOptions::new().map(&File::open(path).expect("open")).expect("mmap") }
}

fn load(map: *const u8, off: u64) -> u64 {
    // SAFETY: the words asked for are aligned and inside of the mapping.
    unsafe { std::ptr::read_volatile(map.add(off as usize).cast()) }
}

/// Words around the end of a stripe, by everybody in every way: nobody waits for a page and a lease in another order for
/// ever, no store is lost, and no word goes back.
#[test]
fn pages_of_two_stripes_are_wanted_by_both_and_nobody_waits_for_ever() {
    const ROUNDS: u64 = 150;
    /// Pages on either side of the end.
    const AROUND: u64 = 40;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    let paths = [daemon.mem(), second.mem()].map(|dir| dir.join("file"));
    fs::write(&paths[0], vec![0; 2 * STRIPE as usize]).expect("write");
    let pages = || (STRIPE / PAGE - AROUND..STRIPE / PAGE + AROUND).map(|page| page * PAGE);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut writers = Vec::new();
        for (nth, path) in paths.iter().enumerate() {
            let own = 8 * nth as u64;
            // By a mapping, which reads pages ahead over the end.
            writers.push(scope.spawn(move || {
                let mut map = map(path);
                for round in 1..=ROUNDS {
                    for off in pages() {
                        assert_eq!(load(map.as_ptr(), off + own), round - 1, "{off}: a store was lost");
                        // SAFETY: as in `load`.
                        unsafe {
                            map.as_mut_ptr().add((off + own) as usize).cast::<u64>().write_volatile(round);
                        }
                    }
                }
            }));
            // By writes over the end; each has words of its own there.
            writers.push(scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(path).expect("open");
                for round in 1..=ROUNDS {
                    for page in [0, 1] {
                        write(&file, STRIPE - PAGE + page * PAGE + 16 + own, &round.to_ne_bytes());
                    }
                }
            }));
            let ended = &ended;
            scope.spawn(move || {
                let (map, file) = (view(path), File::open(path).expect("open"));
                let mut seen = vec![0; 2 * AROUND as usize];
                while !ended.load(Ordering::SeqCst) {
                    let bytes = read(&file, STRIPE - AROUND * PAGE, (2 * AROUND * PAGE) as usize);
                    for (off, seen) in pages().zip(&mut seen) {
                        let at = (off - (STRIPE - AROUND * PAGE)) as usize;
                        let found = u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
                        assert!(found >= *seen, "{off}: {found} after {seen}");
                        *seen = load(map.as_ptr(), off);
                        assert!(*seen >= found, "{off}: {seen} after {found}");
                    }
                }
            });
        }
        // All are waited for before one panics, or the readers would never end.
        let wrote: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::SeqCst);
        wrote.into_iter().for_each(|wrote| wrote.expect("no panic"));
    });
    for path in &paths {
        let found = fs::read(path).expect("read");
        for off in pages() {
            for own in [0, 8] {
                assert_eq!(load(found.as_ptr(), off + own), ROUNDS, "{off}");
            }
        }
    }
    second.umount(false);
    daemon.stop();
}

/// While the kernel waits for a new size it writes no page back, and a recall waits for pages that are written back.
#[test]
fn sizes_are_set_beside_changed_pages_of_both() {
    const ROUNDS: u64 = 60;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    let paths = [daemon.mem(), second.mem()].map(|dir| dir.join("file"));
    fs::write(&paths[0], vec![0; 2 * STRIPE as usize]).expect("write");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut setters = Vec::new();
        for (nth, path) in paths.iter().enumerate() {
            let (own, ended) = (nth as u64 * STRIPE, &ended);
            scope.spawn(move || {
                let mut map = map(path);
                let mut round = 0;
                while !ended.load(Ordering::SeqCst) {
                    round += 1;
                    for off in (own..own + 16 * PAGE).step_by(PAGE as usize) {
                        // SAFETY: as in `load`.
                        unsafe { map.as_mut_ptr().add(off as usize).cast::<u64>().write_volatile(round) }
                    }
                    assert_eq!(load(map.as_ptr(), own), round, "a store was lost");
                }
            });
            setters.push(scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(path).expect("open");
                (0..ROUNDS).for_each(|_| file.set_len(2 * STRIPE).expect("set_len"));
            }));
        }
        let set: Vec<_> = setters.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::SeqCst);
        set.into_iter().for_each(|set| set.expect("no panic"));
    });
    second.umount(false);
    daemon.stop();
}
