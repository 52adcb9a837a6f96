//! The end of a daemon and its supervisor: by a kill of one, by starts that fail, and by an unmount from outside.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, binary, is_mounted, wait_for};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("signal");
}

fn lives(pid: u32) -> bool {
    // Of a process that nobody has waited for only the name is left.
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    !cmdline.is_empty()
}

/// A program that is the daemon until a file of this name is there.
fn wrapper(dir: &Path) -> (PathBuf, PathBuf) {
    let (program, refuses) = (dir.join("fabricd"), dir.join("refuses"));
    let text = format!(
        "#!/bin/bash\n[ -e {} ] && [[ $* == *--supervised* ]] && exit 1\nexec -a fabricd {} \"$@\"\n",
        refuses.display(),
        binary("fabricd").display()
    );
    fs::write(&program, text).expect("write");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    (program, refuses)
}

#[test]
fn without_its_supervisor_a_daemon_goes_on_and_ends_cleanly() {
    let mut daemon = Daemon::supervised(0);
    let mut file = File::create(daemon.mem().join("file")).expect("create");
    file.write_all(b"before").expect("write");
    let (above, serving) = (daemon.pid(), daemon.serving_pid().expect("a daemon"));
    daemon.crash();
    let next = daemon.serving_pid().expect("a daemon");
    assert_ne!(next, serving);
    kill(above, Signal::KILL);
    file.write_all(b" and after").expect("write");
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"before and after");
    drop(file);
    kill(next, Signal::TERM);
    wait_for("the end", || !lives(next));
    assert!(!is_mounted(&daemon.mount()) && !daemon.state().join("run.json").exists());
    assert!(daemon.has_ended());
}

#[test]
fn a_daemon_that_cannot_start_again_is_given_up() {
    let place = tempfile::tempdir().expect("temporary directory");
    let (program, refuses) = wrapper(place.path());
    let mut daemon = Daemon::unstarted(0);
    daemon.program = binary("fabricd");
    daemon.be_supervised();
    daemon.spawn();
    daemon.upgrade_to(&program);
    let path = daemon.mem().join("file");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"text", 0).expect("write");
    file.sync_all().expect("fsync");
    File::create(&refuses).expect("create");
    let serving = daemon.serving_pid().expect("a daemon");
    kill(serving, Signal::KILL);
    thread::scope(|scope| {
        let waits = scope.spawn(|| fs::metadata(daemon.mem().join("other")).map(|_| ()));
        let error = waits.join().expect("thread").expect_err("nobody serves");
        assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    });
    assert!(file.sync_all().is_err());
    wait_for("the supervisor's end", || daemon.has_ended());
    assert!(daemon.log().contains("given up after 5 starts"), "{}", daemon.log());
    drop(file);
    daemon.kill();
    fs::remove_file(&refuses).expect("remove");
    daemon.spawn();
    assert_eq!(fs::read(&path).expect("read"), b"text");
    daemon.stop();
}

fn umount(dir: &Path) -> bool {
    Command::new("umount").arg(dir).status().expect("umount").success()
}

#[test]
fn an_unmount_from_outside_ends_both_cleanly() {
    for crashes in [0, 2] {
        let mut daemon = Daemon::supervised(0);
        fs::write(daemon.mem().join("file"), b"text").expect("write");
        (0..crashes).for_each(|_| daemon.crash());
        assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"text");
        // Other tests' new processes have our open files until they are another program.
        wait_for("umount", || umount(&daemon.mount()));
        let status = daemon.wait();
        assert!(status.success(), "{status}: {}", daemon.log());
        assert!(!daemon.state().join("run.json").exists());
        daemon.spawn();
        assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"text");
        daemon.stop();
    }
}

/// The daemon is killed when the mount has just been, or is just being, taken away.
#[test]
fn a_crash_around_an_unmount_ends_both() {
    for delay in [0, 1, 3, 10, 30, 100] {
        let mut daemon = Daemon::supervised(0);
        fs::write(daemon.mem().join("file"), b"text").expect("write");
        let serving = daemon.serving_pid().expect("a daemon");
        let mount = daemon.mount();
        let unmounting = thread::spawn(move || wait_for("umount", || umount(&mount)));
        thread::sleep(Duration::from_millis(delay));
        if lives(serving) {
            let _ = kill_process(Pid::from_raw(serving.cast_signed()).expect("a process"), Signal::KILL);
        }
        unmounting.join().expect("umount");
        let status = daemon.wait();
        assert!(status.success(), "after {delay} ms: {status}: {}", daemon.log());
        assert!(!is_mounted(&daemon.mount()));
        daemon.spawn();
        assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"text");
        daemon.stop();
    }
}

/// It is not started for ever when it can do nothing any more.
#[test]
fn a_daemon_that_fails_when_its_mount_has_gone_is_given_up() {
    let place = tempfile::tempdir().expect("temporary directory");
    let program = place.path().join("fails");
    let text = format!("#!/bin/bash\n{} \"$@\"\nexit 1\n", binary("fabricd").display());
    fs::write(&program, text).expect("write");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    let mut daemon = Daemon::supervised(0);
    daemon.upgrade_to(&program);
    fs::write(daemon.mem().join("file"), b"text").expect("write");
    wait_for("umount", || umount(&daemon.mount()));
    let status = daemon.wait();
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("given up after 5 starts"), "{}", daemon.log());
    daemon.spawn();
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"text");
    daemon.stop();
}

#[test]
fn a_stop_right_after_a_crash_loses_nothing() {
    for delay in [0, 5, 30] {
        let mut daemon = Daemon::supervised(0);
        fs::write(daemon.mem().join("file"), b"not flushed").expect("write");
        kill(daemon.serving_pid().expect("a daemon"), Signal::KILL);
        thread::sleep(Duration::from_millis(delay));
        daemon.stop();
        daemon.spawn();
        assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"not flushed");
        daemon.stop();
    }
}
