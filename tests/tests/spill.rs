//! The memory tier keeps room: what was used least lately moves to disk, pinned files stay.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kos_tests::{Daemon, Rng, wait_for};
use rustix::fs::XattrFlags;

const MIB: usize = 1 << 20;
const BUDGET: u64 = 64 << 20;

fn set(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, format!("user.kos.{name}"), value.as_bytes(), XattrFlags::empty())
        .expect("setxattr");
}

fn dir(daemon: &Daemon, name: &str, pin: &str) -> PathBuf {
    let dir = daemon.mem().join(name);
    fs::create_dir(&dir).expect("mkdir");
    set(&dir, "durability", "memory");
    set(&dir, "pin", pin);
    dir
}

fn write(path: &Path, data: &[u8]) {
    let mut file = File::create(path).expect("create");
    file.write_all(data).expect("write");
    file.sync_all().expect("fsync");
}

/// Read a file past the kernel's cache; answers its bytes, and how many bytes of shards came from disk.
fn read(daemon: &Daemon, path: &Path) -> (Vec<u8>, u64) {
    let before = daemon.metric("kos_disk_bytes_read_total");
    let mut data = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    file.and_then(|mut file| file.read_to_end(&mut data)).expect("read");
    (data, daemon.metric("kos_disk_bytes_read_total") - before)
}

fn used(daemon: &Daemon) -> u64 {
    let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    let line = usage.lines().find_map(|line| line.strip_prefix("ram_bytes_used "));
    line.expect("ram_bytes_used").parse().expect("a number")
}

/// Wait until there is room again.
fn settle(daemon: &Daemon) {
    wait_for("room in memory", || used(daemon) <= BUDGET / 10 * 9);
}

#[test]
fn the_least_recently_used_goes_to_disk_and_the_rest_stays() {
    let mut daemon = Daemon::with_ram(BUDGET);
    let (cold, pinned) = (dir(&daemon, "cold", "none"), dir(&daemon, "pinned", "ram"));
    let mut rng = Rng::new(1);
    let all: Vec<_> = (0..16).map(|_| rng.bytes(8 * MIB)).collect();
    let (hot, pin) = (rng.bytes(4 * MIB), rng.bytes(4 * MIB));
    write(&cold.join("hot"), &hot);
    write(&pinned.join("file"), &pin);
    // Three times the budget with parity.
    for (number, data) in all.iter().enumerate() {
        write(&cold.join(number.to_string()), data);
        settle(&daemon);
        let (found, from_disk) = read(&daemon, &cold.join("hot"));
        assert!(found == hot, "hot after {number}");
        assert_eq!(from_disk, 0, "hot has left memory after {number}");
    }
    assert!(daemon.metric("kos_spilled_bytes_total") > BUDGET, "spilled");
    let events = fs::read_to_string(daemon.mount().join("sys/events")).expect("events");
    assert!(events.contains("spilling"), "{events}");
    let (found, from_disk) = read(&daemon, &pinned.join("file"));
    assert!(found == pin, "pinned");
    assert_eq!(from_disk, 0, "pinned has left memory, although nobody read it");
    let (found, from_disk) = read(&daemon, &cold.join("0"));
    assert!(found == all[0], "cold");
    assert!(from_disk >= 8 * MIB as u64, "{from_disk} bytes from disk: it was not used for longest");
    // Moved bytes are read back right, also by the next process.
    daemon.kill();
    daemon.spawn();
    for (number, data) in all.iter().enumerate() {
        assert!(read(&daemon, &cold.join(number.to_string())).0 == *data, "{number}");
    }
    assert!(read(&daemon, &cold.join("hot")).0 == hot && read(&daemon, &pinned.join("file")).0 == pin);
    daemon.stop();
}

#[test]
fn pinned_files_and_files_that_are_read_come_back_after_a_clean_end() {
    let mut daemon = Daemon::with_ram(BUDGET);
    let (plain, pinned) = (dir(&daemon, "plain", "none"), dir(&daemon, "pinned", "ram"));
    let data = Rng::new(2).bytes(6 * MIB);
    write(&plain.join("file"), &data);
    write(&pinned.join("file"), &data);
    daemon.stop();
    daemon.spawn();
    wait_for("the pinned file", || daemon.metric("kos_recalled_bytes_total") >= 9 * MIB as u64);
    let (found, from_disk) = read(&daemon, &pinned.join("file"));
    assert!(found == data && from_disk == 0, "{from_disk} bytes from disk");
    assert!(read(&daemon, &plain.join("file")).1 >= 6 * MIB as u64, "nobody has read it yet");
    wait_for("what was read", || daemon.metric("kos_recalled_bytes_total") >= 18 * MIB as u64);
    let (found, from_disk) = read(&daemon, &plain.join("file"));
    assert!(found == data && from_disk == 0, "{from_disk} bytes from disk");
    daemon.stop();
}

#[test]
fn pinned_beyond_the_budget_is_refused_by_the_write() {
    let mut daemon = Daemon::with_ram(BUDGET);
    let (plain, pinned) = (dir(&daemon, "plain", "none"), dir(&daemon, "pinned", "ram"));
    let mut rng = Rng::new(3);
    let other = rng.bytes(30 * MIB);
    write(&plain.join("file"), &other);
    let block = rng.bytes(MIB);
    let mut file = File::create(pinned.join("file")).expect("create");
    let mut taken = 0;
    let error = loop {
        assert!(taken < 64, "{taken} MiB pinned to a budget of 64 with parity");
        match file.write_all(&block) {
            Ok(()) => taken += 1,
            Err(e) => break e,
        }
        if taken % 8 == 0 {
            file.sync_all().expect("what write took finds its room");
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(taken >= 30, "{taken} MiB: what is not pinned did not make room");
    file.sync_all().expect("what write took finds its room");
    drop(file);
    // Others go on, and what is removed makes room.
    write(&plain.join("more"), &block);
    assert!(read(&daemon, &plain.join("file")).0 == other);
    let found = read(&daemon, &pinned.join("file"));
    assert!(found.0.chunks(MIB).take(taken).all(|chunk| chunk == block) && found.0.len() >= taken * MIB);
    assert_eq!(found.1, 0, "bytes from disk");
    fs::remove_file(pinned.join("file")).expect("remove");
    write(&pinned.join("next"), &block);
    daemon.stop();
}

/// Whether a user may do that to an attribute of a directory.
fn may(user: u32, how: &str, dir: &Path) -> bool {
    let done =
        Command::new("sh").args(["-c", &format!("setfattr {how} \"$1\""), "sh"]).arg(dir).uid(user).output();
    let done = done.expect("sh");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || said.contains("Operation not permitted"), "{said}");
    done.status.success()
}

#[test]
fn only_root_pins_and_a_quota_bounds_it() {
    const USER: u32 = 65534;
    let mut daemon = Daemon::with_ram(BUDGET);
    // Other users come through the temporary directory.
    let root = daemon.mount().parent().expect("root").to_path_buf();
    fs::set_permissions(root, Permissions::from_mode(0o755)).expect("chmod");
    let pinned = dir(&daemon, "pinned", "ram");
    let own = pinned.join("own");
    fs::create_dir(&own).expect("mkdir");
    chown(&own, Some(USER), None).expect("chown");
    assert!(!may(USER, "-n user.kos.pin -v ram", &own));
    assert!(may(USER, "-n user.kos.pin -v none", &own), "to give memory up is free");
    assert!(!may(USER, "-n user.kos.pin -v ram", &own));
    assert!(!may(USER, "-x user.kos.pin", &own), "it would be pinned as the directory above");
    assert!(may(USER, "-n user.kos.durability -v memory", &own), "the others are the owner's");
    assert!(may(0, "-x user.kos.pin", &own));
    assert!(may(0, "-n trusted.kos.quota -v bytes=4M", &pinned));
    let block = Rng::new(1).bytes(MIB);
    let mut file = File::create(own.join("file")).expect("create");
    let error = (0..8).find_map(|_| file.write_all(&block).err()).expect("the quota ends it");
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT));
    daemon.stop();
}

#[test]
fn without_memory_nothing_can_be_pinned() {
    let mut daemon = Daemon::start();
    let pinned = dir(&daemon, "pinned", "ram");
    let error = fs::write(pinned.join("file"), b"x").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    set(&pinned, "durability", "disk");
    fs::write(pinned.join("other"), b"x").expect("class disk does not ask for memory");
    daemon.stop();
}

#[test]
fn killed_while_spilling_nothing_is_lost() {
    let mut daemon = Daemon::with_ram(BUDGET);
    let plain = dir(&daemon, "plain", "none");
    let mut rng = Rng::new(kos_tests::seed());
    let mut files = Vec::new();
    for round in 0..5 {
        let before = daemon.metric("kos_spilled_bytes_total");
        while daemon.metric("kos_spilled_bytes_total") == before {
            let data = rng.bytes(3 * MIB);
            let path = plain.join(files.len().to_string());
            write(&path, &data);
            files.push((path, data));
            assert!(files.len() < 200, "nothing is spilled");
        }
        std::thread::sleep(std::time::Duration::from_millis(rng.below(60)));
        daemon.kill();
        daemon.spawn();
        for (path, data) in &files {
            assert!(read(&daemon, path).0 == *data, "{} in round {round}", path.display());
        }
    }
    assert_eq!(daemon.metric("kos_shards_bad_total"), 0, "every shard is where the index says");
    daemon.stop();
}
