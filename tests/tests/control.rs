//! The control tree as programs see it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use kos_tests::{Daemon, Rng, wait_for};

/// The directory of the one node there is.
fn own(daemon: &Daemon) -> PathBuf {
    let mut nodes = fs::read_dir(daemon.mount().join("nodes")).expect("nodes");
    nodes.next().expect("a node").expect("entry").path()
}

fn events(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.mount().join("sys/events")).expect("events")
}

/// The value of a line `name value`.
fn number(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number")
}

#[test]
fn the_control_tree_reads_as_files() {
    let mut daemon = Daemon::start();
    let sys = daemon.mount().join("sys");
    let read = |name: &str| fs::read_to_string(sys.join(name)).expect(name);
    assert_eq!(read("health"), "ok\n");
    assert!(read("version").starts_with("kosfs "));
    assert!(read("config").contains("mount = "));
    assert!(read("metrics").contains("\nkos_stripes_written_total "));
    assert!(read("usage").starts_with("bytes_total "));
    for entry in fs::read_dir(daemon.mount().join("nodes")).expect("nodes") {
        let status = entry.expect("node").path().join("status");
        assert!(fs::read_to_string(status).expect("status").contains("state up\n"));
    }
    daemon.stop();
}

#[test]
fn an_open_control_file_keeps_its_contents() {
    let mut daemon = Daemon::start();
    let mut file = File::open(daemon.mount().join("sys/metrics")).expect("open");
    let read = |file: &mut File| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.read_to_string(&mut text).expect("read");
        text
    };
    let before = read(&mut file);
    let region = File::create(daemon.mem().join("region")).expect("create");
    region.set_len(10).expect("truncate");
    fs::write(daemon.mem().join("region"), vec![7; 1 << 20]).expect("write");
    region.sync_all().expect("fsync");
    assert_eq!(read(&mut file), before);
    let now = fs::read_to_string(daemon.mount().join("sys/metrics")).expect("metrics");
    assert_ne!(now, before, "a new open sees the stripe");
    daemon.stop();
}

#[test]
fn the_control_tree_refuses_changes() {
    let mut daemon = Daemon::start();
    let mount = daemon.mount();
    let errno = |result: std::io::Result<()>| result.expect_err("refused").raw_os_error();
    assert_eq!(errno(fs::write(mount.join("sys/health"), b"x")), Some(libc::EPERM));
    assert_eq!(errno(fs::write(mount.join("new"), b"x")), Some(libc::EPERM));
    assert_eq!(errno(fs::create_dir(mount.join("sys/new"))), Some(libc::EPERM));
    assert_eq!(errno(fs::remove_file(mount.join("sys/health"))), Some(libc::EPERM));
    assert_eq!(errno(fs::remove_dir(mount.join("mem"))), Some(libc::EPERM));
    assert_eq!(errno(fs::rename(mount.join("mem"), mount.join("sys/mem"))), Some(libc::EPERM));
    fs::write(mount.join("mem/x"), b"x").expect("write");
    assert_eq!(errno(fs::hard_link(mount.join("mem/x"), mount.join("sys/x"))), Some(libc::EPERM));
    daemon.stop();
}

#[test]
fn the_node_tells_of_its_machine() {
    let mut daemon = Daemon::with_ram(64 << 20);
    fs::write(daemon.mem().join("region"), Rng::new(1).bytes(1 << 20)).expect("write");
    File::open(daemon.mount()).and_then(|root| root.sync_all()).expect("sync");
    let read = |name: &str| fs::read_to_string(own(&daemon).join(name)).expect(name);
    let cpu = read("cpu");
    assert!(number(&cpu, "cores") >= number(&cpu, "cores_usable") && number(&cpu, "cores_usable") > 0);
    assert!(cpu.contains("\nload ") && cpu.contains("\nmodel "), "{cpu}");
    let memory = read("memory");
    assert!(number(&memory, "bytes_total") > number(&memory, "bytes_available"), "{memory}");
    assert_eq!(number(&memory, "tier_bytes_total"), 64 << 20);
    assert!(number(&memory, "daemon_bytes_peak") > 1 << 20, "{memory}");
    let disks = read("disks");
    let places: Vec<&str> = disks.split_terminator("\n\n").collect();
    assert_eq!(places.len(), 6, "{disks}");
    let shards: u64 = places.iter().map(|place| number(place, "bytes_shards")).sum();
    assert!((3 << 19..2 << 20).contains(&shards), "1.5 times the bytes and a little: {disks}");
    for place in places {
        assert!(number(place, "bytes_free") < number(place, "bytes_total"), "{place}");
        assert!(place.contains("\nfailed no") && place.contains("\ndevice "), "{place}");
    }
    daemon.stop();
}

#[test]
fn ctl_takes_commands_of_root() {
    let mut daemon = Daemon::start();
    let ctl = own(&daemon).join("ctl");
    let metric = |name: &str| {
        let metrics = fs::read_to_string(daemon.mount().join("sys/metrics")).expect("metrics");
        number(&metrics, name)
    };
    let help = fs::read_to_string(&ctl).expect("help");
    assert!(help.starts_with("sync ") && help.contains("\ncollect "), "{help}");

    let region = File::create(daemon.mem().join("region")).expect("create");
    (&region).write_all(&[7; 8192]).expect("write");
    assert_eq!(metric("kos_stripes_written_total"), 0);
    // As a shell's redirection does it: cut, written, closed.
    fs::write(&ctl, "sync\n").expect("sync");
    assert_eq!(metric("kos_stripes_written_total"), 1);
    region.set_len(0).expect("truncate");
    File::options().append(true).open(&ctl).and_then(|mut f| f.write_all(b"\n collect ")).expect("collect");
    assert_eq!(metric("kos_stripes_freed_total"), 1);

    let errno = |text: &str| fs::write(&ctl, text).expect_err("refused").raw_os_error();
    assert_eq!(errno("sync\nnonsense\n"), Some(libc::EINVAL));
    assert_eq!(errno("drain\n"), Some(libc::EOPNOTSUPP));
    let told = events(&daemon);
    for line in ["ctl sync", "ctl collect", "refused ctl: \"nonsense\"", "needs the cluster"] {
        assert!(told.contains(line), "{line}: {told}");
    }

    fs::set_permissions(daemon.mount().join(".."), fs::Permissions::from_mode(0o755)).expect("chmod");
    let nobody = |what: &str| {
        Command::new("sh").args(["-c", what, "sh"]).arg(&ctl).uid(65534).status().expect("sh").success()
    };
    assert!(nobody("ls -l \"$1\""), "the way there is open");
    assert!(!nobody("echo sync >\"$1\"") && !nobody("cat \"$1\""), "others may not");
    daemon.stop();
}

#[test]
fn events_are_kept_and_can_be_followed() {
    let mut daemon = Daemon::start();
    let mut file = File::open(daemon.mount().join("sys/events")).expect("open");
    let mut read = || {
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        text
    };
    let begin = read();
    assert!(begin.contains("Z start fabricd ") && begin.contains("Z mount "), "{begin}");
    assert_eq!(read(), "", "the end");
    fs::write(own(&daemon).join("ctl"), "collect").expect("collect");
    assert!(read().ends_with("Z ctl collect\n"), "an open file grows");
    drop(file);
    daemon.stop();
    // A directory that lost its disk: the node goes on without it, and says so.
    fs::rename(daemon.state().join("shards/3"), daemon.state().join("gone")).expect("rename");
    fs::write(daemon.state().join("shards/3"), "no directory").expect("write");
    daemon.spawn();
    wait_for("the event", || events(&daemon).contains(" health degraded: "));
    let all = events(&daemon);
    assert!(all.starts_with(&begin), "kept over the restart: {all}");
    assert!(all.contains("Z stop ") && all.matches("Z start ").count() == 2, "{all}");
    let disks = fs::read_to_string(own(&daemon).join("disks")).expect("disks");
    assert_eq!(disks.matches("\nfailed no").count(), 5, "{disks}");
    daemon.stop();
}
