//! A mount through the socket beside the one that goes on.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use kos_tests::second::Second;
use kos_tests::{Daemon, Rng, seed};
use memmap2::MmapMut;
use rustix::fs::{FlockOperation, flock};

const RAM_BYTES: u64 = 256 << 20;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

fn read_at(file: &File, off: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, off).expect("read");
    bytes
}

#[test]
fn both_see_each_others_writes_before_and_after_crashes() {
    const BYTES: usize = 2 << 20;
    let mut daemon = Daemon::supervised(RAM_BYTES);
    let early = open(&daemon.mem().join("file"));
    early.write_all_at(&vec![0; BYTES], 0).expect("write");
    let second = Second::mount(&daemon);
    let files = [early, open(&second.mem().join("file")), open(&daemon.mem().join("file"))];
    let mut model = vec![0; BYTES];
    let mut rng = Rng::new(seed());
    for step in 0..400 {
        if step % 60 == 30 {
            if rng.below(2) == 0 { daemon.crash() } else { daemon.upgrade() }
        }
        let (writer, len) = (rng.below(3) as usize, 1 + rng.below(20_000) as usize);
        let off = rng.below((BYTES - len) as u64);
        let bytes = rng.bytes(len);
        files[writer].write_all_at(&bytes, off).unwrap_or_else(|e| panic!("step {step}: write: {e}"));
        model[off as usize..][..len].copy_from_slice(&bytes);
        for (reader, file) in files.iter().enumerate() {
            let off = rng.below(4) * (BYTES as u64 / 4);
            let expected = &model[off as usize..][..BYTES / 4];
            let read = read_at(file, off, expected.len());
            if let Some(at) = read.iter().zip(expected).position(|(a, b)| a != b) {
                panic!(
                    "step {step}: {writer} wrote, {reader} reads {} and not {} at {at}",
                    read[at], expected[at]
                );
            }
        }
    }
    drop(files);
    second.umount(false);
    daemon.stop();
}

/// What the kernel has cached of the embedded mount may be changed by the other one from the moment it is connected again.
#[test]
fn no_page_or_name_is_old_after_a_crash() {
    const ROUNDS: u64 = 12;
    let mut daemon = Daemon::supervised(RAM_BYTES);
    let path = daemon.mem().join("file");
    fs::write(&path, vec![1; 1 << 20]).expect("write");
    fs::write(daemon.mem().join("name-0"), b"0").expect("write");
    let second = Second::mount(&daemon);
    let (here, there) = (open(&path), open(&second.mem().join("file")));
    #[expect(unsafe_code, reason = "a mapping")]
    // SAFETY: it is only read, and others change it as a mapping may be changed.
    let map = unsafe { MmapMut::map_mut(&here) }.expect("map");
    for round in 1..=ROUNDS {
        // All of it is in the kernel's cache, and so is its name.
        assert_eq!(read_at(&here, 0, 1 << 20)[4096], map[4096]);
        assert!(daemon.mem().join(format!("name-{}", round - 1)).exists());
        if round % 3 == 0 {
            daemon.upgrade()
        } else {
            daemon.crash()
        }
        there.write_all_at(&vec![round as u8 + 1; 1 << 20], 0).expect("write");
        let (old, new) = (format!("name-{}", round - 1), format!("name-{round}"));
        fs::rename(second.mem().join(&old), second.mem().join(&new)).expect("rename");
        assert_eq!(read_at(&here, 0, 1 << 20), vec![round as u8 + 1; 1 << 20], "round {round}: read");
        assert!(map.iter().all(|&byte| byte == round as u8 + 1), "round {round}: mapped");
        assert!(
            !daemon.mem().join(&old).exists() && daemon.mem().join(&new).exists(),
            "round {round}: names"
        );
    }
    drop((here, there, map));
    second.umount(false);
    daemon.stop();
}

/// What one mount has written is there for the other from the moment it is connected again, flushed or not.
#[test]
fn what_was_not_flushed_is_seen_by_the_other_after_the_crash() {
    let mut daemon = Daemon::supervised(RAM_BYTES);
    let path = daemon.mem().join("file");
    fs::write(&path, [0; 100]).expect("write");
    let second = Second::mount(&daemon);
    let (here, there) = (open(&path), open(&second.mem().join("file")));
    for round in 1..20_u8 {
        let (writer, reader) = if round % 2 == 0 { (&there, &here) } else { (&here, &there) };
        writer.write_all_at(&[round; 100], 0).expect("write");
        daemon.crash();
        assert_eq!(read_at(reader, 0, 100), [round; 100], "round {round}");
    }
    drop((here, there));
    second.umount(false);
    daemon.stop();
}

/// Both add to a counter under a lock, each by its own mount.
#[test]
fn locks_of_both_exclude_each_other_across_crashes() {
    const ROUNDS: u64 = 300;
    let mut daemon = Daemon::supervised(RAM_BYTES);
    let path = daemon.mem().join("count");
    fs::write(&path, [0; 8]).expect("write");
    let second = Second::mount(&daemon);
    let files =
        [open(&path), open(&second.mem().join("count")), open(&path), open(&second.mem().join("count"))];
    thread::scope(|scope| {
        let adding: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(nth, file)| {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let failed = |e: io::Error| panic!("{nth}: round {round}: {e}");
                        lock(file, FlockOperation::LockExclusive).unwrap_or_else(failed);
                        let mut count = [0; 8];
                        file.read_exact_at(&mut count, 0).unwrap_or_else(failed);
                        let next = u64::from_le_bytes(count) + 1;
                        file.write_all_at(&next.to_le_bytes(), 0).unwrap_or_else(failed);
                        lock(file, FlockOperation::Unlock).unwrap_or_else(failed);
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(200));
            daemon.crash();
        }
        for thread in adding {
            thread.join().expect("thread");
        }
    });
    let count = u64::from_le_bytes(fs::read(&path).expect("read")[..8].try_into().expect("8 bytes"));
    assert_eq!(count, 4 * ROUNDS);
    drop(files);
    second.umount(false);
    daemon.stop();
}

fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    Ok(flock(file, how)?)
}

#[expect(unsafe_code, reason = "fcntl")]
fn try_range(file: &File, (start, len): (i64, i64)) -> Result<(), i32> {
    // SAFETY: zeros are a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the descriptor is open, and the lock lives as long as the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

#[test]
fn locks_that_are_held_are_held_against_the_other_mount_from_the_first_moment() {
    let mut daemon = Daemon::supervised(0);
    let second = Second::mount(&daemon);
    let (here, there) = (open(&daemon.mem().join("file")), open(&second.mem().join("file")));
    try_range(&here, (0, 10)).expect("lock");
    try_range(&there, (10, 10)).expect("lock");
    for round in 0..5 {
        thread::scope(|scope| {
            let crash = scope.spawn(|| daemon.crash());
            while !crash.is_finished() {
                assert_eq!(try_range(&there, (0, 1)), Err(libc::EAGAIN), "round {round}");
            }
        });
        assert_eq!(try_range(&there, (5, 1)), Err(libc::EAGAIN), "round {round}");
        assert_eq!(try_range(&here, (15, 1)), Err(libc::EAGAIN), "round {round}");
    }
    drop((here, there));
    second.umount(false);
    daemon.stop();
}
