//! `user.kos.consistency` of release and eventual: what two mounts see of each other without leases.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kos_tests::{Daemon, Rng, wait_for};

use crate::second::*;

const LEN: usize = 100_000;

/// A daemon, whose regions are in memory and shared so, and a second mount.
fn two(consistency: &str) -> (Daemon, Second) {
    let daemon = Daemon::with_ram(256 << 20);
    in_memory(&daemon);
    set_policy(&daemon, "consistency", consistency);
    let second = Second::mount(&daemon);
    (daemon, second)
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn who_opens_after_a_close_or_fsync_sees_what_was_written_before() {
    let (mut daemon, second) = two("release");
    let paths: [PathBuf; 2] = [daemon.mem(), second.mem()].map(|dir| dir.join("file"));
    let mut rng = Rng::new(21);
    let mut model = rng.bytes(LEN);
    fs::write(&paths[0], &model).expect("write");
    let mut unseen = 0;
    for step in 0..100 {
        let (by, other) = (&paths[step % 2], &paths[1 - step % 2]);
        // Its pages are those of before.
        let file = open(by);
        assert!(read(&file) == model, "step {step}");
        let (off, data) = (rng.below(90_000) as usize, rng.bytes(10_000));
        file.write_all_at(&data, off as u64).expect("write");
        let before = model.clone();
        model[off..off + data.len()].copy_from_slice(&data);
        // Nobody is asked for what he has not released; a flush may have come between.
        let found = read(&open(other));
        assert!(found == before || found == model, "step {step}: neither old nor new");
        unseen += usize::from(found == before);
        if step % 4 < 2 {
            file.sync_all().expect("fsync");
            assert!(read(&open(other)) == model, "step {step}: after fsync");
        }
        drop(file);
        assert!(read(&open(other)) == model, "step {step}: after close");
        assert!(read(&open(by)) == model, "step {step}: by itself");
    }
    assert!(unseen > 0, "each write was seen at once: leases are at work");
    second.umount(false);
    // What was cached beside others is not kept for ever.
    assert!(fs::read(&paths[0]).expect("read") == model);
    daemon.stop();
}

#[test]
fn an_eventual_file_is_the_same_everywhere_after_a_while() {
    let (mut daemon, second) = two("eventual");
    let paths: [PathBuf; 2] = [daemon.mem(), second.mem()].map(|dir| dir.join("file"));
    let mut rng = Rng::new(22);
    let mut model = rng.bytes(LEN);
    fs::write(&paths[0], &model).expect("write");
    wait_for("the bytes in both", || fs::read(&paths[1]).expect("read") == model);
    let files = [open(&paths[0]), open(&paths[1])];
    for step in 0..4 {
        assert!(files.iter().all(|file| read(file) == model), "step {step}");
        let (off, data) = (rng.below(90_000) as usize, rng.bytes(10_000));
        // Not even fsync: the buffer is flushed when it is old.
        files[step % 2].write_all_at(&data, off as u64).expect("write");
        model[off..off + data.len()].copy_from_slice(&data);
        // Through descriptors that stay open and have pages.
        for file in &files {
            wait_for("the bytes", || read(file) == model);
        }
    }
    drop(files);
    second.umount(false);
    daemon.stop();
}

/// Both write their own half at once, in pieces of any size: no byte of either is lost.
#[test]
fn writers_of_different_bytes_lose_nothing() {
    let (mut daemon, second) = two("release");
    let paths: [PathBuf; 2] = [daemon.mem(), second.mem()].map(|dir| dir.join("file"));
    fs::write(&paths[0], vec![0; 2 * LEN]).expect("write");
    let halves: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let run = |nth: usize| {
            let path = &paths[nth];
            scope.spawn(move || {
                let (mut rng, mut half) = (Rng::new(nth as u64), vec![0; LEN]);
                for _ in 0..50 {
                    let (off, len) = (rng.below(90_000) as usize, 1 + rng.below(9_000) as usize);
                    let data = rng.bytes(len);
                    open(path).write_all_at(&data, (nth * LEN + off) as u64).expect("write");
                    half[off..off + len].copy_from_slice(&data);
                }
                half
            })
        };
        [run(0), run(1)].map(|thread| thread.join().expect("thread")).into()
    });
    for path in &paths {
        assert!(fs::read(path).expect("read") == halves.concat());
    }
    second.umount(false);
    daemon.stop();
}
