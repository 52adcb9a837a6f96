//! Sealed files that the kernel reads in place.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use kos_tests::seal::{map, seal, sealed, unseal};
use kos_tests::{Daemon, Rng, wait_for};
use rustix::io::Errno;

const MIB: usize = 1 << 20;

/// Whether what is read of it now comes from its copy.
fn is_read_in_place(daemon: &Daemon, path: &Path) -> bool {
    let before = daemon.metric("kos_bytes_read_total");
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
    file.read_exact_at(&mut [0; 4096], 0).expect("read");
    daemon.metric("kos_bytes_read_total") == before
}

#[test]
fn what_is_read_in_place_is_read_on_and_stays_sealed() {
    let mut daemon = Daemon::supervised(256 << 20);
    let data = Rng::new(1).bytes(9 * MIB + 12_345);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    let file = File::open(&path).expect("open");
    let mapping = map(&file);
    assert_eq!(unseal(&path), Err(Errno::BUSY));
    for round in 0..4 {
        if round % 2 == 0 {
            daemon.crash()
        } else {
            daemon.upgrade()
        }
        let mut read = vec![0; data.len()];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == data && mapping[..] == data, "round {round}");
        assert_eq!(unseal(&path), Err(Errno::BUSY), "round {round}: what is open from before");
        let again = File::open(&path).unwrap_or_else(|e| panic!("round {round}: opened again: {e}"));
        again.read_exact_at(&mut read, 0).expect("read");
        assert!(read == data && map(&again)[..] == data, "round {round}: opened again");
    }
    drop(file);
    // The mapping holds it: the kernel has not released the file yet.
    assert_eq!(unseal(&path), Err(Errno::BUSY), "mapped");
    daemon.crash();
    assert!(mapping[..] == data);
    assert_eq!(unseal(&path), Err(Errno::BUSY), "mapped from before the crash");
    drop(mapping);
    wait_for("the release", || unseal(&path).is_ok());
    let other = Rng::new(2).bytes(3 * MIB);
    fs::write(&path, &other).expect("write");
    assert!(fs::read(&path).expect("read") == other);
    seal(&path);
    wait_for("a new copy", || is_read_in_place(&daemon, &path));
    assert!(map(&File::open(&path).expect("open"))[..] == other);
    daemon.crash();
    assert!(fs::read(&path).expect("read") == other);
    wait_for("a copy", || is_read_in_place(&daemon, &path));
    assert!(fs::read(&path).expect("read") == other);
    daemon.stop();
}

/// Opened and closed in any order across crashes, no read ever answers EIO or other bytes.
#[test]
fn opens_in_any_order_across_crashes_read_the_file() {
    let mut daemon = Daemon::supervised(256 << 20);
    let data = Rng::new(3).bytes(2 * MIB);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    let mut rng = Rng::new(kos_tests::seed());
    let mut held = Vec::new();
    for step in 0..120 {
        if step % 15 == 7 {
            daemon.crash();
        }
        match rng.below(3) {
            0 if !held.is_empty() => drop(held.swap_remove(rng.below(held.len() as u64) as usize)),
            _ => {
                let file = File::open(&path).unwrap_or_else(|e| panic!("step {step}: open: {e}"));
                let mapping = (rng.below(2) == 0).then(|| map(&file));
                held.push((file, mapping));
            }
        }
        for (file, mapping) in &held {
            let mut some = [0; 100];
            let off = rng.below((data.len() - 100) as u64);
            file.read_exact_at(&mut some, off).unwrap_or_else(|e| panic!("step {step}: read: {e}"));
            assert_eq!(some, data[off as usize..][..100], "step {step}");
            assert!(mapping.as_ref().is_none_or(|map| map[off as usize..][..100] == some), "step {step}");
        }
    }
    drop(held);
    daemon.stop();
}
