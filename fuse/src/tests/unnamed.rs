//! Files that are made without a name (O_TMPFILE), and those that get one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use kos_types::{Ino, Kind, ROOT};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use super::names::wait_until_nothing_is_left;
use super::{Live, put, read, root, unmounted};

/// One of these flags more.
fn unnamed(dir: &Path, flags: i32) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags).open(dir)
}

fn link(file: &File, to: &Path) -> Result<(), Errno> {
    linkat(file, "", CWD, to, AtFlags::EMPTY_PATH)
}

/// As programs do that may not use AT_EMPTY_PATH.
fn link_by_proc(file: &File, to: &Path) -> Result<(), Errno> {
    linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_file_without_a_name_goes_with_the_kernels_word_and_a_named_one_stays() {
    let (model, fs) = unmounted();
    let make = || fs.create_unnamed(ROOT, (0o600, 0), root()).expect("made");
    // As a session does: the kernel is told, or will not be.
    let told = |ino: Ino| fs.told(ino);
    let (gone, named, untold) = (make(), make(), make());
    for made in [&gone, &named] {
        told(made.ino);
        fs.unlinked(made);
        fs.write(made.ino, Some(0), &[7; 5000], false).expect("write");
        fs.files.flush(made.ino).expect("flush");
    }
    fs.unlinked(&untold);
    fs.files.reap();
    assert_eq!(model.orphans(), [gone.ino, named.ino]);
    let taken = fs.link(named.ino, (ROOT, b"a/b"), root()).expect_err("no name");
    assert_eq!((taken.kind(), model.orphans().len()), (Kind::Invalid, 2));
    assert_eq!(fs.link(named.ino, (ROOT, b"named"), root()).expect("link").nlink, 1);
    told(named.ino);
    fs.write(named.ino, Some(5000), b"not flushed", false).expect("write");
    fs.forget(gone.ino, 1);
    fs.forget(named.ino, 2);
    fs.files.reap();
    assert_eq!((model.orphans(), model.stripes()), (vec![], 1));
    assert_eq!(read(&fs, named.ino, 5000, 100).expect("read"), b"not flushed", "what it has is not dropped");
    // From then on it is one like any other.
    told(named.ino);
    fs.unlink((ROOT, b"named")).expect("unlink");
    fs.forget(named.ino, 1);
    fs.files.reap();
    assert_eq!((model.orphans(), model.stripes()), (vec![], 0));
    let control =
        fs.create_unnamed(crate::control::TOP, (0o600, 0), root()).expect_err("a control directory");
    assert_eq!(control.kind(), Kind::NotPermitted);
}

#[test]
fn a_file_is_made_without_a_name_and_given_one() {
    let mut live = Live::by("dev");
    let (dir, other) = (live.path("dir"), live.path("other"));
    fs::create_dir(&dir).expect("mkdir");
    fs::create_dir(&other).expect("mkdir");
    let before = fs::metadata(&dir).expect("stat");
    let mut file = unnamed(&dir, 0).expect("O_TMPFILE");
    let about = file.metadata().expect("stat");
    assert_eq!((about.nlink(), about.mode() & 0o7777, about.len()), (0, 0o640, 0));
    file.write_all(b"bytes").expect("write");
    assert!(fs::read_dir(&dir).expect("list").next().is_none());
    let after = fs::metadata(&dir).expect("stat");
    assert_eq!((after.mtime_nsec(), after.ctime_nsec()), (before.mtime_nsec(), before.ctime_nsec()));
    link(&file, &dir.join("name")).expect("linkat");
    assert_eq!(file.metadata().expect("stat").nlink(), 1);
    assert_eq!(fs::metadata(dir.join("name")).expect("stat").ino(), about.ino());
    link_by_proc(&file, &other.join("second")).expect("linkat");
    file.write_all(b" and more").expect("write");
    drop(file);
    assert_eq!(fs::read(other.join("second")).expect("read"), b"bytes and more");
    // It takes no other file's place.
    put(&dir.join("taken"), b"old");
    let second = unnamed(&dir, 0).expect("O_TMPFILE");
    assert_eq!(link(&second, &dir.join("taken")), Err(Errno::EXIST));
    link_by_proc(&second, &dir.join("free")).expect("it still may be named");
    fs::remove_file(dir.join("free")).expect("unlink");
    assert_eq!(link(&second, &dir.join("free")), Err(Errno::NOENT), "it was removed");
    drop(second);
    live.remount();
    for path in [dir.join("name"), other.join("second")] {
        assert_eq!(fs::read(&path).expect("read"), b"bytes and more");
        fs::remove_file(path).expect("unlink");
    }
    fs::remove_file(dir.join("taken")).expect("unlink");
    wait_until_nothing_is_left(&mut live);
}

#[test]
fn what_gets_no_name_is_gone_when_it_is_closed() {
    let mut live = Live::by("dev");
    let bytes = [7; 100_000];
    let file = unnamed(&live.mem(), libc::O_EXCL).expect("O_TMPFILE");
    file.write_all_at(&bytes, 0).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(live.ask("left"), "1 1");
    assert_eq!(link(&file, &live.path("never")), Err(Errno::NOENT), "O_EXCL says so");
    assert_eq!(link_by_proc(&file, &live.path("never")), Err(Errno::NOENT));
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 0).expect("read");
    assert_eq!(found, bytes);
    // Another open of it, through /proc.
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("open");
    drop(file);
    again.read_exact_at(&mut found, 0).expect("read");
    drop(again);
    wait_until_nothing_is_left(&mut live);
    // The program that has it is killed.
    let held = unnamed(&live.mem(), 0).expect("O_TMPFILE");
    held.write_all_at(&bytes, 0).expect("write");
    let mut program = Command::new("sleep").arg("60").stdin(Stdio::from(held)).spawn().expect("sleep");
    assert_eq!(live.ask("left").split_once(' ').map(|(_, orphans)| orphans.to_owned()).as_deref(), Some("1"));
    program.kill().and_then(|()| program.wait()).expect("kill");
    wait_until_nothing_is_left(&mut live);
    // The mount ends.
    let cut_off = unnamed(&live.mem(), 0).expect("O_TMPFILE");
    cut_off.write_all_at(&bytes, 0).expect("write");
    live.remount();
    assert!(cut_off.metadata().is_err(), "it was cut off");
    assert_eq!(live.ask("left"), "0 0");
    assert!(fs::read_dir(live.mem()).expect("list").next().is_none());
}

/// Names come and go from several threads, in directories that are removed meanwhile.
#[test]
fn files_that_were_named_and_removed_leave_nothing() {
    let mut live = Live::by("dev");
    thread::scope(|scope| {
        for worker in 0..4 {
            let live = &live;
            scope.spawn(move || {
                for round in 0..50 {
                    let dir = live.path(&format!("{worker}-{round}"));
                    fs::create_dir(&dir).expect("mkdir");
                    let mut file = unnamed(&dir, 0).expect("O_TMPFILE");
                    let text = format!("{worker} {round}");
                    file.write_all(text.as_bytes()).expect("write");
                    if round % 3 == 0 {
                        fs::remove_dir(&dir).expect("it is empty");
                        assert_eq!(link(&file, &dir.join("late")), Err(Errno::NOENT));
                    }
                    let name = live.path(&format!("{worker}-{round}-file"));
                    link(&file, &name).expect("anywhere else");
                    if round % 2 == 0 {
                        drop(file);
                        assert_eq!(fs::read(&name).expect("read"), text.as_bytes());
                    }
                    fs::remove_file(&name).expect("unlink");
                    let _ = fs::remove_dir(&dir);
                }
            });
        }
    });
    wait_until_nothing_is_left(&mut live);
}

#[test]
fn where_nothing_is_made_nothing_is_made_without_a_name() {
    let live = Live::by("dev");
    let top = live.mem().parent().expect("the mount").to_path_buf();
    let errno = |made: std::io::Result<File>| made.map(drop).map_err(|e| e.raw_os_error());
    assert_eq!(errno(unnamed(&top, 0)), Err(Some(libc::EPERM)));
    let fuser = Live::by("fuser");
    assert_eq!(errno(unnamed(&fuser.mem(), 0)), Err(Some(libc::EOPNOTSUPP)));
}
