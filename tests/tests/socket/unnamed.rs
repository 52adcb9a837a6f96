//! Files that are made without a name, through a second mount.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use kos_tests::unnamed::{link, own_session, unnamed};
use kos_tests::{Daemon, Rng, wait_for};
use rustix::process::{Signal, kill_process};

use crate::second::*;

fn mounts() -> (Daemon, Second) {
    let daemon = Daemon::that_makes_unnamed();
    let second = Second::mount_with(&daemon, "", &format!("session={}", own_session()));
    (daemon, second)
}

fn inodes(daemon: &Daemon) -> u64 {
    let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
    let found = usage.lines().find_map(|line| line.strip_prefix("inodes_used "));
    found.expect("inodes").parse().expect("a number")
}

#[test]
fn what_is_named_in_one_mount_is_seen_by_the_other_with_its_bytes() {
    let (mut daemon, second) = mounts();
    let before = inodes(&daemon);
    let bytes = Rng::new(1).bytes(5 << 20);
    for (nth, (maker, other)) in
        [(daemon.mem(), second.mem()), (second.mem(), daemon.mem())].into_iter().enumerate()
    {
        let name = nth.to_string();
        // Both look whether it is there, and keep that it is not.
        assert!(!other.join(&name).exists() && !maker.join(&name).exists());
        let mut file = unnamed(&maker).expect("O_TMPFILE");
        file.write_all(&bytes).expect("write");
        assert_eq!(fs::read_dir(&other).expect("list").count(), nth);
        link(&file, &maker.join(&name)).expect("link");
        assert!(fs::read(other.join(&name)).expect("read") == bytes);
        // It is open in one, and removed by the other.
        fs::write(other.join("more"), b"x")
            .and_then(|()| fs::remove_file(other.join("more")))
            .expect("names");
        file.write_all_at(b"changed", 0).expect("write");
        assert_eq!(fs::read(other.join(&name)).expect("read")[..7], *b"changed");
    }
    for name in ["0", "1"] {
        let open = fs::File::open(daemon.mem().join(name)).expect("open");
        fs::remove_file(second.mem().join(name)).expect("remove");
        assert_eq!(open.metadata().expect("stat").nlink(), 0);
    }
    wait_for("the inodes' end", || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop caches");
        inodes(&daemon) == before
    });
    second.umount(false);
    daemon.stop();
}

/// Also what was unlinked while only that mount had it open.
#[test]
fn what_a_killed_mount_had_without_a_name_is_gone_soon() {
    let (mut daemon, second) = mounts();
    let before = inodes(&daemon);
    let process = process(&daemon);
    let nameless = unnamed(&second.mem()).expect("O_TMPFILE");
    nameless.write_all_at(&[7; 100_000], 0).expect("write");
    nameless.sync_all().expect("fsync");
    let named = unnamed(&second.mem()).expect("O_TMPFILE");
    named.write_all_at(b"named", 0).expect("write");
    named.sync_all().expect("fsync");
    link(&named, &second.mem().join("named")).expect("link");
    let unlinked = fs::File::create(second.mem().join("unlinked")).expect("create");
    fs::remove_file(second.mem().join("unlinked")).expect("unlink");
    // This one goes on in the other mount.
    fs::write(second.mem().join("shared"), b"shared").expect("write");
    let [here, there] =
        [daemon.mem(), second.mem()].map(|dir| fs::File::open(dir.join("shared")).expect("open"));
    fs::remove_file(second.mem().join("shared")).expect("unlink");
    assert_eq!(inodes(&daemon), before + 4);
    kill_process(process, Signal::KILL).expect("kill");
    drop((nameless, named, unlinked, there));
    wait_for("the inodes' end", || inodes(&daemon) == before + 2);
    assert_eq!(fs::read(daemon.mem().join("named")).expect("read"), b"named");
    let mut found = [0; 6];
    here.read_exact_at(&mut found, 0).expect("it is open here");
    assert_eq!(&found, b"shared");
    drop(here);
    wait_for("the last inode's end", || inodes(&daemon) == before + 1);
    daemon.stop();
}

/// What has no name when the daemon dies is gone; what got one is there, also for who has it open.
#[test]
fn a_daemon_that_is_killed_leaves_what_was_named() {
    let (mut daemon, second) = mounts();
    let before = inodes(&daemon);
    let [nameless, named] = [0, 1].map(|_| {
        let mut file = unnamed(&second.mem()).expect("O_TMPFILE");
        file.write_all(b"bytes").and_then(|()| file.sync_all()).expect("write");
        file
    });
    link(&named, &second.mem().join("named")).expect("link");
    daemon.kill();
    daemon.spawn();
    let late = link(&nameless, &second.mem().join("late")).expect_err("it is gone");
    assert_eq!(late.raw_os_error(), Some(libc::ESTALE));
    named.write_all_at(b"later", 0).expect("write");
    assert_eq!(fs::read(daemon.mem().join("named")).expect("read"), b"later");
    // The mount makes others as ever.
    let again = unnamed(&second.mem()).expect("O_TMPFILE");
    link(&again, &second.mem().join("again")).expect("link");
    drop((nameless, named, again));
    wait_for("the inodes", || inodes(&daemon) == before + 2);
    second.umount(false);
    daemon.stop();
}
