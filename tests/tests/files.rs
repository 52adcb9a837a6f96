//! What programs do with files, on a real mount, also across restarts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng, repository, wait_for};
use memmap2::MmapOptions;
use rustix::fs::XattrFlags;

fn run(program: &str, args: &[&Path]) -> String {
    let out = Command::new(program).args(args).output().expect(program);
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_tree_survives_copying_and_a_restart() {
    let mut daemon = Daemon::start();
    let source = repository();
    for part in ["fabricd", "fuse", "store", "docs", "tests"] {
        let copy = daemon.mem().join(part);
        run("cp", &[Path::new("-a"), &source.join(part), &copy]);
        run("diff", &[Path::new("-r"), &source.join(part), &copy]);
    }
    daemon.stop();
    daemon.spawn();
    for part in ["fabricd", "fuse", "store", "docs", "tests"] {
        run("diff", &[Path::new("-r"), &source.join(part), &daemon.mem().join(part)]);
    }
    daemon.stop();
}

#[test]
fn a_large_file_reads_back_and_maps() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("large");
    let data = Rng::new(11).bytes((33 << 20) + 777);
    fs::write(&path, &data).expect("write");
    assert!(fs::read(&path).expect("read") == data);
    let file = File::open(&path).expect("open");
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; this test owns the file")]
    // SAFETY: nobody else writes this file while it is mapped.
    let map = unsafe { MmapOptions::new().map(&file).expect("mmap") };
    assert!(map[..] == data[..]);
    drop(map);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == data, "after a restart");
    daemon.stop();
}

#[test]
fn a_shared_mapping_writes_through() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("mapped");
    fs::write(&path, vec![1; 3 << 20]).expect("write");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; this test owns the file")]
    // SAFETY: nobody else writes this file while it is mapped.
    let mut map = unsafe { MmapOptions::new().map_mut(&file).expect("mmap") };
    for at in (0..map.len()).step_by(5000) {
        map[at] = 7;
    }
    map.flush().expect("msync");
    let expected = map.to_vec();
    drop(map);
    assert!(fs::read(&path).expect("read") == expected);
    daemon.kill();
    daemon.spawn();
    assert!(fs::read(&path).expect("read") == expected, "msync'ed bytes survive kill -9");
    daemon.stop();
}

#[test]
fn a_mount_in_use_is_cut_off_and_loses_nothing() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("in-use");
    fs::write(&path, vec![1; 1 << 20]).expect("write");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    file.write_all_at(&[2; 5000], 500_000).expect("write");
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; this test owns the file")]
    // SAFETY: nobody else writes this file while it is mapped.
    let mut map = unsafe { MmapOptions::new().map_mut(&file).expect("mmap") };
    map[..5000].fill(3);
    // More than the kernel hands over in a moment.
    let large = daemon.mem().join("large");
    let stores = OpenOptions::new().read(true).write(true).create_new(true).open(&large).expect("create");
    stores.set_len(32 << 20).expect("extend");
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; this test owns the file")]
    // SAFETY: nobody else writes this file while it is mapped.
    let mut filled = unsafe { MmapOptions::new().map_mut(&stores).expect("mmap") };
    filled.fill(4);
    daemon.stop();
    assert!(file.sync_all().is_err(), "the old mount is gone");
    daemon.spawn();
    let found = fs::read(&path).expect("read");
    let mut expected = vec![1; 1 << 20];
    expected[..5000].fill(3);
    expected[500_000..505_000].fill(2);
    assert!(found == expected);
    assert!(fs::read(&large).expect("read").iter().all(|&byte| byte == 4), "stores into a mapping are lost");
    daemon.stop();
}

#[test]
fn random_writes_equal_a_vector() {
    let mut daemon = Daemon::start();
    for seed in 0..4 {
        let path = daemon.mem().join(format!("random-{seed}"));
        let mut rng = Rng::new(seed);
        let mut model: Vec<u8> = Vec::new();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create");
        for step in 0..400 {
            match rng.below(10) {
                0..=5 => {
                    let at = rng.below(6 << 20) as usize;
                    let len = 1 + rng.below(200_000) as usize;
                    let data = rng.bytes(len);
                    file.write_all_at(&data, at as u64).expect("write");
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&data);
                }
                6 => {
                    let len = rng.below(6 << 20);
                    file.set_len(len).expect("truncate");
                    model.resize(len as usize, 0);
                }
                7 => file.sync_all().expect("fsync"),
                _ => {
                    let at = rng.below(model.len() as u64 + 1) as usize;
                    let len = (rng.below(300_000) as usize).min(model.len() - at);
                    let mut out = vec![0; len];
                    file.read_exact_at(&mut out, at as u64).expect("read");
                    assert!(out == model[at..at + len], "seed {seed} step {step}");
                }
            }
            assert_eq!(file.metadata().expect("stat").len(), model.len() as u64, "seed {seed} step {step}");
        }
        drop(file);
        assert!(fs::read(&path).expect("read") == model, "seed {seed}");
    }
    daemon.stop();
}

#[test]
fn reads_go_on_while_what_they_read_is_replaced_and_freed() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("busy");
    fs::write(&path, vec![1; 1 << 20]).expect("write");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..3 {
            let (path, stop) = (&path, &stop);
            scope.spawn(move || {
                // Past the page cache, so that every read reaches the stripes.
                let direct = libc::O_DIRECT;
                let file = OpenOptions::new().read(true).custom_flags(direct).open(path).expect("open");
                let mut rng = Rng::new(reader);
                let mut block = vec![0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    file.read_exact_at(&mut block, rng.below(256) * 4096).expect("read");
                    assert!(block.iter().all(|&b| b == block[0]) && block[0] != 0, "torn");
                }
            });
        }
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        for version in 0..60_u8 {
            file.write_all_at(&vec![version + 2; 1 << 20], 0).expect("write");
            file.sync_data().expect("fsync");
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // All but the last of 60 commits; the first bytes may never have been one of their own.
    let freed = || {
        let metrics = fs::read_to_string(daemon.mount().join("sys/metrics")).expect("metrics");
        let count = metrics.lines().find_map(|line| line.strip_prefix("kos_stripes_freed_total "));
        count.expect("counter").parse::<u64>().expect("a number")
    };
    wait_for("collection", || freed() >= 59);
    assert!(!daemon.log().contains("repaired"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn zeros_are_holes() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create");
    file.write_all_at(&vec![0; 8 << 20], 0).expect("write");
    file.write_all_at(&[1; 4096], 4 << 20).expect("write");
    file.sync_all().expect("fsync");
    let mapped = || fs::metadata(&path).expect("stat").blocks() * 512;
    wait_for("the block count", || mapped() == 64 << 10);
    file.write_all_at(&[0; 4096], 4 << 20).expect("write");
    file.sync_all().expect("fsync");
    file.write_all_at(&vec![0; 1 << 20], 4 << 20).expect("write");
    file.sync_all().expect("fsync");
    wait_for("the block count", || mapped() == 0);
    // Sparse to the last byte a file can have.
    file.write_all_at(b"end", i64::MAX as u64 - 3).expect("write");
    file.sync_all().expect("fsync");
    let mut end = [0; 3];
    file.read_exact_at(&mut end, i64::MAX as u64 - 3).expect("read");
    assert_eq!((&end, file.metadata().expect("stat").len()), (b"end", i64::MAX as u64));
    let error = file.write_all_at(b"xx", i64::MAX as u64 - 1).expect_err("beyond");
    // The VFS's own answer, on every filesystem.
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    daemon.stop();
}

#[test]
fn appends_of_many_threads_lose_nothing() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("log");
    thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open");
                for line in 0..500 {
                    file.write_all(format!("{writer} {line}\n").as_bytes()).expect("append");
                }
            });
        }
    });
    let text = fs::read_to_string(&path).expect("read");
    let mut next = BTreeMap::new();
    for line in text.lines() {
        let (writer, line) = line.split_once(' ').expect("whole line");
        let expected = next.entry(writer.to_owned()).or_insert(0);
        assert_eq!(line.parse(), Ok(*expected), "writer {writer}");
        *expected += 1;
    }
    assert!(next.len() == 4 && next.values().all(|&lines| lines == 500));
    daemon.stop();
}

#[test]
fn an_unlinked_file_lives_while_open() {
    let mut daemon = Daemon::start();
    let path = daemon.mem().join("gone");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create");
    file.write_all(&[5; 100_000]).expect("write");
    fs::remove_file(&path).expect("unlink");
    assert!(!path.exists());
    file.write_all(&[6; 100_000]).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut out = Vec::new();
    file.read_to_end(&mut out).expect("read");
    assert!(out.len() == 200_000 && out[..100_000].iter().all(|&b| b == 5) && out[199_999] == 6);
    drop(file);
    daemon.stop();
}

#[test]
fn names_links_and_modes() {
    let mut daemon = Daemon::start();
    let mem = daemon.mem();
    let long = "n".repeat(255);
    fs::write(mem.join(&long), b"x").expect("255 bytes");
    let error = fs::write(mem.join("n".repeat(256)), b"x").expect_err("256 bytes");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    fs::hard_link(mem.join(&long), mem.join("hard")).expect("link");
    symlink("hard", mem.join("soft")).expect("symlink");
    fs::set_permissions(mem.join("soft"), fs::Permissions::from_mode(0o640)).expect("chmod");
    let stat = fs::metadata(mem.join(&long)).expect("stat");
    assert_eq!((stat.nlink(), stat.mode() & 0o7777), (2, 0o640));
    fs::create_dir_all(mem.join("a/b/c")).expect("mkdir");
    let error = fs::rename(mem.join("a"), mem.join("a/b/c/a")).expect_err("into itself");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let error = fs::remove_dir(mem.join("a")).expect_err("not empty");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    fs::rename(mem.join("a/b"), mem.join("b")).expect("rename");
    File::open(mem.join("soft")).and_then(|file| file.sync_all()).expect("fsync");
    daemon.kill();
    daemon.spawn();
    assert_eq!(fs::read(mem.join("soft")).expect("read"), b"x", "through kill -9");
    assert!(mem.join("b/c").is_dir() && !mem.join("a/b").exists());
    daemon.stop();
}

#[test]
fn a_listing_holds_every_entry_once() {
    let mut daemon = Daemon::start();
    let dir = daemon.mem().join("many");
    fs::create_dir(&dir).expect("mkdir");
    for i in 0..3000 {
        File::create(dir.join(format!("keep-{i}"))).expect("create");
    }
    let names = thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..500 {
                File::create(dir.join(format!("new-{i}"))).expect("create");
                if i >= 20 {
                    fs::remove_file(dir.join(format!("new-{}", i - 20))).expect("remove");
                }
            }
        });
        let list = || -> Vec<String> {
            let entries = fs::read_dir(&dir).expect("readdir");
            entries.map(|e| e.expect("entry").file_name().into_string().expect("utf-8")).collect()
        };
        (0..5).map(|_| list()).collect::<Vec<_>>()
    });
    for mut list in names {
        list.retain(|name| name.starts_with("keep-"));
        list.sort();
        let count = list.len();
        list.dedup();
        assert_eq!((list.len(), count), (3000, 3000));
    }
    daemon.stop();
}

#[test]
fn a_clone_takes_no_space_and_no_inode_number_comes_again() {
    const LEN: usize = 20 << 20;
    // In memory: that is nobody else's.
    let mut daemon = Daemon::with_ram(256 << 20);
    let mem = daemon.mem();
    rustix::fs::setxattr(&mem, "user.kos.durability", b"memory", XattrFlags::empty()).expect("policy");
    let used = || -> u64 {
        let usage = fs::read_to_string(daemon.mount().join("sys/usage")).expect("usage");
        let line = usage.lines().find_map(|line| line.strip_prefix("ram_bytes_used "));
        line.expect("ram_bytes_used").parse().expect("a number")
    };
    let data = Rng::new(21).bytes(LEN);
    let [path, copy] = ["one", "copy"].map(|name| daemon.mem().join(name));
    fs::write(&path, &data).expect("write");
    File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    let before = used();
    let [from, to] = [File::open(&path).expect("open"), File::create(&copy).expect("create")];
    let (mut at, mut put) = (0, 0);
    let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut put), LEN).expect("copy");
    to.sync_all().expect("fsync");
    assert_eq!(copied, LEN);
    assert!(used() < before + LEN as u64 / 2, "{before} bytes before and {} after", used());
    assert!(fs::read(&copy).expect("read") == data);
    // Read, also by others: nothing is changed by that.
    let times =
        |path: &Path| fs::metadata(path).map(|found| (found.atime(), found.atime_nsec())).expect("stat");
    let read = times(&copy);
    thread::sleep(Duration::from_millis(20));
    assert!(fs::read(&copy).expect("read") == data);
    assert_eq!(times(&copy), read, "the access time");
    drop((from, to));
    let mut last = fs::metadata(&copy).expect("stat").ino();
    for round in 0..20 {
        let name = daemon.mem().join("gone");
        let file = File::create(&name).expect("create");
        let number = file.metadata().expect("stat").ino();
        assert!(number > last, "round {round}: {number} after {last}");
        last = number;
        file.sync_all().expect("fsync");
        drop(file);
        fs::remove_file(&name).expect("unlink");
        if round % 10 == 5 {
            daemon.kill();
            daemon.spawn();
        }
    }
    daemon.stop();
}
