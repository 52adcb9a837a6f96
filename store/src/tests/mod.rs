//! The store as its callers see it.

mod contents;
mod failures;
mod threads;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Location, Medium, Store, segment};

const BLOCK: usize = 4096;
/// So that a few shards fill a segment.
const SMALL: u64 = 8 * BLOCK as u64;

/// Directories of `n` places that vanish at the end.
struct Dirs {
    _root: TempDir,
    dirs: Vec<PathBuf>,
}

impl Dirs {
    fn new(n: usize) -> Self {
        let root = TempDir::new().expect("temporary directory");
        let dirs = (0..n).map(|i| root.path().join(format!("disks/{i}"))).collect();
        Self { _root: root, dirs }
    }

    fn open(&self, live: &[(usize, Location)]) -> Store {
        Store::open_sized(&self.dirs, live.iter().copied(), Medium::Disk, SMALL).expect("opens")
    }

    fn dir(&self, place: usize) -> &Path {
        &self.dirs[place]
    }

    /// Numbers of the segment files of a place.
    fn segments(&self, place: usize) -> Vec<u64> {
        segments(self.dir(place))
    }
}

fn segments(dir: &Path) -> Vec<u64> {
    let names = fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").file_name());
    let mut numbers: Vec<u64> = names.filter_map(|n| segment::number(n.to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}

/// `blocks` blocks that tell `seed`.
fn bytes(seed: u64, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK / 8).flat_map(|i| (seed << 32 | i as u64).to_le_bytes()).collect()
}

fn put(store: &Store, place: usize, seed: u64, blocks: usize) -> Location {
    let bytes = bytes(seed, blocks);
    let (head, tail) = bytes.split_at(BLOCK / 2);
    store.append(place, &[head, tail]).expect("appends")
}

#[track_caller]
fn holds(store: &Store, place: usize, location: Location, seed: u64) {
    let mut out = vec![0; location.len as usize];
    store.read(place, location, 0, &mut out).expect("reads");
    assert!(out == bytes(seed, out.len() / BLOCK), "other bytes at {location:?}");
}

/// Blocks of 512 bytes that the files of a directory take.
fn blocks_used(dir: &Path) -> u64 {
    fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").metadata().expect("stat").blocks()).sum()
}
