//! Snapshots through a real mount.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use kos_tests::Daemon;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("errno")
}

/// Everything below a directory: path, and contents of files.
fn tree(top: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let mut out = Vec::new();
    let mut dirs = vec![top.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("lists") {
            let path = entry.expect("entry").path();
            let name = path.strip_prefix(top).expect("below").display().to_string();
            if path.is_dir() {
                dirs.push(path);
                out.push((name, None));
            } else {
                out.push((name, Some(fs::read(&path).expect("reads"))));
            }
        }
    }
    out.sort();
    out
}

#[test]
fn a_snapshot_shows_the_tree_as_it_was() {
    let mut daemon = Daemon::start();
    let mem = daemon.mem();
    let snap = daemon.mount().join("snap");
    fs::create_dir_all(mem.join("dir/deep")).expect("mkdir");
    fs::write(mem.join("dir/deep/big"), vec![7; 9 << 20]).expect("write");
    fs::write(mem.join("dir/gone"), "to be removed").expect("write");
    fs::write(mem.join("moved"), "to be renamed").expect("write");
    let mut open = fs::File::create(mem.join("unflushed")).expect("create");
    open.write_all(b"written and not flushed").expect("write");
    let before = tree(&mem);

    fs::create_dir(snap.join("one")).expect("takes a snapshot");
    let one = snap.join("one");
    assert_eq!(tree(&one), before);
    assert_eq!(errno(fs::create_dir(snap.join("one"))), libc::EEXIST);

    // Every kind of change, and the snapshot stays.
    let big = fs::OpenOptions::new().write(true).open(mem.join("dir/deep/big")).expect("open");
    big.write_all_at(&[9; 100_000], 5_000_000).expect("overwrite");
    big.set_len(6_000_000).expect("truncate");
    big.sync_all().expect("fsync");
    fs::remove_file(mem.join("dir/gone")).expect("unlink");
    fs::rename(mem.join("moved"), mem.join("dir/moved")).expect("rename");
    open.write_all(b", more").expect("write");
    fs::write(mem.join("new"), "after").expect("write");
    assert_eq!(tree(&one), before);

    // Read-only, each in its own way.
    let inside = one.join("dir/deep/big");
    assert_eq!(errno(fs::write(&inside, "x")), libc::EROFS);
    assert_eq!(errno(fs::File::create(one.join("x"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(&inside)), libc::EROFS);
    assert_eq!(errno(fs::rename(&inside, one.join("y"))), libc::EROFS);
    assert_eq!(errno(fs::hard_link(&inside, mem.join("link"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(one.join("d"))), libc::EROFS);
    let file = fs::File::open(&inside).expect("opens");
    assert_eq!(errno(file.set_permissions(PermissionsExt::from_mode(0o600))), libc::EROFS);
    // The same inode in two views has two numbers.
    let live = fs::metadata(mem.join("dir/deep/big")).expect("stat");
    assert_ne!(live.ino(), file.metadata().expect("stat").ino());

    // Back from the past.
    fs::copy(&inside, mem.join("restored")).expect("copies");
    assert_eq!(fs::read(mem.join("restored")).expect("reads"), vec![7; 9 << 20]);

    // Also after a kill.
    drop((open, file, big));
    daemon.kill();
    daemon.spawn();
    assert_eq!(tree(&one), before);
    let names: Vec<_> = fs::read_dir(&snap).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names, ["one"]);

    fs::remove_dir(snap.join("one")).expect("drops the snapshot");
    assert_eq!(errno(fs::metadata(snap.join("one"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(snap.join("one"))), libc::ENOENT);
}

/// What only a snapshot held is freed after it is dropped, and not before.
#[test]
fn a_dropped_snapshot_gives_its_space_back() {
    let daemon = Daemon::start();
    let (mem, snap) = (daemon.mem(), daemon.mount().join("snap"));
    fs::write(mem.join("f"), vec![1; 32 << 20]).expect("write");
    fs::File::open(mem.join("f")).expect("open").sync_all().expect("fsync");
    fs::create_dir(snap.join("s")).expect("takes a snapshot");
    fs::remove_file(mem.join("f")).expect("unlink");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(fs::read(snap.join("s/f")).expect("reads"), vec![1; 32 << 20]);
    let held = daemon.metric("kos_stripes_freed_total");
    fs::remove_dir(snap.join("s")).expect("drops the snapshot");
    let deadline = Instant::now() + Duration::from_secs(30);
    while daemon.metric("kos_stripes_freed_total") < held + 8 {
        assert!(Instant::now() < deadline, "the stripes of a dropped snapshot stay");
        std::thread::sleep(Duration::from_millis(100));
    }
}
