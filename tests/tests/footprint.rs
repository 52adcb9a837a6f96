//! The daemon's own memory stays below what docs/PERFORMANCE.md states, whatever is asked of it, and nothing grows that
//! nobody uses any more. The memory tier is apart: it is a tmpfs of a budget of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kos_tests::{Daemon, Rng, wait_for};

const MIB: u64 = 1 << 20;
/// What is stated, without what the kernel's own inodes take.
const BOUND: u64 = 1024 * MIB;
/// What is stated once nobody reads or writes.
const IDLE: u64 = 384 * MIB;
/// What is stated for each inode that the kernel keeps.
const PER_INODE: u64 = 100;
/// Between looks at the daemon.
const LOOK: Duration = Duration::from_millis(10);

/// How much is done; the soak asks for more.
fn scale() -> u64 {
    std::env::var("KOS_SCALE").map_or(1, |n| n.parse().expect("KOS_SCALE: a number"))
}

/// Bytes of the daemon's own: neither of files nor of the tier.
fn own_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().strip_suffix(" kB").expect("kB").parse::<u64>().expect("a number") << 10
}

/// The most it took while `work` was done.
fn peak(pid: u32, what: &str, work: impl FnOnce()) -> u64 {
    let (most, ended) = (AtomicU64::new(own_bytes(pid)), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(own_bytes(pid), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        let ends = EndWhenDropped(&ended);
        work();
        drop(ends);
    });
    let most = most.into_inner();
    println!("{what}: {} MiB at most, {} MiB after it", most / MIB, own_bytes(pid) / MIB);
    most
}

/// Also when the work panics, or its watcher would go on.
struct EndWhenDropped<'a>(&'a AtomicBool);

impl Drop for EndWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn in_threads(work: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

/// Large files of bytes that do not compress, by requests of `request` bytes, and read again.
fn large(dir: &Path, thread: u64, request: usize) {
    let mut rng = Rng::new(thread);
    let path = dir.join(format!("large-{thread}"));
    let mut file = File::create(&path).expect("create");
    let data = rng.bytes(request);
    for _ in 0..192 * MIB * scale() / request as u64 {
        file.write_all(&data).expect("write");
    }
    // Scattered over what is there, so that a flush packs many pieces.
    for _ in 0..2000 * scale() {
        let at = rng.below(192 * MIB - 4096);
        file.write_all_at(&data[..1 + rng.below(4096) as usize], at).expect("write");
    }
    file.sync_all().expect("fsync");
    let mut file = File::open(&path).expect("open");
    let mut out = vec![0; request];
    while file.read(&mut out).expect("read") > 0 {}
    fs::remove_file(&path).expect("remove");
}

fn small(dir: &Path, thread: u64, count: u64) {
    let data = Rng::new(thread).bytes(20_000);
    for number in 0..count {
        let len = number as usize * 7919 % data.len();
        fs::write(dir.join(format!("small-{thread}-{number}")), &data[..len]).expect("write");
    }
    for number in 0..count {
        let len = number as usize * 7919 % data.len();
        assert_eq!(fs::read(dir.join(format!("small-{thread}-{number}"))).expect("read").len(), len);
    }
}

#[test]
fn memory_stays_below_what_is_stated() {
    let mut daemon = Daemon::with_ram(128 * MIB);
    let pid = daemon.pid();
    for class in ["memory", "disk"] {
        let dir = daemon.mem().join(class);
        fs::create_dir(&dir).expect("mkdir");
        let set = rustix::fs::setxattr(
            &dir,
            "user.kos.durability",
            class.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        );
        set.expect("setxattr");
        for request in [1 << 20, 4096 + 1] {
            let what = format!("large files of class {class}, {request} bytes a request");
            let most = peak(pid, &what, || in_threads(|thread| large(&dir, thread, request)));
            assert!(most < BOUND, "{what}: {} MiB", most / MIB);
        }
    }
    let count = 1500 * scale();
    let most = peak(pid, "small files", || in_threads(|thread| small(&daemon.mem(), thread, count)));
    assert!(most < BOUND + 4 * count * PER_INODE, "small files: {} MiB", most / MIB);
    let entries = 25_000 * scale();
    let most = peak(pid, "a large directory", || {
        let dir = daemon.mem().join("names");
        fs::create_dir(&dir).expect("mkdir");
        in_threads(|thread| {
            for number in 0..entries / 4 {
                File::create(dir.join(format!("{thread}-{number}"))).expect("create");
            }
        });
        let found = fs::read_dir(&dir)
            .expect("list")
            .filter(|entry| entry.as_ref().expect("entry").metadata().expect("stat").len() == 0);
        assert_eq!(found.count() as u64, entries);
    });
    assert!(most < BOUND + (entries + 4 * count) * PER_INODE, "a large directory: {} MiB", most / MIB);
    let idle = IDLE + (entries + 4 * count) * PER_INODE;
    wait_for("memory given back", || own_bytes(pid) < idle);
    println!("idle: {} MiB", own_bytes(pid) / MIB);
    daemon.stop();
}

/// Names and inodes that come and go, in the kernel's memory and out of it.
#[test]
fn what_is_gone_takes_no_memory() {
    // The database's tables of recent writes fill and are written out meanwhile: twice 32 MiB.
    const NOISE: u64 = 80 * MIB;
    let mut daemon = Daemon::start();
    let pid = daemon.pid();
    let rounds = 2_000 * scale();
    let turn = |thread: u64| {
        let dir = daemon.mem().join(thread.to_string());
        fs::create_dir_all(&dir).expect("mkdir");
        for number in 0..rounds {
            let path = dir.join(number.to_string());
            let file = File::create_new(&path).expect("create");
            if number % 4 == 0 {
                (&file).write_all(&[1; 6000]).expect("write");
            }
            if number % 2 == 0 {
                drop(file);
                fs::remove_file(&path).expect("remove");
            } else {
                fs::rename(&path, dir.join("other")).expect("rename");
                drop(file);
            }
        }
        fs::remove_dir_all(&dir).expect("remove");
    };
    in_threads(turn);
    let before = own_bytes(pid);
    let most = peak(pid, "names that come and go", || (0..4).for_each(|_| in_threads(turn)));
    assert!(most < before + NOISE, "{} MiB before, then {} MiB", before / MIB, most / MIB);
    daemon.stop();
}
