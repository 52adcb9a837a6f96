//! Copies of sealed files, which the kernel reads in place.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kos_tests::seal::{SEAL, map, seal, sealed, unseal};
use kos_tests::{Daemon, Rng, is_mounted, wait_for};
use memmap2::Mmap;
use rustix::io::Errno;

use crate::{get, set};

const MIB: usize = 1 << 20;

fn copies(daemon: &Daemon) -> u64 {
    daemon.metric("kos_copies_bytes")
}

/// What is read without asking the daemon is what the kernel reads in place.
fn stripes_read(daemon: &Daemon) -> u64 {
    daemon.metric("kos_bytes_read_total")
}

/// A descriptor that the kernel reads a copy through. While an earlier one is being released others are as that
/// one was, and only the second open after that is worth a copy.
fn open_in_place(daemon: &Daemon, path: &Path) -> File {
    let mut opened = None;
    wait_for("an open in place", || {
        // Through the page cache, O_DIRECT asks the daemon.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
        let before = stripes_read(daemon);
        file.read_exact_at(&mut [0; 4096], 0).expect("read");
        opened = (stripes_read(daemon) == before).then_some(file);
        opened.is_some()
    });
    opened.expect("just opened")
}

#[test]
fn a_sealed_file_is_read_in_place() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(1).bytes(9 * MIB + 12_345);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    assert_eq!(copies(&daemon), data.len() as u64);
    let before = stripes_read(&daemon);
    let mut file = File::open(&path).expect("open");
    let mut found = Vec::new();
    file.read_to_end(&mut found).expect("read");
    assert!(found == data);
    assert!(map(&file)[..] == data, "mapped");
    let mut direct = vec![0; 4096];
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .and_then(|file| file.read_exact_at(&mut direct, 8192))
        .expect("O_DIRECT");
    assert_eq!(direct, data[8192..12288]);
    assert_eq!(stripes_read(&daemon), before, "the daemon was not asked");
    let meta = file.metadata().expect("stat");
    assert_eq!(meta.len(), data.len() as u64);
    assert_eq!(get(&path, "user.kos.durability"), "disk", "attributes are the file's");
    file.sync_all().expect("fsync");
    daemon.stop();
}

#[test]
fn what_is_read_in_place_is_not_unsealed() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(2).bytes(3 * MIB);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    let (one, two) = (File::open(&path).expect("open"), File::open(&path).expect("open"));
    assert_eq!((unseal(&path), set(&path, SEAL, "0")), (Err(Errno::BUSY), Err(Errno::BUSY)));
    let mapping = map(&one);
    drop((one, two));
    // Each try waits for releases that are under way.
    for _ in 0..3 {
        assert_eq!(unseal(&path), Err(Errno::BUSY), "a mapping lives on");
    }
    assert_eq!(get(&path, SEAL), "1");
    assert!(mapping[..] == data);
    drop(mapping);
    wait_for("the release", || unseal(&path).is_ok());
    assert_eq!(copies(&daemon), 0, "its memory is free");
    let other = Rng::new(3).bytes(3 * MIB);
    fs::write(&path, &other).expect("write");
    assert!(fs::read(&path).expect("read") == other, "nothing of the copy is left");
    seal(&path);
    wait_for("a new copy", || copies(&daemon) > 0);
    assert!(map(&File::open(&path).expect("open"))[..] == other);
    daemon.stop();
}

/// While a file is open through the page cache, or mapped, all opens are: the kernel answers a mixture
/// with EIO.
#[test]
fn modes_are_not_mixed() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(4).bytes(2 * MIB);
    let path = daemon.mem().join("file");
    fs::write(&path, &data).expect("write");
    let reader = File::open(&path).expect("open");
    let mapping = map(&reader);
    seal(&path);
    wait_for("the copy", || copies(&daemon) > 0);
    let opens = |what: &str| {
        let file = File::open(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut first = [0; 100];
        file.read_exact_at(&mut first, 0).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(first, data[..100], "{what}");
        assert!(map(&file)[..] == data, "{what}");
        file
    };
    opens("one descriptor is cached");
    drop(reader);
    opens("a mapping is cached");
    assert!(mapping[..] == data);
    // Not read in place, so that it can be unsealed and sealed again.
    unseal(&path).expect("unseal");
    seal(&path);
    wait_for("the copy", || copies(&daemon) > 0);
    drop(mapping);
    wait_for("an open in place", || {
        let file = opens("all are closed");
        let in_place = unseal(&path) == Err(Errno::BUSY);
        if !in_place {
            seal(&path);
        }
        drop(file);
        in_place
    });
    // Any order of opens, mappings and closes that one process can make.
    let mut rng = Rng::new(kos_tests::seed());
    let mut held: Vec<(Option<File>, Option<Mmap>)> = Vec::new();
    for step in 0..300 {
        let at = rng.below(held.len().max(1) as u64) as usize;
        match (rng.below(4), held.get_mut(at)) {
            (1, Some((Some(file), mapping))) => *mapping = Some(map(file)),
            (2, Some((file, _))) => *file = None,
            (3, Some(_)) => drop(held.swap_remove(at)),
            _ => held.push((Some(opens(&format!("step {step}"))), None)),
        }
        if step % 50 == 49 {
            held.clear();
            // Either succeeds or not, by what has been released so far.
            let _ = unseal(&path);
            seal(&path);
        }
    }
    daemon.stop();
}

#[test]
fn holes_are_holes_and_sizes_are_kept() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let path = daemon.mem().join("sparse");
    let mut file = File::create(&path).expect("create");
    file.seek(SeekFrom::Start(40 << 20)).expect("seek");
    file.write_all(&Rng::new(5).bytes(100_000)).expect("write");
    file.set_len((80 << 20) + 7).expect("extend");
    drop(file);
    let before = fs::read(&path).expect("read");
    wait_for("the release", || set(&path, SEAL, "1").is_ok());
    wait_for("the copy", || daemon.metric("kos_copies_made_total") == 1);
    assert!(copies(&daemon) < 1 << 20, "{}", copies(&daemon));
    assert!(fs::read(&path).expect("read") == before);
    let file = File::open(&path).expect("open");
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).expect("data"), 40 << 20);
    assert_eq!(file.metadata().expect("stat").size(), (80 << 20) + 7);
    daemon.stop();
}

#[test]
fn a_sealed_program_runs_in_place() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let path = sealed(&daemon, daemon.mem().join("program"), &fs::read("/bin/bash").expect("bash"));
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    let script = "setfattr -x user.kos.seal \"$0\" 2>&1; echo ran";
    let out = Command::new(&path).args(["-c", script, path.to_str().expect("text")]).output().expect("run");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("busy") && said.ends_with("ran\n"), "{said}");
    wait_for("the release", || unseal(&path).is_ok());
    daemon.stop();
}

#[test]
fn what_is_open_in_place_outlives_the_daemon() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(6).bytes(4 * MIB);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    let file = File::open(&path).expect("open");
    let mapping = map(&file);
    let reads = |when: &str| {
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, 0).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert!(found == data && mapping[..] == data, "{when}");
    };
    daemon.kill();
    reads("after kill -9");
    daemon.spawn();
    reads("after the next start");
    assert_eq!(copies(&daemon), 0, "what an earlier process left is not trusted");
    assert!(fs::read(&path).expect("read") == data);
    // A copy of the new daemon.
    let second = open_in_place(&daemon, &path);
    let also = map(&second);
    daemon.stop();
    assert!(!is_mounted(&daemon.ram()), "memory is given back although programs read in it");
    reads("after an orderly end");
    assert!(also[..] == data);
    drop((second, also, file, mapping));
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == data);
    daemon.stop();
}

/// Flip a bit in each 64 KiB of every segment of a place.
fn corrupt(daemon: &Daemon, place: usize) {
    for path in daemon.segments_of(place) {
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("segment");
        for at in (0..file.metadata().expect("segment").len()).step_by(64 << 10) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("segment");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("segment");
        }
    }
}

#[test]
fn a_copy_is_made_around_damaged_shards() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(7).bytes(9 * MIB);
    let path = daemon.mem().join("file");
    fs::write(&path, &data).expect("write");
    daemon.stop();
    corrupt(&daemon, 0);
    corrupt(&daemon, 3);
    daemon.spawn();
    seal(&path);
    wait_for("the copy", || daemon.metric("kos_copies_made_total") == 1);
    let before = stripes_read(&daemon);
    assert!(map(&File::open(&path).expect("open"))[..] == data);
    assert_eq!(stripes_read(&daemon), before, "from the copy");
    daemon.stop();
}

#[test]
fn what_is_lost_is_never_read_from_a_copy() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(8).bytes(5 * MIB);
    let path = daemon.mem().join("file");
    fs::write(&path, &data).expect("write");
    daemon.stop();
    (0..3).for_each(|place| corrupt(&daemon, place));
    daemon.spawn();
    seal(&path);
    wait_for("the refusal", || daemon.log().contains("uncopied"));
    assert_eq!((copies(&daemon), daemon.metric("kos_copies_made_total")), (0, 0));
    let error = fs::read(&path).expect_err("lost");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(
        fs::read_dir(daemon.ram().join("copies")).expect("copies").count(),
        0,
        "no half of one is left"
    );
    daemon.stop();
}

fn used(daemon: &Daemon) -> u64 {
    let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    let line = usage.lines().find_map(|line| line.strip_prefix("ram_bytes_used "));
    line.expect("ram_bytes_used").parse().expect("a number")
}

fn memory_dir(daemon: &Daemon, pin: &str) -> PathBuf {
    let dir = daemon.mem().join(pin);
    fs::create_dir(&dir).expect("mkdir");
    set(&dir, "user.kos.durability", "memory").expect("memory");
    set(&dir, "user.kos.pin", pin).expect("pin");
    dir
}

fn write(path: &Path, data: &[u8]) {
    let mut file = File::create(path).expect("create");
    file.write_all(data).expect("write");
    file.sync_all().expect("fsync");
}

#[test]
fn copies_have_half_of_the_budget_and_make_way_for_what_is_written() {
    const BUDGET: u64 = 64 << 20;
    let mut daemon = Daemon::with_ram(BUDGET);
    let mut rng = Rng::new(9);
    let all: Vec<_> = (0..6).map(|_| rng.bytes(10 * MIB)).collect();
    let names: Vec<_> = (0..6).map(|nth| daemon.mem().join(nth.to_string())).collect();
    for (name, data) in names.iter().zip(&all) {
        fs::write(name, data).expect("write");
        seal(name);
    }
    wait_for("copies", || copies(&daemon) >= 30 << 20);
    // A file that is sealed pushes no other out; one that is read again and again does.
    drop(open_in_place(&daemon, &names[5]));
    assert!(copies(&daemon) <= BUDGET / 2, "{}", copies(&daemon));
    for (name, data) in names.iter().zip(&all) {
        assert!(fs::read(name).expect("read") == *data);
    }
    // What is read in place stays, and the rest goes.
    let held = File::open(&names[5]).expect("open");
    let dir = memory_dir(&daemon, "none");
    write(&dir.join("file"), &rng.bytes(28 * MIB));
    wait_for("room", || used(&daemon) <= BUDGET / 10 * 9);
    assert!(copies(&daemon) < 30 << 20, "{}", copies(&daemon));
    let mut found = Vec::new();
    (&held).read_to_end(&mut found).expect("read");
    assert!(found == all[5]);
    drop(held);
    // What is pinned has a right to all of it.
    write(&memory_dir(&daemon, "ram").join("file"), &rng.bytes(34 * MIB));
    assert!(used(&daemon) <= BUDGET);
    for (name, data) in names.iter().zip(&all) {
        assert!(fs::read(name).expect("read") == *data);
    }
    daemon.stop();
}

#[test]
fn a_removed_file_takes_its_copy_along() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let data = Rng::new(10).bytes(3 * MIB);
    let path = sealed(&daemon, daemon.mem().join("file"), &data);
    let file = File::open(&path).expect("open");
    fs::remove_file(&path).expect("unlink");
    let mapping = map(&file);
    drop(file);
    assert!(mapping[..] == data);
    drop(mapping);
    wait_for("the copy to go", || copies(&daemon) == 0);
    daemon.stop();
}

/// Seals that come and go while others read: every open sees one whole content.
#[test]
fn readers_see_whole_contents_while_seals_come_and_go() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let path = daemon.mem().join("file");
    let content = |round: u8| vec![round + 1; 2 * MIB];
    fs::write(&path, content(0)).expect("write");
    seal(&path);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let mut rng = Rng::new(reader);
            let (path, stop) = (&path, &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Nobody has it open at times, else the seal stays.
                    std::thread::sleep(Duration::from_millis(rng.below(20)));
                    let file = File::open(path).expect("open");
                    // Sealed or not, it is opened and read without an error.
                    let mut found = Vec::new();
                    (&file).read_to_end(&mut found).expect("read");
                    if get(path, SEAL) == "1" && unseal(path) == Err(Errno::BUSY) {
                        let mapping = map(&file);
                        assert!(mapping.iter().all(|&byte| byte == mapping[0]), "read in place");
                    }
                }
            });
        }
        let mut rounds = 0;
        let start = std::time::Instant::now();
        // On a busy machine few, and one at least.
        while rounds < 30 && start.elapsed().as_secs() < if rounds == 0 { 60 } else { 20 } {
            let _ = unseal(&path);
            if fs::write(&path, content(rounds)).is_ok() {
                rounds += 1;
            }
            // Somebody may be writing it, or have sealed it.
            let _ = set(&path, SEAL, "1");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(rounds > 0, "it could be changed at least once");
    });
    daemon.stop();
}
