//! What is full, and what has a quota: the right error from the right call, and nothing is lost.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use kos_tests::{Daemon, Rng};
use rustix::fs::{FallocateFlags, XattrFlags, fallocate};

const MIB: usize = 1 << 20;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("errno")
}

/// Write MiBs until one is refused; how many were not, and the error of the other.
fn fill(file: &mut File, max: usize, block: &[u8]) -> (usize, i32) {
    for done in 0..max {
        if let Err(e) = file.write_all(block) {
            return (done, e.raw_os_error().expect("errno"));
        }
    }
    panic!("{max} MiB were taken");
}

fn quota(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).expect("quota");
}

#[test]
fn a_full_pool_refuses_the_write_and_keeps_what_it_took() {
    let mut daemon = Daemon::on_disk(500 * MIB as u64);
    let mem = daemon.mem();
    let mut rng = Rng::new(1);
    let block = rng.bytes(MIB);
    fs::write(mem.join("small"), "kept").expect("write");
    let mut file = File::create(mem.join("big")).expect("create");
    let (taken, error) = fill(&mut file, 1000, &block);
    assert_eq!(error, libc::ENOSPC);
    assert!(taken > 100, "refused after {taken} MiB of a disk of 500");
    // What write(2) took finds its room.
    file.sync_all().expect("fsync");
    drop(file);
    // Other changes are refused or not, and removing always works.
    let mut other = File::create(mem.join("other")).expect("create");
    assert_eq!(errno(other.write_all(&vec![1; 64 * MIB])), libc::ENOSPC);
    drop(other);
    fs::remove_file(mem.join("other")).expect("unlink");
    daemon.kill();
    daemon.spawn();
    assert_eq!(fs::read(mem.join("small")).expect("reads"), b"kept");
    let big = File::open(mem.join("big")).expect("open");
    assert!(big.metadata().expect("stat").len() >= (taken * MIB) as u64);
    let mut found = vec![0; MIB];
    for at in 0..taken {
        big.read_exact_at(&mut found, (at * MIB) as u64).expect("read");
        assert!(found == block, "MiB {at}");
    }
    drop(big);
    // The room of what is removed is there for the next write, at once.
    fs::remove_file(mem.join("big")).expect("unlink");
    let mut again = File::create(mem.join("again")).expect("create");
    for _ in 0..taken / 2 {
        again.write_all(&block).expect("room again");
    }
    again.sync_all().expect("fsync");
}

#[test]
fn a_quota_refuses_the_write_that_grows() {
    let daemon = Daemon::start();
    let dir = daemon.mem().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    quota(&dir, "trusted.kos.quota", "bytes=10M inodes=4");
    let block = Rng::new(2).bytes(MIB);
    let mut file = File::create(dir.join("f")).expect("create");
    assert_eq!(fill(&mut file, 20, &block), (10, libc::EDQUOT));
    file.sync_all().expect("fsync");
    // Over what is there: no growth.
    let newer = Rng::new(3).bytes(MIB);
    for at in 0..10 {
        file.write_all_at(&newer, (at * MIB) as u64).expect("overwrite");
    }
    file.sync_all().expect("fsync");
    assert_eq!(errno(file.write_all_at(b"x", 10 * MIB as u64)), libc::EDQUOT);
    // Holes are nothing.
    file.set_len(1 << 40).expect("extend");
    File::create(dir.join("g")).expect("create");
    File::create(dir.join("h")).expect("create");
    assert_eq!(errno(File::create(dir.join("i"))), libc::EDQUOT);
    let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    let line = format!("tree /dir bytes {} inodes 4 bytes_max {} inodes_max 4", 10 * MIB, 10 * MIB);
    assert!(usage.lines().any(|found| found == line), "{line:?} is not in {usage}");
    fs::remove_file(dir.join("f")).expect("unlink");
    drop(file);
    // The inode goes when the kernel forgets it.
    kos_tests::wait_for("room again", || fs::write(dir.join("i"), &block).is_ok());
    // Elsewhere nothing is limited.
    fs::write(daemon.mem().join("free"), vec![7; 20 * MIB]).expect("write");
}

#[test]
fn a_users_quota_holds_everywhere() {
    let daemon = Daemon::start();
    quota(&daemon.mem(), "trusted.kos.quota.uid.1234", "bytes=1M");
    let block = Rng::new(4).bytes(MIB);
    let path = daemon.mem().join("theirs");
    let mut file = File::create(&path).expect("create");
    std::os::unix::fs::chown(&path, Some(1234), None).expect("chown");
    file.write_all(&block).expect("all of it");
    assert_eq!(errno(file.write_all(b"x")), libc::EDQUOT);
    file.sync_all().expect("fsync");
    std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
    file.write_all(b"x").expect("root has no quota");
    file.sync_all().expect("fsync");
    assert_eq!(errno(std::os::unix::fs::chown(&path, Some(1234), None)), libc::EDQUOT);
}

#[test]
fn fallocate_refuses_more_than_is_free_and_reserves_nothing() {
    let mut daemon = Daemon::on_disk(500 * MIB as u64);
    let file = File::create(daemon.mem().join("file")).expect("create");
    let allocate = |len: usize| fallocate(&file, FallocateFlags::empty(), 0, len as u64);
    let refused = allocate(1000 * MIB).expect_err("more than there is");
    assert_eq!(refused.raw_os_error(), libc::ENOSPC);
    assert_eq!(file.metadata().expect("stat").len(), 0);
    let free = || rustix::fs::statvfs(daemon.mem().as_path()).expect("statfs").f_bavail;
    let before = free();
    allocate(50 * MIB).expect("it fits");
    let found = file.metadata().expect("stat");
    assert_eq!((found.len(), found.blocks()), (50 * MIB as u64, 0));
    // Blocks of 4 KiB; the metadata's own log may have taken some.
    assert!(before - free() < 1000, "{before} blocks free, then {}", free());
    drop(file);
    daemon.stop();
}
