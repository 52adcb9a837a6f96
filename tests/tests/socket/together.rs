//! Two mounts at once: what one does the other sees.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use kos_tests::{Daemon, Rng, wait_for};
use memmap2::MmapOptions;

use crate::second::*;

#[test]
fn changes_of_each_are_seen_by_both_at_once() {
    const LEN: u64 = 300_000;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let path = |dir: PathBuf| dir.join("file");
    // Open and read before there is a second mount: its pages are in the kernel's memory.
    let open =
        |dir: PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path(dir));
    let first = open(daemon.mem()).expect("open");
    let mut model = Rng::new(3).bytes(100_000);
    first.write_all_at(&model, 0).expect("write");
    let mut buffer = vec![0; model.len()];
    first.read_exact_at(&mut buffer, 0).expect("read");
    let second = Second::mount(&daemon);
    let files = [first, open(second.mem()).expect("open")];
    let dirs = [daemon.mem(), second.mem()];
    let seed = std::env::var("KOS_SEED").map_or(11, |seed| seed.parse().expect("KOS_SEED"));
    println!("KOS_SEED={seed}");
    let mut rng = Rng::new(seed);
    for step in 0..600 {
        let by = rng.below(2) as usize;
        let file = &files[by];
        match rng.below(10) {
            0..=4 => {
                let (off, len) = (rng.below(LEN) as usize, 1 + rng.below(20_000) as usize);
                let data = rng.bytes(len);
                file.write_all_at(&data, off as u64).expect("write");
                model.resize(model.len().max(off + len), 0);
                model[off..off + len].copy_from_slice(&data);
            }
            5 | 6 => {
                let len = 1 + rng.below(5_000) as usize;
                let data = rng.bytes(len);
                OpenOptions::new()
                    .append(true)
                    .open(path(dirs[by].clone()))
                    .expect("open")
                    .write_all(&data)
                    .expect("append");
                model.extend(data);
            }
            7 => {
                let len = rng.below(LEN);
                file.set_len(len).expect("truncate");
                model.resize(len as usize, 0);
            }
            8 => {
                let (a, b) = (dirs[by].join(format!("name{step}")), dirs[by].join("file"));
                fs::rename(&b, &a).expect("rename");
                assert!(
                    dirs.iter()
                        .all(|dir| !dir.join("file").exists() && dir.join(format!("name{step}")).exists())
                );
                fs::rename(&a, &b).expect("rename");
            }
            _ => file.sync_all().expect("fsync"),
        }
        for (nth, file) in files.iter().enumerate() {
            let size = fs::metadata(path(dirs[nth].clone())).expect("stat").len();
            assert_eq!(size, model.len() as u64, "seed {seed} step {step} by {by}: size at {nth}");
            let off = rng.below(model.len() as u64 + 1) as usize;
            let mut found = vec![0; 40_000.min(model.len() - off)];
            file.read_exact_at(&mut found, off as u64).expect("read");
            assert!(
                found == model[off..off + found.len()],
                "seed {seed} step {step} by {by}: bytes at {nth}"
            );
        }
    }
    drop(files);
    second.umount(false);
    daemon.stop();
}

#[test]
fn appends_from_both_lose_nothing() {
    const RECORD: usize = 100;
    const EACH: usize = 150;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let second = Second::mount(&daemon);
    std::thread::scope(|scope| {
        for (writer, dir) in (0_u8..).zip([daemon.mem(), second.mem(), daemon.mem(), second.mem()]) {
            scope.spawn(move || {
                let mut file =
                    OpenOptions::new().append(true).create(true).open(dir.join("log")).expect("open");
                for nth in 0..EACH {
                    let mut record = vec![writer; RECORD];
                    record[0] = nth as u8;
                    file.write_all(&record).expect("append");
                }
            });
        }
    });
    for dir in [daemon.mem(), second.mem()] {
        let log = fs::read(dir.join("log")).expect("read");
        assert_eq!(log.len(), 4 * EACH * RECORD);
        let mut next = [0_u8; 4];
        for record in log.chunks(RECORD) {
            let writer = record[1];
            assert!(record[1..].iter().all(|byte| *byte == writer), "whole");
            assert_eq!(record[0], next[usize::from(writer)], "in order");
            next[usize::from(writer)] = next[usize::from(writer)].wrapping_add(1);
        }
    }
    daemon.stop();
}

#[test]
fn a_file_lives_while_either_has_it_open() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let inodes = || {
        let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
        let line =
            usage.lines().find_map(|line| line.strip_prefix("inodes_used ")).expect("inodes").to_owned();
        line.parse::<u64>().expect("a number")
    };
    let before = inodes();
    for (user, remover) in [(daemon.mem(), second.mem()), (second.mem(), daemon.mem())] {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(user.join("gone"))
            .expect("open");
        file.write_all_at(b"still here", 0).expect("write");
        fs::metadata(remover.join("gone")).expect("known there too");
        fs::remove_file(remover.join("gone")).expect("remove");
        // Whoever removed it forgets it; both have nothing left of it but the open file.
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop caches");
        assert!(!user.join("gone").exists());
        let mut found = [0; 10];
        file.read_exact_at(&mut found, 0).expect("read");
        assert_eq!((&found, file.metadata().expect("stat").nlink()), (b"still here", 0));
        file.write_all_at(b"and more", 10).expect("write");
        drop(file);
        wait_for("the inode's end", || {
            fs::write("/proc/sys/vm/drop_caches", "2").expect("drop caches");
            inodes() == before
        });
    }
    second.umount(false);
    daemon.stop();
}

#[test]
#[expect(unsafe_code, reason = "mmap")]
fn a_mapping_here_shows_what_is_written_there() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("mapped");
    fs::write(&path, vec![1; 8192]).expect("write");
    let file = File::open(&path).expect("open");
    // SAFETY: the file is changed through another mount, and each byte is looked at once.
    let map = unsafe { MmapOptions::new().map(&file).expect("mmap") };
    assert_eq!((map[0], map[8191]), (1, 1));
    let second = Second::mount(&daemon);
    OpenOptions::new()
        .write(true)
        .open(second.mem().join("mapped"))
        .and_then(|f| f.write_all_at(&[2; 100], 8092))
        .expect("write");
    assert_eq!((map[0], map[8091], map[8092], map[8191]), (1, 1, 2, 2));
    daemon.stop();
}

/// Both read and write through descriptors that do only one of it: pages that are read are under a shared lease
/// when a write, whose pages the kernel holds, waits for the exclusive one.
#[test]
fn writers_beside_readers_wait_for_nothing_of_their_own() {
    const LEN: usize = 64 << 10;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let path = daemon.mem().join("file");
    fs::write(&path, vec![0; 2 * LEN]).expect("write");
    let open = |path: &Path| {
        let reader = File::open(path).expect("open");
        reader.read_exact_at(&mut vec![0; 2 * LEN], 0).expect("read");
        (reader, OpenOptions::new().write(true).open(path).expect("open"))
    };
    // Through the page cache: there is no other mount yet, and the reader was first.
    let here = open(&path);
    let second = Second::mount(&daemon);
    let there = open(&second.mem().join("file"));
    let both = [here, there];
    std::thread::scope(|scope| {
        for (nth, (reader, writer)) in both.iter().enumerate() {
            scope.spawn(move || {
                let mut rng = Rng::new(nth as u64);
                let mut own = vec![0; LEN];
                for step in 0..500 {
                    let (off, data) = (rng.below(50_000) as usize, rng.bytes(10_000));
                    writer.write_all_at(&data, (nth * LEN + off) as u64).expect("write");
                    own[off..off + data.len()].copy_from_slice(&data);
                    let mut found = vec![0; 2 * LEN];
                    reader.read_exact_at(&mut found, 0).expect("read");
                    assert!(found[nth * LEN..][..LEN] == own, "step {step} of {nth}");
                }
            });
        }
    });
    drop(both);
    assert!(fs::read(&path).expect("read") == fs::read(second.mem().join("file")).expect("read"));
    second.umount(false);
    daemon.stop();
}

/// The kernel puts an append where the file ended as far as it knows, when it was opened through the page cache.
#[test]
fn an_append_stays_in_no_wrong_place() {
    const PART: usize = 8192;
    let mut daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    let path = daemon.mem().join("log");
    let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path).expect("open");
    let mut here = append(&path);
    let reader = File::open(&path).expect("open");
    let second = Second::mount(&daemon);
    let mut there = append(&second.mem().join("log"));
    let mut rng = Rng::new(8);
    let mut model = Vec::new();
    for step in 0..20 {
        for file in [&mut there, &mut here] {
            let part = rng.bytes(PART);
            file.write_all(&part).expect("append");
            model.extend(part);
        }
        // Where the kernel thought the end was, and no further: it does not ask for the size again.
        let off = model.len() - 2 * PART;
        let mut found = vec![0; PART];
        wait_for("the bytes in their place", || {
            reader.read_exact_at(&mut found, off as u64).expect("read");
            found == model[off..off + PART]
        });
        assert!(fs::read(&path).expect("read") == model, "step {step}, here");
        assert!(fs::read(second.mem().join("log")).expect("read") == model, "step {step}, there");
    }
    drop((here, there, reader));
    second.umount(false);
    daemon.stop();
}
