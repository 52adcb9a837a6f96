//! The workloads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;

use kos_tests::Rng;

/// Bytes of the large file.
const LARGE: u64 = 512 << 20;
const REQUEST: usize = 1 << 20;
/// Random reads of one thread, and threads.
const READS: u64 = 20_000;
const THREADS: u64 = 4;
/// Small files: how many, and their bytes.
const SMALL: u64 = 5_000;
const SMALL_BYTES: usize = 16 << 10;
/// Empty files of one thread.
const EMPTY: u64 = 3_000;

/// What a workload's amount counts.
pub(crate) enum Kind {
    Bytes,
    Operations,
}

/// One workload.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) amount: u64,
    /// Nothing is in the page cache when it runs.
    pub(crate) cold: bool,
    pub(crate) prepare: fn(&Path),
    pub(crate) run: fn(&Path),
}

/// In an order in which each finds what it needs.
pub(crate) const WORKS: [Work; 8] = [
    Work {
        name: "sequential write, 1 MiB, fsync",
        kind: Kind::Bytes,
        amount: LARGE,
        cold: false,
        prepare: remove_large,
        run: write_large,
    },
    Work {
        name: "sequential read, cold",
        kind: Kind::Bytes,
        amount: LARGE,
        cold: true,
        prepare: nothing,
        run: read_large,
    },
    Work {
        name: "sequential read, warm",
        kind: Kind::Bytes,
        amount: LARGE,
        cold: false,
        prepare: read_large,
        run: read_large,
    },
    Work {
        name: "4 KiB random read, cold, 4 threads",
        kind: Kind::Operations,
        amount: READS * THREADS,
        cold: true,
        prepare: nothing,
        run: read_random,
    },
    Work {
        name: "create, 4 threads",
        kind: Kind::Operations,
        amount: EMPTY * THREADS,
        cold: false,
        prepare: remove_many,
        run: create_many,
    },
    Work {
        name: "stat, 4 threads",
        kind: Kind::Operations,
        amount: EMPTY * THREADS,
        cold: false,
        prepare: stat_many,
        run: stat_many,
    },
    Work {
        name: "unlink, 4 threads",
        kind: Kind::Operations,
        amount: EMPTY * THREADS,
        cold: false,
        prepare: create_again,
        run: unlink_many,
    },
    Work {
        name: "5,000 files of 16 KiB",
        kind: Kind::Operations,
        amount: SMALL,
        cold: false,
        prepare: remove_small,
        run: write_small,
    },
];

fn nothing(_dir: &Path) {}

fn remove_large(dir: &Path) {
    // Absent in the first round.
    let _ = fs::remove_file(dir.join("large"));
}

fn write_large(dir: &Path) {
    let data = Rng::new(1).bytes(REQUEST);
    let mut file = File::create(dir.join("large")).expect("create");
    for _ in 0..LARGE / REQUEST as u64 {
        file.write_all(&data).expect("write");
    }
    file.sync_all().expect("fsync");
}

fn read_large(dir: &Path) {
    let mut file = File::open(dir.join("large")).expect("open");
    let mut data = vec![0; REQUEST];
    while file.read(&mut data).expect("read") > 0 {}
}

fn in_threads(f: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for number in 0..THREADS {
            let f = &f;
            scope.spawn(move || f(number));
        }
    });
}

fn read_random(dir: &Path) {
    in_threads(|number| {
        let file = File::open(dir.join("large")).expect("open");
        let mut rng = Rng::new(number + 1);
        let mut data = [0; 4096];
        for _ in 0..READS {
            file.read_exact_at(&mut data, rng.below(LARGE / 4096) * 4096).expect("read");
        }
    });
}

fn each_empty(dir: &Path, f: impl Fn(&Path) + Sync) {
    in_threads(|number| {
        for i in 0..EMPTY {
            f(&dir.join(format!("many-{number}")).join(i.to_string()));
        }
    });
}

fn remove_many(dir: &Path) {
    for number in 0..THREADS {
        let many = dir.join(format!("many-{number}"));
        let _ = fs::remove_dir_all(&many);
        fs::create_dir(many).expect("mkdir");
    }
}

fn create_many(dir: &Path) {
    each_empty(dir, |path| drop(File::create_new(path).expect("create")));
}

fn create_again(dir: &Path) {
    remove_many(dir);
    create_many(dir);
}

fn stat_many(dir: &Path) {
    each_empty(dir, |path| assert!(path.exists(), "stat"));
}

fn unlink_many(dir: &Path) {
    each_empty(dir, |path| fs::remove_file(path).expect("unlink"));
}

fn remove_small(dir: &Path) {
    let _ = fs::remove_dir_all(dir.join("small"));
    fs::create_dir(dir.join("small")).expect("mkdir");
}

fn write_small(dir: &Path) {
    let data = Rng::new(2).bytes(SMALL_BYTES);
    for i in 0..SMALL {
        fs::write(dir.join("small").join(i.to_string()), &data).expect("write");
    }
    // All of them durable: syncfs where the filesystem hears of it, fsync of the root for kosfs.
    let file = File::open(dir).expect("open");
    rustix::fs::syncfs(file).expect("syncfs");
    File::open(root(dir)).and_then(|root| root.sync_all()).expect("fsync of the root");
}

/// The root of the filesystem that `dir` is on.
fn root(dir: &Path) -> &Path {
    let dev = |path: &Path| fs::metadata(path).expect("stat").dev();
    dir.ancestors().take_while(|path| dev(path) == dev(dir)).last().unwrap_or(dir)
}
