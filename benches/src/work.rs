//! The workloads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use kos_tests::Rng;
use rustix::fs::XattrFlags;

const REQUEST: usize = 1 << 20;
const THREADS: u64 = 4;
/// Reads in flight of the deep workload: four jobs at depth 32.
const DEPTH: u64 = 128;
const SMALL_BYTES: usize = 16 << 10;

/// KOS_BENCH_SCALE=N: an Nth of the work, to try the benchmark itself.
pub(crate) static SCALE: LazyLock<u64> = LazyLock::new(|| {
    std::env::var("KOS_BENCH_SCALE").map_or(1, |scale| scale.parse().expect("KOS_BENCH_SCALE: a number"))
});

/// Bytes of the large file.
fn large() -> u64 {
    (512 << 20) / *SCALE
}

/// Random reads of all threads.
fn reads() -> u64 {
    80_000 / *SCALE
}

/// Small files.
fn small() -> u64 {
    5_000 / *SCALE
}

/// Empty files of one thread.
fn empty() -> u64 {
    3_000 / *SCALE
}

/// Reads of which the median is taken.
fn singles() -> u64 {
    5_000 / *SCALE
}

/// Where a workload runs.
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a Path,
    /// Bytes to write for each hundred: a reference without redundancy writes more.
    pub(crate) percent: u64,
}

/// What a workload's amount counts.
pub(crate) enum Kind {
    Bytes,
    Operations,
    /// The median of many.
    Latency,
}

/// One workload.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) amount: fn() -> u64,
    /// Nothing is in the page cache when it runs.
    pub(crate) cold: bool,
    pub(crate) prepare: fn(&Place<'_>),
    /// Answers what counts, where that is not the whole time.
    pub(crate) run: fn(&Place<'_>) -> Option<Duration>,
}

/// In an order in which each finds what it needs.
pub(crate) const WORKS: [Work; 12] = [
    Work {
        name: "sequential write, 1 MiB, fsync",
        kind: Kind::Bytes,
        amount: large,
        cold: false,
        prepare: remove_large,
        run: write_large,
    },
    Work {
        name: "sequential read, cold",
        kind: Kind::Bytes,
        amount: large,
        cold: true,
        prepare: nothing,
        run: read_large,
    },
    Work {
        name: "sequential read, warm",
        kind: Kind::Bytes,
        amount: large,
        cold: false,
        prepare: |place| _ = read_large(place),
        run: read_large,
    },
    Work {
        name: "4 KiB random read, cold, 4 threads",
        kind: Kind::Operations,
        amount: reads,
        cold: true,
        prepare: nothing,
        run: |place| read_random(place, THREADS),
    },
    Work {
        name: "the same, 4 jobs at depth 32",
        kind: Kind::Operations,
        amount: reads,
        cold: true,
        prepare: nothing,
        run: |place| read_random(place, DEPTH),
    },
    Work {
        name: "the same, one at a time, median",
        kind: Kind::Latency,
        amount: singles,
        cold: true,
        prepare: nothing,
        run: read_singly,
    },
    Work {
        name: "create, 4 threads",
        kind: Kind::Operations,
        amount: || empty() * THREADS,
        cold: false,
        prepare: remove_many,
        run: create_many,
    },
    Work {
        name: "stat, 4 threads",
        kind: Kind::Operations,
        amount: || empty() * THREADS,
        cold: false,
        prepare: |place| _ = stat_many(place),
        run: stat_many,
    },
    Work {
        name: "unlink, 4 threads",
        kind: Kind::Operations,
        amount: || empty() * THREADS,
        cold: false,
        prepare: create_again,
        run: unlink_many,
    },
    Work {
        name: "5,000 files of 16 KiB",
        kind: Kind::Operations,
        amount: small,
        cold: false,
        prepare: remove_small,
        run: write_small,
    },
    Work {
        name: "sealed, resident, read",
        kind: Kind::Bytes,
        amount: large,
        cold: false,
        prepare: seal_large,
        run: read_large,
    },
    Work {
        name: "sealed, resident, mapped",
        kind: Kind::Bytes,
        amount: large,
        cold: false,
        prepare: seal_large,
        run: map_large,
    },
];

fn nothing(_place: &Place<'_>) {}

fn remove_large(place: &Place<'_>) {
    // Absent in the first round.
    let _ = fs::remove_file(place.dir.join("large"));
    let _ = fs::remove_file(place.dir.join("more"));
}

fn write_large(place: &Place<'_>) -> Option<Duration> {
    let data = Rng::new(1).bytes(REQUEST);
    let write = |name: &str, bytes: u64| {
        let mut file = File::create(place.dir.join(name)).expect("create");
        for _ in 0..bytes / REQUEST as u64 {
            file.write_all(&data).expect("write");
        }
        file.sync_all().expect("fsync");
    };
    write("large", large());
    if place.percent > 100 {
        // Beside it, so that what reads finds the same file everywhere.
        write("more", large() * (place.percent - 100) / 100);
    }
    None
}

fn read_large(place: &Place<'_>) -> Option<Duration> {
    let mut file = File::open(place.dir.join("large")).expect("open");
    let mut data = vec![0; REQUEST];
    while file.read(&mut data).expect("read") > 0 {}
    None
}

/// On kosfs, seal the file and wait for its copy in memory; the reference has its bytes in memory anyway.
fn seal_large(place: &Place<'_>) {
    let (large, metrics) = (place.dir.join("large"), root(place.dir).join("sys/metrics"));
    read_large(place);
    if !metrics.exists() {
        return;
    }
    let made = || {
        let text = fs::read_to_string(&metrics).expect("metrics");
        text.lines().find(|line| line.starts_with("kos_copies_made_total")).map(str::to_owned)
    };
    let before = made();
    for value in ["0", "1"] {
        rustix::fs::setxattr(&large, "user.kos.seal", value.as_bytes(), XattrFlags::empty()).expect("seal");
    }
    kos_tests::wait_for("the copy", || made() != before);
}

/// Every byte is copied out, as by read(2).
fn map_large(place: &Place<'_>) -> Option<Duration> {
    let file = File::open(place.dir.join("large")).expect("open");
    #[expect(unsafe_code, reason = "mapping a file is unsafe in Rust; nobody changes this one")]
    // SAFETY: it is the bench's own.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("map");
    let mut data = vec![0; REQUEST];
    map.chunks(REQUEST).for_each(|chunk| data[..chunk.len()].copy_from_slice(chunk));
    std::hint::black_box(&data);
    None
}

fn in_threads(threads: u64, f: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for number in 0..threads {
            let f = &f;
            scope.spawn(move || f(number));
        }
    });
}

fn read_some(place: &Place<'_>, seed: u64, reads: u64, mut each: impl FnMut(Duration)) {
    let file = File::open(place.dir.join("large")).expect("open");
    let mut rng = Rng::new(seed);
    let mut data = [0; 4096];
    for _ in 0..reads {
        let start = Instant::now();
        file.read_exact_at(&mut data, rng.below(large() / 4096) * 4096).expect("read");
        each(start.elapsed());
    }
}

fn read_random(place: &Place<'_>, threads: u64) -> Option<Duration> {
    in_threads(threads, |number| read_some(place, number + 1, reads() / threads, drop));
    None
}

fn read_singly(place: &Place<'_>) -> Option<Duration> {
    let mut took = Vec::new();
    read_some(place, 99, singles(), |time| took.push(time));
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}

fn each_empty(dir: &Path, f: impl Fn(&Path) + Sync) {
    in_threads(THREADS, |number| {
        for i in 0..empty() {
            f(&dir.join(format!("many-{number}")).join(i.to_string()));
        }
    });
}

fn remove_many(place: &Place<'_>) {
    for number in 0..THREADS {
        let many = place.dir.join(format!("many-{number}"));
        let _ = fs::remove_dir_all(&many);
        fs::create_dir(many).expect("mkdir");
    }
}

fn create_many(place: &Place<'_>) -> Option<Duration> {
    each_empty(place.dir, |path| drop(File::create_new(path).expect("create")));
    None
}

fn create_again(place: &Place<'_>) {
    remove_many(place);
    create_many(place);
}

fn stat_many(place: &Place<'_>) -> Option<Duration> {
    each_empty(place.dir, |path| assert!(path.exists(), "stat"));
    None
}

fn unlink_many(place: &Place<'_>) -> Option<Duration> {
    each_empty(place.dir, |path| fs::remove_file(path).expect("unlink"));
    None
}

fn remove_small(place: &Place<'_>) {
    let small = place.dir.join("small");
    let _ = fs::remove_dir_all(&small);
    fs::create_dir(small).expect("mkdir");
}

fn write_small(place: &Place<'_>) -> Option<Duration> {
    let dir = place.dir;
    let data = Rng::new(2).bytes(SMALL_BYTES * place.percent as usize / 100);
    for i in 0..small() {
        fs::write(dir.join("small").join(i.to_string()), &data).expect("write");
    }
    // All of them durable: syncfs where the filesystem hears of it, fsync of the root for kosfs.
    let file = File::open(dir).expect("open");
    rustix::fs::syncfs(file).expect("syncfs");
    File::open(root(dir)).and_then(|root| root.sync_all()).expect("fsync of the root");
    None
}

/// The root of the filesystem that `dir` is on.
fn root(dir: &Path) -> &Path {
    let dev = |path: &Path| fs::metadata(path).expect("stat").dev();
    dir.ancestors().take_while(|path| dev(path) == dev(dir)).last().unwrap_or(dir)
}
