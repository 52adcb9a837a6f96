//! A mount that is stopped, or killed, with changes that it has not written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use kos_tests::Daemon;
use rustix::process::{Signal, kill_process};

use crate::second::*;

fn old_and_dirty(daemon: &Daemon, second: &Second) -> File {
    fs::write(daemon.mem().join("file"), b"old").expect("write");
    let file = OpenOptions::new().write(true).open(second.mem().join("file")).expect("open");
    file.write_all_at(b"mine", 0).expect("write");
    file
}

#[test]
fn a_mount_that_was_stopped_says_what_it_lost_and_goes_on() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let file = old_and_dirty(&daemon, &second);
    kill_process(process, Signal::STOP).expect("stop");
    // Nobody waits for it for long; what it had is not there.
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"old");
    fs::write(daemon.mem().join("file"), b"newer").expect("write");
    kill_process(process, Signal::CONT).expect("continue");
    let lost = file.sync_all().expect_err("what was written is lost");
    assert_eq!(lost.raw_os_error(), Some(libc::EIO));
    file.sync_all().expect("told once");
    for dir in [daemon.mem(), second.mem()] {
        assert_eq!(fs::read(dir.join("file")).expect("read"), b"newer", "nothing old comes late");
    }
    file.write_all_at(b"again", 0).expect("the mount goes on");
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"again");
    drop(file);
    second.umount(false);
    daemon.stop();
}

#[test]
fn what_a_killed_mount_had_is_free_soon() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let file = old_and_dirty(&daemon, &second);
    kill_process(process, Signal::KILL).expect("kill");
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"old");
    fs::write(daemon.mem().join("file"), b"newer").expect("write");
    drop(file);
    wait_for_mounts(&daemon, 1);
    let third = Second::mount(&daemon);
    assert_eq!(fs::read(third.mem().join("file")).expect("read"), b"newer");
    third.umount(false);
    daemon.stop();
}
