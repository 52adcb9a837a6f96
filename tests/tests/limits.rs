//! Limits of names, paths, directories and open files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use kos_tests::{Daemon, Rng, binary, wait_for};
use rustix::fs::{Mode, OFlags, mkdirat, openat};

fn open_dir(at: &OwnedFd, name: &str) -> OwnedFd {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("directory")
}

#[test]
fn trees_may_be_deeper_than_a_path_is_long() {
    let mut daemon = Daemon::start();
    let name = "d".repeat(250);
    let mut dir: OwnedFd = File::open(daemon.mem()).expect("mem").into();
    // The kernel takes paths of 4095 bytes.
    let levels = (4095 - daemon.mem().as_os_str().len() - "/file".len()) / 251;
    let mut path = daemon.mem();
    let write = |dir: &OwnedFd| {
        let file = openat(dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("create");
        File::from(file).write_all(b"deep").expect("write");
    };
    for level in 0..2 * levels {
        if level == levels {
            write(&dir);
        }
        mkdirat(&dir, name.as_str(), Mode::RWXU).expect("mkdir");
        dir = open_dir(&dir, &name);
        path = if level < levels { path.join(&name) } else { path };
    }
    write(&dir);
    drop(dir);
    assert_eq!(fs::read(path.join("file")).expect("the longest path"), b"deep");
    let errno = fs::read(path.join(&name).join("file")).expect_err("too long").raw_os_error();
    assert_eq!(errno, Some(libc::ENAMETOOLONG));
    daemon.stop();
    daemon.spawn();
    let mut dir: OwnedFd = File::open(daemon.mem()).expect("mem").into();
    for _ in 0..2 * levels {
        dir = open_dir(&dir, &name);
    }
    assert!(openat(&dir, "file", OFlags::RDONLY, Mode::empty()).is_ok(), "beyond every path");
    drop(dir);
    assert!(Command::new("rm").arg("-r").arg(daemon.mem().join(&name)).status().expect("rm").success());
    daemon.stop();
}

/// KOS_ENTRIES=1000000 for the long form.
#[test]
fn a_large_directory_is_listed_while_it_grows() {
    let entries: usize = std::env::var("KOS_ENTRIES").map_or(20_000, |n| n.parse().expect("KOS_ENTRIES"));
    let mut daemon = Daemon::start();
    let dir = daemon.mem().join("large");
    fs::create_dir(&dir).expect("mkdir");
    let create = |from: usize, to: usize| {
        for number in from..to {
            File::create(dir.join(format!("entry-{number}"))).expect("create");
        }
    };
    let list = || {
        let mut found = HashSet::new();
        for entry in fs::read_dir(&dir).expect("opens") {
            let name = entry.expect("entry").file_name().into_string().expect("name");
            assert!(found.insert(name), "no entry twice");
        }
        found
    };
    let half = entries / 2;
    std::thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || create(half * part / 4, half * (part + 1) / 4));
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| create(half, entries));
        let found = list();
        assert!((0..half).all(|number| found.contains(&format!("entry-{number}"))), "what was there is seen");
    });
    assert_eq!(list().len(), entries);
    let mut rng = Rng::new(1);
    for _ in 0..100 {
        let number = rng.below(entries as u64);
        fs::remove_file(dir.join(format!("entry-{number}"))).ok();
        assert!(!dir.join(format!("entry-{number}")).exists());
    }
    let left = list().len();
    assert!((entries - 100..entries).contains(&left), "{left}");
    daemon.stop();
    daemon.spawn();
    assert_eq!(list().len(), left);
    daemon.stop();
}

#[test]
fn few_open_files_are_raised_or_refused() {
    let mut daemon = Daemon::unstarted(0);
    let limited = |limit: &str| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(binary("fabricd"));
        command.arg("--state").arg(daemon.state()).arg("--mount").arg(daemon.mount());
        command
    };
    let refused = limited("256:256").output().expect("prlimit");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("256 open files are too few"), "{told}");

    // A low soft limit is the custom; the daemon takes what it is allowed.
    let mut child = limited("40:1024").stderr(Stdio::null()).spawn().expect("prlimit");
    wait_for("start", || daemon.state().join("run.json").exists());
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(files.split_whitespace().nth(3), Some("1024"), "{files}");
    // More files open than the soft limit was.
    let open: Vec<File> = (0..200)
        .map(|number| {
            let mut file = File::create(daemon.mem().join(number.to_string())).expect("create");
            file.write_all(&Rng::new(number).bytes(5000)).expect("write");
            file.sync_all().expect("fsync");
            file
        })
        .collect();
    for number in 0..200 {
        let path = daemon.mem().join(number.to_string());
        assert!(fs::read(path).expect("read") == Rng::new(number).bytes(5000), "{number}");
    }
    drop(open);
    child.kill().expect("kill");
    child.wait().expect("wait");
    daemon.kill();
    daemon.spawn();
    assert_eq!(fs::read_dir(daemon.mem()).expect("lists").count(), 200);
    daemon.stop();
}
