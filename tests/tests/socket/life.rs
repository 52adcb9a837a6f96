//! A second mount from its beginning to its end, and through the daemon's.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kos_tests::{Daemon, Rng, binary, is_mounted};

use crate::second::*;

#[test]
fn a_second_mount_shows_the_same_tree() {
    let mut daemon = Daemon::start();
    let data = Rng::new(1).bytes(9 << 20);
    // Still in the first mount's buffer.
    fs::write(daemon.mem().join("before"), &data).expect("write");
    let second = Second::mount(&daemon);
    assert!(fs::read(second.mem().join("before")).expect("read") == data);
    fs::write(second.mem().join("after"), &data[1..]).expect("write");
    assert!(fs::read(daemon.mem().join("after")).expect("read") == data[1..]);
    for name in ["health", "version", "config"] {
        let read = |dir: &std::path::Path| fs::read_to_string(dir.join("sys").join(name)).expect(name);
        assert_eq!(read(second.dir()), read(&daemon.mount()));
    }
    let inode = |dir: std::path::PathBuf| fs::metadata(dir.join("after")).expect("stat").ino();
    assert_eq!(inode(second.mem()), inode(daemon.mem()));
    wait_for_mounts(&daemon, 2);
    assert_eq!(mounts_known(&daemon)[1], second.dir().to_string_lossy());
    second.umount(false);
    wait_for_mounts(&daemon, 1);
    daemon.stop();
}

#[test]
fn nothing_is_left_of_a_mount_that_went() {
    let mut daemon = Daemon::start();
    let records = |daemon: &Daemon| {
        let db =
            rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), daemon.state().join("meta"), false);
        let db = db.expect("metadata");
        let keys = db.iterator(rocksdb::IteratorMode::Start).map(|pair| pair.expect("metadata").0);
        // Sessions and answers.
        keys.filter(|key| b"CK".contains(&key[0])).count()
    };
    let second = Second::mount(&daemon);
    fs::write(second.mem().join("file"), b"x").expect("write");
    daemon.stop();
    assert!(records(&daemon) > 1, "its client may come back");
    daemon.spawn();
    fs::write(second.mem().join("more"), b"x").expect("write");
    // The status is a second old at most, and must not be of the time before it came back.
    wait_for_mounts(&daemon, 2);
    second.umount(false);
    wait_for_mounts(&daemon, 1);
    daemon.stop();
    assert_eq!(records(&daemon), 0);
}

#[test]
fn a_lazy_unmount_ends_with_the_last_user() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let mut file = File::create(second.mem().join("file")).expect("create");
    file.write_all(b"one").expect("write");
    second.umount(true);
    file.write_all(b"two").expect("it is open still");
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"onetwo");
    wait_for_mounts(&daemon, 2);
    drop(file);
    wait_for_mounts(&daemon, 1);
    daemon.stop();
}

#[test]
fn a_subtree_is_a_mount_of_its_own() {
    let mut daemon = Daemon::start();
    let inner = daemon.mem().join("a/b");
    fs::create_dir_all(&inner).expect("mkdir");
    fs::write(inner.join("file"), b"inner").expect("write");
    symlink("/", daemon.mem().join("out")).expect("symlink");
    let second = Second::mount_with(&daemon, ":/mem/a/b", "rw");
    let names: Vec<_> =
        fs::read_dir(second.dir()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names, ["file"]);
    fs::write(second.dir().join("new"), b"new").expect("write");
    assert_eq!(fs::read(inner.join("new")).expect("read"), b"new");
    let (code, said) = Second::place().run(&source(&daemon, ":/mem/none"), "rw");
    assert_eq!((code, said.contains("/mem/none")), (Some(32), true), "{said}");
    // A link of a user leads to the tree's own root, and not to the machine's.
    let linked = Second::mount_with(&daemon, ":/mem/out", "ro");
    assert!(linked.dir().join("sys/health").exists() && !linked.dir().join("proc").exists());
    let refused = fs::write(linked.mem().join("file"), b"x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    linked.umount(false);
    second.umount(false);
    wait_for_mounts(&daemon, 1);
    daemon.stop();
}

/// With the helper where mount(8) looks for it, in a namespace of its own.
#[test]
fn mount_and_fstab_find_the_helper() {
    let mut daemon = Daemon::start();
    fs::write(daemon.mem().join("file"), b"by mount").expect("write");
    let root = tempfile::tempdir().expect("temporary directory");
    let (helper, source) = (binary("mount-kosfs"), source(&daemon, ""));
    let table = format!(
        "{source} {0}/one kosfs rw,noatime,_netdev,nofail,x-systemd.automount 0 0\n\
         {source}:/mem {0}/two kosfs noauto,ro 0 0\n",
        root.path().display()
    );
    fs::write(root.path().join("fstab"), table).expect("fstab");
    let script = r#"
        set -eu
        # Copies of the mounts of tests beside this one would keep those alive. One whose directory is
        # removed meanwhile is gone here too.
        awk '/kosfs/ { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
            umount -l "$point" || ! grep " $point " /proc/self/mountinfo
        done
        cp "$1" helper
        mkdir one two three
        mount -t tmpfs none /sbin
        cp helper /sbin/mount.kosfs
        mount -T fstab -a
        [ "$(cat one/mem/file)" = "by mount" ]
        mount -T fstab -a
        [ "$(grep -c fuse.kosfs.*noatime /proc/self/mountinfo)" = 1 ] || grep -q noatime /proc/self/mountinfo
        mount -T fstab "$PWD/two"
        [ "$(cat two/file)" = "by mount" ]
        ! touch two/file 2>/dev/null
        mount -t kosfs -o nosuid,nodev "$2" three
        grep " $PWD/three rw,nosuid,nodev" /proc/self/mountinfo >/dev/null
        umount one two
        umount -l three
        [ -z "$(ls one two three | grep -v :$)" ]
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(helper).arg(source).current_dir(root.path());
    let (code, said) = run(&mut command);
    assert_eq!(code, Some(0), "{said}");
    wait_for_mounts(&daemon, 1);
    daemon.stop();
}

#[test]
fn a_second_mount_outlives_a_killed_daemon() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let mut open = File::create(second.mem().join("open")).expect("create");
    open.write_all(b"before").expect("write");
    open.sync_all().expect("fsync");
    daemon.kill();
    let path = second.mem().join("during");
    // It waits for the daemon to be back.
    let during = std::thread::spawn(move || fs::write(path, b"during"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!during.is_finished());
    daemon.spawn();
    during.join().expect("thread").expect("write");
    open.write_all(b", after").expect("write");
    drop(open);
    let mut text = String::new();
    File::open(daemon.mem().join("open")).and_then(|mut f| f.read_to_string(&mut text)).expect("read");
    assert_eq!(text, "before, after");
    assert_eq!(fs::read(daemon.mem().join("during")).expect("read"), b"during");
    wait_for_mounts(&daemon, 2);
    second.umount(false);
    daemon.stop();
}

#[test]
fn without_a_daemon_requests_end_and_the_mount_goes() {
    let mut daemon = Daemon::start();
    let second = Second::mount_with(&daemon, "", "timeout=1");
    fs::write(second.mem().join("file"), b"x").expect("write");
    // In order, with the second mount in use: that waits for the next daemon.
    daemon.stop();
    assert!(is_mounted(second.dir()));
    let start = Instant::now();
    let refused = fs::read(second.mem().join("file")).expect_err("nobody answers");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed().as_secs() < 30, "after its second");
    daemon.spawn();
    assert_eq!(fs::read(second.mem().join("file")).expect("it is back"), b"x");
    daemon.stop();
    second.umount(false);
}

#[test]
fn another_filesystem_at_the_same_place_is_not_taken_for_the_old() {
    let mut daemon = Daemon::start();
    let second = Second::mount_with(&daemon, "", "timeout=1");
    daemon.stop();
    fs::remove_dir_all(daemon.state()).expect("wipe");
    fs::create_dir(daemon.state()).expect("mkdir");
    daemon.spawn();
    let refused = fs::read_dir(second.mem()).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    assert_eq!(refused.expect_err("it is another").raw_os_error(), Some(libc::EIO));
    second.umount(false);
    daemon.stop();
}

#[test]
fn what_is_under_way_when_the_daemon_is_killed_is_done_once() {
    const KILLS: usize = 3;
    let mut daemon = Daemon::with_ram(128 << 20);
    let second = Second::mount(&daemon);
    let (path, other) = (second.mem().join("log"), second.mem());
    let ended = AtomicBool::new(false);
    let (appended, made) = std::thread::scope(|scope| {
        let appends = scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
            let mut count = 0_u32;
            while !ended.load(Ordering::Relaxed) {
                file.write_all(&count.to_le_bytes()).unwrap_or_else(|e| panic!("append {count}: {e}"));
                count += 1;
            }
            count
        });
        let names = scope.spawn(|| {
            let mut count = 0_u32;
            while !ended.load(Ordering::Relaxed) {
                // Done twice, the first would be EEXIST and the second ENOENT.
                let (from, to) = (other.join(format!("a{count}")), other.join(format!("b{count}")));
                fs::create_dir(&from).unwrap_or_else(|e| panic!("mkdir {count}: {e}"));
                fs::rename(from, to).unwrap_or_else(|e| panic!("rename {count}: {e}"));
                count += 1;
            }
            count
        });
        for _ in 0..KILLS {
            std::thread::sleep(std::time::Duration::from_millis(300));
            daemon.kill();
            daemon.spawn();
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        ended.store(true, Ordering::Relaxed);
        (appends.join().expect("appends"), names.join().expect("names"))
    });
    assert!(appended > 0 && made > 0);
    let log = fs::read(daemon.mem().join("log")).expect("read");
    let found: Vec<u32> =
        log.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("whole"))).collect();
    assert_eq!(found, (0..appended).collect::<Vec<_>>(), "each once, in order");
    let names = fs::read_dir(daemon.mem()).expect("list").count();
    assert_eq!(names, 1 + made as usize);
    second.umount(false);
    daemon.stop();
}
