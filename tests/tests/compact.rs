//! Compaction: many extents become few, policies are applied to what was there, and nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kos_tests::{Daemon, Rng, wait_for};

fn pass(daemon: &Daemon) {
    let passes = daemon.metric("kos_compact_passes_total");
    daemon.ctl("compact");
    wait_for("the pass", || daemon.metric("kos_compact_passes_total") > passes);
}

fn set(path: &Path, name: &str, value: &str) {
    let set = Command::new("setfattr").args(["-n", name, "-v", value]).arg(path).status();
    assert!(set.expect("setfattr, of the package attr").success(), "{name}={value}");
}

/// Overwrite `count` random blocks of a file, each by a stripe of its own.
fn fragment(path: &Path, data: &mut [u8], rng: &mut Rng, count: usize) {
    let file = OpenOptions::new().write(true).open(path).expect("open");
    for _ in 0..count {
        let at = rng.below((data.len() / 4096) as u64) as usize * 4096;
        data[at..at + 4096].copy_from_slice(&rng.bytes(4096));
        file.write_all_at(&data[at..at + 4096], at as u64).expect("write");
        file.sync_data().expect("fsync");
    }
}

/// Bytes of all shards on disk.
fn stored(daemon: &Daemon) -> u64 {
    daemon.segments().iter().map(|path| fs::metadata(path).expect("segment").blocks() * 512).sum()
}

#[test]
fn a_fragmented_file_gets_few_extents_and_the_same_bytes() {
    let mut daemon = Daemon::start();
    let mut rng = Rng::new(1);
    let path = daemon.mem().join("file");
    let mut data = rng.bytes(2 << 20);
    fs::write(&path, &data).expect("write");
    fragment(&path, &mut data, &mut rng, 150);
    let modified = fs::metadata(&path).and_then(|meta| meta.modified()).expect("stat");
    let before = stored(&daemon);
    pass(&daemon);
    let joined = daemon.metric("kos_compact_extents_total");
    assert!(joined > 200, "{joined} extents");
    assert_eq!(fs::metadata(&path).and_then(|meta| meta.modified()).expect("stat"), modified);
    daemon.ctl("collect");
    assert!(stored(&daemon) < before, "{} of {before}: small stripes take more space", stored(&daemon));
    // What is there now is left alone.
    pass(&daemon);
    assert_eq!(daemon.metric("kos_compact_extents_total"), joined);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == data, "wrong bytes");
    daemon.stop();
}

#[test]
fn little_that_is_left_does_not_keep_a_stripe() {
    let mut daemon = Daemon::start();
    // Two hundred files share a few stripes; most of them go.
    let data = Rng::new(2).bytes(50_000);
    for number in 0..200 {
        fs::write(daemon.mem().join(number.to_string()), &data).expect("write");
    }
    File::open(daemon.mount()).and_then(|root| root.sync_all()).expect("sync");
    for number in (0..200).filter(|number| number % 20 != 0) {
        fs::remove_file(daemon.mem().join(number.to_string())).expect("remove");
    }
    daemon.ctl("collect");
    let before = stored(&daemon);
    pass(&daemon);
    daemon.ctl("collect");
    let after = stored(&daemon);
    let live = 10 * data.len() as u64;
    assert!(before > 8 * live && after < 3 * live, "{before}, then {after} bytes for {live}");
    daemon.stop();
    daemon.spawn();
    for number in (0..200).step_by(20) {
        assert!(fs::read(daemon.mem().join(number.to_string())).expect("read") == data, "{number}");
    }
    daemon.stop();
}

#[test]
fn a_policy_reaches_what_was_there_before() {
    let mut daemon = Daemon::with_ram(64 << 20);
    let path = daemon.mem().join("file");
    let data = Rng::new(3).bytes((9 << 20) + 12_345);
    fs::write(&path, &data).expect("write");
    File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    let before = stored(&daemon);
    set(&path, "user.kos.ec", "2+2");
    pass(&daemon);
    daemon.ctl("collect");
    let after = stored(&daemon);
    assert!(after * 10 > before * 12, "twice the bytes instead of 1.5 times: {before}, then {after}");
    set(&path, "user.kos.durability", "memory");
    pass(&daemon);
    daemon.ctl("collect");
    assert!(stored(&daemon) < before / 4, "it is in memory now: {}", stored(&daemon));
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == data, "wrong bytes");
    daemon.stop();
}

#[test]
fn writers_lose_nothing_to_compaction_nor_to_kills_in_it() {
    let seed = std::env::var("KOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
    eprintln!("KOS_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut daemon = Daemon::start();
    let mut all: Vec<(String, Vec<u8>)> = (0..3).map(|n| (format!("file{n}"), rng.bytes(1 << 20))).collect();
    for (name, data) in &all {
        fs::write(daemon.mem().join(name), data).expect("write");
    }
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writers: Vec<_> = all
                .iter_mut()
                .map(|(name, data)| {
                    let (path, mut rng) = (daemon.mem().join(name), Rng::new(rng.next()));
                    scope.spawn(move || fragment(&path, data, &mut rng, 60))
                })
                .collect();
            let (daemon, stop) = (&daemon, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    daemon.ctl("compact");
                    thread::sleep(std::time::Duration::from_millis(20));
                }
            });
            for writer in writers {
                writer.join().expect("writer");
            }
            stop.store(true, Ordering::Relaxed);
        });
        // It is still at it, or begins once more.
        daemon.ctl("compact");
        thread::sleep(std::time::Duration::from_millis(rng.below(700)));
        assert!(round > 0 || daemon.metric("kos_compact_extents_total") > 0, "nothing was joined");
        daemon.kill();
        daemon.spawn();
        for (name, data) in &all {
            assert!(fs::read(daemon.mem().join(name)).expect("read") == *data, "{name}: wrong bytes");
        }
    }
    pass(&daemon);
    daemon.ctl("collect");
    assert!(stored(&daemon) < 3 * (2 << 20), "{} bytes for 3 MiB: something leaked", stored(&daemon));
    daemon.stop();
}
