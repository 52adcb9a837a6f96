//! Compressed stripes: smaller, and otherwise files as any others.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use kos_tests::{Daemon, Rng, wait_for};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

/// Bytes of a test's file: several stripes of 4+2 and an end that is not whole.
const LEN: usize = (9 << 20) + 12_345;

/// Bytes that compress to about a third, with stretches that do not.
fn text(rng: &mut Rng, len: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..64).map(|_| rng.bytes(24)).collect();
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        if rng.below(2000) == 0 {
            out.extend(rng.bytes(5000));
        }
        out.extend_from_slice(&words[rng.below(64) as usize]);
    }
    out.truncate(len);
    out
}

fn set(path: &Path, value: &str) {
    let set = Command::new("setfattr").args(["-n", "user.kos.compress", "-v", value]).arg(path).status();
    assert!(set.expect("setfattr, of the package attr").success(), "{value}");
}

fn write(path: &Path, data: &[u8]) {
    fs::write(path, data).expect("write");
    File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}

/// Bytes of all shards on disk.
fn stored(daemon: &Daemon) -> u64 {
    daemon.segments().iter().map(|path| fs::metadata(path).expect("segment").blocks() * 512).sum()
}

#[test]
fn compressible_bytes_take_less_space_unless_told_not_to() {
    let mut daemon = Daemon::start();
    let mut rng = Rng::new(1);
    let (data, noise) = (text(&mut rng, LEN), rng.bytes(LEN));
    let mut before = 0;
    for (value, bytes, most) in [
        ("auto", &data, 80),
        ("lz4", &data, 80),
        ("none", &data, 160),
        ("auto", &noise, 160),
        ("lz4", &noise, 160),
    ] {
        let dir = daemon.mem().join(format!("{value}-{most}-{}", bytes[0]));
        fs::create_dir(&dir).expect("mkdir");
        set(&dir, value);
        let saved = daemon.metric("kos_bytes_saved_total");
        write(&dir.join("file"), bytes);
        let saved = daemon.metric("kos_bytes_saved_total") - saved;
        assert_eq!(saved > 0, most == 80, "{value}: {saved} saved");
        let percent = (stored(&daemon) - before) * 100 / LEN as u64;
        assert!((most - 60..=most).contains(&percent), "{value}: {percent} % of the bytes are stored");
        before = stored(&daemon);
    }
    daemon.stop();
    daemon.spawn();
    for entry in fs::read_dir(daemon.mem()).expect("mem") {
        let read = fs::read(entry.expect("entry").path().join("file")).expect("read");
        assert!(read == data || read == noise, "wrong bytes");
    }
    daemon.stop();
}

#[test]
fn damaged_compressed_stripes_are_decoded_around_and_repaired() {
    let mut daemon = Daemon::start();
    let data = text(&mut Rng::new(2), LEN);
    write(&daemon.mem().join("file"), &data);
    assert!(daemon.metric("kos_bytes_saved_total") > LEN as u64 / 3);
    daemon.stop();
    for path in daemon
        .segments()
        .iter()
        .filter(|path| ["shards/0/", "shards/3/"].iter().any(|place| path.to_string_lossy().contains(place)))
    {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("segment");
        for at in (0..file.metadata().expect("segment").len()).step_by(32 << 10) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("segment");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("segment");
        }
    }
    daemon.spawn();
    // From the middle, so that only a part of a damaged stripe is asked for first.
    let file = File::open(daemon.mem().join("file")).expect("open");
    let mut part = vec![0; 100_000];
    file.read_exact_at(&mut part, 5_000_000).expect("read");
    assert!(part == data[5_000_000..5_100_000], "wrong bytes");
    assert!(fs::read(daemon.mem().join("file")).expect("read") == data, "wrong bytes");
    wait_for("repair", || daemon.metric("kos_stripes_under_replicated") == 0);
    assert!(daemon.metric("kos_shards_repaired_total") > 0);
    drop(file);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("file")).expect("read") == data, "wrong bytes after the repair");
    assert_eq!(daemon.metric("kos_shards_bad_total"), 0);
    daemon.stop();
}

#[test]
fn random_operations_on_a_compressible_file_do_what_they_do_in_memory() {
    let seed = std::env::var("KOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("KOS_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("file");
    let mut model: Vec<u8> = Vec::new();
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).expect("open");
    let mut file = open();
    for step in 0..600 {
        let at = rng.below(6 << 20) as usize;
        let len = 1 + rng.below(200_000) as usize;
        match rng.below(10) {
            0..4 => {
                let bytes = text(&mut rng, len);
                file.write_all_at(&bytes, at as u64).expect("write");
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&bytes);
            }
            4..8 => {
                // Out of the kernel's cache, so that it is read from the stripes.
                fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise");
                let end = model.len().min(at + len);
                let mut out = vec![0; end.saturating_sub(at)];
                file.read_exact_at(&mut out, at as u64).expect("read");
                assert!(out == model[at.min(end)..end], "step {step}: wrong bytes at {at}");
            }
            8 if rng.below(4) == 0 => {
                file.set_len(at as u64).expect("truncate");
                model.resize(at, 0);
            }
            8 => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, hole, at as u64, len as u64).expect("punch");
                let end = model.len().min(at + len);
                model[at.min(end)..end].fill(0);
            }
            _ => file.sync_all().expect("fsync"),
        }
        if step == 300 {
            drop(file);
            daemon.stop();
            daemon.spawn();
            file = open();
        }
    }
    drop(file);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == model, "wrong bytes after a restart");
    daemon.stop();
}
