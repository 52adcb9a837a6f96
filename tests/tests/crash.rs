//! kill -9 at any moment under load: the mount comes back by itself, everything fsynced is there,
//! and every file is one of its versions, never a mixture.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kos_tests::{Daemon, Rng};

/// Kills in one run; the soak asks for more.
fn kills() -> u64 {
    std::env::var("KOS_KILLS").map_or(5, |n| n.parse().expect("KOS_KILLS: a number"))
}

/// Bytes of a version of a file: its number, repeated.
fn version(number: u64, len: usize) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(len).collect()
}

/// The number a file's bytes are made of.
fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(*bytes.first_chunk().expect("8 bytes"));
    assert!(bytes == version(number, bytes.len()), "torn: not one version");
    number
}

/// Overwrite one file in place, fsync, and note the number, until the daemon dies.
fn overwrite(path: &Path, acked: &AtomicU64, stop: &AtomicBool) {
    let mut number = acked.load(Ordering::SeqCst);
    let Ok(file) = File::options().read(true).write(true).create(true).truncate(false).open(path) else {
        return;
    };
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        if file.write_all_at(&version(number, 256 << 10), 0).is_err() || file.sync_data().is_err() {
            return;
        }
        acked.store(number, Ordering::SeqCst);
    }
}

/// Make a new file by rename, with fsync of file and directory, until the daemon dies.
fn replace(dir: &Path, acked: &AtomicU64, stop: &AtomicBool) {
    let mut number = acked.load(Ordering::SeqCst);
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(dir.join("new"))?;
            file.write_all(&version(number, 10_000))?;
            file.sync_all()?;
            fs::rename(dir.join("new"), dir.join("file"))?;
            File::open(dir)?.sync_all()
        };
        if write().is_err() {
            return;
        }
        acked.store(number, Ordering::SeqCst);
    }
}

#[test]
fn nothing_acked_is_lost_by_kills() {
    let mut daemon = Daemon::start();
    let mut rng = Rng::new(7);
    let (in_place, renamed) = (AtomicU64::new(0), AtomicU64::new(0));
    for round in 0..kills() {
        let mem = daemon.mem();
        fs::create_dir_all(mem.join("replace")).expect("directory");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| overwrite(&mem.join("in-place"), &in_place, &stop));
            scope.spawn(|| replace(&mem.join("replace"), &renamed, &stop));
            std::thread::sleep(Duration::from_millis(300 + rng.below(700)));
            daemon.kill();
            stop.store(true, Ordering::SeqCst);
        });
        daemon.spawn();
        let check = |path: &Path, acked: &AtomicU64| {
            let acked = acked.load(Ordering::SeqCst);
            if acked > 0 {
                let found = number_of(&fs::read(path).expect("file is back"));
                assert!((acked..=acked + 1).contains(&found), "round {round}: {found}, acked {acked}");
            }
        };
        check(&mem.join("in-place"), &in_place);
        check(&mem.join("replace/file"), &renamed);
        // The unacked next version may be there: go on from it.
        in_place.fetch_add(1, Ordering::SeqCst);
        renamed.fetch_add(1, Ordering::SeqCst);
        for path in ["in-place", "replace/file", "replace/new"] {
            drop(fs::remove_file(mem.join(path)));
        }
        in_place.store(0, Ordering::SeqCst);
        renamed.store(0, Ordering::SeqCst);
    }
    assert!(kills() > 0);
    daemon.stop();
}
