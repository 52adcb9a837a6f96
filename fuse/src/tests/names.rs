//! Names: renames of every kind, and inodes that live on without one.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kos_types::limits::GROUP_MAX;
use kos_types::{FileKind, Kind, ROOT, RenameMode, XattrMode};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Live, create, put, read, root, unmounted};

/// The kernel decides to forget an inode, and before that arrives it looks the inode up again and
/// opens it.
#[test]
fn a_late_forget_drops_nothing_that_is_open() {
    let (model, fs) = unmounted();
    let ino = create(&fs, "a");
    let attr = fs.lookup((ROOT, b"a")).expect("lookup");
    fs.told(attr.ino);
    fs.write(ino, Some(0), &[7; 5000], false).expect("write");
    fs.unlink((ROOT, b"a")).expect("unlink");
    fs.forget(ino, 1);
    assert_eq!(read(&fs, ino, 0, 10).expect("it lives"), [7; 10]);
    fs.files.flush(ino).expect("flush");
    assert_eq!((model.orphans(), model.stripes()), (vec![ino], 1));
    fs.forget(ino, 1);
    fs.files.reap();
    assert_eq!((model.orphans(), model.stripes()), (vec![], 0));
}

#[test]
fn what_a_rename_replaced_lives_while_it_is_known() {
    let (model, fs) = unmounted();
    let (a, b) = (create(&fs, "a"), create(&fs, "b"));
    fs.rename((ROOT, b"a"), (ROOT, b"b"), RenameMode::Replace, root()).expect("rename");
    assert_eq!(model.orphans(), [b]);
    fs.forget(b, 1);
    fs.files.reap();
    assert!(model.orphans().is_empty());
    // Nobody was told of it, so nobody can let go of it.
    fs.forget(a, 1);
    fs.unlink((ROOT, b"b")).expect("unlink");
    fs.files.reap();
    assert!(model.orphans().is_empty());
}

#[test]
fn what_was_unlinked_leaves_its_quota_to_the_next() {
    let (_, fs) = unmounted();
    let name = b"trusted.kos.quota";
    fs.set_xattr(ROOT, name, (b"inodes=2", XattrMode::Any), 0).expect("quota");
    let ino = create(&fs, "a");
    let who = root();
    let full = fs.create((ROOT, b"b"), FileKind::File, (0o644, 0, 0), who, b"");
    assert_eq!(full.expect_err("full").kind(), Kind::QuotaExceeded);
    fs.unlink((ROOT, b"a")).expect("unlink");
    fs.forget(ino, 1);
    create(&fs, "b");
}

/// Inodes are dropped many at a time; what is left when the mount ends goes then.
#[test]
fn everything_that_was_unlinked_goes() {
    let (model, fs) = unmounted();
    let unlinked = |count: usize| {
        for i in 0..count {
            let name = i.to_string();
            let ino = create(&fs, &name);
            fs.write(ino, Some(0), &[7; 5000], false).expect("write");
            fs.files.flush(ino).expect("flush");
            fs.unlink((ROOT, name.as_bytes())).expect("unlink");
            fs.forget(ino, 1);
        }
    };
    unlinked(GROUP_MAX);
    assert_eq!((model.orphans(), model.stripes()), (vec![], 0), "as many as go together");
    unlinked(GROUP_MAX - 1);
    assert_eq!(model.orphans().len(), GROUP_MAX - 1);
    fs.end();
    assert_eq!((model.orphans(), model.stripes()), (vec![], 0));
}

pub(super) fn wait_until_nothing_is_left(live: &mut Live) {
    let start = Instant::now();
    while live.ask("left") != "0 0" {
        assert!(start.elapsed() < Duration::from_secs(30), "stripes and orphans left: {}", live.ask("left"));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Names come and go while files are open, several names of one inode in several directories.
#[test]
fn open_files_live_and_closed_ones_leave_nothing() {
    let mut live = Live::new();
    for dir in ["x", "y"] {
        fs::create_dir(live.path(dir)).expect("mkdir");
    }
    thread::scope(|scope| {
        for worker in 0..4 {
            let live = &live;
            scope.spawn(move || {
                for round in 0..100 {
                    let one = live.path(&format!("x/{worker}-{round}"));
                    let two = live.path(&format!("y/{worker}-{round}"));
                    put(&one, format!("{worker} {round}").as_bytes());
                    let file = File::open(&one).expect("open");
                    fs::hard_link(&one, &two).expect("link");
                    fs::remove_file(&one).expect("unlink");
                    assert!(fs::read_dir(live.path("y")).expect("list").count() > 0);
                    let second = File::open(&two).expect("open");
                    if round % 2 == 0 {
                        fs::remove_file(&two).expect("unlink");
                    } else {
                        put(&one, b"new");
                        fs::rename(&one, &two).expect("rename over it");
                        fs::remove_file(&two).expect("unlink");
                    }
                    for mut file in [file, second] {
                        file.sync_all().expect("fsync");
                        let mut text = String::new();
                        file.read_to_string(&mut text).expect("read");
                        assert_eq!(text, format!("{worker} {round}"));
                    }
                }
            });
        }
    });
    wait_until_nothing_is_left(&mut live);
}

/// What a program held open when it was cut off.
#[test]
fn an_unmount_leaves_no_orphans() {
    let mut live = Live::new();
    let path = live.path("file");
    put(&path, &[7; 5000]);
    let file = File::open(&path).expect("open");
    fs::remove_file(&path).expect("unlink");
    file.sync_all().expect("fsync");
    assert_eq!(live.ask("left"), "1 1");
    live.remount();
    assert!(file.read_at(&mut [0; 5], 0).is_err(), "it was cut off");
    assert_eq!(live.ask("left"), "0 0");
}

/// As a container has it that was started after the mount.
#[test]
fn a_mount_that_another_namespace_has_too_is_cut_off() {
    let mut live = Live::new();
    put(&live.path("file"), b"bytes");
    let here = fs::read_link("/proc/self/ns/mnt").expect("namespace");
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "60"])
        .spawn()
        .expect("unshare");
    let there = format!("/proc/{}/ns/mnt", other.id());
    while fs::read_link(&there).expect("namespace") == here {
        thread::sleep(Duration::from_millis(1));
    }
    let began = Instant::now();
    let ended = live.ended();
    let lives = other.try_wait().expect("unshare").is_none();
    other.kill().and_then(|()| other.wait()).expect("kill");
    assert!(ended && lives, "after {:?}", began.elapsed());
}

#[test]
fn renames_with_flags() {
    let live = Live::new();
    let [a, b, dir] = ["a", "b", "dir"].map(|name| live.path(name));
    let rename = |from: &PathBuf, to: &PathBuf, flags| renameat_with(CWD, from, CWD, to, flags);
    put(&a, b"a");
    put(&b, b"b");
    fs::create_dir(&dir).expect("mkdir");
    put(&dir.join("in"), b"in");
    assert_eq!(rename(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(&a, &live.path("c"), RenameFlags::NOREPLACE).expect("no such name yet");
    rename(&live.path("c"), &a, RenameFlags::empty()).expect("rename");
    rename(&a, &b, RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!((fs::read(&a).expect("a"), fs::read(&b).expect("b")), (b"b".to_vec(), b"a".to_vec()));
    // A file and a directory, which takes what is in it along.
    rename(&a, &dir, RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!(fs::read(a.join("in")).expect("in"), b"in");
    assert_eq!(fs::read(&dir).expect("file"), b"b");
    assert_eq!(rename(&b, &live.path("none"), RenameFlags::EXCHANGE), Err(Errno::NOENT));
    assert_eq!(rename(&a, &a.join("in"), RenameFlags::EXCHANGE), Err(Errno::INVAL));
    assert_eq!(rename(&b, &live.path("none"), RenameFlags::WHITEOUT), Err(Errno::INVAL));
}
