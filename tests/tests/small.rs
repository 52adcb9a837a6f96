//! Small files on a real mount: their bytes are kept with the metadata.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use kos_tests::{Daemon, Rng};
use rustix::fs::{SeekFrom, copy_file_range, seek};

const STRIPES: &str = "kos_stripes_written_total";

fn sync(daemon: &Daemon) {
    File::open(daemon.mount()).and_then(|root| root.sync_all()).expect("sync");
}

#[test]
fn small_files_write_no_stripe_and_survive_a_kill() {
    let mut daemon = Daemon::start();
    let mut rng = Rng::new(1);
    let dir = daemon.mem().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let files: Vec<_> = (0..1000).map(|i| (dir.join(i.to_string()), rng.bytes(1 + i * 41 % 2048))).collect();
    for (path, data) in &files {
        fs::write(path, data).expect("write");
    }
    // Of class disk, so that all of it survives.
    sync(&daemon);
    assert_eq!(daemon.metric(STRIPES), 0);
    daemon.kill();
    daemon.spawn();
    for (path, data) in &files {
        assert!(fs::read(path).expect("read") == *data, "{}", path.display());
        assert_eq!(fs::metadata(path).expect("stat").len(), data.len() as u64);
        assert!(fs::metadata(path).expect("stat").blocks() > 0);
    }
    assert_eq!(daemon.metric(STRIPES), 0);
    daemon.stop();
}

#[test]
fn a_small_file_grows_and_shrinks() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create");
    let mut expected = Vec::new();
    // By appends past the bound, each on stable storage.
    for part in 0..60_u8 {
        let data = [part; 100];
        file.write_all_at(&data, expected.len() as u64).expect("write");
        file.sync_all().expect("fsync");
        expected.extend(data);
        assert_eq!(daemon.metric(STRIPES) > 0, expected.len() > 4096, "{} bytes", expected.len());
    }
    fs::create_dir(daemon.mount().join("snap/long")).expect("snapshot");
    file.set_len(50).expect("truncate");
    file.write_all_at(b"again", 1000).expect("write");
    let stripes = daemon.metric(STRIPES);
    file.sync_all().expect("fsync");
    assert_eq!(daemon.metric(STRIPES), stripes, "it is small again");
    fs::create_dir(daemon.mount().join("snap/short")).expect("snapshot");
    file.write_all_at(b"newer", 0).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    daemon.kill();
    daemon.spawn();
    let mut short = expected[..50].to_vec();
    short.resize(1000, 0);
    short.extend(b"again");
    let snap = daemon.mount().join("snap");
    assert!(fs::read(snap.join("long/file")).expect("read") == expected);
    assert!(fs::read(snap.join("short/file")).expect("read") == short);
    short[..5].copy_from_slice(b"newer");
    assert!(fs::read(&path).expect("read") == short);
    for name in ["long", "short"] {
        fs::remove_dir(snap.join(name)).expect("drop the snapshot");
    }
    fs::remove_file(&path).expect("remove");
    daemon.stop();
}

#[test]
fn small_and_large_files_copy_into_each_other() {
    let mut daemon = Daemon::start();
    let mut rng = Rng::new(2);
    let open = |name: &str, data: &[u8]| {
        let path = daemon.mem().join(name);
        fs::write(&path, data).expect("write");
        OpenOptions::new().read(true).write(true).open(path).expect("open")
    };
    let (mut small_bytes, mut large_bytes) = (rng.bytes(3000), rng.bytes(1 << 20));
    let (small, large) = (open("small", &small_bytes), open("large", &large_bytes));
    let copy = |from: &File, at: u64, to: &File, to_at: u64, len: usize| {
        let copied = copy_file_range(from, Some(&mut { at }), to, Some(&mut { to_at }), len);
        assert_eq!(copied, Ok(len));
    };
    copy(&small, 100, &large, 500_000, 2500);
    large_bytes[500_000..502_500].copy_from_slice(&small_bytes[100..2600]);
    copy(&large, 499_000, &small, 1000, 3000);
    small_bytes.resize(4000, 0);
    small_bytes[1000..].copy_from_slice(&large_bytes[499_000..502_000]);
    // Over a part of what was copied, then a part behind a hole.
    small.write_all_at(&[7; 10], 2500).expect("write");
    small_bytes[2500..2510].fill(7);
    daemon.ctl("compact");
    sync(&daemon);
    let holes = open("holes", &[1; 100]);
    holes.write_all_at(&[2; 100], 2000).expect("write");
    holes.set_len(4000).expect("truncate");
    let found = [(0, true), (0, false), (100, true), (2000, false)].map(|(at, data)| {
        seek(&holes, if data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) }).expect("seek")
    });
    assert_eq!(found, [0, 100, 2000, 2100]);
    assert_eq!(holes.metadata().expect("stat").blocks(), 1, "200 bytes");
    drop((small, large, holes));
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("small")).expect("read") == small_bytes);
    assert!(fs::read(daemon.mem().join("large")).expect("read") == large_bytes);
    daemon.stop();
}
