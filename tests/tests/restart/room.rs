//! Room and quotas: what was set aside for bytes that are not flushed is theirs after a crash, and free after it when they are gone.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;

use kos_tests::{Daemon, Rng, wait_for};
use rustix::fs::{XattrFlags, setxattr};
use rustix::mount::{MountFlags, mount};

const MIB: usize = 1 << 20;

fn used(daemon: &Daemon) -> String {
    let text = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    text.lines().find(|line| line.contains("quota-dir")).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn quotas_are_exact_across_crashes() {
    let mut daemon = Daemon::supervised(256 << 20);
    let mut rng = Rng::new(1);
    for class in ["disk", "memory"] {
        let dir = daemon.mem().join(format!("quota-dir-{class}"));
        fs::create_dir(&dir).expect("mkdir");
        setxattr(&dir, "user.kos.durability", class.as_bytes(), XattrFlags::empty()).expect("class");
        setxattr(&dir, "trusted.kos.quota", b"bytes=10M inodes=9", XattrFlags::empty()).expect("quota");
        for round in 0..5 {
            let file = File::create(dir.join("file")).expect("create");
            // The new processes of other tests have what was removed open until they are another program.
            wait_for("the room", || file.write_all_at(&[0; 8 * MIB], 0).is_ok());
            file.set_len(0).expect("set_len");
            for part in 0..8 {
                file.write_all_at(&rng.bytes(MIB), part * MIB as u64)
                    .unwrap_or_else(|e| panic!("{class} {round} {part}: {e}"));
                if part == round {
                    daemon.crash();
                }
            }
            // What is over it is refused, also right after a crash with bytes that are not flushed.
            daemon.crash();
            let refused = file.write_all_at(&rng.bytes(3 * MIB), 8 * MIB as u64).expect_err("over the quota");
            assert_eq!(refused.kind(), ErrorKind::QuotaExceeded, "{class} {round}");
            file.set_len(8 * MIB as u64).expect("set_len");
            file.write_all_at(&rng.bytes(2 * MIB), 8 * MIB as u64).expect("all of it");
            file.sync_all().expect("fsync");
            drop(file);
            fs::remove_file(dir.join("file")).expect("remove");
        }
        let mut file = File::create(dir.join("all")).expect("create");
        file.write_all(&rng.bytes(10_000_000)).expect("nothing is set aside for what is gone");
        file.sync_all().expect("fsync");
    }
    let before = used(&daemon);
    daemon.crash();
    assert_eq!(used(&daemon), before);
    daemon.stop();
}

/// MiB of the pool.
fn free(daemon: &Daemon) -> u64 {
    let space = rustix::fs::statvfs(daemon.mem()).expect("statfs");
    space.f_bfree * space.f_frsize / MIB as u64
}

#[test]
fn a_full_disk_is_as_full_after_a_crash() {
    let mut daemon = Daemon::unstarted(0);
    mount("kos-test", daemon.state(), "tmpfs", MountFlags::empty(), Some(c"size=300M")).expect("tmpfs");
    daemon.be_supervised();
    daemon.spawn();
    let mut rng = Rng::new(2);
    let (part, mut counts) = (rng.bytes(MIB), Vec::new());
    let before = free(&daemon);
    for round in 0..3 {
        let spare = daemon.mem().join("spare");
        fs::write(&spare, rng.bytes(12 * MIB)).expect("write");
        let path = daemon.mem().join("file");
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("create");
        let mut written = 0;
        let refused = loop {
            match file.write_all_at(&part, written as u64 * MIB as u64) {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
            if written % 40 == 20 {
                daemon.crash();
            }
        };
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "round {round}");
        daemon.crash();
        // The last room may be the metadata's, which grows at each start; nothing is lost by that, and whoever makes room can go on.
        let mut removed = false;
        wait_for("the flush of what was taken", || match file.sync_all() {
            Err(e) if e.kind() == ErrorKind::StorageFull => {
                if !std::mem::replace(&mut removed, true) {
                    fs::remove_file(&spare).expect("remove");
                }
                false
            }
            done => {
                done.unwrap_or_else(|e| panic!("round {round}: fsync: {e}"));
                true
            }
        });
        let mut read = vec![0; MIB];
        for at in 0..written {
            file.read_exact_at(&mut read, at as u64 * MIB as u64).expect("read");
            assert!(read == part, "round {round}: MiB {at}");
        }
        counts.push(written);
        drop(file);
        fs::remove_file(daemon.mem().join("file")).expect("remove");
        if !removed {
            fs::remove_file(&spare).expect("remove");
        }
        wait_for("the room", || free(&daemon) + 30 > before);
    }
    assert!(counts.iter().all(|&count| count + 30 > counts[0]), "room is lost: {counts:?}");
    daemon.stop();
}
