//! The memory tier: what survives what, and its budget.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use kos_tests::{Daemon, Rng, is_mounted};
use rustix::mount::{UnmountFlags, unmount};

const MIB: u64 = 1 << 20;

/// A directory whose files are of a class.
fn class_dir(daemon: &Daemon, class: &str) -> std::path::PathBuf {
    let dir = daemon.mem().join(class);
    fs::create_dir(&dir).expect("mkdir");
    set_class(&dir, class);
    dir
}

fn set_class(path: &Path, class: &str) {
    let set = Command::new("setfattr")
        .args(["-n", "user.kos.durability", "-v", class])
        .arg(path)
        .status()
        .expect("setfattr, of the package attr");
    assert!(set.success(), "{class}");
}

fn write(path: &Path, data: &[u8]) {
    fs::write(path, data).expect("write");
    File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}

fn ram_used(daemon: &Daemon) -> u64 {
    let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    let line = usage.lines().find_map(|line| line.strip_prefix("ram_bytes_used "));
    line.expect("ram_bytes_used").parse().expect("a number")
}

#[test]
fn fsynced_memory_survives_kill_and_moves_to_disk_at_the_end() {
    let mut daemon = Daemon::with_ram(256 * MIB);
    let data = Rng::new(1).bytes(9 << 20);
    for class in ["memory", "scratch"] {
        write(&class_dir(&daemon, class).join("file"), &data);
    }
    assert!(ram_used(&daemon) > 18 * MIB, "{}", ram_used(&daemon));
    let check = |daemon: &Daemon, when: &str| {
        for class in ["memory", "scratch"] {
            assert!(fs::read(daemon.mem().join(class).join("file")).expect("read") == data, "{class} {when}");
        }
    };
    daemon.kill();
    daemon.spawn();
    check(&daemon, "after kill -9");
    daemon.stop();
    assert!(!is_mounted(&daemon.ram()), "memory is given back");
    daemon.spawn();
    // What is read comes back to memory, so this is asked first.
    assert!(ram_used(&daemon) < MIB, "it is on disk now: {}", ram_used(&daemon));
    check(&daemon, "after a clean end");
    daemon.stop();
}

#[test]
fn a_full_budget_goes_on_on_disk() {
    let mut daemon = Daemon::with_ram(16 * MIB);
    let dir = class_dir(&daemon, "memory");
    let data = Rng::new(2).bytes(40 << 20);
    write(&dir.join("file"), &data);
    assert!(ram_used(&daemon) <= 16 * MIB);
    assert!(fs::read(dir.join("file")).expect("read") == data);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(dir.join("file")).expect("read") == data);
    daemon.stop();
}

#[test]
fn a_reboot_takes_memory_and_nothing_else() {
    let mut daemon = Daemon::with_ram(64 * MIB);
    let dir = class_dir(&daemon, "memory");
    let data = Rng::new(3).bytes(2 << 20);
    write(&dir.join("lost"), &data);
    write(&daemon.mem().join("kept"), &data);
    daemon.kill();
    unmount(daemon.ram(), UnmountFlags::DETACH).expect("unmount");
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("kept")).expect("read") == data);
    let error = fs::read(dir.join("lost")).expect_err("an error, never zeros");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // What comes after reuses the segments' numbers: old and new must not mix.
    write(&dir.join("new"), &data);
    fs::remove_file(dir.join("lost")).expect("remove");
    assert!(fs::read(dir.join("new")).expect("read") == data);
    daemon.stop();
}

#[test]
fn policies_are_inherited_and_answered() {
    let mut daemon = Daemon::start();
    let value = |path: &Path, name: &str| {
        let out = Command::new("getfattr")
            .args(["--only-values", "-n", name])
            .arg(path)
            .output()
            .expect("getfattr");
        String::from_utf8(out.stdout).expect("text")
    };
    let listed = |path: &Path| {
        let out = Command::new("getfattr").arg(path).output().expect("getfattr");
        String::from_utf8(out.stdout).expect("text")
    };
    let dir = class_dir(&daemon, "scratch");
    fs::create_dir(dir.join("below")).expect("mkdir");
    let file = dir.join("below/file");
    fs::write(&file, b"x").expect("write");
    assert_eq!(
        (value(&file, "user.kos.durability"), value(&file, "user.kos.ec")),
        ("scratch".into(), "4+0".into())
    );
    assert_eq!(listed(&file), "", "only what is set there");
    assert!(listed(&dir).contains("user.kos.durability"));
    let out = Command::new("setfattr").args(["-n", "user.kos.durability", "-v", "disk"]).arg(&file).status();
    assert!(out.expect("setfattr").success());
    let out =
        Command::new("setfattr").args(["-n", "user.kos.ec", "-v", "2+1"]).arg(dir.join("below")).status();
    assert!(out.expect("setfattr").success());
    assert_eq!(
        (value(&file, "user.kos.durability"), value(&file, "user.kos.ec")),
        ("disk".into(), "2+1".into())
    );
    fs::write(&file, vec![9; 300_000]).expect("write");
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&file).expect("read") == vec![9; 300_000], "2+1 reads back");
    daemon.stop();
}

#[test]
fn wrong_policies_are_refused() {
    let mut daemon = Daemon::start();
    for (name, value) in [
        ("durability", "tape"),
        ("compress", "zstd"),
        ("pin", "disk"),
        ("pin", ""),
        ("ec", "0+1"),
        ("ec", "17+1"),
        ("ec", "4+5"),
        ("ec", "x"),
        ("new", "1"),
    ] {
        let out = Command::new("setfattr")
            .args(["-n", &format!("user.kos.{name}"), "-v", value])
            .arg(daemon.mem())
            .output()
            .expect("setfattr");
        assert!(!out.status.success(), "{name}={value}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("Invalid argument"), "{name}={value}");
    }
    daemon.stop();
}
