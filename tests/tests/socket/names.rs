//! Names changed through two mounts by turns, against the same changes of a directory on another filesystem.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng, seed};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::second::*;

const STEPS: usize = 700;

/// One of a few paths, at most three deep.
fn path(rng: &mut Rng) -> PathBuf {
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| ["a", "b", "c"][rng.below(3) as usize]).collect()
}

/// A change somewhere below a directory: what it answered.
fn change(root: &Path, (what, from, to): (u64, &Path, &Path), mode: u32) -> Result<(), Option<i32>> {
    let (from, to) = (root.join(from), root.join(to));
    let done = match what {
        0 | 1 => fs::create_dir(&from),
        2 | 3 => fs::OpenOptions::new().write(true).create_new(true).open(&from).map(drop),
        4 => fs::remove_file(&from),
        5 => fs::remove_dir(&from),
        6 | 7 => fs::rename(&from, &to),
        8 => fs::hard_link(&from, &to),
        9 => symlink("target", &from),
        _ => fs::set_permissions(&from, fs::Permissions::from_mode(mode)),
    };
    done.map_err(|e: io::Error| e.raw_os_error())
}

/// What stat shows that is the same everywhere.
fn shown(path: &Path) -> Result<(u32, u64), Option<i32>> {
    let found = fs::symlink_metadata(path).map_err(|e| e.raw_os_error())?;
    // A symbolic link's mode is the filesystem's own.
    Ok((if found.is_symlink() { libc::S_IFLNK } else { found.mode() }, found.nlink()))
}

fn names(path: &Path) -> Result<Vec<String>, Option<i32>> {
    let entries = fs::read_dir(path).map_err(|e| e.raw_os_error())?;
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

#[test]
fn names_of_two_mounts_equal_those_of_another_filesystem() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let model = TempDir::new_in("/dev/shm").expect("tmpfs");
    let sides = [daemon.mem().join("root"), second.mem().join("root")];
    fs::create_dir(&sides[0]).expect("mkdir");
    let seed = seed();
    let mut rng = Rng::new(seed);
    for step in 0..STEPS {
        let by = rng.below(2) as usize;
        let (what, from, to) = (rng.below(11), path(&mut rng), path(&mut rng));
        let mode = [0o700, 0o755, 0o1777][rng.below(3) as usize];
        let told = format!("KOS_SEED={seed} step {step} by {by}: {what} {} {}", from.display(), to.display());
        let expected = change(model.path(), (what, &from, &to), mode);
        assert_eq!(change(&sides[by], (what, &from, &to), mode), expected, "{told}");
        for (nth, side) in sides.iter().enumerate() {
            for path in [from.clone(), to.clone(), path(&mut rng), from.join("..")] {
                let (here, there) = (side.join(&path), model.path().join(&path));
                assert_eq!(shown(&here), shown(&there), "{told}: {} at {nth}", path.display());
                if rng.below(4) == 0 {
                    assert_eq!(names(&here), names(&there), "{told}: in {} at {nth}", path.display());
                }
            }
        }
        // Times, too, of what both have.
        let times =
            |side: &PathBuf| fs::metadata(side.join("a")).ok().map(|m| (m.mtime_nsec(), m.ctime_nsec()));
        assert_eq!(times(&sides[0]), times(&sides[1]), "{told}");
    }
    second.umount(false);
    daemon.stop();
}

/// A directory is a lock that one of both makes at a time.
#[test]
fn one_of_two_mounts_makes_a_directory() {
    const ROUNDS: usize = 100;
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let sides = [daemon.mem(), second.mem()];
    let made: Vec<usize> = thread::scope(|scope| {
        let run = |dir: &PathBuf| {
            let dir = dir.clone();
            scope.spawn(move || {
                (0..ROUNDS).filter(|nth| fs::create_dir(dir.join(nth.to_string())).is_ok()).count()
            })
        };
        let threads: Vec<_> = sides.iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    });
    assert_eq!(made.iter().sum::<usize>(), ROUNDS, "{made:?}");
    assert_eq!(names(&sides[0]), names(&sides[1]));
    second.umount(false);
    daemon.stop();
}

/// While nobody changes it, a mount need not ask for a directory: it knows it although the daemon does not answer.
#[test]
fn a_directory_is_known_without_the_daemon() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let dir = second.mem().join("one/two");
    fs::create_dir_all(&dir).expect("mkdir");
    let pid = Pid::from_raw(daemon.pid().cast_signed()).expect("a pid");
    // For less than a lease lives, which a busy machine may miss at times.
    let known = (0..10).any(|_| {
        fs::metadata(&dir).expect("stat");
        assert_eq!(shown(&dir.join("none")), Err(Some(libc::ENOENT)));
        kill_process(pid, Signal::STOP).expect("stop");
        let (tell, told) = mpsc::channel();
        let own = dir.clone();
        let asks = thread::spawn(move || {
            let found = fs::metadata(&own).is_ok() && fs::metadata(own.join("none")).is_err();
            // Nobody waits any more.
            let _ = tell.send(found);
        });
        let found = told.recv_timeout(Duration::from_secs(1));
        kill_process(pid, Signal::CONT).expect("go on");
        asks.join().expect("thread");
        found == Ok(true)
    });
    assert!(known, "the daemon was asked each time");
    // Changed at the other end, it is seen here.
    fs::remove_dir(daemon.mem().join("one/two")).expect("rmdir");
    assert_eq!(shown(&dir), Err(Some(libc::ENOENT)));
    second.umount(false);
    daemon.stop();
}
