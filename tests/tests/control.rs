//! The control tree as programs see it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use kos_tests::Daemon;

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
