//! Shards that are corrupted, truncated, swapped or deleted never reach a reader.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use kos_tests::{Daemon, wait_for};

/// Flip a bit in each 64 KiB of every segment of a place.
fn corrupt(daemon: &Daemon, number: usize) {
    for path in daemon.segments_of(number) {
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("segment");
        let len = file.metadata().expect("segment").len();
        for at in (0..len).step_by(64 << 10) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("segment");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("segment");
        }
    }
}

fn truncate(daemon: &Daemon, number: usize) {
    for path in daemon.segments_of(number) {
        let file = OpenOptions::new().write(true).open(&path).expect("segment");
        let len = file.metadata().expect("segment").len();
        file.set_len(len / 3).expect("truncate");
    }
}

fn delete(daemon: &Daemon, number: usize) {
    for path in daemon.segments_of(number) {
        fs::remove_file(path).expect("delete");
    }
}

/// Give two places each other's segments.
fn swap(daemon: &Daemon, a: usize, b: usize) {
    let (a, b) = (daemon.segments_of(a), daemon.segments_of(b));
    let (a, b) = (a.first().expect("segment"), b.first().expect("segment"));
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).expect("rename");
    fs::rename(b, a).expect("rename");
    fs::rename(aside, b).expect("rename");
}

/// The file reads right twice: around the damage, and once it is repaired, without new repairs.
fn reads_right(daemon: &mut Daemon, data: &[u8]) {
    daemon.spawn();
    let path = daemon.mem().join("file");
    assert!(fs::read(&path).expect("read") == data, "wrong bytes");
    // By the reader, or before it came.
    wait_for("repair", || daemon.metric("kos_stripes_under_replicated") == 0);
    for counter in ["kos_shards_bad_total", "kos_shards_repaired_total"] {
        assert!(daemon.metric(counter) > 0, "{counter}");
    }
    assert!(daemon.log().contains("repaired") || daemon.log().contains("rebuilt"), "{}", daemon.log());
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == data, "wrong bytes after the repair");
    for counter in ["kos_shards_bad_total", "kos_shards_repaired_total"] {
        assert_eq!(daemon.metric(counter), 0, "{counter}: {}", daemon.log());
    }
    daemon.stop();
}

#[test]
fn two_corrupt_places() {
    let (mut daemon, data) = Daemon::with_file(1);
    corrupt(&daemon, 0);
    corrupt(&daemon, 1);
    reads_right(&mut daemon, &data);
}

#[test]
fn two_truncated_places() {
    let (mut daemon, data) = Daemon::with_file(2);
    truncate(&daemon, 2);
    truncate(&daemon, 3);
    reads_right(&mut daemon, &data);
}

#[test]
fn two_deleted_places() {
    let (mut daemon, data) = Daemon::with_file(3);
    delete(&daemon, 0);
    delete(&daemon, 4);
    reads_right(&mut daemon, &data);
}

#[test]
fn swapped_segments() {
    let (mut daemon, data) = Daemon::with_file(4);
    swap(&daemon, 1, 3);
    reads_right(&mut daemon, &data);
}

#[test]
fn more_than_parity_covers_is_an_error_and_never_zeros() {
    let (mut daemon, data) = Daemon::with_file(5);
    for number in [0, 1, 2] {
        corrupt(&daemon, number);
    }
    daemon.spawn();
    let file = File::open(daemon.mem().join("file")).expect("open");
    let mut failed = 0;
    for (at, part) in (0..).step_by(64 << 10).zip(data.chunks(64 << 10)) {
        let mut out = vec![0; part.len()];
        match file.read_exact_at(&mut out, at) {
            Ok(()) => assert!(out == part, "wrong bytes at {at}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "nothing was damaged");
    daemon.stop();
}
