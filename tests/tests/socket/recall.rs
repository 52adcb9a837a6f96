//! What a mount has buffered when everybody is asked for it: before a snapshot, at `sync`, at the daemon's end.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng};
use rustix::process::{Signal, kill_process};

use crate::second::*;

#[test]
fn a_snapshot_has_what_every_mount_has_buffered() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let mut rng = Rng::new(1);
    let (dirs, tops) = ([daemon.mem(), second.mem()], [daemon.mount(), second.dir().to_path_buf()]);
    for (round, taker) in [0, 1, 1, 0].into_iter().enumerate() {
        let name = format!("s{round}");
        // Of several stripes, and small enough to be inline.
        let written = [9_000_000, 700].map(|len| rng.bytes(len));
        let file_of = |nth: usize| dirs[nth % 2].join(format!("file{nth}"));
        for nth in 0..4 {
            fs::write(file_of(nth), &written[nth / 2]).expect("write");
        }
        fs::create_dir(tops[taker].join("snap").join(&name)).expect("snapshot");
        for nth in 0..4 {
            fs::write(file_of(nth), b"later").expect("write");
        }
        for top in &tops {
            for nth in 0..4 {
                let path = top.join("snap").join(&name).join(format!("file{nth}"));
                assert!(
                    fs::read(&path).expect("read") == written[nth / 2],
                    "round {round}: {}",
                    path.display()
                );
            }
        }
    }
    second.umount(false);
    daemon.stop();
}

#[test]
fn a_snapshot_right_after_a_start_has_what_was_buffered_before() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    fs::write(daemon.mem().join("file"), b"old").expect("write");
    // Another process has it open: one that is started here would inherit it, and wait at its exec for the mount that is stopped.
    let script = "exec 3<>\"$1\"; printf new >&3; echo written; read -r end; sync \"$1\"";
    let mut writer = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(second.mem().join("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut said = [0; 8];
    writer.stdout.as_mut().expect("piped").read_exact(&mut said).expect("it says so");
    // It says what it holds a little after the new daemon's start.
    kill_process(process, Signal::STOP).expect("stop");
    daemon.kill();
    daemon.spawn();
    let snapshot = daemon.mount().join("snap/one");
    let taken = thread::scope(|scope| {
        let taker = scope.spawn(|| fs::create_dir(&snapshot));
        thread::sleep(Duration::from_millis(300));
        kill_process(process, Signal::CONT).expect("continue");
        taker.join().expect("no panic")
    });
    taken.expect("snapshot");
    let found = fs::read(snapshot.join("file")).expect("read");
    drop(writer.stdin.take());
    let kept = writer.wait().expect("sh").success();
    // Unless the machine is so busy that the session ended.
    assert_eq!(found, if kept { b"new" } else { b"old" });
    second.umount(false);
    daemon.stop();
}

#[test]
fn an_orderly_end_commits_what_every_mount_has_buffered() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let data = Rng::new(2).bytes(9_000_000);
    fs::write(daemon.mem().join("first"), &data).expect("write");
    fs::write(second.mem().join("second"), &data).expect("write");
    let open = OpenOptions::new().write(true).create_new(true).open(second.mem().join("open")).expect("open");
    open.write_all_at(&data, 5).expect("write");
    daemon.stop();
    // It has no chance to write it later.
    kill_process(process, Signal::KILL).expect("kill");
    drop(open);
    daemon.spawn();
    for name in ["first", "second"] {
        assert!(fs::read(daemon.mem().join(name)).expect("read") == data, "{name}");
    }
    assert!(fs::read(daemon.mem().join("open")).expect("read")[5..] == data, "open");
    daemon.stop();
}

#[test]
fn what_another_mount_has_buffered_is_stable_after_a_sync() {
    // As ctl does it, and as `kos sync` does.
    let by_ctl = |daemon: &Daemon| daemon.ctl("sync");
    let by_root =
        |daemon: &Daemon| File::open(daemon.mount()).and_then(|root| root.sync_all()).expect("fsync");
    for sync in [&by_ctl as &dyn Fn(&Daemon), &by_root] {
        let mut daemon = Daemon::with_ram(256 << 20);
        let second = Second::mount(&daemon);
        let process = process(&daemon);
        let data = Rng::new(3).bytes(5_000_000);
        // Open still: a close would begin to flush it.
        let file = File::create(second.mem().join("file")).expect("create");
        file.write_all_at(&data, 0).expect("write");
        sync(&daemon);
        kill_process(process, Signal::KILL).expect("kill");
        drop(file);
        daemon.kill();
        daemon.spawn();
        assert!(fs::read(daemon.mem().join("file")).expect("read") == data);
        daemon.stop();
    }
}
