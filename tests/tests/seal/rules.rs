//! What a seal holds against, and what it leaves.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use kos_tests::seal::{SEAL, seal, unseal};
use kos_tests::{Daemon, Rng, binary};
use rustix::io::Errno;

use crate::{get, set};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("an errno")
}

fn writing() -> [OpenOptions; 4] {
    let mut all = [(); 4].map(|()| OpenOptions::new());
    all[0].write(true);
    all[1].read(true).write(true);
    all[2].append(true);
    all[3].write(true).truncate(true);
    all
}

#[test]
fn a_sealed_file_is_not_changed_and_an_unsealed_one_is() {
    let mut daemon = Daemon::start();
    let data = Rng::new(1).bytes(3 << 20);
    let (file, other) = (daemon.mem().join("file"), daemon.mem().join("other"));
    fs::write(&file, &data).expect("write");
    fs::write(&other, &data).expect("write");
    assert_eq!(get(&file, SEAL), "0");
    seal(&file);
    let check = |when: &str| {
        assert_eq!(get(&file, SEAL), "1", "{when}");
        for open in writing() {
            assert_eq!(errno(open.open(&file)), libc::EPERM, "{when}: {open:?}");
        }
        let path = file.as_os_str().to_str().expect("text");
        // By name, without an open for writing.
        let out = Command::new("perl").args(["-e", "truncate($ARGV[0], 5) or exit $!+0", path]).status();
        assert_eq!(out.expect("perl").code(), Some(libc::EPERM), "{when}: truncate(2)");
        assert!(fs::read(&file).expect("read") == data, "{when}");
    };
    check("sealed");
    daemon.kill();
    daemon.spawn();
    check("after kill -9");
    daemon.stop();
    daemon.spawn();
    check("after a clean end");
    unseal(&file).expect("unseal");
    assert_eq!(get(&file, SEAL), "0");
    fs::write(&file, b"new").expect("write");
    assert_eq!(fs::read(&file).expect("read"), b"new");
    set(&file, SEAL, "1").expect("again");
    set(&file, SEAL, "0").expect("0 unseals as well");
    fs::write(&file, b"newer").expect("write");
    daemon.stop();
}

#[test]
fn names_owners_modes_times_and_attributes_are_not_sealed() {
    let mut daemon = Daemon::start();
    let (file, dir) = (daemon.mem().join("file"), daemon.mem().join("dir"));
    fs::create_dir(&dir).expect("mkdir");
    fs::write(&file, b"bytes").expect("write");
    seal(&file);
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
    chown(&file, Some(5), Some(6)).expect("chown");
    File::open(&file).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("utimens");
    set(&file, "user.note", "a word").expect("setxattr");
    fs::hard_link(&file, dir.join("link")).expect("link");
    fs::rename(&file, dir.join("moved")).expect("rename");
    let meta = fs::metadata(dir.join("link")).expect("stat");
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o600, 5, 6, 0));
    assert_eq!(get(&dir.join("moved"), SEAL), "1", "it is the file's, not the name's");
    fs::write(&file, b"in its place").expect("the old name is free");
    fs::rename(&file, dir.join("moved")).expect("a name may be given to another file");
    assert_eq!(fs::read(dir.join("link")).expect("read"), b"bytes");
    fs::remove_file(dir.join("link")).expect("unlink");
    daemon.stop();
}

#[test]
fn copies_of_a_sealed_file_are_not_sealed() {
    let mut daemon = Daemon::start();
    let data = Rng::new(2).bytes(1 << 20);
    let (file, copy) = (daemon.mem().join("file"), daemon.mem().join("copy"));
    fs::write(&file, &data).expect("write");
    seal(&file);
    // cp clones through copy_file_range.
    assert!(Command::new("cp").args([&file, &copy]).status().expect("cp").success());
    OpenOptions::new().append(true).open(&copy).and_then(|mut f| f.write_all(b"more")).expect("append");
    assert_eq!(fs::read(&copy).expect("read").len(), data.len() + 4);
    assert!(fs::read(&file).expect("read") == data);
    daemon.stop();
}

#[test]
fn nobody_seals_what_is_open_for_writing() {
    let mut daemon = Daemon::start();
    let file = daemon.mem().join("file");
    let mut writer = OpenOptions::new().read(true).write(true).create_new(true).open(&file).expect("create");
    writer.write_all(b"first").expect("write");
    assert_eq!(set(&file, SEAL, "1"), Err(Errno::BUSY));
    let reader = File::open(&file).expect("open");
    writer.write_all(b" and second").expect("write");
    // SAFETY: nobody makes the file shorter.
    #[expect(unsafe_code, reason = "a mapping")]
    let mapping = unsafe { memmap2::MmapOptions::new().map(&writer) }.expect("map");
    drop(writer);
    assert_eq!(set(&file, SEAL, "1"), Err(Errno::BUSY), "a mapping of it lives");
    drop(mapping);
    set(&file, SEAL, "1").expect("all are closed");
    assert_eq!(fs::read(&file).expect("read"), b"first and second", "what was in a buffer, too");
    drop(reader);
    // One writer closes while another one seals: either it is refused, or all bytes are there.
    for round in 0..50_u8 {
        let file = daemon.mem().join(round.to_string());
        let mut writer = File::create(&file).expect("create");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                writer.write_all(&[round; 9000]).expect("write");
                writer.write_all(&[round; 200_000]).expect("write");
            });
            kos_tests::wait_for("the seal", || set(&file, SEAL, "1").is_ok());
        });
        assert!(fs::read(&file).expect("read") == vec![round; 209_000], "round {round}");
        assert_eq!(get(&file, SEAL), "1");
    }
    daemon.stop();
    daemon.spawn();
    for round in 0..50_u8 {
        assert!(
            fs::read(daemon.mem().join(round.to_string())).expect("read") == vec![round; 209_000],
            "kept"
        );
    }
    daemon.stop();
}

#[test]
fn a_directory_seals_its_files_at_their_close() {
    let mut daemon = Daemon::start();
    let dir = daemon.mem().join("dir");
    fs::create_dir_all(dir.join("below")).expect("mkdir");
    set(&dir, SEAL, "on-close").expect("on-close");
    assert_eq!(get(&dir.join("below"), SEAL), "on-close", "inherited");
    let file = dir.join("below/file");
    let data = Rng::new(3).bytes(5 << 20);
    for round in 0..20 {
        let mut writer = File::create(&file).expect("create");
        let second = OpenOptions::new().append(true).open(&file).expect("a second writer");
        writer.write_all(&data).expect("write");
        drop(writer);
        assert_eq!(get(&file, SEAL), "0", "one writes still");
        drop(second);
        // Without a pause: what close(2) has done, every later call sees.
        let again = OpenOptions::new().append(true).open(&file);
        assert_eq!(errno(again), libc::EPERM, "round {round}");
        assert!(fs::read(&file).expect("read") == data);
        fs::remove_file(&file).expect("unlink");
    }
    // As shells do it, with descriptors that are copied and closed.
    let script = "(echo a; echo b) > sh && ! (echo c >> sh) 2>err && grep -q 'not permitted' err";
    let sh = Command::new("bash").args(["-c", script]).current_dir(&dir).status().expect("bash");
    assert!(sh.success());
    assert_eq!(fs::read(dir.join("sh")).expect("read"), b"a\nb\n");
    // What only makes the name seals nothing.
    File::create(dir.join("empty")).expect("create");
    fs::write(dir.join("empty"), b"filled").expect("write");
    assert_eq!(get(&dir.join("empty"), SEAL), "1");
    // A file's own word comes first; with it taken away the directory's counts again.
    set(&dir.join("empty"), SEAL, "0").expect("unseal");
    fs::write(dir.join("empty"), b"once").expect("write");
    fs::write(dir.join("empty"), b"twice").expect("write");
    unseal(&dir.join("empty")).expect("remove");
    fs::write(dir.join("empty"), b"sealed again").expect("write");
    assert_eq!(get(&dir.join("empty"), SEAL), "1");
    set(&dir.join("below"), SEAL, "0").expect("not below");
    fs::write(dir.join("below/open"), b"x").expect("write");
    assert_eq!(get(&dir.join("below/open"), SEAL), "0");
    daemon.stop();
}

#[test]
fn what_it_cannot_mean_is_refused() {
    let mut daemon = Daemon::start();
    let (file, dir) = (daemon.mem().join("file"), daemon.mem().join("dir"));
    fs::write(&file, b"x").expect("write");
    fs::create_dir(&dir).expect("mkdir");
    for (path, name, value) in [
        (&file, SEAL, "on-close"),
        (&file, SEAL, "2"),
        (&file, SEAL, ""),
        (&file, SEAL, "yes"),
        (&dir, SEAL, "1"),
        (&dir, SEAL, "On-close"),
        (&file, "user.kos.consistency", "weak"),
        (&dir, "user.kos.consistency", ""),
    ] {
        assert_eq!(set(path, name, value), Err(Errno::INVAL), "{name}={value:?}");
    }
    assert_eq!((get(&file, SEAL), get(&dir, SEAL)), ("0".into(), "0".into()));
    assert_eq!(get(&file, "user.kos.consistency"), "strong");
    set(&dir, "user.kos.consistency", "release").expect("set");
    fs::write(dir.join("file"), b"x").expect("write");
    assert_eq!(get(&dir.join("file"), "user.kos.consistency"), "release", "inherited");
    daemon.stop();
}

fn kos(args: &[&str], paths: &[&Path]) -> (Option<i32>, String) {
    let out = Command::new(binary("kos")).args(args).args(paths).output().expect("kos");
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn the_command_seals_files_and_trees() {
    let mut daemon = Daemon::start();
    let dir = daemon.mem().join("dir");
    fs::create_dir_all(dir.join("a/b")).expect("mkdir");
    let files = ["one", "a/two", "a/b/three"].map(|name| dir.join(name));
    for file in &files {
        fs::write(file, b"bytes").expect("write");
    }
    std::os::unix::fs::symlink("one", dir.join("link")).expect("symlink");
    assert_eq!(kos(&["seal"], &[&files[0]]), (Some(0), String::new()));
    assert_eq!(get(&files[0], SEAL), "1");
    let (code, said) = kos(&["seal"], &[&dir]);
    assert!(code == Some(1) && said.contains("add -r"), "{said}");
    assert_eq!(kos(&["seal", "-r"], &[&dir]), (Some(0), "sealed: 3 files\n".into()));
    assert!(files.iter().all(|file| get(file, SEAL) == "1"));
    let outside = daemon.state().with_file_name("outside");
    fs::write(&outside, b"x").expect("write");
    let (code, said) = kos(&["unseal", "-r"], &[&dir, &outside, &dir.join("none")]);
    assert!(code == Some(1) && said.contains("unsealed: 3 files"), "{said}");
    assert!(said.contains("not a file of kosfs") && said.contains("No such file"), "{said}");
    assert!(files.iter().all(|file| get(file, SEAL) == "0"));
    let _writer = OpenOptions::new().write(true).open(&files[1]).expect("open");
    let (code, said) = kos(&["seal", "-r"], &[&dir]);
    assert!(code == Some(1) && said.contains("two: is in use") && said.contains("sealed: 2 files"), "{said}");
    daemon.stop();
}
